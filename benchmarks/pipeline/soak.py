"""A million frames over sixteen streams: ``python benchmarks/pipeline/soak.py [FRAMES] [FRAMES A SECOND OF EACH STREAM]``.

One process, a small LSTM, a checkpoint every second, a NaN now and then, lines of one stream to a file. Prints what was resident once the first tenth was through
and at the end, and how long frames took from their arrival to their output.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models

from edgelstm import Pipeline
from edgelstm.frontends.described.graph import load_described, to_step
from edgelstm.machine import resident_bytes
from edgelstm.pipeline.service.pulse import Pulse

STREAMS = 16
DIFFERENT = 64
#: Every so many frames of a stream one is spoilt.
SPOILT = 997


def main(frames: int, rate: float) -> None:
    """Run, and print."""
    each = frames // STREAMS
    ages = np.full(frames, np.nan, np.float32)  # written, so that it is resident from the start
    known = [0]
    stepped = Pulse.stepped

    def noted(self: Pulse, seconds: float, came: float, now: float) -> None:
        stepped(self, seconds, came, now)
        if known[0] < frames:
            ages[known[0]] = now - came
            known[0] += 1

    Pulse.stepped = noted  # type: ignore[method-assign]
    shape = (models.LSTM_INPUTS,)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(DIFFERENT, *shape)).astype(np.float32)
    bad = np.full(shape, np.nan, np.float32)

    def source(k: int) -> Iterator[np.ndarray[Any, Any]]:
        due = time.monotonic()
        for n in range(each):
            if rate:
                due += 1 / rate
                time.sleep(max(0.0, due - time.monotonic()))
            yield bad if n % SPOILT == SPOILT - 1 else data[(n + k) % DIFFERENT]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        to_step(load_described(models.lstm(folder, 32))).save(folder / "m.onnx")
        text = '[service]\nthreads = 1\nreport = 0\ncheckpoint = "states"\ncheckpoint_every = 1\n[models.m]\npath = "m.onnx"\n'
        for k in range(STREAMS):
            text += f'[streams.s{k}]\nsource = "python:s{k}"\nbad = "rollback"\n'
        text += 'sink = "last.jsonl"\n'
        sources: dict[str, Any] = {f"s{k}": lambda k=k: source(k) for k in range(STREAMS)}
        pipeline = Pipeline.from_text(text, folder, sources=sources)
        reports: list[Any] = []
        thread = threading.Thread(target=lambda: reports.append(pipeline.run()))
        began = time.monotonic()
        thread.start()
        marks: list[tuple[int, int]] = []
        while thread.is_alive():
            thread.join(0.25)
            if known[0] >= frames // 10:
                marks.append((known[0], resident_bytes() or 0))
        seconds = time.monotonic() - began
    gc.collect()
    counts = reports[0].streams
    assert all(c["read"] == each == c["stepped"] + c["dropped:not_finite"] for c in counts.values()), counts
    assert not reports[0].failed, reports[0].failed
    done = ages[: known[0]]
    half = len(marks) // 2
    print(
        json.dumps(
            {
                "frames": sum(c["read"] for c in counts.values()),
                "dropped": sum(c["dropped:not_finite"] for c in counts.values()),
                "seconds": round(seconds, 1),
                "frames_a_second": round(frames / seconds),
                "resident_grew_KiB": round(
                    (max(b for _, b in marks[half:]) - max(b for _, b in marks[:half])) / 1024
                ),
                "resident_MiB": round(marks[-1][1] / 2**20, 1),
                "age_ms": {
                    q: round(float(np.percentile(done, float(q))) * 1e3, 3)
                    for q in ("50", "99", "99.9", "100")
                },
            }
        )
    )


if __name__ == "__main__":
    logging.getLogger("edgelstm").setLevel(logging.ERROR)
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    )
