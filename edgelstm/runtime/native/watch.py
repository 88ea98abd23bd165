"""Calls that look at the states they write: right after a step these are still in the processor's caches, and Python is not asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

#: A call found a bad number; the calls report to another watch now.
_SEEN, _RETIRED = 1, 2
_LARGEST = float(np.finfo(np.float32).max)


class Watch:
    """What calls report to that were added: whether a state that they wrote holds NaN or infinity, or lies out of its range.

    states: names of those that are looked at, all in float32. ranges: lowest and highest number by name, some of them.
    """

    def __init__(self, states: Collection[str], ranges: Mapping[str, tuple[float, float]]) -> None:
        self._bounds = {name: _bounds(*ranges.get(name, (-_LARGEST, _LARGEST))) for name in states}
        self._flag = flag = bytearray(1)

        def good() -> bool:
            if flag[0]:
                flag[0] &= _RETIRED
                return False
            return True

        #: Whether nothing bad was written since it was asked last. What is retired gives False: nobody tells it anything.
        self.good: Callable[[], bool] = good

    def add(self, call: Any) -> None:
        """Let a call of a session of ours report here. Its memory has to outlive it, as its tensors do."""
        pieces = [(call.states[name], low, high) for name, (low, high) in self._bounds.items()]
        call.steps.look(pieces, self._flag)

    def retire(self) -> None:
        """The calls report elsewhere from here on."""
        self._flag[0] = _RETIRED


def _bounds(low: float, high: float) -> tuple[float, float]:
    """The least and the largest float32 within a range: a number of float32 lies in both or in neither."""
    with np.errstate(over="ignore"):
        least, most = np.float32(max(low, -_LARGEST)), np.float32(min(high, _LARGEST))
    if least < np.float64(low):
        least = np.nextafter(least, np.float32(np.inf))
    if most > np.float64(high):
        most = np.nextafter(most, np.float32(-np.inf))
    return float(least), float(most)
