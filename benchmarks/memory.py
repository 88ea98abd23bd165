"""Resident memory over many steps, in a process of its own: ``python benchmarks/memory.py MODEL STEPS {one,mixed}``.

Prints JSON: steps done and bytes resident, first after 1,000 steps, then fifty times more.

``one``: a single stream. ``mixed``: up to eight streams that join, leave, start anew, are restored from snapshots and
advance in calls of changing size, so that every way a call can be bound is taken again and again.
"""

from __future__ import annotations

import gc
import json
import random
import sys
from collections.abc import Iterator

import numpy as np

from edgelstm.machine import resident_bytes
from edgelstm.runtime import Runner
from edgelstm.runtime.protocol import Array

FIRST = 1000
PLACES = 8


def main(model: str, steps: int, kind: str) -> None:
    """Step, and print what was resident."""
    with Runner.open(model, streams=PLACES if kind == "mixed" else 1, threads=2) as runner:
        shape = runner.signature.inputs[0].frame_shape
        frames = list(np.random.default_rng(0).normal(size=(16, *shape)).astype(np.float32))
        advance = _mixed(runner, frames) if kind == "mixed" else _one(runner, frames)
        marks = []
        for done in range(1, steps + 1):
            next(advance)
            if done == FIRST or (done > FIRST and done % max(1, steps // 50) == 0):
                gc.collect()
                marks.append((done, resident_bytes()))
    print(json.dumps(marks))


def _one(runner: Runner, frames: list[Array]) -> Iterator[None]:
    step = runner.stream("only").step
    while True:
        for frame in frames:
            step(frame)
            yield


def _mixed(runner: Runner, frames: list[Array]) -> Iterator[None]:
    rng = random.Random(0)
    names = [f"camera {i}" for i in range(2 * PLACES)]
    kept = runner.stream(names[0]).snapshot()
    while True:
        present = runner.streams
        if rng.random() < 0.05 and len(present) > 1:
            runner.stream(rng.choice(present)).close()
        if rng.random() < 0.05 and len(runner.streams) < PLACES:
            runner.stream(rng.choice(names))
        present = runner.streams
        if rng.random() < 0.05:
            runner.stream(rng.choice(present)).reset()
        if rng.random() < 0.05:
            kept = runner.stream(rng.choice(present)).snapshot()
        if rng.random() < 0.05:
            runner.stream(rng.choice(present)).restore(kept)
        chosen = rng.sample(present, rng.randint(1, len(present)))
        runner.step({name: frames[rng.randrange(len(frames))] for name in chosen})
        yield


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
