"""Calls that look at the states they write: right after a step these are still in the processor's caches, and Python is not asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_LARGEST = float(np.finfo(np.float32).max)


class Watch:
    """What calls report to that were added: whether a state that they wrote holds NaN or infinity, or lies out of its range.

    states: names of those that are looked at, all in float32; those that lie side by side in memory are looked at as one where they
    stand side by side here. ranges: lowest and highest number by name, some of them.
    """

    def __init__(self, states: Sequence[str], ranges: Mapping[str, tuple[float, float]]) -> None:
        self._bounds = {name: _bounds(*ranges.get(name, (-_LARGEST, _LARGEST))) for name in states}
        seen = retired = False

        # Closures over plain variables: after a step every further thing that is touched has to be fetched anew.
        def good() -> bool:
            nonlocal seen
            if seen:
                seen = retired
                return False
            return True

        def tell() -> None:
            nonlocal seen
            seen = True

        def retire() -> None:
            nonlocal seen, retired
            seen = retired = True

        #: Whether nothing bad was written since it was asked last. What is retired gives False: nobody tells it anything.
        self.good: Callable[[], bool] = good
        #: Something bad was written.
        self.tell: Callable[[], None] = tell
        #: The calls report elsewhere from here on.
        self.retire: Callable[[], None] = retire

    def add(self, call: Any) -> None:
        """Let a call of a session of ours report here. Its memory has to outlive it, as its tensors do."""
        call.steps.look([(call.states[name], low, high) for name, (low, high) in self._bounds.items()])
        call.tell = self.tell


def _bounds(low: float, high: float) -> tuple[float, float]:
    """The least and the largest float32 within a range: a number of float32 lies in both or in neither."""
    with np.errstate(over="ignore"):
        least, most = np.float32(max(low, -_LARGEST)), np.float32(min(high, _LARGEST))
    if least < np.float64(low):
        least = np.nextafter(least, np.float32(np.inf))
    if most > np.float64(high):
        most = np.nextafter(most, np.float32(-np.inf))
    return float(least), float(most)
