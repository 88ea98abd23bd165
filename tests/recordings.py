"""Sequences to calibrate on, and what a quantised step is compared by."""

from __future__ import annotations

import numpy as np

from edgelstm.graph.step import StepModel
from edgelstm.passes.products import find_products
from edgelstm.quantize.calibrate import Recording, calibrate
from edgelstm.quantize.calibration import Calibration
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Frame
from edgelstm.verify.compare import Comparison, compare


def smooth_frames(step: StepModel, count: int, seed: int = 0) -> list[Frame]:
    """Frames that change slowly, as real ones do."""
    rng = np.random.default_rng(seed)
    frames = []
    now = {t.name: rng.normal(size=t.frame_shape) for t in step.signature.inputs}
    for _ in range(count):
        now = {n: 0.9 * v + 0.44 * rng.normal(size=v.shape) for n, v in now.items()}
        frames.append({n: v.astype(np.float32) for n, v in now.items()})
    return frames


def recordings(step: StepModel, lengths: tuple[int, ...] = (40, 25, 31), seed: int = 0) -> list[Recording]:
    """Sequences of different length."""
    return [Recording(f"s{k}", smooth_frames(step, n, seed + k)) for k, n in enumerate(lengths)]


_calibrated: dict[str, Calibration] = {}


def calibrated(step: StepModel, **options: object) -> Calibration:
    """The calibration most tests use, which nobody changes: of a model that was here before, the one it had."""
    if options:
        return calibrate(step, recordings(step), threads=1, **options)  # type: ignore[arg-type]
    key = step.graph_hash() + step.signature.dumps()
    if key not in _calibrated:
        _calibrated[key] = calibrate(step, recordings(step), threads=1)
    return _calibrated[key]


def drift(a: StepModel, b: StepModel, count: int = 300, seed: int = 99) -> dict[str, float]:
    """Relative error in the 2-norm of every output and state, mean over the last third."""
    return {t.name: float(np.mean(t.norms[-count // 3 :])) for t in compared(a, b, count, seed).tensors}


def compared(a: StepModel, b: StepModel, count: int = 300, seed: int = 99) -> Comparison:
    """Both over the same frames."""
    programs = [OrtProgram(s.to_bytes(), threads=1) for s in (a, b)]
    try:
        return compare(*programs, smooth_frames(a, count, seed))
    finally:
        for program in programs:
            program.close()


def all_weights(step: StepModel) -> list[str]:
    """Every weight that can be quantised."""
    return list(find_products(step).by_weight())
