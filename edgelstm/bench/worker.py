"""One contestant in a process of its own: ``python -m edgelstm.bench.worker``.

Reads lines of JSON on standard input, answers each with one line on standard output: first the job, then any number of
``{"steps": N}`` (time the next N steps) and ``{"steps": N, "check": FILE}`` (write their outputs to FILE, .npz). Ends
when its input does. While it waits it blocks in a read, so that it takes no time from others.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import islice
from typing import IO, Any

import numpy as np

from edgelstm import machine
from edgelstm.bench.contestants import Opened
from edgelstm.bench.job import Job, Missing, contestants_of


def main() -> None:
    """Serve one coordinator."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    before = machine.resident_bytes()
    job = Job.loads(sys.stdin.readline())
    try:
        opened = contestants_of(job)[job.contestant].open(job)
        raw = job.frames()  # kept: what is prepared may point into it
        frames = [opened.prepare(frame) for frame in raw]
    except Missing as error:
        _answer(answers, {"error": str(error), "missing": True})
        return
    except (
        Exception
    ) as error:  # a contestant that can't run a model is a result, not a crash of the benchmark
        _answer(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    _answer(answers, {"resident_before": before})
    place = 0
    slept = time.process_time()
    for line in sys.stdin:
        # Time this process took while it should have been asleep: thread pools that spin.
        idle = time.process_time() - slept
        request = json.loads(line)
        steps = request["steps"]
        turn = [frames[(place + i) % len(frames)] for i in range(steps)]
        place += steps
        answer: dict[str, Any] = {}
        try:
            if "check" in request:
                _check(opened, turn, request["check"])
            else:
                answer["nanoseconds"] = _time(opened.step, turn)
        except Exception as error:
            _answer(answers, {"error": f"{type(error).__name__}: {error}"})
            return
        answer |= {"idle_seconds": idle, "peak_resident": machine.peak_resident_bytes()}
        slept = time.process_time()
        _answer(answers, answer)


def _time(step: Callable[[Any], Any], frames: list[Any]) -> list[int]:
    """Nanoseconds of every step."""
    clock = time.perf_counter_ns
    marks = [0] * (len(frames) + 1)
    marks[0] = clock()
    for i, frame in enumerate(frames, 1):
        step(frame)
        marks[i] = clock()
    return [after - before for before, after in zip(marks, islice(marks, 1, None), strict=False)]


def _check(opened: Opened, frames: list[Any], path: str) -> None:
    """Write the outputs of every step to ``path``, output name -> [steps, streams, ...]."""
    steps = []
    for frame in frames:
        now = opened.outputs(opened.step(frame))
        steps.append({name: np.array(y) for name, y in now.items()})
    outputs = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
    np.savez(path, allow_pickle=False, **outputs)


def _answer(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
