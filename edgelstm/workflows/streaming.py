"""The loop of run: sources side by side through one model or several in series, each stream with its own state."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, without_drive
from edgelstm.graph.signature import Signature
from edgelstm.pipeline import Frame, Inputs, Outputs, Sink
from edgelstm.pipeline.outputs import handed_on
from edgelstm.pipeline.sinks.panels import INPUT
from edgelstm.pipeline.sources.address import shown
from edgelstm.runtime.finite import all_finite, can_be_infinite
from edgelstm.runtime.frames import BadFrame
from edgelstm.runtime.protocol import Array
from edgelstm.runtime.runner import Runner
from edgelstm.verify.forecast import ForecastScorer

log = logging.getLogger(__name__)

#: Of how many frames that are left out it is said why.
TOLD = (1, 2, 3, 10, 100, 1000, 10_000)
#: What a source is called that is alone and has no name.
ONLY = "main"


@dataclass(frozen=True)
class Step:
    """What one step of one stream took and gave; arrays are valid until the next.

    frame: the raw frame (of a window: its last). inputs, outputs: of the model (the first's, the last's of several in
    series), in its own units, without the stream axis. state(): what the state is worth now, by state name. fresh: where a hop cuts
    windows, how many frames of one the window before had not.
    """

    stream: str
    signature: Signature
    frame: Frame
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    seconds: float
    state: Callable[[], dict[str, Array]]
    fresh: int | None = None
    #: Whether the state began anew since the stream's last step.
    anew: bool = False


@dataclass
class Job:
    """One source: what feeds the model, and where what comes out goes."""

    name: str
    steps: Iterator[tuple[Frame, dict[str, Array]]]
    inputs: Inputs
    sink: Sink | None
    #: Makes the scorer of a stream; each has its own.
    scorer: Callable[[], ForecastScorer] | None = None
    scorers: dict[str, ForecastScorer] = field(default_factory=dict)
    #: Streams of which nothing more comes; with windows, their last frame may be in no step.
    ended: set[str] = field(default_factory=set)
    #: Streams of which a frame was skipped: time passed that nobody saw.
    passed: set[str] = field(default_factory=set)
    #: What is done with frames that the source could not read, and how many were left out.
    policy: BadFrame = "error"
    left_out: int = 0
    #: Its sink names the stream in every row, also one that is alone.
    named: bool = False

    def stream(self, frame: Frame) -> str:
        """Whose state the frame goes on."""
        if frame.stream is None:
            return self.name
        return frame.stream if self.name == ONLY else f"{self.name}:{frame.stream}"

    @property
    def windows(self) -> bool:
        """Whether several frames make a step."""
        return self.inputs.window is not None

    @property
    def fresh(self) -> int | None:
        """Frames of a window that a hop cuts which are new."""
        return self.inputs.hop if self.windows and self.inputs.sliding else None

    def watched(self, source: Iterable[Frame]) -> Iterator[Frame]:
        """The frames of ``source``; those who end are kept in mind, and what forecasts of windows are held against is shown."""
        for frame in source:
            if frame.last:
                self.ended.add(self.stream(frame))
            wrong = frame.bad or frame.late
            if wrong is not None:
                if self.policy == "skip":
                    self._leave_out(frame, wrong)
                    continue
                if self.policy == "error" or frame.late is not None or frame.is_empty:
                    raise wrong
                frame = replace(frame, bad=None)
            if self.scorer is not None and self.windows:
                self._arrived(self.scorer, frame)
            yield frame

    def _leave_out(self, frame: Frame, why: EdgeLstmError) -> None:
        self.left_out += 1
        if self.left_out in TOLD:
            log.warning("frame %d is left out, %d so far: %s", frame.index, self.left_out, why)
        self.passed.add(self.stream(frame))
        self.inputs.forget(frame.stream)

    def _arrived(self, scorer: Callable[[], ForecastScorer], frame: Frame) -> None:
        name = self.stream(frame)
        ready = self.inputs(frame)
        if not all(all_finite(ready[t.name], t.dtype) for t in self.inputs.specs if can_be_infinite(t.dtype)):
            self.passed.add(name)
            return
        gap = frame.gap is not None or name in self.passed
        self.passed.discard(name)
        self.scorer_of(name, scorer).arrived(ready, frame.data, gap=gap)

    def scorer_of(self, name: str, scorer: Callable[[], ForecastScorer]) -> ForecastScorer:
        """That of a stream."""
        return self.scorers.get(name) or self.scorers.setdefault(name, scorer())


@dataclass
class Stage:
    """A model of several in series."""

    runner: Runner
    inputs: Inputs
    outputs: Outputs
    #: How long the last call of the model took.
    seconds: float = 0.0
    #: Streams whose frame it skipped in that call.
    skipped: set[str] = field(default_factory=set)

    def step(self, arrays: Mapping[str, dict[str, Array]]) -> dict[str, Mapping[str, Array]]:
        """Outputs by stream; skipped streams are left out."""
        streams = {name: self.runner.stream(name) for name in arrays}
        before = {name: stream.skipped for name, stream in streams.items()}
        if len(arrays) == 1:
            [(name, one)] = arrays.items()
            step = streams[name].step
            started = time.perf_counter()
            made = step(one)
            self.seconds = time.perf_counter() - started
            found = {name: made}
        else:
            started = time.perf_counter()
            found = self.runner.step(arrays)
            self.seconds = time.perf_counter() - started
        self.skipped = {name for name, stream in streams.items() if stream.skipped != before[name]}
        return {name: made for name, made in found.items() if name not in self.skipped}


@dataclass
class Counts:
    """What the loop did."""

    frames: int = 0
    skipped: int = 0
    resets: int = 0
    milliseconds: list[float] = field(default_factory=list)


class Loop:
    """Rounds of one step of every source that has one."""

    def __init__(
        self,
        stages: list[Stage],
        jobs: list[Job],
        *,
        reset_on_gap: bool,
        beside: bool = False,
        observe: Callable[[Step], None] | None = None,
    ) -> None:
        self._observe, self._beside = observe, beside
        self._stages, self._jobs, self._reset = stages, list(jobs), reset_on_gap
        #: Streams that began anew and made no step since.
        self._anew: set[str] = set()
        self._several = len(jobs) > 1
        self._raw: dict[str, Any] = {}
        self.counts = Counts()

    def rounds(self) -> Iterator[int]:
        """Run to the end of all sources; yields how many steps a round took."""
        while self._jobs:
            due = [(job, step) for job in list(self._jobs) if (step := self._next(job)) is not None]
            if due:
                self._round(due)
                yield len(due)

    def _next(self, job: Job) -> tuple[Frame, dict[str, Array]] | None:
        step = next(job.steps, None)
        if step is None:
            self._jobs.remove(job)
        return step

    def _round(self, due: list[tuple[Job, tuple[Frame, dict[str, Array]]]]) -> None:
        frames = {job.stream(frame): (job, frame) for job, (frame, _) in due}
        arrays = {job.stream(frame): ready for job, (frame, ready) in due}
        self._leave(set(frames))
        for name, (_, frame) in frames.items():
            if frame.gap is not None and self._reset:
                self.counts.resets += 1
                self._anew.add(name)
                for stage in self._stages:
                    stage.runner.stream(name).reset()
                    stage.outputs.forget(name)
                for stage in self._stages[1:]:
                    stage.inputs.forget(name)
        try:
            made = self._through(arrays, frames)
        except EdgeLstmError as error:
            missing = [frame.missing for _, frame in frames.values() if frame.missing is not None]
            if not missing or error.found is None:
                raise
            found = f"{error.found} ({'; '.join(missing)})"
            raise EdgeLstmError(error.what, found=found, expected=error.expected, hint=error.hint) from error
        seconds = sum(stage.seconds for stage in self._stages)
        skipped: set[str] = set().union(*(stage.skipped for stage in self._stages))
        self.counts.skipped += len(skipped)
        if made:
            self.counts.milliseconds.append(seconds * 1e3)
        for name in skipped:
            frames[name][0].passed.add(name)
        for name, outputs in made.items():
            job, frame = frames[name]
            self.counts.frames += 1
            missed = name in job.passed and bool(self._stages[0].runner.signature.states)
            if name in job.passed and frame.gap is None:
                frame = replace(frame, gap="the frame before was skipped")
            job.passed.discard(name)
            if job.scorer is not None:
                scorer = job.scorer_of(name, job.scorer)
                if not job.windows:
                    scorer.arrived(arrays[name], frame.data, gap=frame.gap is not None)
                if missed:
                    scorer.pass_over()
                else:
                    scorer.observe(repeated(scorer, arrays[name], job.windows), outputs)
            if self._observe is not None:
                last = self._stages[-1].runner
                self._observe(
                    Step(
                        name,
                        last.signature,
                        frame,
                        arrays[name],
                        outputs,
                        seconds,
                        last.stream(name).values,
                        job.fresh,
                        name in self._anew,
                    )
                )
            self._anew.discard(name)
            if job.sink is not None:
                shown = replace(frame, stream=name) if self._several or job.named else frame
                job.sink.write(shown, self._shown(name, outputs, arrays[name]), seconds)
        self._leave(set())

    def _shown(
        self, name: str, outputs: Mapping[str, Array], arrays: Mapping[str, Array]
    ) -> dict[str, Array]:
        """What a sink is given: outputs in the units asked for, and the first input beside them where that is wanted."""
        last = self._stages[-1].outputs
        made = last(outputs, self._raw[name], name)
        if self._beside:
            spec = self._stages[0].runner.signature.inputs[0]
            made[INPUT] = last.frame(arrays[spec.name], spec.dtype)
        return made

    def _leave(self, staying: set[str]) -> None:
        """Close the streams that ended: their places are free for others."""
        for job in self._jobs:
            for name in job.ended - staying:
                for stage in self._stages:
                    stage.outputs.forget(name)
                    if name in stage.runner.streams:
                        stage.runner.stream(name).close()
            job.ended &= staying

    def _through(
        self, arrays: dict[str, dict[str, Array]], frames: Mapping[str, tuple[Job, Frame]]
    ) -> dict[str, Mapping[str, Array]]:
        """The last stage's outputs by stream; a stage's raw frame is what it was handed."""
        self._raw = {name: frame.data for name, (_, frame) in frames.items()}
        made = self._stages[0].step(arrays)
        for before, stage in zip(self._stages, self._stages[1:], strict=False):
            ready = {}
            for name, outputs in made.items():
                data = handed_on(before.outputs(outputs, self._raw[name], name), stage.runner.signature)
                self._raw[name] = data
                given = stage.inputs.push(Frame(frames[name][1].index, None, name, data), name)
                if given is not None:
                    ready[name] = given
            stage.seconds, stage.skipped = 0.0, set()
            made = stage.step(ready) if ready else {}
        return made


def repeated(scorer: ForecastScorer, arrays: Mapping[str, Array], windows: bool = False) -> dict[str, Array]:
    """The forecast that nothing changes: the frame that came (the last of a window), for every lead (persistence)."""
    frame = next(iter(arrays.values()))
    if windows:
        frame = frame[-1]
    return {scorer.output: np.broadcast_to(frame, (scorer.leads, *frame.shape))}


def named_sources(source: PathLike | Sequence[PathLike] | Mapping[str, PathLike]) -> dict[str, str]:
    """Sources by the name of their stream: ``NAME=SOURCE``, else the name of the file or folder.

    One source alone is called ``main``. Raises EdgeLstmError for two of one name, and for what is no path or address.
    """
    if isinstance(source, Mapping):
        return {str(name): _spec(each) for name, each in source.items()}
    several = source if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    specs = [_spec(each) for each in several]
    if not specs:
        raise EdgeLstmError("no source", expected="at least one")
    named: dict[str, str] = {}
    for spec in specs:
        name, equals, rest = spec.partition("=")
        if not equals or not name.replace("-", "_").isidentifier() or Path(spec).exists():
            name, rest = (ONLY if len(specs) == 1 else Path(without_drive(spec).partition(":")[0]).stem), spec
        if name in named:
            raise EdgeLstmError(
                f"two streams called {name!r}",
                found=f"{shown(named[name])}, {shown(rest)}",
                hint="Name them: --source left=... --source right=...",
            )
        named[name] = rest
    return named


def _spec(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    raise EdgeLstmError(
        "a source",
        found=f"a {type(source).__name__}",
        expected="a path or an address",
        hint="Frames that are in memory are stepped by Runner.open(model).stream(name).step(frame), or saved as .npy",
    )


def out_path(out: str, name: str, several: bool) -> str:
    """The path of one stream's outputs: ``{stream}`` in ``out`` is its name; without it, several get it before the suffix."""
    is_part = "{stream}" in out or (several and out != "-")
    if is_part and (re.search(r"[/\\\0]", name) or name in (".", "..")):
        raise EdgeLstmError(f"a file for stream {name!r}", expected="a name without / in it")
    if "{stream}" in out:
        return out.replace("{stream}", name)
    if not several or out == "-":
        return out
    if out.endswith("/"):
        return f"{out}{name}/"
    path = Path(out)
    return str(path.with_name(f"{path.stem}-{name}{path.suffix}"))
