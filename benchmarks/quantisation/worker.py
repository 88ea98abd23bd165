"""One contestant in a process of its own: ``python benchmarks/quantisation/worker.py``.

Reads lines of JSON, answers each with one: first the job (:class:`Job`), then ``{"drift": N}`` and any number of
``{"steps": N}``. Ends when its input does; blocks in a read while it waits.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from cases import CASES
from data import frames

from edgelstm.graph.step import StepModel
from edgelstm.passes.tap import PREFIX, tap
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Array, Frame
from edgelstm.runtime.runner import Runner

#: Different test frames that are stepped through in turn while the clock runs.
TIMED_FRAMES = 64


@dataclass(frozen=True)
class Job:
    """``model``: the contestant's step graph. ``original``: our fp32 step graph of the same case. ``runtime``: a key of
    :data:`RUNTIMES`, opened with ``options``."""

    case: str
    original: str
    model: str
    runtime: str = "edgelstm"
    options: dict[str, Any] = field(default_factory=dict)
    threads: int = 2
    seed: int = 1

    def dumps(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


class Loop(Protocol):
    """A stream that runs; its state lives inside."""

    def prepare(self, frame: Frame) -> Any: ...
    def step(self, frame: Any) -> object: ...
    def outputs(self) -> dict[str, Array]: ...
    def states(self) -> dict[str, Array]: ...


class RunnerLoop:
    """Any step graph that carries our Signature, in our Runner, all its checks on."""

    def __init__(self, model: Path, *, threads: int) -> None:
        self._stream = Runner.open(model, threads=threads).stream("0")
        self._last: Any = None

    def prepare(self, frame: Frame) -> Any:
        """As it is."""
        return frame if len(frame) > 1 else next(iter(frame.values()))

    def step(self, frame: Any) -> None:
        """Advance by one frame."""
        self._last = self._stream.step(frame, copy=False)

    def outputs(self) -> dict[str, Array]:
        """The last step's outputs."""
        return dict(self._last)

    def states(self) -> dict[str, Array]:
        """What the current states are worth."""
        return self._stream.values()


class ComputedLoop(RunnerLoop):
    """The same graph, its states shown as the step computes them, before they are rounded for storage.

    Only that compares with peers that hand h over in float32 and round it when the next step reads it.
    """

    def __init__(self, model: Path, *, threads: int) -> None:
        step = StepModel.load(model)
        producers = {name: node for node in step.model.graph.node for name in node.output}
        self._shown = {}
        for state in step.signature.states:
            value = state.output
            while state.quantization is not None and producers[value].op_type in ("QuantizeLinear", "Mul"):
                value = producers[value].input[0]
            self._shown[state.name] = PREFIX + value
        program = OrtProgram(
            tap(step, [v.removeprefix(PREFIX) for v in self._shown.values()]).to_bytes(), threads=threads
        )
        self._stream = Runner(program).stream("0")

    def outputs(self) -> dict[str, Array]:
        """None: they are as the graph itself gives them."""
        return {}

    def states(self) -> dict[str, Array]:
        """As computed."""
        return {name: self._last[shown] for name, shown in self._shown.items()}


def _openvino(model: Path, **options: Any) -> Loop:
    from peer_openvino import OpenVinoLoop

    return OpenVinoLoop(model, **options)


RUNTIMES: dict[str, Callable[..., Loop]] = {"edgelstm": RunnerLoop, "openvino": _openvino}
#: Runtimes whose drift is taken by another loop than their time.
DRIFT: dict[str, Callable[..., Loop]] = {"edgelstm": ComputedLoop}


def main() -> None:
    """Serve one coordinator."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        job = Job(**json.loads(sys.stdin.readline()))
        loop = RUNTIMES[job.runtime](Path(job.model), threads=job.threads, **job.options)
        timed: list[Any] = []
        answer({})
        for line in sys.stdin:
            request = json.loads(line)
            if "drift" in request:
                shown = DRIFT.get(job.runtime)
                other = loop if shown is None else shown(Path(job.model), threads=job.threads, **job.options)
                answer(drift(job, other, request["drift"]))
                continue
            timed = timed or [loop.prepare(f) for f in frames(job.case, TIMED_FRAMES, job.seed)]
            answer({"nanoseconds": clock(loop, timed, request["steps"])})
    except (
        Exception
    ) as error:  # a contestant that can't run a model is a result, not a crash of the benchmark
        answer({"error": " ".join(f"{type(error).__name__}: {error}".split())})


def drift(job: Job, loop: Loop, count: int) -> dict[str, list[float]]:
    """Relative error in the 2-norm, ||q - f|| / ||f||, frame by frame: of h of all layers together, and of each output."""
    hidden = CASES[job.case].hidden
    reference = OrtProgram(job.original, threads=job.threads, spin=False)
    state = reference.new_state()
    errors: dict[str, list[float]] = {"h": []}
    for frame in frames(job.case, count, job.seed):
        wanted = reference.step([frame], state, [0])[0]
        loop.step(loop.prepare(frame))
        errors["h"].append(relative(hidden(loop.states()), hidden(reference.read_state(state, 0))))
        for name, value in loop.outputs().items():
            errors.setdefault(name, []).append(relative(value, wanted[name]))
    reference.close()
    return errors


def relative(value: Array, wanted: Array) -> float:
    """||value - wanted|| / ||wanted||."""
    difference = value.astype(np.float64) - wanted
    return float(np.linalg.norm(difference) / max(float(np.linalg.norm(wanted)), 1e-30))


def clock(loop: Loop, prepared: list[Any], steps: int) -> list[int]:
    """Nanoseconds of each step."""
    marks = [time.perf_counter_ns()]
    for i in range(steps):
        loop.step(prepared[i % len(prepared)])
        marks.append(time.perf_counter_ns())
    return [after - before for before, after in pairwise(marks)]


if __name__ == "__main__":
    main()
