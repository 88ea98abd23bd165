"""A bounded queue of frames between a source's thread and the loop, and what gives way when it is full."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace

from edgelstm.pipeline.service.counters import Counts
from edgelstm.pipeline.service.policies import Overload
from edgelstm.pipeline.sources.source import Frame


@dataclass(frozen=True)
class Arrived:
    """A frame, its time stamp in seconds, and when it came (``time.monotonic``).

    returned: it is the first after a loss; anew: the first of a source that begins elsewhere than before.
    """

    frame: Frame
    stamp: float
    at: float
    returned: bool = False
    anew: bool = False


class Feed:
    """Frames of one stream, in the order in which they came. ``wake``: the loop's condition, notified of each.

    overload: ``block`` holds the source up, ``drop_oldest`` drops the oldest frame of a full queue, ``latest`` keeps the
    newest frame only.
    """

    def __init__(self, size: int, overload: Overload, counts: Counts, wake: threading.Condition) -> None:
        self._size = 1 if overload == "latest" else size
        self._overload = overload
        self._counts = counts
        self._wake = wake
        self._queue: deque[Arrived] = deque()
        #: Nothing more comes.
        self.ended = False
        #: When the last frame came, and the usual time from one to the next; None before the first and the second.
        self.last_at: float | None = None
        #: The source is away: since its last frame, or since it was noticed.
        self.lost = False
        self._anew = False
        self.interval: float | None = None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def oldest_at(self) -> float:
        """When the frame came that is next; for a feed that has one."""
        return self._queue[0].at

    def put(self, arrived: Arrived) -> bool:
        """Add a frame; False, and the frame is not taken, once the feed has ended."""
        with self._wake:
            while self._overload == "block" and len(self._queue) >= self._size and not self.ended:
                self._wake.wait()
            if self.ended:
                return False
            self._counts.add("read")
            if self.lost:
                self.lost = False
                self._counts.add("returned")
                arrived = replace(arrived, returned=True)
            if self._anew:
                self._anew = False
                arrived = replace(arrived, anew=True)
            while len(self._queue) >= self._size:
                dropped = self._queue.popleft()
                self._counts.add("dropped:overload")
                if self._queue:
                    self._queue[0] = _behind(self._queue[0], dropped)
                else:
                    arrived = _behind(arrived, dropped)
            if self.last_at is not None:
                step = arrived.at - self.last_at
                self.interval = step if self.interval is None else 0.8 * self.interval + 0.2 * step
            self.last_at = arrived.at
            self._queue.append(arrived)
            self._wake.notify_all()
            return True

    def take(self) -> Arrived | None:
        """The next frame, None when there is none now."""
        with self._wake:
            if not self._queue:
                return None
            arrived = self._queue.popleft()
            self._wake.notify_all()
            return arrived

    def end(self) -> None:
        """Nothing more comes; what is queued stays."""
        with self._wake:
            self.ended = True
            self._wake.notify_all()

    def follow(self, size: int, overload: Overload) -> None:
        """Give way by another rule from here on."""
        with self._wake:
            self._size = 1 if overload == "latest" else size
            self._overload = overload
            self._wake.notify_all()

    def wait_anew(self) -> None:
        """Frames were not taken on purpose: since now, nothing came."""
        with self._wake:
            if self.last_at is not None:
                self.last_at = time.monotonic()

    def begin_anew(self) -> None:
        """What comes from here on is another source's: its numbers and time stamps say nothing beside the old ones."""
        with self._wake:
            self._anew = True

    def oldest_index(self) -> int | None:
        """Index of the next frame, if there is one."""
        with self._wake:
            return self._queue[0].frame.index if self._queue else None

    def lose(self) -> bool:
        """The source is away; False when that was known."""
        with self._wake:
            if self.lost or self.ended:
                return False
            self.lost = True
            self._counts.add("lost")
            self._wake.notify_all()
            return True


def _behind(arrived: Arrived, dropped: Arrived) -> Arrived:
    """What lay before a dropped frame lies before the next."""
    if dropped.frame.gap is not None and arrived.frame.gap is None:
        arrived = replace(arrived, frame=replace(arrived.frame, gap=dropped.frame.gap))
    return replace(arrived, returned=arrived.returned or dropped.returned, anew=arrived.anew or dropped.anew)
