"""The loop of run: sources side by side through one model or several in series, each stream with its own state."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import Frame, Inputs, Outputs, Sink
from edgelstm.runtime.protocol import Array
from edgelstm.runtime.runner import Runner
from edgelstm.verify.forecast import ForecastScorer


@dataclass
class Job:
    """One source: what feeds the model, and where what comes out goes."""

    name: str
    steps: Iterator[tuple[Frame, dict[str, Array]]]
    inputs: Inputs
    sink: Sink | None
    scorer: ForecastScorer | None = None
    #: A frame was skipped, so time passed that the scorer did not see.
    passed: bool = False

    def stream(self, frame: Frame) -> str:
        """Whose state the frame goes on."""
        return self.name if frame.stream is None else f"{self.name}:{frame.stream}"


@dataclass
class Stage:
    """A model of several in series."""

    runner: Runner
    inputs: Inputs
    outputs: Outputs

    def step(self, arrays: Mapping[str, dict[str, Array]]) -> dict[str, Mapping[str, Array]]:
        """Outputs by stream; skipped streams are left out."""
        streams = {name: self.runner.stream(name) for name in arrays}
        before = {name: stream.skipped for name, stream in streams.items()}
        if len(arrays) == 1:
            [(name, one)] = arrays.items()
            found = {name: streams[name].step(one)}
        else:
            found = dict(self.runner.step(arrays))
        return {name: made for name, made in found.items() if streams[name].skipped == before[name]}


@dataclass
class Counts:
    """What the loop did."""

    frames: int = 0
    skipped: int = 0
    resets: int = 0
    milliseconds: list[float] = field(default_factory=list)


class Loop:
    """Rounds of one step of every source that has one."""

    def __init__(self, stages: list[Stage], jobs: list[Job], *, reset_on_gap: bool) -> None:
        self._stages, self._jobs, self._reset = stages, list(jobs), reset_on_gap
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
        for name, (_, frame) in frames.items():
            if frame.gap is not None and self._reset:
                self.counts.resets += 1
                for stage in self._stages:
                    stage.runner.stream(name).reset()
                for stage in self._stages[1:]:
                    stage.inputs.forget(name)
        started = time.perf_counter()
        made = self._through(arrays, frames)
        seconds = time.perf_counter() - started
        self.counts.skipped += len(due) - len(made)
        if made:
            self.counts.milliseconds.append(seconds * 1e3)
        for name in arrays.keys() - made.keys():
            frames[name][0].passed = True
        for name, outputs in made.items():
            job, frame = frames[name]
            self.counts.frames += 1
            if job.scorer is not None:
                gap = frame.gap is not None or job.passed
                job.scorer.arrived(arrays[name], frame.data, gap=gap)
                job.scorer.observe(repeated(job.scorer, arrays[name]), outputs)
                job.passed = False
            if job.sink is not None:
                job.sink.write(frame, self._stages[-1].outputs(outputs), seconds)
        for name, (_, frame) in frames.items():
            if frame.last:
                for stage in self._stages:
                    stage.runner.stream(name).close()

    def _through(
        self, arrays: dict[str, dict[str, Array]], frames: Mapping[str, tuple[Job, Frame]]
    ) -> dict[str, Mapping[str, Array]]:
        """The last stage's outputs by stream."""
        made = self._stages[0].step(arrays)
        for before, stage in zip(self._stages, self._stages[1:], strict=False):
            ready = {}
            for name, outputs in made.items():
                data = _handed_on(before.outputs(outputs), stage)
                given = stage.inputs.push(Frame(frames[name][1].index, None, name, data), name)
                if given is not None:
                    ready[name] = given
            made = stage.step(ready) if ready else {}
        return made


def _handed_on(outputs: Mapping[str, Array], stage: Stage) -> Array | dict[str, Array]:
    """Outputs of one model as the frame of the next: by name, or the only one for the only input."""
    names = [t.name for t in stage.runner.signature.inputs]
    if all(name in outputs for name in names):
        return {name: outputs[name].copy() for name in names}
    if len(outputs) == len(names) == 1:
        only: Array = next(iter(outputs.values())).copy()  # the next step writes over it
        return only
    raise EdgeLstmError(
        "models in series",
        found=f"outputs {', '.join(outputs)}",
        expected=f"the inputs of the next: {', '.join(names)}",
    )


def repeated(scorer: ForecastScorer, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The forecast that nothing changes: the frame that came, for every lead (persistence)."""
    frame = next(iter(arrays.values()))
    return {scorer.output: np.broadcast_to(frame, (scorer.leads, *frame.shape))}


def named_sources(source: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Sources by the name of their stream: ``NAME=SOURCE``, else the name of the file or folder.

    One source alone is called ``main``. Raises EdgeLstmError for two of one name.
    """
    if isinstance(source, Mapping):
        return dict(source)
    specs = [source] if isinstance(source, str) else list(source)
    if not specs:
        raise EdgeLstmError("no source", expected="at least one")
    named: dict[str, str] = {}
    for spec in specs:
        name, equals, rest = spec.partition("=")
        if not equals or not name.replace("-", "_").isidentifier() or Path(spec).exists():
            name, rest = ("main" if len(specs) == 1 else Path(spec.partition(":")[0]).stem), spec
        if name in named:
            raise EdgeLstmError(
                f"two streams called {name!r}",
                found=f"{named[name]}, {rest}",
                hint="Name them: --source left=... --source right=...",
            )
        named[name] = rest
    return named


def out_path(out: str, name: str, several: bool) -> str:
    """The path of one stream's outputs: ``{stream}`` in ``out`` is its name; without it, several get it before the suffix."""
    if "{stream}" in out:
        return out.replace("{stream}", name)
    if not several:
        return out
    if out.endswith("/"):
        return f"{out}{name}/"
    path = Path(out)
    return str(path.with_name(f"{path.stem}-{name}{path.suffix}"))
