"""serve: a pipeline file becomes a running service."""

from __future__ import annotations

import logging
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError, some
from edgelstm.files import PathLike, check_file, read_bytes
from edgelstm.runtime.identity import ModelStamp, model_identity
from edgelstm.runtime.outside import OutsideRange
from edgelstm.workflows.serve_check import Checked, try_first
from edgelstm.workflows.shipped import SHIPPED, shipped

if TYPE_CHECKING:
    from edgelstm.pipeline.service.config import Config, ModelSection, StreamSection
    from edgelstm.pipeline.service.control import Control
    from edgelstm.pipeline.service.follow import FileWatch, Follower, Prepare
    from edgelstm.pipeline.service.guard import Ranges
    from edgelstm.pipeline.service.parse import Parsed
    from edgelstm.pipeline.service.report import ServeReport
    from edgelstm.pipeline.service.service import Service
    from edgelstm.pipeline.sources.given import Frames
    from edgelstm.pipeline.web.listener import Listener

log = logging.getLogger("edgelstm.serve")

EXAMPLES = ("camera", "radar", "table", "rtsp", "audio")


class Pipeline:
    """A pipeline file, read and checked.

    >>> report = edgelstm.Pipeline.from_file("pipeline.toml").run()

    ``docs/serve.md`` says what may stand in it. Relative paths start at the file's folder.
    """

    def __init__(self, parsed: Parsed, base: Path, where: str) -> None:
        self.config = parsed.config
        self.redactor = parsed.redactor
        self._base, self._where = base, where
        self._service: Service | None = None
        self._stop = threading.Event()
        self._path: Path | None = None
        self._given: dict[str, Frames] = {}
        self._environment: Mapping[str, str] | None = None
        self._control: Control | None = None
        self._follower: Follower | None = None
        self._watch: FileWatch | None = None
        self._prepare: Prepare | None = None
        self._reloading = threading.Lock()
        #: By name and path of the model.
        self._model_watches: dict[tuple[str, str], FileWatch] = {}
        #: Where the service answers by HTTP, while it does.
        self.url: str | None = None

    def __repr__(self) -> str:
        return f"Pipeline({self._where}, streams {some(self.config.streams)})"

    @classmethod
    def from_file(
        cls,
        path: PathLike,
        environment: Mapping[str, str] | None = None,
        *,
        sources: Mapping[str, Frames] | None = None,
    ) -> Pipeline:
        """Read ``path``. ``environment`` takes the place of the process's for ``${NAME}``.

        sources: frames that this program makes itself, for streams whose ``source`` is ``"python:NAME"``. By name a callable that gives frames each time that
        the source is opened, or an iterable, whose frames are there once. A frame is an array, a mapping of arrays, or (seconds since
        1970, one of these).

        Raises EdgeLstmError that names line, key, what was found and what is allowed.
        """
        from edgelstm.pipeline.service.parse import read

        made = cls(read(path, environment), Path(path).resolve().parent, str(path))
        made._path, made._environment = Path(path).resolve(), environment
        made._given = dict(sources or {})
        return made

    @classmethod
    def from_text(
        cls,
        text: str,
        base: PathLike = ".",
        environment: Mapping[str, str] | None = None,
        *,
        sources: Mapping[str, Frames] | None = None,
    ) -> Pipeline:
        """The same from the text of a file whose relative paths start at ``base``."""
        from edgelstm.pipeline.service.parse import parse

        made = cls(parse(text, "pipeline", environment), Path(base).resolve(), "pipeline")
        made._given = dict(sources or {})
        return made

    def run(self) -> ServeReport:
        """Until every source ended or :meth:`stop`. Raises EdgeLstmError when something can't be opened at the start."""
        with self._listening() as listener, self._opened() as (service, prepare):
            self._service = service
            try:
                if self._stop.is_set():
                    service.stop()
                with warnings.catch_warnings(), self._steered(service, prepare, listener):
                    warnings.simplefilter("ignore", OutsideRange)  # it is in the log
                    report = service.run()
            finally:
                self._service = None
        report.failed = {name: self.redactor.text(text) for name, text in report.failed.items()}
        return report

    def stop(self) -> None:
        """End :meth:`run`: what is queued is stepped and written. Any thread, and a signal handler, may call it."""
        self._stop.set()
        service = self._service
        if service is not None:
            service.stop()

    @contextmanager
    def _listening(self) -> Iterator[Listener | None]:
        """The socket for HTTP: what is wrong with it is said before models are loaded."""
        settings = self.config.service
        if settings.http is None:
            yield None
            return
        from edgelstm.pipeline.service.outlets import placed
        from edgelstm.pipeline.web.listener import Listener

        tls = {
            k: placed(self._base, v)
            for k in ("tls_cert", "tls_key")
            if (v := getattr(settings, k)) is not None
        }
        listener = Listener(settings.model_copy(update=tls))
        try:
            self.url = listener.url
            yield listener
        finally:
            self.url = None
            listener.close()

    @contextmanager
    def _steered(self, service: Service, prepare: Prepare, listener: Listener | None) -> Iterator[None]:
        """While this lasts, others steer the service: from Python, by the file and by HTTP."""
        from edgelstm.pipeline.service.control import Control
        from edgelstm.pipeline.service.follow import FileWatch, Follower

        with ExitStack() as stack:
            self._control = Control(service)
            self._follower = Follower(self._control, prepare)
            self._prepare = prepare
            stack.callback(lambda: self._watch_models({}))
            self._watch_models(self.config.models)
            if self._path is not None:
                self._watch = FileWatch(self._path, self.reload, self.config.service.reload)
                stack.callback(self._watch.close)
            if listener is not None:
                from edgelstm import __version__
                from edgelstm.pipeline.web.logs import listening
                from edgelstm.pipeline.web.server import Server
                from edgelstm.pipeline.web.site import Site

                site = Site(
                    service,
                    self._control,
                    self.redactor,
                    stack.enter_context(listening(self.redactor)),
                    self.config.service,
                    self._section,
                    __version__,
                    self.reload if self._path is not None else None,
                    self.swap,
                )
                stack.enter_context(Server(site, listener))
            try:
                yield
            finally:
                self._control = self._follower = self._watch = None

    def swap(self, model: str, path: PathLike, *, compatible: bool | None = None) -> float | None:
        """Let another file take over from a running model, between two frames, the streams' states carried: of the same Signature, in another
        precision or with other weights. Gives how far its first step differs, as a share of the states' root mean square.

        compatible: states mean the same to it though a step differs by more than 0.2; None: as the model's section says. Raises
        EdgeLstmError, and the old one goes on, for a file that is half written, of another Signature, or not compatible.
        """
        service, prepare = self.control.service, self._prepare
        assert prepare is not None
        section = service.config.models.get(model)
        if section is None:
            there = ", ".join(service.config.models)
            raise EdgeLstmError(f"model {model!r}", found="no such model", expected=there)
        wanted = section.model_copy(update={"path": str(path)})
        made, _, digest = prepare(model, wanted)

        def check() -> None:
            if self._hash(wanted) != digest:
                raise EdgeLstmError(f"{path} is being written", hint="Write another file, then rename it")

        may = section.compatible if compatible is None else compatible
        return service.swap(model, made, digest, compatible=may, check=check)

    def _watch_models(self, models: Mapping[str, ModelSection]) -> None:
        """Swap each that is to be watched when its file changes, and watch no other any more."""
        from edgelstm.pipeline.service.follow import FileWatch
        from edgelstm.pipeline.service.outlets import placed

        wanted = {(name, section.path) for name, section in models.items() if section.watch}
        for key in set(self._model_watches) - wanted:
            self._model_watches.pop(key).close()
        for name, path in wanted - set(self._model_watches):
            changed = partial(self.swap, name, path)
            where = Path(placed(self._base, shipped(path)))
            self._model_watches[name, path] = FileWatch(
                where, changed, True, f"model {name}", ModelStamp(where)
            )

    def _section(self, given: Mapping[str, Any]) -> StreamSection:
        """A stream's section that somebody sent. Variables of the environment are not put in: they are the file's."""
        from edgelstm.pipeline.service.config import secrets_of
        from edgelstm.pipeline.service.parse import section
        from edgelstm.pipeline.service.redact import Redactor

        made = section(given)
        if any(spec.lower().startswith("gst:") for spec in made.sources.values()):
            raise EdgeLstmError(  # its elements read and write whatever files they like
                "source gst:...", found="sent to the service", expected="a GStreamer pipeline in the file"
            )
        self.redactor.learn(Redactor(secrets_of(made)))
        return made.model_copy(update={"source": _shipped_source(made)})

    @property
    def control(self) -> Control:
        """The running service's streams: added, removed, paused, reset, changed; for other threads than that of :meth:`run`.
        Raises EdgeLstmError before the service runs and after its end."""
        if self._control is None or not self._control.service.is_running:
            raise EdgeLstmError("the service is not running")
        return self._control

    def reload(self) -> dict[str, str]:
        """Read the file again and do what changed, to the streams it touches and to no others. Gives what could not be done: there
        the old goes on. Raises EdgeLstmError, and nothing changes, when the file is wrong."""
        from edgelstm.pipeline.service.parse import read

        _ = self.control
        if self._path is None or self._follower is None:
            raise EdgeLstmError("reload", found="a pipeline from a text", expected="one from a file")
        with self._reloading:  # read and done as one: of two versions the later one stays
            parsed = read(self._path, self._environment)
            self.redactor.learn(parsed.redactor)
            failed = self._follower.load(_shipped(parsed.config))
            self._watch_models(parsed.config.models)
        log.info("pipeline file: read again%s", f", {len(failed)} not taken over" if failed else "")
        return {name: self.redactor.text(text) for name, text in failed.items()}

    def ask_reload(self) -> None:
        """:meth:`reload` soon, by another thread; a signal handler may call it."""
        watch = self._watch
        if watch is not None:
            watch.ask()

    def check(self) -> Checked:
        """Open everything that :meth:`run` would, and close it again; nothing is written."""
        from edgelstm.pipeline.sinks import shown

        streams = {}
        with self._opened(writes=False) as (service, _):
            for channel in service.channels:
                try_first(channel, self._base)
                s = channel.section
                words = {
                    "overload": s.overload,
                    "gap": s.gap + (f" above {s.max_gap:g} s" if s.max_gap else ""),
                    "late": s.late,
                    "loss": s.loss,
                    "bad": s.bad,
                }
                source = "(not there yet)" if channel.source is None else channel.source.description
                streams[channel.name] = {
                    "model": " then ".join(service.config.chain(channel.loop.name)),
                    "source": self.redactor.text(source),
                    "sink": self.redactor.text(", ".join(map(shown, s.sinks))),
                    **words,
                }
        return Checked(self._where, streams)

    @contextmanager
    def _opened(self, writes: bool = True) -> Iterator[tuple[Service, Prepare]]:
        """The service, closed behind it, and what makes further models ready. Errors and our own log lines come without secrets."""
        from edgelstm.pipeline.service.redact import redact_logs
        from edgelstm.pipeline.service.service import EXPORTS, Service

        undo = redact_logs("edgelstm", self.redactor)
        try:
            with tempfile.TemporaryDirectory(prefix=EXPORTS) as folder:

                def prepare(name: str, section: ModelSection) -> tuple[Path, Ranges, str]:
                    path, digest = self._model(name, section.path, Path(folder))
                    return path, self._ranges(name, section, path), digest if writes else ""

                models = {name: prepare(name, section) for name, section in self.config.models.items()}
                service = Service(
                    _shipped(self.config),
                    {name: path for name, (path, _, _) in models.items()},
                    self._base,
                    ranges={name: ranges for name, (_, ranges, _) in models.items()},
                    hashes={name: digest for name, (_, _, digest) in models.items()},
                    writes=writes,
                    stop=self._stop,
                    given=self._given,
                )
                try:
                    yield service, prepare
                finally:
                    service.close()
        except EdgeLstmError as error:
            raise self.redactor.error(error) from None
        finally:
            undo()

    def _hash(self, section: ModelSection) -> str:
        """Of a model's files: it tells whether a state is of this model."""
        from edgelstm.pipeline.service.outlets import placed

        return model_identity(placed(self._base, shipped(section.path)))

    def _ranges(self, name: str, section: ModelSection, model: Path) -> dict[str, tuple[float, float]]:
        """Of the model's states: as given, else what its calibration saw, times the margin."""
        found: dict[str, tuple[float, float]] = {}
        if section.calibration is not None:
            from edgelstm.pipeline.service.outlets import placed
            from edgelstm.quantize.calibration import Calibration

            seen = Calibration.load(placed(self._base, shipped(section.calibration))).states
            for state, growth in seen.items():
                most = max(growth.largest, default=0.0) * section.margin
                if most > 0:
                    found[state] = (-most, most)
        found |= {state: (low, high) for state, (low, high) in section.ranges.items()}
        if found:
            self._check_ranges(name, section.device, model, found)
        return found

    def _check_ranges(self, name: str, device: str | None, model: Path, ranges: Ranges) -> None:
        from edgelstm.runtime.runner import Runner

        with Runner.open(model, device) as runner:
            states = [s.name for s in runner.signature.states]
        unknown = sorted(set(ranges) - set(states))
        if unknown:
            raise EdgeLstmError(
                f"model {name}: ranges of states", found=unknown[0], expected=f"states {', '.join(states)}"
            )
        for state, (low, high) in ranges.items():
            if not low < high:
                raise EdgeLstmError(
                    f"model {name}: range of state {state}",
                    found=f"{low:g} to {high:g}",
                    expected="low < high",
                )

    def _model(self, name: str, path: str, folder: Path) -> tuple[Path, str]:
        """The model's file, and its hash; a described ``.safetensors`` is exported, into ``folder``."""
        from edgelstm.pipeline.service.outlets import placed

        if "://" in path:
            raise EdgeLstmError(f"path of model {name}", found="an address", expected="a file")
        source = check_file(placed(self._base, shipped(path)))
        digest = model_identity(source)
        if source.suffix.lower() != ".safetensors":
            return source, digest
        from edgelstm.workflows.export import export

        log.info("model %s: exporting %s", name, source.name)
        made = Path(tempfile.mkdtemp(dir=folder)) / f"{name}.onnx"
        export(source, made, limit=8)
        if model_identity(source) != digest:
            raise EdgeLstmError(
                f"model {name}: {source} is being written", hint="Write another file, then rename it"
            )
        return made, digest


def _shipped(config: Config) -> Config:
    """With ``example:`` sources in place."""
    streams = {
        name: s.model_copy(update={"source": _shipped_source(s)}) for name, s in config.streams.items()
    }
    return config.model_copy(update={"streams": streams})


def _shipped_source(section: StreamSection) -> str | dict[str, str]:
    source = section.source
    return shipped(source) if isinstance(source, str) else {n: shipped(spec) for n, spec in source.items()}


def example(name: str) -> str:
    """The text of a pipeline file that runs as it is: one of ``EXAMPLES``."""
    if name not in EXAMPLES:
        raise EdgeLstmError("example", found=name, expected=", ".join(EXAMPLES))
    return read_bytes(shipped(f"{SHIPPED}serve/{name}.toml")).decode("utf-8")
