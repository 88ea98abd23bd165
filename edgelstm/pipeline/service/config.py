"""The pipeline file: what may stand in it. Needs pydantic (``edgelstm[serve]``)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import Field

from edgelstm.files import one_file
from edgelstm.pipeline.outputs import Units
from edgelstm.pipeline.service.config_sinks import (
    AlarmSection,
    Finite,
    Name,
    Seconds,
    Section,
    Sinks,
    Text,
    targets,
    wrong_sink,
)
from edgelstm.pipeline.service.policies import GAP, Bad, Late, Loss, Overload
from edgelstm.pipeline.service.redact import SECRET, hidden
from edgelstm.pipeline.service.writer import SinkOverload
from edgelstm.pipeline.sinks import Options, is_address, shown
from edgelstm.pipeline.sources import Source, streams_named

HTTP = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"


class ModelSection(Section):
    """A model. All streams of a model advance in one call."""

    path: Text = Field(
        description="A step graph or window (.onnx), an engine (.plan), or a .safetensors that is exported when the service starts."
    )
    then: Name | None = Field(
        default=None,
        description="Another model of this file that takes what this one gives, each with states of its own; streams are those of the first.",
    )
    device: Text | None = Field(
        default=None, description="cpu, cuda or cuda:N; without it, cpu for .onnx and cuda for an engine."
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="On the CPU; without it, the models share the processors evenly."
    )
    max_wait: Annotated[float, Field(ge=0, le=60)] = Field(
        default=0.01,
        description="Seconds that a call waits, from the first frame that came, for the other streams whose next frame is expected.",
    )

    ranges: dict[Text, Annotated[list[Finite], Field(min_length=2, max_length=2)]] = Field(
        default_factory=dict,
        description="Lowest and highest value of states by name: one that leaves them is bad, see the streams' `bad`.",
    )
    calibration: Text | None = Field(
        default=None,
        description="A file of `edgelstm calibrate`: no state may leave `margin` times the range that it had there.",
    )
    margin: Annotated[float, Field(ge=1, le=1e6)] = Field(default=2.0, description="See `calibration`.")
    hang_after: Seconds | None = Field(
        default=None,
        description="Seconds of one step after which it counts as hanging: its streams have failed.",
    )
    watch: bool = Field(
        default=False,
        description="Watch the model's file: another one of the same Signature takes over between two frames, states carried.",
    )
    compatible: bool = Field(
        default=False,
        description="States mean the same to whatever file takes over, as after a short retraining. Without it, a first step has to be alike, as in another precision.",
    )


class StreamSection(Section):
    """A source, its policies, and where its outputs go."""

    model: Name | None = Field(
        default=None,
        description="Whose stream it is; may be left out where there is one model, or one with others behind it.",
    )
    source: Text | Annotated[dict[Text, Text], Field(min_length=2, max_length=16)] = Field(
        description="As `edgelstm run --source`. A table with a key is a stream for each value. Several by input name, { left = ..., right = ... }, are paired by time."
    )
    sink: Sinks = Field(
        default_factory=list,
        description="As `edgelstm run --output`, or an address, one or several, or tables with options; {stream} is the stream's name. A .jsonl is appended to, line by line.",
    )
    pair_within: Seconds = Field(
        default=0.02,
        description="Of several sources: seconds by which the times of frames that go together may differ; others are dropped and counted.",
    )
    preprocess: Text | Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, description="As `edgelstm run --preprocess`, in place of what the model declares."
    )
    postprocess: Text | Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, description="As `edgelstm run --postprocess`, in place of what the model declares."
    )
    units: Units | None = Field(
        default=None,
        description="As `edgelstm run --units`: model, physical or source. Without it, physical in maps and pictures with captions, else model.",
    )
    hop: Annotated[int, Field(ge=1)] | None = Field(default=None, description="As `edgelstm run --hop`.")
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="The first frames of the source only."
    )
    follow: bool = Field(default=False, description="Wait for further files of a folder, or rows of a table.")
    rate: Seconds | None = Field(
        default=None, description="Frames a second at which the source is read; without it, as they come."
    )
    queue: Annotated[int, Field(ge=1, le=10000)] | None = Field(
        default=None,
        description="Frames that may wait for the model; without it 4, and where `block` meets small frames as many as 2 MiB hold, at most 64. With a key, of each stream.",
    )
    overload: Overload = Field(
        default="block",
        description="When the queue is full: block holds the source up, drop_oldest drops the oldest frame, latest keeps the newest only.",
    )
    max_gap: Seconds | None = Field(
        default=None,
        description="Seconds between two time stamps above which frames are missing; without it, where the source says so.",
    )
    gap: Annotated[str, Field(pattern=f"^({GAP})$")] = Field(
        default="hold",
        description="At a gap: hold the state, reset it, repeat:N steps the last frame again for each missing one, N at most, blank:N one of zeros.",
    )
    late: Late = Field(
        default="drop",
        description="A time stamp that is not after the last: drop the frame, step it all the same, or reset the state and step it.",
    )
    lost_after: Seconds | None = Field(
        default=None, description="Seconds without a frame after which the source counts as lost."
    )
    loss: Loss = Field(
        default="keep",
        description="When the source is lost: keep the state, reset_on_loss, or reset_on_return with its first frame.",
    )
    retries: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="How often a source that fails is opened again; a frame starts the count anew."
    )
    retry: Seconds = Field(
        default=1.0,
        description="Seconds to the first of these tries; each further wait is twice as long, 60 at most.",
    )
    cut: Literal["none", "reset"] = Field(
        default="none", description="When a frame has nothing to do with the one before: reset the state."
    )
    cut_above: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="The mean absolute difference of two frames, averaged down to at most 32 x 32, from which on `cut` takes the second for another scene; in the frames' units.",
    )
    hang_after: Seconds | None = Field(
        default=None,
        description="Seconds without a frame, or in one write of a sink, after which it counts as hanging: a source is left behind and opened again as one that failed, a sink is given up.",
    )
    isolate: Literal["none", "process"] = Field(
        default="none",
        description="process: the source runs in a process of its own, whose end, a crash too, is a failure of that source alone (Linux; not for sound).",
    )
    bad: Bad = Field(
        default="skip",
        description="NaN or infinity. A bad frame is never stepped; rollback and reset also set the state back. A bad state goes back to that before the frame (skip), to the one kept last (rollback), to the initial one (reset).",
    )
    keep_every: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=100, description="Frames from one kept state to the next, for rollback."
    )
    keep_frames: Text | None = Field(
        default=None,
        description="A folder for the last frames before a state went bad, with the state before them: an .npz that `edgelstm run --begin` steps again.",
    )
    keep_seconds: Seconds = Field(
        default=5.0,
        description="Seconds of frames that `keep_frames` keeps; no file is written sooner after another.",
    )
    keep_files: Annotated[int, Field(ge=1, le=10000)] = Field(
        default=8, description="Files of each stream in `keep_frames`; the oldest gives way."
    )
    keep_mib: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=64,
        description="MiB that the frames of `keep_frames` may have, in memory and in a file: of more the newest.",
    )
    deadline: Seconds | None = Field(
        default=None,
        description="Seconds from a frame's arrival to its output; those that take longer are counted.",
    )
    sink_queue: Annotated[int, Field(ge=1, le=100000)] = Field(
        default=64, description="Outputs that may wait for each sink."
    )
    sink_overload: SinkOverload | None = Field(
        default=None,
        description="When that queue is full: drop_oldest output, or block, which holds up the stream. Without it, files whose source can wait block.",
    )

    alarms: Annotated[dict[Name, AlarmSection], Field(max_length=64)] = Field(
        default_factory=dict, description="Alarms on its outputs, by name."
    )

    @property
    def sources(self) -> dict[str, str]:
        """All of them, by input name; of one source, under no name."""
        return {"": self.source} if isinstance(self.source, str) else dict(self.source)

    def places(self, source: Source | None) -> int:
        """Streams that it has at one time: as its source says, or where that is not there yet as its own words do."""
        if source is not None:
            return source.streams
        return streams_named(self.source) if isinstance(self.source, str) else 1

    @property
    def sinks(self) -> tuple[str, ...]:
        """Where outputs and events go, all of them."""
        alarms = [where for alarm in self.alarms.values() for where, _ in alarm.targets]
        return (*(where for where, _ in self.targets), *alarms)

    @property
    def targets(self) -> tuple[tuple[str, Options], ...]:
        """The same with the options of each."""
        return targets(self.sink)


class ServiceSection(Section):
    """What belongs to no stream."""

    threads: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Processors that the models share; without it, all there are."
    )
    drain: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=10.0, description="Seconds that steps and sinks have to finish when the service is stopped."
    )
    checkpoint: Text | None = Field(
        default=None,
        description="A folder for checkpoints; the service goes on from the newest when it starts.",
    )
    checkpoint_every: Seconds = Field(default=30.0, description="Seconds from one checkpoint to the next.")
    report: Annotated[float, Field(ge=0)] = Field(
        default=60.0, description="Seconds from one line of counters in the log to the next; 0 for none."
    )
    stay: bool = Field(
        default=False,
        description="Go on when every source has ended, until it is stopped: streams may be added.",
    )
    reload: bool = Field(
        default=False,
        description="Watch this file: what changes in it is done, to the streams it touches and to no others.",
    )

    http: Annotated[str, Field(pattern=HTTP)] | None = Field(
        default=None,
        description="HOST:PORT of the page, the API and the metrics: 127.0.0.1:8080. Addresses that other machines reach need a token.",
    )
    token: Annotated[str, Field(min_length=8, max_length=256, pattern=r"^[ -~]+$")] | None = Field(
        default=None,
        description='What callers have to know: "${TOKEN}". It also lets them add and change streams.',
    )
    hosts: Annotated[list[Text], Field(max_length=64)] = Field(
        default_factory=list,
        description="Names by which it is called, beside addresses, localhost and the machine's own name.",
    )
    tls_cert: Text | None = Field(default=None, description="A certificate (PEM): it answers by https.")
    tls_key: Text | None = Field(default=None, description="Its key (PEM).")


class Config(Section):
    """A pipeline file."""

    service: ServiceSection = Field(default_factory=lambda: ServiceSection())
    models: Annotated[dict[Name, ModelSection], Field(min_length=1, max_length=256)] = Field(
        description="Models by name."
    )
    streams: Annotated[dict[Name, StreamSection], Field(min_length=1, max_length=4096)] = Field(
        description="Streams by name."
    )

    @property
    def heads(self) -> tuple[str, ...]:
        """Models that stand behind no other: those that streams are of."""
        behind = {model.then for model in self.models.values()}
        return tuple(name for name in self.models if name not in behind)

    def chain(self, name: str) -> tuple[str, ...]:
        """A model and those behind it, in their order."""
        found, here = [name], self.models[name].then
        while here is not None and here in self.models and here not in found:
            found.append(here)
            here = self.models[here].then
        return tuple(found)

    def head(self, name: str) -> str:
        """The model that streams are of which go through ``name``."""
        return next((head for head in self.heads if name in self.chain(head)), name)


#: Where a key may be wrong though it is well formed: (path in the file, what was found, what is expected).
Wrong = tuple[tuple[str, ...], str, str]


def cross_check(config: Config) -> Wrong | None:
    """What no single key shows."""
    amiss = _wrong_service(config.service)
    if amiss is not None:
        return amiss
    amiss = _wrong_series(config)
    if amiss is not None:
        return amiss
    models, taken = list(config.heads), dict[str, str]()
    for name, stream in config.streams.items():
        where = ("streams", name)
        if stream.model is None and len(models) > 1:
            return (*where, "model"), "nothing", f"one of {', '.join(models)}"
        if stream.model is not None and stream.model not in models:
            named = stream.model
            if named in config.models:
                named = f"{named}, which stands behind {config.head(named)}"
            return (*where, "model"), named, f"one of {', '.join(models)}"
        if (stream.cut == "none") != (stream.cut_above is None):
            have, lack = ("cut", "cut_above") if stream.cut_above is None else ("cut_above", "cut")
            return (*where, have), f"{have} without {lack}", "both"
        word = stream.gap.partition(":")[0]
        if word in ("repeat", "blank") and stream.max_gap is None:
            return (*where, "gap"), f"{stream.gap} without max_gap", "max_gap too: how long a gap is"
        for sink, options in stream.targets:
            if (found := wrong_sink(sink, options)) is not None:
                return (*where, "sink"), *found
            path = _place(sink, name)
            if path is not None and path in taken:
                whose = f"{sink.replace('{stream}', name)}, which stream {taken[path]} writes"
                return (*where, "sink"), whose, "a path of its own, that differs in more than case"
            if path is not None:
                taken[path] = name
    for name, stream in config.streams.items():
        for alarm, section in stream.alarms.items():
            at = ("streams", name, "alarms", alarm)
            if (wrong := section.wrong()) is not None:
                key, *words = wrong
                return (*at, key), words[0], words[1]
            for sink, _ in section.targets:
                path = _place(sink.replace("{alarm}", alarm), name)
                if path is not None and path in taken:
                    whose = f"{shown(sink)}, where outputs of {taken[path]} go"
                    return (*at, "sink"), whose, "another path, that differs in more than case"
    return None


def _place(sink: str, stream: str) -> str | None:
    """What two streams may not share: a file, which on many disks is the same in other letters, or the address of a picture; None for what they may."""
    path = sink.replace("{stream}", stream)
    if is_address(path):
        scheme, _, rest = path.partition("://")
        is_picture = scheme.lower() in ("mjpeg", "rtsp") and rest.partition("/")[2]
        return path if is_picture else None
    return None if path == "-" else one_file(path)


def _wrong_series(config: Config) -> Wrong | None:
    """What may stand behind a model: one that is there, and behind no other."""
    before: dict[str, str] = {}
    for name, model in config.models.items():
        if model.then is None:
            continue
        where = ("models", name, "then")
        if model.then not in config.models:
            return where, model.then, f"one of {', '.join(n for n in config.models if n != name)}"
        if model.then in before:
            expected = "a section of its own for it; the file may be the same"
            return where, f"{model.then}, which stands behind {before[model.then]}", expected
        before[model.then] = name
    for name in config.models:
        if not any(name in config.chain(head) for head in config.heads):
            return ("models", name, "then"), "a circle of models", "a first one that stands behind no other"
    return None


def secrets(config: Config) -> set[str]:
    """What no log may show, wherever it came from."""
    found = {word for section in config.streams.values() for word in secrets_of(section)}
    found |= set(_misplaced(config.model_dump()))
    return found if config.service.token is None else {*found, config.service.token}


def secrets_of(section: StreamSection) -> set[str]:
    """Of one stream: passwords and headers of its sinks."""
    every = [options for _, options in section.targets]
    every += [o for a in section.alarms.values() for _, o in a.targets]
    found = {v for o in every for name, v in (o.headers or {}).items() if SECRET.search(name)}
    found |= {word for value in found for word in value.split()}  # of "Bearer WORD", both
    found |= {o.password for o in every if o.password is not None}
    return found | {
        word for where in (*section.sources.values(), *section.sinks) for word in _of_address(where)
    }


#: Keys whose values are paths and addresses: these have names of their own, and their own ways of being shown.
_PLACES = frozenset(
    ("path", "calibration", "checkpoint", "source", "sink", "to", "keep_frames", "detector", "tls_cert", "tls_key", "ca", "cert", "key")
)  # fmt: skip


def _misplaced(value: object, key: str = "") -> Iterator[str]:
    """Texts in other keys that look like a secret: nobody may read them in an error about that key."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _misplaced(each, name)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _misplaced(each, key)
    elif isinstance(value, str) and key not in _PLACES and hidden(key, value) != value:
        yield value


def _of_address(where: str) -> set[str]:
    """The password in an address, as it stands there and as it is meant."""
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@:]*:([^/?#]*)@", where)
    return set() if found is None else {found.group(1), unquote(found.group(1))}


def _wrong_service(service: ServiceSection) -> Wrong | None:
    if (service.tls_cert is None) != (service.tls_key is None):
        have, lack = ("tls_cert", "tls_key") if service.tls_key is None else ("tls_key", "tls_cert")
        return ("service", have), f"{have} without {lack}", "both"
    if service.http is None:
        return None
    host, _, port = service.http.rpartition(":")
    if int(port) > 65535:
        return ("service", "http"), service.http, "a port of 0 to 65535"
    if service.token is None and not is_loopback(host.strip("[]")):
        return (
            ("service", "http"),
            f"{service.http}, which other machines reach, without a token",
            'token = "${TOKEN}" too, or 127.0.0.1',
        )
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
