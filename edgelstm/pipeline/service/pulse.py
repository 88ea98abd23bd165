"""What one stream shows while it runs: its last frame and outputs, how long steps take, how old outputs are."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from edgelstm.pipeline.sources.source import Array, Frame

#: Upper bounds of the buckets, in seconds: three a decade.
BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
#: Seconds that are remembered, one entry each.
HISTORY = 300


class Histogram:
    """Numbers of values by bucket; the last one has no bound."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value, in seconds."""
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.sum += value


class Shown(NamedTuple):
    """A frame as it came, as the model took it, and what the model made of it, with units and postprocessing where a sink asked for them."""

    frame: Frame
    taken: Mapping[str, Array]
    outputs: Mapping[str, Array]


class Pulse:
    """Written by the loop's thread, read by any: every attribute is put in place whole.

    Nothing is computed for those who look: they get references to what the step had anyway, so that a stream costs the same
    whether someone looks or not.
    """

    def __init__(self) -> None:
        #: Seconds from a frame's arrival after which its output is overdue.
        self.deadline: float | None = None
        self.overdue = 0
        #: The last step; all of it only where somebody may look.
        self.shown: Shown | None = None
        self.keeps = False
        #: Seconds of the last step, and from the frame's arrival to its output.
        self.step = self.age = 0.0
        #: When the last output came (``time.monotonic``).
        self.at: float | None = None
        self.steps, self.ages = Histogram(), Histogram()
        #: By second: (its number, frames, longest step, oldest output).
        self.history: deque[tuple[int, int, float, float]] = deque(maxlen=HISTORY)

    def show(self, shown: Shown) -> None:
        """What there is to see of the last step."""
        self.shown = shown if self.keeps else Shown(shown.frame, {}, {})

    def recent(self) -> list[tuple[int, int, float, float]]:
        """The history; any thread may ask."""
        while True:
            try:
                return list(self.history)
            except RuntimeError:  # a second was added meanwhile
                continue

    def stepped(self, shown: Shown, seconds: float, came: float) -> None:
        """A frame that came at ``came`` was stepped in ``seconds``."""
        now = time.monotonic()
        age = now - came
        self.step, self.age, self.at = seconds, age, now
        self.show(shown)
        self.steps.add(seconds)
        self.ages.add(age)
        if self.deadline is not None and age > self.deadline:
            self.overdue += 1
        second = int(now)
        if self.history and self.history[-1][0] == second:
            _, count, longest, oldest = self.history[-1]
            self.history[-1] = (second, count + 1, max(longest, seconds), max(oldest, age))
        else:
            self.history.append((second, 1, seconds, age))
