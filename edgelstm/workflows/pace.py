"""How long a step takes before and after quantising, on the processor that is here: a quick look, not a benchmark."""

from __future__ import annotations

import statistics
import time
from itertools import cycle

import numpy as np

from edgelstm.graph.step import StepModel
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.runner import Runner
from edgelstm.workflows.frames import ready_frames

#: Seconds that steps of both may take together, how many steps at most, and at least.
SECONDS, MOST, LEAST = 0.5, 100, 7
#: Times as long that is said to be slower: less is the noise of a busy machine.
WORTH_A_WORD = 1.15


def milliseconds(step: StepModel, made: StepModel, threads: int | None) -> tuple[float, float]:
    """Medians of a step of each, taken in turn, with one stream, as a Runner runs it here, with our operators where they are; frames are drawn."""
    size = step.signature.window or 1
    single = list(ready_frames(step.signature, None, 4 * size))
    frames = single
    if step.signature.window is not None:
        windows = [single[k : k + size] for k in range(0, len(single), size)]
        frames = [{name: np.stack([f[name] for f in some]) for name in some[0]} for some in windows]
    runners = [
        Runner(OrtProgram(form.to_bytes(), threads=threads, spin=False, native=None), on_bad_frame="pass")
        for form in (step, made)
    ]
    try:
        streams = [runner.stream("pace") for runner in runners]
        taken: list[list[float]] = [[], []]
        end = time.perf_counter() + SECONDS
        for k, frame in zip(range(MOST), cycle(frames), strict=False):
            if k >= LEAST and time.perf_counter() > end:
                break
            for stream, found in zip(streams, taken, strict=True):
                began = time.perf_counter()
                stream.step(frame)
                found.append(time.perf_counter() - began)
        before, after = (statistics.median(found[2:]) * 1e3 for found in taken)
        return before, after
    finally:
        for runner in runners:
            runner.close()


def slower(precision: str, before: float, after: float) -> str | None:
    """What is to be said, if it is slower."""
    if after <= WORTH_A_WORD * before:
        return None
    return (
        f"{precision} is slower than float on this CPU: {after:.3g} ms a step, {before:.3g} ms in float (a quick look, one "
        "stream). It saves memory here, and no time"
    )
