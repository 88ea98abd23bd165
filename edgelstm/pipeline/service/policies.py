"""What a time stamp means for a stream: in time, too late, or behind a gap; and what is then done, as declared."""

from __future__ import annotations

import math
import re
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Literal

from edgelstm.errors import EdgeLstmError

Overload = Literal["latest", "block", "drop_oldest"]
Late = Literal["drop", "step", "reset"]
Loss = Literal["keep", "reset_on_loss", "reset_on_return"]
Bad = Literal["skip", "rollback", "reset"]

#: A gap's policy as it stands in the file.
GAP = r"reset|hold|(repeat|blank):[1-9][0-9]{0,3}"
#: So many late frames in a row are no late frames: the clock was set back.
LATE_IN_A_ROW = 8
#: Seconds that steps in time of ``max_gap`` may be longer: a float64 of a time since 1970 has no microsecond.
ROUNDING = 1e-6
#: Steps in time of which the usual one is the median.
REMEMBERED = 16


@dataclass(frozen=True)
class GapRule:
    """word: reset, hold, repeat, blank. most: frames that stand in for missing ones, at most."""

    word: str
    most: int = 0

    @classmethod
    def parse(cls, text: str) -> GapRule:
        """``reset``, ``hold``, ``repeat:N`` or ``blank:N``; else EdgeLstmError."""
        if re.fullmatch(GAP, text) is None:
            raise EdgeLstmError(
                "gap", found=text, expected="reset, hold, repeat:N or blank:N with N of 1 to 9999"
            )
        word, _, count = text.partition(":")
        return cls(word, int(count or 0))


@dataclass(frozen=True)
class Rules:
    """What is declared of a stream. lost_after: seconds without a frame after which its source counts as lost."""

    gap: GapRule
    loss: Loss
    bad: Bad
    lost_after: float | None = None


@dataclass(frozen=True)
class Verdict:
    """drop: why the frame is not stepped. reset: why the state is set back before it. gap: whether something is missing
    before it; fill: how many frames stand in for that. late: it is stepped all the same."""

    drop: str | None = None
    reset: str | None = None
    gap: bool = False
    fill: int = 0
    late: bool = False


#: Nothing is to be said of the frame.
IN_TIME = Verdict()


class Clock:
    """Judges the time stamps of one stream, in seconds.

    max_gap: a step longer than this is a gap; None: only where the source says so. rate: frames a second, None to learn the
    usual step. A frame whose stamp is that of the one before is a duplicate, one with an earlier stamp is late: both go by
    ``late``. But a stamp earlier by more than ``max_gap``, or 8 late ones in a row, are a clock that was set back: a gap.
    """

    def __init__(
        self, gap: GapRule, late: Late, max_gap: float | None = None, rate: float | None = None
    ) -> None:
        self._gap, self._late, self._max_gap = gap, late, max_gap
        self._rate = rate
        self._steps: deque[float] = deque(maxlen=REMEMBERED)
        self._late_in_a_row = 0
        #: Stamp of the last frame in time.
        self.last: float | None = None

    def follow(self, gap: GapRule, late: Late, max_gap: float | None) -> None:
        """Judge by other policies from here on."""
        self._gap, self._late, self._max_gap = gap, late, max_gap

    def begin_anew(self, last: float | None = None) -> None:
        """Forget the time stamps, or go on from ``last``."""
        self.last = last
        self._late_in_a_row = 0
        self._steps.clear()

    @property
    def usual(self) -> float | None:
        """Seconds from frame to frame, if known."""
        if self._rate is not None:
            return 1 / self._rate
        return statistics.median(self._steps) if self._steps else None

    def arrived(self, stamp: float, said_gap: bool = False) -> Verdict:
        """Judge a frame. said_gap: the source says that something is missing before it."""
        if not math.isfinite(stamp):
            return Verdict(drop="no_time")
        if self.last is None:
            self.last = stamp
            return IN_TIME
        step = stamp - self.last
        if step <= 0 and not self._was_set_back(step):
            return self._not_in_time("duplicate" if step == 0 else "late")
        self._late_in_a_row = 0
        self.last = stamp
        gap = step <= 0 or (said_gap if self._max_gap is None else step > self._max_gap + ROUNDING)
        if not gap:
            self._steps.append(step)
            return IN_TIME
        if self._gap.word == "reset":
            return Verdict(reset="gap", gap=True)
        return Verdict(gap=True, fill=self._missing(step) if step > 0 else 0)

    def _was_set_back(self, step: float) -> bool:
        if self._max_gap is not None and step < -self._max_gap:
            return True
        # Those that stay where they are, frame after frame, are a camera that hangs: no gap, and none of them is new.
        self._late_in_a_row = self._late_in_a_row + 1 if step < 0 else 0
        return self._late_in_a_row > LATE_IN_A_ROW

    def _not_in_time(self, which: str) -> Verdict:
        if self._late == "drop":
            return Verdict(drop=which)
        return Verdict(reset=which if self._late == "reset" else None, late=True)

    def _missing(self, step: float) -> int:
        usual = self.usual
        if not self._gap.most:
            return 0
        if not usual:
            return self._gap.most
        steps = step / usual
        return self._gap.most if steps > self._gap.most + 1 else max(1, round(steps) - 1)
