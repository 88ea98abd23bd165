"""What one stream shows while it runs: its last frame and outputs, how long steps take, how old outputs are."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

import numpy as np

from edgelstm.dtypes import to_float32
from edgelstm.pipeline.sources.source import Array, Frame

#: Upper bounds of the buckets, in seconds: three a decade.
BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
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
        found = np.bincount(np.searchsorted(BOUNDS, values), minlength=len(self.counts)).tolist()
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
        #: Of steps that are not counted yet: as in a :class:`Timing`.
        self._noted: deque[tuple[float, float, float]] = deque()
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
        self._noted.append((seconds, now - came, now))
        if len(self._noted) >= TOGETHER:
            self._count()

    def _count(self) -> None:
        with self._lock:
            noted = [self._noted.popleft() for _ in range(len(self._noted))]
            if not noted:
                return
            self._last = Timing(*noted[-1])
            steps, ages, at = np.fromiter(chain.from_iterable(noted), np.float64).reshape(-1, 3).T
            self._steps.add(steps)
            self._ages.add(ages)
            if self._deadline is not None:
                self._overdue += int((ages > self._deadline).sum())
            seconds = at.astype(np.int64)
            for second in sorted(set(seconds.tolist())):
                mine = seconds == second
                entry = (second, int(mine.sum()), float(steps[mine].max()), float(ages[mine].max()))
                if self._history and self._history[-1][0] == second:
                    _, count, longest, oldest = self._history.pop()
                    entry = (second, entry[1] + count, max(entry[2], longest), max(entry[3], oldest))
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
