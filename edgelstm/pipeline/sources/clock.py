"""From a sender's time stamps to this machine's clock: when a frame of a live source was taken."""

from __future__ import annotations

import time
from datetime import datetime, timezone

#: Seconds of the sender's time over which the shortest delay counts; its clock drifts by less than a millisecond in them.
WINDOW = 10.0
#: The machine's clock was set when it leaves its steady one by so many seconds.
SET = 1.0


class CaptureClock:
    """Seconds since 1970 (UTC) of frames that come with the sender's time, which begins anywhere.

    The spacing is the sender's, laid on this machine's clock where the delay of the last 10 s was shortest: what waited in a network
    or a queue does not move the stamps. A sender's time that runs backwards has begun anew. Frames without one have the time at
    which they came.
    """

    def __init__(self) -> None:
        self._base = time.time() - time.monotonic()
        self._last: float | None = None
        #: Smallest (arrival - sender's time) in this window and in the one before, and where this one began.
        self._now = self._before = float("inf")
        self._began = 0.0
        self._given = 0.0

    def stamp(self, sent: float | None, came: float | None = None) -> tuple[float, str | None]:
        """(stamp, what is to be said: a clock was set or begins anew). sent: the sender's seconds; came: ``time.monotonic``."""
        came = time.monotonic() if came is None else came
        base = time.time() - time.monotonic()
        note = None
        if abs(base - self._base) > SET:
            note = f"this machine's clock was set by {base - self._base:+.1f} s"
            self._base = base
        if sent is None:
            return self._base + came, note
        if self._last is None or sent < self._last:
            if self._last is not None:
                note = "the sender's time begins anew"
            self._now = self._before = float("inf")
            self._began = sent
        elif sent - self._began > WINDOW:
            self._before, self._now, self._began = self._now, float("inf"), sent
        self._last = sent
        self._now = min(self._now, came - sent)
        stamp = self._base + sent + min(self._now, self._before)
        # Frames that came together: the next one is later, by more than the rounding of a time since 1970.
        self._given = stamp if note is not None else max(stamp, self._given + 1e-6)
        return self._given, note


def utc(stamp: float) -> str:
    """Seconds since 1970 as ``2026-01-31T12:00:00.040Z``."""
    return datetime.fromtimestamp(stamp, timezone.utc).isoformat(timespec="milliseconds")[:-6] + "Z"
