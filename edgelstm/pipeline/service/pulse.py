"""What one stream shows while it runs: its last frame and outputs, how long steps take, how old outputs are."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from edgelstm.dtypes import to_float32
from edgelstm.pipeline.sources.source import Array, Frame

#: Upper bounds of the buckets, in seconds: three a decade.
BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
_BOUNDS = np.array(BOUNDS)
#: Seconds that are remembered, one entry each.
HISTORY = 300
#: Steps that are counted together where nobody looks.
TOGETHER = 256


class Histogram:
    """Numbers of values by bucket; the last one has no bound."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, values: Array) -> None:
        """Count values, in seconds."""
        found = np.bincount(np.searchsorted(_BOUNDS, values), minlength=len(self.counts)).tolist()
        self.counts = [a + b for a, b in zip(self.counts, found, strict=True)]
        self.sum += float(values.sum())


class Shown(NamedTuple):
    """A frame as it came, as the model took it, and what the model made of it, with units and postprocessing where a sink asked for them."""

    frame: Frame
    taken: Mapping[str, Array]
    outputs: Mapping[str, Array]


class Timing(NamedTuple):
    """Of one step: its seconds, those from the frame's arrival to its output, and when that came (``time.monotonic``)."""

    step: float
    age: float
    at: float


class Pulse:
    """Written by the loop's thread, read by any: every attribute is put in place whole.

    Nothing is computed for those who look: they get references to what the step had anyway, so that a stream costs the same
    whether someone looks or not. What is counted is noted in a step, and summed up when somebody asks, or a few hundred at once.
    """

    def __init__(self) -> None:
        #: The last frame that was stepped; with all that came of it only where somebody may look.
        self.frame: Frame | None = None
        self.shown: Shown | None = None
        self.keeps = False
        #: Types of the inputs that the model takes as raw bits.
        self.coded: dict[str, str] = {}
        self._deadline: float | None = None
        self._overdue = 0
        self._steps, self._ages = Histogram(), Histogram()
        #: By second: (its number, frames, longest step, oldest output).
        self._history: deque[tuple[int, int, float, float]] = deque(maxlen=HISTORY)
        #: Of steps that are not counted yet: the three numbers of a :class:`Timing` each, one after the other. No tuples: Python's collector
        #: would go through them.
        self._noted: list[float] = []
        self._last: Timing | None = None
        self._lock = threading.Lock()

    def show(self, frame: Frame, taken: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """What there is to see of the last step."""
        self.frame = frame
        if self.keeps:
            decoded = {n: to_float32(a, self.coded[n]) if n in self.coded else a for n, a in taken.items()}
            self.shown = Shown(frame, decoded, outputs)

    def stepped(self, seconds: float, came: float, now: float) -> None:
        """A frame that came at ``came`` was stepped in ``seconds``, and has its output ``now`` (both ``time.monotonic``)."""
        noted = self._noted
        noted += (seconds, now - came, now)  # at once: another thread may be counting
        if len(noted) >= 3 * TOGETHER:
            self._count()

    def _count(self) -> None:
        with self._lock:
            noted = self._noted[:]
            del self._noted[: len(noted)]
            if not noted:
                return
            self._last = Timing(*noted[-3:])
            steps, ages, at = np.array(noted).reshape(-1, 3).T
            self._steps.add(steps)
            self._ages.add(ages)
            if self._deadline is not None:
                self._overdue += int((ages > self._deadline).sum())
            seconds = at.astype(np.int64)
            begins = np.flatnonzero(np.diff(seconds, prepend=-1))
            found = zip(
                seconds[begins].tolist(),
                np.diff(begins, append=len(seconds)).tolist(),
                np.maximum.reduceat(steps, begins).tolist(),
                np.maximum.reduceat(ages, begins).tolist(),
                strict=True,
            )
            for entry in found:
                second, count, longest, oldest = entry
                if self._history and self._history[-1][0] == second:
                    _, more, longer, older = self._history.pop()
                    entry = (second, count + more, max(longest, longer), max(oldest, older))
                self._history.append(entry)

    @property
    def deadline(self) -> float | None:
        """Seconds from a frame's arrival after which its output is overdue."""
        return self._deadline

    @deadline.setter
    def deadline(self, seconds: float | None) -> None:
        self._count()  # by the one that held
        self._deadline = seconds

    @property
    def overdue(self) -> int:
        """Outputs that came after the deadline."""
        self._count()
        return self._overdue

    @property
    def last(self) -> Timing | None:
        """Of the last step; None before the first."""
        self._count()
        return self._last

    @property
    def histograms(self) -> tuple[Histogram, Histogram]:
        """Of the seconds of steps, and of outputs' ages."""
        self._count()
        return self._steps, self._ages

    def recent(self) -> list[tuple[int, int, float, float]]:
        """The history; any thread may ask."""
        self._count()
        with self._lock:
            return list(self._history)
