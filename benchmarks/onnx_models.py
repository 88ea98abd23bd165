"""Published ONNX models as their authors' loop runs them, against their export: time of a step, taken in turns.

    python benchmarks/onnx_models.py ../shared/models

Both sides run in ONNX Runtime with one thread in one process, blocks of steps in turns, so that what else the machine
does falls on both; printed is the median of the blocks' ratios. "graph" is the exported graph in the same plain loop,
"runner" the Program that keeps the state in place.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgelstm.frontends import Request, load
from edgelstm.runtime.onnxruntime import OrtProgram

#: File, what is fixed, and the shape of its state in the file where that is not the export's.
MODELS: list[tuple[str, dict[str, Any] | None, tuple[int, ...] | None]] = [
    ("dtln/model_1.onnx", None, None),
    ("dtln/model_2.onnx", None, None),
    ("silero/silero_vad.onnx", {"sr": 16000, "input.1": 576}, (2, 1, 128)),
]
BLOCKS, STEPS = 60, 50


def plain_loop(
    data: bytes,
    frames: np.ndarray,
    names: tuple[str, str, str],
    shape: tuple[int, ...],
    extra: dict[str, Any],
) -> Callable[[], None]:
    """STEPS steps as one writes them: arrays in, arrays out, the state handed back."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    outputs = [v.name for v in session.get_outputs()]
    place, state = outputs.index(names[2]), [np.zeros(shape, np.float32)]

    def run() -> None:
        for frame in frames:
            state[0] = session.run(outputs, {names[0]: frame[None], names[1]: state[0], **extra})[place]

    return run


def program_loop(data: bytes, frames: np.ndarray, name: str) -> Callable[[], None]:
    """The same steps through the Program."""
    program = OrtProgram(data, threads=1)
    state = program.new_state()

    def run() -> None:
        for frame in frames:
            program.step([{name: frame}], state, [0])

    return run


def main(folder: Path) -> None:
    """Print a table of ratios: above 1 the export is faster."""
    print(f"{'model':24} {'file, us':>9} {'graph':>7} {'runner':>7}")
    for name, fix, in_file in MODELS:
        step = load(folder / name, Request(fix=fix, confirm=lambda pairs: True)).step
        frame, state = step.signature.inputs[0], step.signature.states[0]
        frames = np.random.default_rng(0).normal(size=(STEPS, *frame.frame_shape)).astype(np.float32)
        names = (frame.name, state.input, state.output)
        extra = {"sr": np.array(16000)} if fix else {}
        shape = (1, *state.frame_shape)
        contestants = [
            plain_loop((folder / name).read_bytes(), frames, names, in_file or shape, extra),
            plain_loop(step.to_bytes(), frames, names, shape, {}),
            program_loop(step.to_bytes(), frames, frame.name),
        ]
        times = np.empty((BLOCKS, 3))
        for block in range(BLOCKS):
            for k, contestant in enumerate(contestants):
                started = time.perf_counter()
                contestant()
                times[block, k] = time.perf_counter() - started
        ratios = np.median(times[:, :1] / times[:, 1:], axis=0)
        print(f"{name:24} {np.median(times[:, 0]) / STEPS * 1e6:9.1f} {ratios[0]:7.2f} {ratios[1]:7.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
