"""Contestants on one case: each in its own process, drift one after the other, then time in turn (A B C A B C ...)."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from worker import Job

#: Seconds between two turns: long enough for the thread pools of the last one to fall asleep.
SETTLE = 0.05
#: Frames over whose end drift is averaged.
LAST = 100


@dataclass(frozen=True)
class Contestant:
    """A name for the table, and what to open: a step graph in one of :data:`worker.RUNTIMES`, with its options."""

    name: str
    model: Path
    runtime: str = "edgelstm"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What one contestant did on one case.

    ``drift``: mean relative error of h over the last :data:`LAST` frames; ``errors``: of every frame, by h or output.
    ``p50``: median over all steps, microseconds; ``ratio``: median over rounds of its p50 over the first contestant's.
    ``size``: bytes of the model's file. ``note``: why all these are missing, where they are.
    """

    case: str
    name: str
    size: int | None = None
    drift: float | None = None
    p50: float | None = None
    ratio: float | None = None
    rounds: tuple[float, ...] = ()
    errors: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""


class Failed(Exception):
    """A contestant can't go on; the message says why."""


def race(
    case: str,
    original: Path,
    contestants: Sequence[Contestant],
    *,
    frames: int = 1000,
    rounds: int = 5,
    steps: int = 100,
    threads: int = 2,
    seed: int = 1,
) -> list[Result]:
    """Every contestant's Result, in their order; the first is what the others' times are divided by."""
    results = {c.name: Result(case, c.name, size=c.model.stat().st_size) for c in contestants}
    with contextlib.ExitStack() as stack:
        workers: dict[str, _Process] = {}

        def each(message: dict[str, Any]) -> dict[str, dict[str, Any]]:
            answers = {}
            for name, process in list(workers.items()):
                time.sleep(SETTLE)
                try:
                    answers[name] = process.ask(message)
                except Failed as error:
                    results[name] = Result(case, name, note=str(error)[:300])
                    del workers[name]
            return answers

        for c in contestants:
            job = Job(case, str(original), str(c.model), c.runtime, c.options, threads, seed)
            process = stack.enter_context(_Process(threads))
            try:
                process.ask(vars(job))
                workers[c.name] = process
            except Failed as error:
                results[c.name] = Result(case, c.name, note=str(error)[:300])
        for name, errors in each({"drift": frames}).items():
            last = errors["h"][-LAST:]
            results[name] = replace(results[name], errors=errors, drift=sum(last) / len(last))
        each({"steps": max(20, steps // 5)})  # for caches, clocks and just-in-time compilers
        turns = [each({"steps": steps}) for _ in range(rounds)]
        first = contestants[0].name
        for name in workers:
            medians = [statistics.median(turn[name]["nanoseconds"]) / 1e3 for turn in turns]
            ratio = None
            if first in workers:
                base = [statistics.median(turn[first]["nanoseconds"]) / 1e3 for turn in turns]
                ratio = statistics.median(m / b for m, b in zip(medians, base, strict=True))
            everything = [t for turn in turns for t in turn[name]["nanoseconds"]]
            p50 = statistics.median(everything) / 1e3
            results[name] = replace(results[name], p50=p50, ratio=ratio, rounds=tuple(medians))
    return list(results.values())


class _Process:
    """A worker; ``with`` ends it."""

    def __init__(self, threads: int) -> None:
        self._threads = str(threads)

    def __enter__(self) -> _Process:
        pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), self._threads)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **pools},
        )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """One line there, one line back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            text = self._process.stdout.readline()
        except OSError:
            text = ""
        if not text:
            raise Failed(f"its process ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer
