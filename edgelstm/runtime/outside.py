"""Frames that lie far outside what a model was exported or calibrated with: seen in the first ones, at no cost to the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Array

#: Frames that are looked at; a wrong scale shows in the first.
LOOKS = 32
#: Of a larger frame, so many values are.
SAMPLES = 1 << 14
#: So many widths of the range beyond it is far: 0 to 255 where 0 to 1 was seen, not a louder voice.
FAR = 3.0


class OutsideRange(UserWarning):
    """Frames lie far outside what the model was exported or calibrated with."""


class Outside:
    """Looks at the first frames. ``done``: it has looked at enough, or has found something.

    ranges: of the inputs, by name, that were seen; seen: where, in words.
    """

    def __init__(
        self, ranges: Mapping[str, tuple[float, float]], seen: str = "what the model was made with"
    ) -> None:
        self._seen = seen
        self._ranges = {n: ends for n, ends in ranges.items() if ends[1] > ends[0]}
        self._left = LOOKS
        self.done = not self._ranges

    def look(self, frame: Mapping[str, Array]) -> str | None:
        """What to say of a frame, once."""
        self._left -= 1
        self.done = self.done or self._left <= 0
        for name, (low, high) in self._ranges.items():
            value = frame.get(name)
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or not value.size:
                continue
            flat = value.reshape(-1)[:: max(1, value.size // SAMPLES)]
            least, most = float(flat.min()), float(flat.max())
            width = FAR * (high - low)
            if most > high + width or least < low - width:
                self.done = True
                return (
                    f"frames of input {name!r} lie far outside {self._seen}: {least:.4g} to {most:.4g}, "
                    f"where {low:.4g} to {high:.4g} was seen. Is a scale missing (--preprocess 'scale=...')?"
                )
        return None


def ranges(signature: Signature, frames: Iterable[Mapping[str, Array]]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each input over ``frames``, as a Signature keeps them for :class:`Outside`."""
    seen = Seen(signature)
    for frame in frames:
        seen.add(frame)
    return seen.ranges()


class Seen:
    """Smallest and largest value of each input over the frames that were added."""

    def __init__(self, signature: Signature) -> None:
        self._coded = {t.name for t in signature.inputs if t.dtype in ("bfloat16", "float8e4m3fn")}
        self._ends: dict[str, list[float]] = {}

    def add(self, frame: Mapping[str, Array]) -> None:
        """One frame more."""
        for name, value in frame.items():
            if value.size and np.asarray(value).dtype.kind in "fiu" and name not in self._coded:
                ends = self._ends.setdefault(name, [np.inf, -np.inf])
                ends[:] = min(ends[0], float(value.min())), max(ends[1], float(value.max()))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """By input name; without those that were not finite."""
        return {n: (low, high) for n, (low, high) in self._ends.items() if np.isfinite([low, high]).all()}
