"""Contestants on one model, each in a process of its own, given the machine in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgelstm.bench.job import FRAMES, Job, contestants_of
from edgelstm.bench.process import CHECKED, Failed, Worker
from edgelstm.bench.result import Entry, ModelResult, measured
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Array

Result = TypeVar("Result")
#: Outputs by name, [frames, streams, ...].
Outputs = Mapping[str, Array]

#: Seconds between two turns: long enough for thread pools of the last worker to fall asleep.
SETTLE = 0.05


class Race:
    """``jobs``: what each contestant is to open, by the name it has in the result, in that order. ``baseline``: whose
    times ratios are of; unless it is ``needed``, the others race on when it can't.

    One that fails leaves the race. ``with`` ends the processes.
    """

    def __init__(self, model: str, jobs: Mapping[str, Job], baseline: str, *, needed: bool = True) -> None:
        self._model = model
        self._jobs = jobs
        self._baseline = baseline
        self._needed = baseline if needed else None
        self._stack = ExitStack()
        self._workers: dict[str, Worker] = {}
        self._out: dict[str, Entry] = {}

    def __enter__(self) -> Race:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(
        self,
        rounds: int,
        steps: int,
        progress: Callable[[int], None] = lambda _: None,
        *,
        checked: int = CHECKED,
        reference: Outputs | None = None,
    ) -> ModelResult:
        """Open, compare, warm up, and let them take turns.

        What is compared are the outputs of the first ``checked`` frames, with the ``reference`` (which may have fewer
        streams: then those) or, without one, with the baseline's. Raises EdgeLstmError when a needed baseline fails.
        """
        for name, job in self._jobs.items():
            contestant = contestants_of(job)[job.contestant]
            if contestant.installed:
                self._workers[name] = self._stack.enter_context(Worker(job))
            else:
                self._out[name] = Entry(name, "missing", f"pip install 'edgelstm[{contestant.extra}]'")
        self._each(Worker.open)
        outputs = self._each(lambda worker: worker.check(Path(worker.job.folder), checked))
        truth = outputs.get(self._baseline) if reference is None else reference
        errors = {name: None if truth is None else difference(truth, y) for name, y in outputs.items()}
        # For caches, clocks and just-in-time compilers.
        self._each(lambda worker: worker.turn(max(FRAMES, steps // 5)))
        taken: list[dict[str, list[int]]] = []
        for _ in range(rounds):
            taken.append(self._each(lambda worker: worker.turn(steps), progress))
        base = [turn[self._baseline] for turn in taken] if self._baseline in self._workers else None
        for name, worker in self._workers.items():
            self._out[name] = measured(
                name,
                [turn[name] for turn in taken],
                base,
                error=errors[name],
                peak_memory=worker.peak,
                memory=worker.memory,
                idle=worker.idle,
            )
        window = Signature.loads(next(iter(self._jobs.values())).signature).window
        return ModelResult(self._model, window or 1, tuple(self._out[name] for name in self._jobs))

    def _each(
        self, action: Callable[[Worker], Result], progress: Callable[[int], None] | None = None
    ) -> dict[str, Result]:
        """Do it in every worker still in the race, one after the other."""
        results = {}
        for name, worker in list(self._workers.items()):
            time.sleep(SETTLE)
            try:
                results[name] = action(worker)
            except Failed as error:
                said = " ".join(str(error).split())[:300]
                if name == self._needed:
                    raise EdgeLstmError(f"{self._model} does not run", found=said) from error
                self._out[name] = Entry(name, "missing" if error.missing else "failed", said)
                del self._workers[name]
            if progress is not None:
                progress(1)
        return results


def difference(truth: Outputs, theirs: Outputs) -> float:
    """Largest difference of any output, relative to the largest value of that output; of the streams ``truth`` has."""
    return max(
        float(np.abs(y - theirs[name][:, : y.shape[1]]).max() / max(float(np.abs(y).max()), 1e-30))
        for name, y in truth.items()
    )
