"""What the two systems learn: digits to put in order, and pictures to describe. All made up."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LENGTH, DIGITS = 8, 10
#: Word k + 1 is digit k.
DIGIT_WORDS = ("(end)", *map(str, range(DIGITS)))

SIZE = 16
COLOURS = ("red", "green", "blue")
SHAPES = ("ring", "square", "cross")
CAPTION_WORDS = ("(end)", *COLOURS, *SHAPES, "left", "above", "of")


def numbers(count: int, seed: int) -> tuple[Array, list[list[int]]]:
    """Sequences of 4 to 8 digits as x [count, LENGTH, DIGITS], one-hot, zeros behind the last; and their digits in ascending
    order, as words."""
    random = np.random.default_rng(seed)
    x, words = np.zeros((count, LENGTH, DIGITS), np.float32), []
    for n in range(count):
        digits = random.integers(DIGITS, size=int(random.integers(4, LENGTH + 1)))
        x[n, np.arange(len(digits)), digits] = 1
        words.append([int(d) + 1 for d in np.sort(digits)])
    return x, words


def pictures(count: int, seed: int) -> tuple[Array, list[list[int]]]:
    """Noisy pictures [count, 1, 3, SIZE, SIZE] of one or two shapes, and their captions: "red ring left of blue square"."""
    random = np.random.default_rng(seed)
    x, captions = np.zeros((count, 1, 3, SIZE, SIZE), np.float32), []
    for n in range(count):
        two, beside = random.random() < 0.8, random.random() < 0.5
        said = []
        for place in range(1 + two):
            colour, shape = int(random.integers(3)), int(random.integers(3))
            along = random.uniform(3.5, 4.5) + 8 * place if two else random.uniform(4, 12)
            across = random.uniform(4, 12)
            row, column = (across, along) if beside else (along, across)
            x[n, 0, colour] += _drawn(shape, row, column)
            said += [COLOURS[colour], SHAPES[shape]]
            if two and place == 0:
                said += ["left", "of"] if beside else ["above"]
        captions.append([CAPTION_WORDS.index(word) for word in said])
    x += 0.1 * random.normal(size=x.shape)
    return x.astype(np.float32), captions


def _drawn(shape: int, row: float, column: float) -> Array:
    """A shape of about 6 by 6 pixels around (row, column)."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    down, right = np.abs(y - row), np.abs(x - column)
    if shape == 0:
        inside = np.abs(np.hypot(down, right) - 2.5) < 0.8
    elif shape == 1:
        inside = np.maximum(down, right) < 2.8
    else:
        inside = (np.minimum(down, right) < 1.0) & (np.maximum(down, right) < 3.2)
    return np.asarray(inside, np.float32)
