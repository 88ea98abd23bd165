"""Steps that are missing between two that a sink gets: what plays in time leaves room for them, or what comes behind would play too early."""

from __future__ import annotations

import logging

from edgelstm.errors import count_of
from edgelstm.pipeline.sources.source import Frame

log = logging.getLogger(__name__)

#: Seconds that are left free at most; a longer break is closed up, and said.
LONGEST = 600.0
#: Seconds by which times must lie farther apart than numbers say before they are believed: those of live sources waver.
WAVER = 0.5


class Missing:
    """Of one file, in places of ``period`` seconds of the source (None where it is not known), which take ``shown`` seconds when it is played.

    path, what: for the log, which is told at the end in how many places ``what`` stands.
    """

    def __init__(self, path: object, what: str, period: float | None, shown: float) -> None:
        self._path, self._what, self._period = path, what, period
        self._most = int(LONGEST / shown)
        self._last: Frame | None = None
        self._step: int | None = None
        #: Places left free, and breaks that were too long for that.
        self.count = self._closed = 0

    def before(self, frame: Frame) -> int:
        """How many places are to be left free before a step."""
        last, self._last = self._last, frame
        free = 0 if last is None else self._free(last, frame)
        if free > self._most:
            self._closed += 1
            return 0
        self.count += free
        return free

    def _free(self, last: Frame, frame: Frame) -> int:
        apart = frame.index - last.index
        if apart <= 0:  # a source that begins anew
            return 0
        self._step = apart if self._step is None else min(self._step, apart)  # of windows, several
        free = round(apart / self._step) - 1
        if self._period and frame.time is not None and last.time is not None:
            seconds = frame.time - last.time
            if frame.gap is not None or seconds > (free + 1) * self._period + max(WAVER, self._period):
                free = max(0, round(seconds / self._period) - 1)
        return free

    def tell(self) -> None:
        """Say what was done; at the end."""
        if self.count:
            steps = count_of(self.count, "missing step")
            log.warning("%s: %s in the place of %s", self._path, self._what, steps)
        if self._closed:
            breaks = count_of(self._closed, "break")
            log.warning("%s: closed up: %s of more than %g s", self._path, breaks, LONGEST)
