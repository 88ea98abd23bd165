"""Two handwritten digits that bounce in a square for ever, after the moving-MNIST of Srivastava et al. 2015.

The digits are scikit-learn's (8x8 pixels, bundled with it), drawn at any sub-pixel position. NumPy only; scikit-learn
is needed to draw new digits, not to read the committed test stream.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

SIDE = 64  # pixels of a frame
DIGIT = 20  # pixels of a digit
SPEED = (1.0, 3.0)  # pixels a frame
TRAIN_IMAGES = 1500  # the first 1500 of 1797 digit images are for training, the others for the test

TEST_STREAM = Path(__file__).with_name("test_stream.npz")


def digit_images(split: str) -> Array:
    """Digit images [K, 8, 8] in 0..1 of the ``"train"`` or ``"test"`` split; needs scikit-learn."""
    from sklearn.datasets import load_digits

    images = (load_digits().images / 16.0).astype(np.float32)
    return images[:TRAIN_IMAGES] if split == "train" else images[TRAIN_IMAGES:]


class Streams:
    """Independent streams of moving digits; equal seeds give equal frames."""

    def __init__(self, images: Array, streams: int, seed: int) -> None:
        self.images = images
        self.random = np.random.default_rng(seed)
        self.digits = np.zeros((streams, 2, 8, 8), np.float32)
        self.start = np.zeros((streams, 2, 2))
        self.velocity = np.zeros((streams, 2, 2))
        self.restart(np.ones(streams, bool))

    def restart(self, which: npt.NDArray[np.bool_]) -> None:
        """New digits, places and directions for the streams where ``which`` [streams] is true."""
        count = int(which.sum())
        self.digits[which] = self.images[self.random.integers(len(self.images), size=(count, 2))]
        self.start[which] = self.random.uniform(0, 2 * (SIDE - DIGIT), (count, 2, 2))
        angle = self.random.uniform(0, 2 * np.pi, (count, 2))
        speed = self.random.uniform(*SPEED, (count, 2))
        self.velocity[which] = np.stack([speed * np.sin(angle), speed * np.cos(angle)], axis=-1)

    def frames(self, first: int, count: int) -> Array:
        """Frames [count, streams, 1, 64, 64] in 0..1 of the times first, first + 1, ..."""
        times = np.arange(first, first + count)[:, None, None, None]
        room = SIDE - DIGIT
        # A point that bounces between two walls is a triangle wave: every frame has a closed form.
        corner = np.abs((self.start + self.velocity * times) % (2 * room) - room)
        rows, columns = (_spread(corner[..., axis]) for axis in (0, 1))
        drawn = rows @ self.digits @ columns.swapaxes(-1, -2)
        return np.minimum(drawn.sum(axis=2), 1.0)[:, :, None].astype(np.float32)


def test_stream() -> npt.NDArray[np.uint8]:
    """The committed live stream: 200 frames [200, 64, 64], uint8, of digits that no training saw."""
    with np.load(TEST_STREAM) as file:
        return np.asarray(file["frames"])


def _spread(corner: npt.NDArray[np.float64]) -> Array:
    """Bilinear weights [..., 64, 8] that draw 8 source pixels as DIGIT pixels from ``corner`` on."""
    pixel = np.arange(SIDE) + 0.5
    source = (pixel - corner[..., None]) * 8 / DIGIT - 0.5
    return np.maximum(0.0, 1.0 - np.abs(source[..., None] - np.arange(8))).astype(np.float32)
