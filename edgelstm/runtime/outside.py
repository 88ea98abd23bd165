"""Frames that lie far outside what a model was exported or calibrated with, or fill next to nothing of it: seen in the first ones, at no
cost to the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from edgelstm.dtypes import CODED
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Array

#: Frames that are looked at; a wrong scale shows in the first.
LOOKS = 32
#: Of a larger frame, so many values are.
SAMPLES = 1 << 14
#: So many widths of the range beyond it is far: 0 to 255 where 0 to 1 was seen, not a louder voice.
FAR = 3.0


#: Frames that all have to be tiny before it is said: an engine stands still, a room is silent for a while.
TINY_LOOKS = 64
#: This part of the largest value that was seen is tiny: 0 to 1 where 0 to 255 was seen.
TINY = 0.01
#: Ranges around zero no wider are sound's, where silence is common.
SOUND = 1.5


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
        #: Largest value that is tiny, and the ends of what came, of inputs of which nothing larger came.
        self._tiny = {
            n: TINY * max(map(abs, ends)) for n, ends in self._ranges.items() if not _is_sound(ends)
        }
        self._ends = dict.fromkeys(self._tiny, (np.inf, -np.inf))
        self._looks = 0
        self.done = not self._ranges

    def look(self, frame: Mapping[str, Array]) -> str | None:
        """What to say of a frame, once."""
        self._looks += 1
        note = self._far(frame) or self._all_tiny()
        self.done = self.done or note is not None or (self._looks >= LOOKS and not self._tiny)
        return note

    def _far(self, frame: Mapping[str, Array]) -> str | None:
        for name, (low, high) in self._ranges.items():
            value = frame.get(name)
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or not value.size:
                continue
            flat = value.reshape(-1)[:: max(1, value.size // SAMPLES)]
            least, most = float(flat.min()), float(flat.max())
            width = FAR * (high - low)
            if name in self._tiny:
                if max(-least, most) > self._tiny[name]:
                    del self._tiny[name]
                elif least <= most:  # numbers
                    before = self._ends[name]
                    self._ends[name] = (min(least, before[0]), max(most, before[1]))
            if most > high + width or least < low - width:
                return (
                    f"frames of input {name!r} lie far outside {self._seen}: {least:.4g} to {most:.4g}, "
                    f"where {low:.4g} to {high:.4g} was seen. Is a scale missing in the preprocessing ('scale=...')?"
                )
        return None

    def _all_tiny(self) -> str | None:
        """Said once enough frames have come; a value that never changes says nothing."""
        if self._looks < TINY_LOOKS:
            return None
        found = [name for name in self._tiny if self._ends[name][0] < self._ends[name][1]]
        self.done = True
        if not found:
            return None
        (least, most), (low, high) = self._ends[found[0]], self._ranges[found[0]]
        return (
            f"frames of input {found[0]!r} fill next to nothing of {self._seen}: {least:.4g} to {most:.4g} in the first "
            f"{TINY_LOOKS}, where {low:.4g} to {high:.4g} was seen. Is a scale missing in the preprocessing ('scale=...'), or one too much?"
        )


def _is_sound(ends: tuple[float, float]) -> bool:
    low, high = ends
    return low < 0 < high and max(-low, high) <= SOUND


def ranges(signature: Signature, frames: Iterable[Mapping[str, Array]]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each input over ``frames``, as a Signature keeps them for :class:`Outside`."""
    seen = Seen(signature)
    for frame in frames:
        seen.add(frame)
    return seen.ranges()


class Seen:
    """Smallest and largest value of each input over the frames that were added."""

    def __init__(self, signature: Signature) -> None:
        self._coded = {t.name for t in signature.inputs if t.dtype in CODED}
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
