"""From CTC's probabilities (Graves et al. 2006) to labels: greedy, and prefix beam search (Hannun et al. 2014). NumPy only.

Both take one frame's log-probabilities at a time, so they follow a live stream. Class 0 is the blank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

BLANK = 0


class Greedy:
    """The best class of each frame, repeats and blanks left out."""

    def __init__(self) -> None:
        self.labels: list[int] = []
        self._last = BLANK

    def step(self, log_probs: npt.NDArray[Any]) -> None:
        """Take a frame [classes]."""
        best = int(log_probs.argmax())
        if best not in (BLANK, self._last):
            self.labels.append(best)
        self._last = best


class Beam:
    """The ``width`` likeliest labellings so far; a labelling's probability is the sum over all paths that spell it."""

    def __init__(self, width: int = 8) -> None:
        self.width = width
        # Of each labelling: log-probability of the paths that end in a blank, and of those that end in its last label.
        self._beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}

    def step(self, log_probs: npt.NDArray[Any]) -> None:
        """Take a frame [classes]."""
        p = [float(v) for v in log_probs]
        new: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(labels: tuple[int, ...], blank: float, label: float) -> None:
            b, n = new.get(labels, (-math.inf, -math.inf))
            new[labels] = (float(np.logaddexp(b, blank)), float(np.logaddexp(n, label)))

        for labels, (blank, label) in self._beams.items():
            both = float(np.logaddexp(blank, label))
            add(labels, both + p[BLANK], label + p[labels[-1]] if labels else -math.inf)
            for k in range(1, len(p)):
                # The same label again is a new one only behind a blank.
                add((*labels, k), -math.inf, p[k] + (blank if labels and labels[-1] == k else both))
        best = sorted(new.items(), key=lambda item: -float(np.logaddexp(*item[1])))
        self._beams = dict(best[: self.width])

    @property
    def labels(self) -> list[int]:
        """The likeliest labelling."""
        return list(next(iter(self._beams)))


def decode(decoder: Greedy | Beam, log_probs: Iterable[npt.NDArray[Any]]) -> list[int]:
    """Labels of a whole sequence."""
    for frame in log_probs:
        decoder.step(frame)
    return decoder.labels


def edits(a: list[int], b: list[int]) -> int:
    """Edit distance (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]
