"""A Keras network of ConvLSTM2D layers that foretells the next frame: trained by Keras, then streamed without it.

    pip install 'edgelstm[cpu,keras]' torch && KERAS_BACKEND=torch python examples/keras_next_frame/main.py
    ... --quick    # seconds

Three ConvLSTM2D layers and a Conv3D on clips of (10, 40, 40, 1), squares that move through them. Keras predicts whole clips; the
exported step takes a frame at a time, with the same numbers. Files go to ``build/keras_next_frame``.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import numpy.typing as npt

import edgelstm

Array = npt.NDArray[Any]
FRAMES, SIZE = 10, 40


def movies(count: int, seed: int) -> Array:
    """Clips [count, FRAMES + 1, SIZE, SIZE, 1] of three to five squares, each at its own speed."""
    random = np.random.default_rng(seed)
    clips = np.zeros((count, FRAMES + 1, SIZE, SIZE, 1), np.float32)
    for clip in clips:
        for _ in range(int(random.integers(3, 6))):
            half = int(random.integers(2, 4))
            place = random.integers(8, SIZE - 8, 2)
            speed = random.integers(-2, 3, 2)
            for t in range(FRAMES + 1):
                y, x = place + speed * t
                clip[t, max(y - half, 0) : max(y + half, 0), max(x - half, 0) : max(x + half, 0)] = 1
    return clips


def network(filters: int) -> Any:
    """Three ConvLSTM2D layers with batch normalisation behind them, and a Conv3D over time and place."""
    import keras
    from keras import layers

    stack: list[Any] = [keras.Input((None, SIZE, SIZE, 1))]
    for _ in range(3):
        stack.append(layers.ConvLSTM2D(filters, 3, padding="same", return_sequences=True))
        stack.append(layers.BatchNormalization())
    stack.append(layers.Conv3D(1, 3, padding="same", activation="sigmoid"))
    return keras.Sequential(stack)


@dataclass(frozen=True)
class Outcome:
    """Overlap (intersection over union) of the next frame's squares with those foretold, by the network and by repeating the last
    frame; how far the stream is from what Keras predicts, and how many frames behind its input it runs."""

    overlap: float
    persistence: float
    apart: float
    behind: int


def overlap(a: Array, b: Array) -> float:
    """Intersection over union of two sets of pixels."""
    return float((a & b).sum() / (a | b).sum())


def run(folder: Path, *, quick: bool = False) -> Outcome:
    """Train, save, export, stream clips that no training saw."""
    import keras
    import torch

    torch.set_num_threads(1 if quick else 2)
    keras.utils.set_random_seed(0)
    net = network(2 if quick else 8)
    net.compile("adam", "binary_crossentropy")
    net.optimizer.learning_rate = 3e-3
    clips = movies(8 if quick else 240, seed=1)
    net.fit(clips[:, :-1], clips[:, 1:], batch_size=4, epochs=1 if quick else 10, verbose=0)
    folder.mkdir(parents=True, exist_ok=True)
    net.save(folder / "next_frame.keras")
    # Compared on a clip: what the network does with noise, or with more frames than it was trained on, amplifies rounding.
    clip = list(movies(1, seed=3)[0, :-1])
    edgelstm.export(str(folder / "next_frame.keras"), folder / "next_frame.onnx", source=clip, limit=FRAMES)
    test = movies(1 if quick else 8, seed=2)
    foretold = net.predict(test[:, :-1], verbose=0)
    apart, behind = 0.0, 0
    with edgelstm.Runner.open(folder / "next_frame.onnx") as runner:
        camera = runner.stream("camera")
        for clip, whole in zip(test, foretold, strict=True):
            camera.reset()
            seen = []
            for frame in clip[:-1]:
                out = camera.step(frame)
                # The Conv3D looks a frame ahead, so the stream waits for it.
                if out.get("y_ready", np.ones(1)).reshape(-1)[0]:
                    seen.append(out["y"].copy())
            behind = FRAMES - len(seen)
            # Where the clip ends, Keras pads with zeros what the stream still waits for.
            apart = max(apart, float(np.abs(np.stack(seen) - whole[: len(seen)]).max()))
    return Outcome(
        overlap=overlap(foretold > 0.5, test[:, 1:] > 0.5),
        persistence=overlap(test[:, :-1] > 0.5, test[:, 1:] > 0.5),
        apart=apart,
        behind=behind,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smaller network, hardly trained")
    parser.add_argument("--folder", type=Path, default=Path("build/keras_next_frame"))
    options = parser.parse_args()
    o = run(options.folder, quick=options.quick)
    print("| next frame | overlap with what came |")
    print("| --- | ---: |")
    print(f"| the network | {o.overlap:.3f} |")
    print(f"| the last frame again | {o.persistence:.3f} |")
    print(f"\nStreamed: {o.apart:.1e} from what Keras predicts, {o.behind} frame behind its input.")


if __name__ == "__main__":
    main()
