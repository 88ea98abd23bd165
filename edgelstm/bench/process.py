"""The coordinator's side of a worker: start it, ask it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.bench.job import Job
from edgelstm.errors import count_of

#: Frames over which outputs are compared before anything is timed.
CHECKED = 20
#: Seconds a worker may take to answer before it counts as hung.
TIMEOUT = 900.0


class Failed(Exception):
    """A worker's contestant can't go on; the message says why. ``missing``: because this machine lacks something."""

    missing: bool = False


@dataclass
class Worker:
    """A contestant's process; ``with`` ends it."""

    job: Job
    #: Processor seconds it took while others had their turn.
    idle: float = 0.0
    #: Bytes: the most it ever had in RAM, and what it had before it opened the model.
    peak: int | None = None
    before: int | None = None

    def __enter__(self) -> Worker:
        count = str(self.job.threads)
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgelstm.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # OpenMP and BLAS pools read these; they must be right before a library loads.
            env={
                **os.environ,
                **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count),
            },
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
        self._log.close()

    @property
    def memory(self) -> int | None:
        """Bytes the model and its runtime added."""
        return None if self.peak is None or self.before is None else self.peak - self.before

    def open(self) -> None:
        """Have the contestant open its model."""
        self.before = self._ask(self.job.dumps())["resident_before"]

    def check(self, folder: Path, frames: int = CHECKED) -> dict[str, Any]:
        """Outputs of the first ``frames`` frames, name -> [frames, streams, ...]."""
        path = folder / f"{self.job.contestant}.npz"
        self._ask(json.dumps({"steps": frames, "check": str(path)}))
        with np.load(path, allow_pickle=False) as file:
            outputs = dict(file)
        path.unlink()
        if not all(np.isfinite(y).all() for y in outputs.values()):
            raise Failed(f"its outputs hold NaN or infinity within {count_of(frames, 'frame')}")
        return outputs

    def turn(self, steps: int) -> list[int]:
        """Nanoseconds of each of the next ``steps`` steps."""
        answer = self._ask(json.dumps({"steps": steps}))
        self.idle += answer["idle_seconds"]
        self.peak = answer["peak_resident"]
        times: list[int] = answer["nanoseconds"]
        return times

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(TIMEOUT, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            text = self._process.stdout.readline()
        except OSError:
            text = ""
        finally:
            timer.cancel()
        if not text:
            raise Failed(f"its process ended with code {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            failed = Failed(answer["error"])
            failed.missing = answer.get("missing", False)
            raise failed
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
