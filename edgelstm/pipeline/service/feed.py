"""A bounded queue of frames between a source's thread and the loop, and what gives way when it is full."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgelstm.pipeline.service.counters import Counts
from edgelstm.pipeline.service.policies import Overload
from edgelstm.pipeline.sources.source import Frame

#: Frames that may wait where nothing is declared; of small ones read ahead, as many as so many bytes hold, and at most so many.
FRAMES = 4
AHEAD_BYTES = 2 * 1024**2
AHEAD_FRAMES = 64


@dataclass(slots=True)
class Arrived:
    """A frame, its time stamp in seconds, and when it came (``time.monotonic``). Nothing changes one that is in a queue.

    returned: it is the first after a loss; anew: the first of a source that begins elsewhere than before.
    """

    frame: Frame
    stamp: float
    at: float
    returned: bool = False
    anew: bool = False


class Wake(threading.Condition):
    """What a loop sleeps on. A thread is woken a round, not a frame: sources tell the loop only what it waits for.

    All that it holds is read and written under :attr:`lock`.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        super().__init__(self.lock)
        #: The loop sleeps until a frame comes, whosever.
        self.idle = False
        #: The loop sleeps until so many feeds that it awaits have a frame.
        self.missing = 0
        #: Something other than a frame came about: a source ended, was lost, returned.
        self.look = True

    def tell(self) -> None:
        """Something other than a frame came about."""
        self.look = True
        self.notify_all()


class Feed:
    """Frames of one stream, in the order in which they came. ``wake``: the loop's.

    overload: ``block`` holds the source up, ``drop_oldest`` drops the oldest frame of a full queue, ``latest`` keeps the
    newest frame only. A source that is held up goes on once a quarter of the queue is left.

    size: frames; None for :data:`FRAMES`, and up to :data:`AHEAD_FRAMES` where ``block`` meets small frames: a thread switch costs
    more than such a frame, and a recording may be read ahead.
    """

    def __init__(self, size: int | None, overload: Overload, counts: Counts, wake: Wake) -> None:
        self._size = 1 if overload == "latest" else size or FRAMES
        self._may_grow = size is None and overload == "block"
        self._blocks = overload == "block"
        self._counts = counts
        self._wake, self._lock = wake, wake.lock
        self._room = threading.Condition(wake.lock)
        self._held_up = False
        #: Read by others, written here.
        self.queue: deque[Arrived] = deque()
        #: The loop waits for a frame of this feed.
        self.awaited = False
        #: Nothing more comes.
        self.ended = False
        #: When the last frame came, and the usual time from one to the next; None before the first and the second.
        self.last_at: float | None = None
        #: The source is away: since its last frame, or since it was noticed.
        self.lost = False
        self._anew = False
        self.interval: float | None = None

    def __len__(self) -> int:
        return len(self.queue)

    @property
    def room(self) -> int:
        """Frames that may wait."""
        return self._size

    @property
    def oldest_at(self) -> float:
        """When the frame came that is next; for a feed that has one."""
        return self.queue[0].at

    def put(self, arrived: Arrived) -> bool:
        """Add a frame; False, and the frame is not taken, once the feed has ended."""
        with self._lock:
            return self.add(arrived)

    def add(self, arrived: Arrived) -> bool:
        """:meth:`put`, for who holds the lock."""
        queue, wake = self.queue, self._wake
        if self._may_grow:
            self._may_grow = False
            fit = AHEAD_BYTES // max(1, nbytes(arrived.frame))
            self._size = max(FRAMES, min(AHEAD_FRAMES, fit))
        if self._blocks:
            while len(queue) >= self._size and not self.ended:
                self._held_up = True
                self._room.wait()
        if self.ended:
            return False
        self._counts.read += 1
        if self.lost:
            self.lost = False
            wake.look = True
            self._counts.add("returned")
            arrived = replace(arrived, returned=True)
        if self._anew:
            self._anew = False
            arrived = replace(arrived, anew=True)
        while len(queue) >= self._size:
            dropped = queue.popleft()
            self._counts.add("dropped:overload")
            if queue:
                queue[0] = _behind(queue[0], dropped)
            else:
                arrived = _behind(arrived, dropped)
        if self.last_at is not None:
            step = arrived.at - self.last_at
            self.interval = step if self.interval is None else 0.8 * self.interval + 0.2 * step
        self.last_at = arrived.at
        queue.append(arrived)
        if self.awaited:
            self.awaited = False
            wake.missing -= 1
            if wake.missing <= 0:
                wake.notify_all()
        elif wake.idle:
            wake.idle = False
            wake.notify_all()
        return True

    def take(self) -> Arrived | None:
        """The next frame, None when there is none now."""
        with self._lock:
            return self.pop() if self.queue else None

    def pop(self) -> Arrived:
        """:meth:`take` where there is a frame, for who holds the lock."""
        arrived = self.queue.popleft()
        if self._held_up and len(self.queue) <= self._size // 4:
            self._held_up = False
            self._room.notify_all()
        return arrived

    def end(self) -> None:
        """Nothing more comes; what is queued stays."""
        with self._lock:
            self.ended = True
            self._room.notify_all()
            self._wake.tell()

    def follow(self, size: int | None, overload: Overload) -> None:
        """Give way by another rule from here on."""
        with self._lock:
            self._size = 1 if overload == "latest" else size or FRAMES
            self._may_grow = size is None and overload == "block"
            self._blocks = overload == "block"
            self._room.notify_all()

    def wait_anew(self) -> None:
        """Frames were not taken on purpose: since now, nothing came."""
        with self._lock:
            if self.last_at is not None:
                self.last_at = time.monotonic()

    def begin_anew(self) -> None:
        """What comes from here on is another source's: its numbers and time stamps say nothing beside the old ones."""
        with self._lock:
            self._anew = True

    def oldest_index(self) -> int | None:
        """Index of the next frame, if there is one."""
        with self._lock:
            return self.queue[0].frame.index if self.queue else None

    def lose(self) -> bool:
        """The source is away; False when that was known."""
        with self._lock:
            if self.lost or self.ended:
                return False
            self.lost = True
            self._counts.add("lost")
            self._wake.tell()
            return True


def _behind(arrived: Arrived, dropped: Arrived) -> Arrived:
    """What lay before a dropped frame lies before the next."""
    if dropped.frame.gap is not None and arrived.frame.gap is None:
        arrived = replace(arrived, frame=replace(arrived.frame, gap=dropped.frame.gap))
    return replace(arrived, returned=arrived.returned or dropped.returned, anew=arrived.anew or dropped.anew)


def nbytes(frame: Frame) -> int:
    """Bytes of a frame's arrays."""
    data = frame.data
    return sum(a.nbytes for a in data.values()) if isinstance(data, Mapping) else data.nbytes
