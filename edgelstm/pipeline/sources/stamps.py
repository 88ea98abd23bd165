"""The time column of a table: what its cells mean, and what is missing between two of them."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sources.rows import shown

log = logging.getLogger(__name__)

#: Steps in time that say what is usual.
RECENT = 64
#: A step in time this much longer than the usual one is a gap.
GAP = 1.5
#: Digits alone that are a date and a time: as seconds they would lie past the year 5000, and minutes would have 100 seconds.
COMPACT = {12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
#: What numbers may count, by the digits that a second has; and numbers that are no seconds, which they would be after the year 5000.
CLOCKS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
TOO_LATE = 1e11
_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
SECONDS, ZONED, BARE = "seconds", "times with a zone", "times without a zone"


@dataclass(frozen=True)
class Stamp:
    """seconds: since the first row of its stream. gap: what is missing before it. late: that it lies before the row before."""

    seconds: float
    gap: str | None
    late: EdgeLstmError | None


class Stamps:
    """Reads the times of one table in the order of its rows, and finds gaps within each stream.

    Seconds, or ISO 8601 (UTC where no zone is given; also 202401312359 and 20240131235959). One column has one of these: seconds and
    dates, or times with a zone and without one, lie hours or decades apart. clock: what numbers count, of :data:`CLOCKS`; None for seconds.
    """

    def __init__(self, clock: str | None = None) -> None:
        self._clock = clock
        self._kind: str | None = None
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._before: dict[str, tuple[float, str]] = {}
        self._starts: dict[str, float] = {}
        self._told = False

    def read(self, key: str, text: str, where: str) -> Stamp:
        """The time of the next row of stream ``key``. Raises EdgeLstmError for what is no time, or of another kind than those before."""
        seconds, kind = read_time(text, where, self._clock)
        if self._kind is None:
            ask(text, where, self._clock)
            self._kind = kind
        elif kind != self._kind:
            raise EdgeLstmError(
                f"{where}: time", found=f"{text}, behind {self._kind}", expected="one kind in a column"
            )
        gap, late = None, None
        if key in self._before:
            last, before = self._before[key]
            if seconds < last:
                late = EdgeLstmError(
                    f"{where}: time runs backwards",
                    found=f"{text} after {before}",
                    hint=self._why(last - seconds),
                )
            elif seconds > last:
                gap = self._gap(seconds - last, before, text)
            elif not self._told:
                # Clocks of whole seconds do this, and so do rows of several machines whose key nobody named.
                self._told = True
                log.warning(
                    "%s: %s a second time in one stream; key=COLUMN keeps several machines apart", where, text
                )
        self._before[key] = (seconds, text)
        return Stamp(seconds - self._starts.setdefault(key, seconds), gap, late)

    def _why(self, back: float) -> str | None:
        if self._kind is BARE and back <= 7200:
            return "Local time that was set back in autumn? Write it with its zone, or in UTC"
        return None

    def _gap(self, step: float, before: str, after: str) -> str | None:
        """What is missing, judged by the median of the last steps, which come with some jitter."""
        usual = float(np.median(self._steps)) if self._steps else None
        self._steps.append(step)
        if usual is None or step <= GAP * usual:
            return None
        missing = max(1, round(step / usual) - 1)
        return f"{missing} row{'s' * (missing > 1)} missing between {before} and {after}"


def ask(text: str, where: str, clock: str | None = None) -> None:
    """Raise EdgeLstmError where the first time of a column may mean several things, and a whole table would be read wrongly."""
    kind = read_time(text, where, clock)[1]
    if kind is not SECONDS:
        if clock is not None:
            raise EdgeLstmError(f"{where}: clock={clock}", found=f"{kind}, {text}", expected="numbers")
        return
    if clock is None and _is_date(text, "%Y%m%d", 8):
        raise EdgeLstmError(
            f"{where}: time",
            found=f"{text}, which is a date or seconds",
            expected=f"{text[:4]}-{text[4:6]}-{text[6:]}, or {text}.0 for seconds",
        )
    number = abs(float(text))
    if clock is None and number >= TOO_LATE:
        meant = next((c for c, digits in CLOCKS.items() if number < TOO_LATE * 10**digits), "ns")
        raise EdgeLstmError(
            f"{where}: time",
            found=f"{text}, as seconds past the year 5000",
            expected=f"clock={meant} behind the file, if they count {_WORDS[meant]}; clock=s if they are seconds",
        )


def read_time(text: str, where: str, clock: str | None = None) -> tuple[float, str]:
    """Seconds, and of what kind the text is. Raises EdgeLstmError for what is neither seconds nor ISO 8601."""
    refusal = EdgeLstmError(f"{where}: time", found=shown(text), expected="seconds, or ISO 8601")
    form = COMPACT.get(len(text)) if clock is None else None
    if form is not None and _is_date(text, form, len(text)):
        return datetime.strptime(text, form).replace(tzinfo=timezone.utc).timestamp(), BARE
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if not math.isfinite(seconds):
            raise refusal
        if digits := CLOCKS[clock or "s"]:
            # A whole number of nanoseconds has more digits than a float64.
            seconds = (int(text) if text.lstrip("+-").isdecimal() else seconds) / 10**digits
        return seconds, SECONDS
    try:
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise refusal from None
    if time.tzinfo is None:
        return time.replace(tzinfo=timezone.utc).timestamp(), BARE
    return time.timestamp(), ZONED


def _is_date(text: str, form: str, digits: int) -> bool:
    """Whether digits alone are a date of the years 1900 to 2199."""
    if len(text) != digits or not (text.isascii() and text.isdigit() and 1900 <= int(text[:4]) < 2200):
        return False
    try:
        datetime.strptime(text, form)
    except ValueError:
        return False
    return True
