"""How long Keras windows take to export: ``python benchmarks/keras_windows.py [--size 255] [--steps 200]``.

Builds three models with random weights by Keras (on torch) and exports each with defaults. Prints, a line a model, the
seconds of the whole export, of opening the graph in ONNX Runtime, of one window by the NumPy reference, and the same in
processor time, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np

import edgelstm
from edgelstm.frontends.keras import load_keras
from edgelstm.runtime.onnxruntime import OrtProgram


def models(size: int) -> dict[str, Any]:
    """Two of images, one of features."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    maps = keras.Input((20, size, size, 1))

    def conv() -> Any:
        return layers.ConvLSTM2D(8, 3, padding="same", return_sequences=True)

    last = layers.ConvLSTM2D(8, 3, padding="same")
    lstm = layers.Bidirectional(layers.LSTM(64, return_sequences=True))
    return {
        f"one ConvLSTM, 20 frames of {size} x {size}": keras.Sequential(
            [maps, conv(), layers.GlobalAveragePooling3D()]
        ),
        f"two ConvLSTM, 20 frames of {size} x {size}": keras.Sequential(
            [maps, conv(), layers.BatchNormalization(), last, layers.Conv2D(1, 1)]
        ),
        "two bidirectional LSTM, 128 frames": keras.Sequential(
            [keras.Input((128, 9)), lstm, layers.Bidirectional(layers.LSTM(64)), layers.Dense(6)]
        ),
    }


def timed(work: Callable[[], Any]) -> str:
    """Seconds on the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return f"{time.perf_counter() - wall:6.2f} s ({time.process_time() - cpu:6.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=255)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models(given.size).items():
            path = Path(folder) / "model.keras"
            model.save(path)
            loaded = load_keras(path)
            graph = loaded.step.to_bytes()
            program = loaded.reference
            frame = {
                t.name: np.random.default_rng(0).normal(size=t.frame_shape).astype(np.float32)
                for t in program.signature.inputs
            }
            opened = timed(lambda graph=graph: OrtProgram(graph, threads=None).close())  # type: ignore[misc]
            once = timed(lambda p=program, f=frame: p.step([f], p.new_state(), [0]))  # type: ignore[misc]
            whole = timed(lambda path=path: edgelstm.export(str(path), limit=given.steps))  # type: ignore[misc]
            print(f"{name}: export {whole}, opening {opened}, one window by NumPy {once}", flush=True)


if __name__ == "__main__":
    main()
