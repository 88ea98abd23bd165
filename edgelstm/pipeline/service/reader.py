"""A source in a thread of its own: it reads, keeps the pace, and opens the source again when it is lost."""

from __future__ import annotations

import logging
import math
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timezone
from pathlib import Path

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.service.feed import Arrived
from edgelstm.pipeline.sources import NothingYet, Source
from edgelstm.pipeline.sources.folder import natural
from edgelstm.pipeline.sources.source import Frame

log = logging.getLogger("edgelstm.serve")

#: Seconds between two tries to open a lost source, at most: the wait doubles from try to try.
LONGEST_WAIT = 60.0
#: Seconds since 1970 when ``time.monotonic`` was 0: frames without a time are stamped by a clock that goes on when the machine was
#: started again, as those in checkpoints must.
BEGAN = time.time() - time.monotonic()
#: Seconds from look to look at a folder that is empty.
LOOK = 0.5


class Reader:
    """Reads a source to its end and gives its frames to ``deliver``, which says whether to go on.

    A live source gives each frame once: none is passed over, its index counts on, and those that come faster than ``rate`` are left out.

    first: the source, if it is open already.
    rate: frames a second, None for as they come.
    retries: how often a source that fails is opened again, ``retry`` seconds later, then twice as long; a frame starts the count anew.
    after, since: index and time of the last frame that was dealt with: those up to it are passed over, also when the source is opened
        again; by time where the source knows it, by name in a folder, else by index.
    first_name: the name of the frame that the index counts from. Where a source without time begins with another one, those up to
        ``last_name`` are passed over if it has a frame of that name (``moved`` is told its index), else ``elsewhere`` is called, and all
        of its frames are new.
    rooms: streams at one time, at most.
    epoch: seconds since 1970 that ``Frame.time`` counts from, None for the source's start.
    limit: frames of a live source, however often it is opened.
    hang_after: seconds that the source may take to open or to give a frame, see :meth:`check_hang`.
    left_out: called with the reason, for each frame that is.
    lost: called when the source fails and is tried again. ended: called once, at the end.
    """

    def __init__(
        self,
        name: str,
        open_source: Callable[[], Source],
        deliver: Callable[[Arrived], bool],
        *,
        first: Source | None = None,
        rate: float | None = None,
        retries: int = 0,
        retry: float = 1.0,
        after: int = -1,
        since: float = -math.inf,
        first_name: str | None = None,
        last_name: str | None = None,
        rooms: int = 1,
        lost: Callable[[], None],
        ended: Callable[[], None],
        elsewhere: Callable[[], None],
        moved: Callable[[int], None] = lambda index: None,
        left_out: Callable[[str], None] = lambda reason: None,
        hang_after: float | None = None,
        limit: int | None = None,
        epoch: float | None = None,
    ) -> None:
        self.name = name
        #: What ended the source for good, before its end.
        self.error: Exception | None = None
        #: What is wrong with it now, while it is tried again.
        self.trouble: Exception | None = None
        self._open, self._deliver, self._first = open_source, deliver, first
        self._rate, self._retries, self._retry = rate, retries, retry
        self._after, self._since, self._rooms = after, since, rooms
        #: Name of the source's first frame.
        self.first_name = first_name
        self._elsewhere, self._moved, self._left_out = elsewhere, moved, left_out
        #: Name of the frame ``after``, and whether those up to it are passed over by name.
        self._last_name = last_name
        self._by_name = False
        self._lost, self._ended = lost, ended
        self._stop = threading.Event()
        self._source: Source | None = None
        self._due: float | None = None
        self._epoch = epoch
        self._hang_after, self._limit = hang_after, limit
        #: Since when the source is waited for, and how often one was left behind: the thread of an earlier one does nothing any more.
        self._since_asked: float | None = None
        self._generation = 0
        self._tries = 0
        self._lock = threading.Lock()
        self._thread = self._new_thread(None)

    def _new_thread(self, hung: Exception | None) -> threading.Thread:
        args = (self._generation, hung)
        return threading.Thread(target=self._run, args=args, name=f"source {self.name}", daemon=True)

    @property
    def last_index(self) -> int:
        """Of the last frame that was dealt with."""
        return self._after

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def follow(self, retries: int, retry: float, hang_after: float | None = None) -> None:
        """Try again by another rule from here on."""
        self._retries, self._retry, self._hang_after = retries, retry, hang_after

    def check_hang(self, now: float) -> bool:
        """Leave a source behind that hangs, and open it again as one that failed; True when it did. Called now and then."""
        asked, after = self._since_asked, self._hang_after
        if asked is None or after is None or now - asked <= after or self._stop.is_set():
            return False
        with self._lock:
            if self._since_asked != asked:  # it came back meanwhile
                return False
            self._generation += 1
            self._since_asked = None
            source, self._source = self._source, None
            hung = EdgeLstmError(
                "it hangs", found=f"no frame for {now - asked:.1f} s", expected=f"at most {after:g}"
            )
            self._thread = self._new_thread(hung)
            self._thread.start()
        if source is not None:
            # It may hang in there too.
            threading.Thread(target=source.stop, name=f"stop {self.name}", daemon=True).start()
        return True

    def stop(self) -> None:
        """Read no more; a source that waits for a frame is told so, and left behind."""
        self._stop.set()
        source = self._source
        if source is not None:
            source.stop()

    def let_go(self) -> None:
        """Forget whom it reads for; after :meth:`stop`."""

        def gone() -> Source:
            raise EdgeLstmError("the stream was removed")

        self._open, self._first = gone, None
        self._deliver = lambda _: False
        self._lost = self._ended = self._elsewhere = lambda: None
        self._moved = self._left_out = lambda _: None  # type: ignore[assignment]

    def join(self, seconds: float) -> None:
        """Wait for the thread."""
        if self._thread.ident is not None:  # it was started
            self._thread.join(seconds)

    def _run(self, generation: int, hung: Exception | None) -> None:
        try:
            if hung is not None and not self._again(hung):
                return
            while not self._stop.is_set():
                before = self._after
                try:
                    self._read(generation)
                    return
                except (
                    Exception
                ) as error:  # a damaged file, a lost share, a decoder's bug: this stream's affair alone
                    if generation != self._generation or self._stop.is_set():  # told to stop, it may fail
                        return
                    self._tries = 0 if self._after > before else self._tries
                    if not self._again(error):
                        return
        finally:
            if generation == self._generation:
                self._since_asked = None
                self._ended()

    def _again(self, error: Exception) -> bool:
        """The source failed: wait until it is tried again; False when it is not."""
        self._since_asked = None
        if isinstance(error, NothingYet):  # no failure: it has not begun
            self._stop.wait(LOOK)
            return True
        if self._tries >= self._retries:
            self.error = error
            log.error("stream %s: its source failed, it ends: %s", self.name, error)
            return False
        self.trouble = error
        wait = min(self._retry * 2.0 ** min(self._tries, 30), LONGEST_WAIT)
        self._tries += 1
        log.warning(
            "stream %s: its source failed, try %d of %d in %g s: %s",
            self.name,
            self._tries,
            self._retries,
            wait,
            error,
        )
        self._lost()
        self._stop.wait(wait)
        return True

    def _read(self, generation: int) -> None:
        self._since_asked = time.monotonic()
        source, self._first = (self._first or self._open()), None
        with self._lock:
            if generation != self._generation:
                source.close()
                return
            self._source = source
        with source:  # closed by this thread, which alone reads it
            if source.streams > self._rooms:
                raise EdgeLstmError(
                    f"source {source.description}",
                    found=f"{count_of(source.streams, 'stream')} at one time",
                    expected=f"at most {self._rooms}, as when the service began",
                )
            start = source.place.start
            epoch = None if start is None else start.replace(tzinfo=start.tzinfo or timezone.utc).timestamp()
            seen, since = -1, self._since
            gap: str | None = None  # before a frame that was left out, and so before the next
            for frame in source:
                seen = frame.index
                with self._lock:
                    if generation != self._generation:
                        return
                    self._since_asked = None
                if self._stop.is_set():
                    return
                if source.live:
                    gap = frame.gap or gap
                    if not self._is_due():
                        self._left_out("rate")
                        self._since_asked = time.monotonic()
                        continue
                    frame, gap = replace(frame, index=self._after + 1, gap=gap), None
                elif frame.index == 0:
                    self._begins_with(source, frame, has_time=epoch is not None)
                if self._by_name and not self._is_behind(source, frame):
                    self._since_asked = time.monotonic()
                    continue
                when = None if epoch is None or frame.time is None else epoch + frame.time
                by_number = (
                    when is None or frame.stream is not None
                )  # streams of one source are not equally far
                if not source.live and (frame.index <= self._after if by_number else when <= since):  # type: ignore[operator]
                    self._since_asked = time.monotonic()
                    continue
                if when is not None and epoch is not None:
                    # A source that begins later than it did counts its seconds from there; sinks know the first start.
                    self._epoch = epoch if self._epoch is None else self._epoch
                    frame = replace(frame, time=when - self._epoch)
                self.trouble = None
                if self._rate is not None and not source.live and not self._keep_pace(self._rate):
                    return
                self._tries = 0
                now = time.monotonic()
                at = stamp(frame, self._rate or source.fps, BEGAN + now) if when is None else when
                if not self._deliver(Arrived(frame, at, now)):
                    return
                self._after, self._last_name = frame.index, frame.name
                if frame.bad is None or when is not None:  # else it does not tell how far the source is
                    self._since = at
                if source.live and self._limit is not None and frame.index + 1 >= self._limit:
                    return
                self._since_asked = time.monotonic()
            self._since_asked = None
            if seen < self._after and epoch is None and not source.live:
                log.warning(
                    "stream %s: its source ends with frame %d, and frame %d was seen: is it another one?",
                    self.name,
                    seen,
                    self._after,
                )

    def _begins_with(self, source: Source, frame: Frame, has_time: bool) -> None:
        name, mark = frame.name, frame.mark
        if mark is None and source.holds is None and not has_time and not frame.is_empty:
            mark = _mark(frame)  # another recording under the same name has frames of the same names
        first = name if mark is None else f"{name} [{mark}]"
        before, self.first_name = self.first_name, first
        if has_time or self._after < 0:
            return
        # A name alone is of an older checkpoint.
        elsewhere, last = before not in (None, first, name), self._last_name
        # Of a folder, whose numbers change with every file that came late or was removed.
        self._by_name = (
            last is not None and source.holds is not None and (not elsewhere or source.holds(last))
        )
        if elsewhere and self._by_name:
            log.info(
                "stream %s: its source begins with %s and no longer with %s: goes on behind %s",
                self.name,
                first,
                before,
                last,
            )
        elif elsewhere:
            log.warning(
                "stream %s: its source begins with %s and no longer with %s: all its frames are new",
                self.name,
                first,
                before,
            )
            self._after = -1
            self._elsewhere()

    def _is_behind(self, source: Source, frame: Frame) -> bool:
        """Whether the frame comes behind the last one by name; those that do count from there."""
        assert self._last_name is not None
        assert source.holds is not None
        found = frame.name == self._last_name
        if not found and (source.holds(self._last_name) or _place(frame.name) < _place(self._last_name)):
            return False
        self._by_name, after = False, frame.index if found else frame.index - 1
        self._after = after
        self._moved(after)
        return not found

    def _is_due(self) -> bool:
        """Of a live source, which nobody can hold up: whether it is time for a frame."""
        now = time.monotonic()
        if self._rate is None:
            return True
        if self._due is not None and now < self._due:
            return False
        self._due = now if self._due is None or now > self._due + 1 else self._due
        self._due += 1 / self._rate
        return True

    def _keep_pace(self, rate: float) -> bool:
        """Wait until it is time for a frame; False when it was told to stop."""
        now = time.monotonic()
        if (
            self._due is None or now > self._due + 1
        ):  # behind by more than a second: no burst to make up for it
            self._due = now
        stopped = self._stop.wait(max(0.0, self._due - now))
        self._due += 1 / rate
        return not stopped


def _mark(frame: Frame) -> str:
    """What tells a frame's values from others."""
    found = 0
    for array in frame.data.values() if isinstance(frame.data, Mapping) else (frame.data,):
        found = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, found)
    return f"{found:08x}"


def _place(name: str) -> tuple[list[int | str], str]:
    return natural(Path(name))


def stamp(frame: Frame, rate: float | None, now: float) -> float:
    """Time stamp in seconds: the source's, else the frame's place at ``rate``, else when it came."""
    if frame.time is not None:
        return frame.time
    return frame.index / rate if rate else now
