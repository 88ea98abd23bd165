"""A sink in a thread of its own behind a bounded queue: one that is slow or dead stalls no stream."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.service.counters import Counts
from edgelstm.pipeline.sinks import Sink, Undelivered
from edgelstm.pipeline.sources.source import Frame

log = logging.getLogger("edgelstm.serve")

SinkOverload = Literal["drop_oldest", "block"]
_Item = tuple[Frame, Mapping[str, Any], float, Counts]
#: Of the time that a sink has at the end, the part after which it is told to give up what it can't deliver.
PATIENCE = 0.8


#: Seconds from one word of dropped outputs to the next.
TOLD_EVERY = 60.0


class Writer:
    """Takes outputs, which must stay valid, and writes them one by one.

    A sink that fails is closed, and what it would have got is counted; one that raises :class:`Undelivered` goes on with the next.

    open_sink: is given what is set when it has to give up.
    overload: of a full queue: ``drop_oldest``, or ``block``: its streams are held up until half of it is empty, see :attr:`holds`.
    behind: by stream, index and name of the frames whose outputs the sink has from before a restart.
    path: of its file. mark: under which a checkpoint knows it.
    later: it is opened once :meth:`learnt` says so, and what comes before waits in the queue.
    readable: it gets the outputs that are for people, see :func:`edgelstm.pipeline.outputs.readable`; beside: and the model's input with
        them.
    """

    def __init__(
        self,
        name: str,
        open_sink: Callable[[threading.Event], Sink],
        size: int,
        overload: SinkOverload,
        behind: Mapping[str, Mapping[int, str]] | None = None,
        *,
        path: str = "",
        mark: str = "",
        later: bool = False,
        readable: bool = False,
        beside: bool = False,
    ) -> None:
        self.name = name
        self.path, self.mark = path, mark
        self.readable, self.beside = readable, beside
        self._stop = threading.Event()
        self._open = open_sink
        self._sink: Sink | None = None if later else open_sink(self._stop)
        #: It is to be opened, for the first time or anew, before the next output.
        self._opens = False
        self._size, self._overload = size, overload
        #: Whether its streams are to take no step now: nothing of theirs may be lost.
        self.holds = False
        #: Called, by its thread, when it holds no more.
        self.released: Callable[[], None] = lambda: None
        #: When it was last said that outputs are dropped, and how many were.
        self._told = -math.inf
        self._dropped = 0
        self._queue: deque[_Item] = deque()
        #: What is being written now.
        self._at_sink: list[_Item] = []
        #: Whose output was written last.
        self._last: Counts | None = None
        self._wake = threading.Condition()
        self._closing = False
        self._queued = self._done = 0
        #: When the sink may be written to again; how much was done when it was last waited for in vain; what it lost since it last took something.
        self._due = 0.0
        self._late_at = -1
        self._lost = 0
        self._behind = {stream: dict(frames) for stream, frames in (behind or {}).items()}
        self._by_name = False
        #: Since when it has been in a write.
        self._writing_since: float | None = None
        #: It was given up in there.
        self.hangs = False
        #: Why the last output could not be written to a disk; a later one may be.
        self.trouble: EdgeLstmError | None = None
        #: What made the sink fail.
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def judge(self, frame: Frame, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """See what the model took and gave in one step, in its own units, before :meth:`put`; for alarms."""

    def interrupted(self, stream: str, anew: bool) -> None:
        """A frame of a stream did not move its state as usual; ``anew``: it began anew. For alarms."""

    def put(self, frame: Frame, outputs: Mapping[str, Any], seconds: float, counts: Counts) -> None:
        """Queue the outputs of one step."""
        if self._behind and self._was_written(frame):
            counts.add("written_before")
            return
        with self._wake:
            if self.error is not None or self._closing:
                counts.add("undelivered:sink_failed" if self.error else "undelivered:closed")
                return
            if len(self._queue) >= self._size and self._overload == "drop_oldest":
                *_, whose = self._queue.popleft()
                self._done += 1
                whose.add("undelivered:overload")
                self._tell_dropped()
            self._queue.append((frame, outputs, seconds, counts))
            self._queued += 1
            # Streams that stepped together may put one each behind the last place.
            self.holds = self.holds or (self._overload == "block" and len(self._queue) >= self._size)
            self._wake.notify_all()

    def _tell_dropped(self) -> None:
        self._dropped += 1
        now = time.monotonic()
        if now - self._told >= TOLD_EVERY:
            self._told = now
            log.warning(
                'sink %s: slower than its stream, %s dropped so far. sink_overload = "block" holds the stream up instead, sink_queue lets more wait',
                self.name,
                count_of(self._dropped, "output"),
            )

    def _release(self) -> None:
        """Hold its streams no more."""
        if self.holds:
            self.holds = False
            self.released()

    @property
    def is_open(self) -> bool:
        """Whether its sink is, or is about to be."""
        return self._sink is not None or self._opens

    def learnt(self) -> None:
        """What the sink says of its source is known, or is known better: it is opened with that before the next output."""
        with self._wake:
            self._opens = True
            self._wake.notify_all()

    def check_hang(self, now: float, after: float) -> bool:
        """Give up a sink that has been writing for more than ``after`` seconds; True when it did. Nobody waits for it any more."""
        since = self._writing_since
        if (
            since is None
            or now - since <= after
            or self.error is not None
            or (self._sink is not None and self._sink.waits)
        ):
            return False
        with self._wake:
            if self._writing_since != since:
                return False
            self.hangs = True
            self.error = EdgeLstmError(
                "it hangs", found=f"{now - since:.1f} s in a write", expected=f"at most {after:g}"
            )
            for *_, counts in (*self._at_sink, *self._queue):
                counts.add("undelivered:sink_failed")
            self._at_sink = []
            self._queue.clear()
            self._wake.notify_all()
        self._release()
        self._stop.set()
        log.error("sink %s: hangs, nothing more is written to it: %s", self.name, self.error)
        return True

    @property
    def waiting(self) -> int:
        """Outputs in its queue."""
        return len(self._queue)

    @property
    def is_catching_up(self) -> bool:
        """Whether outputs may still come that it has."""
        return bool(self._behind)

    def forget_behind(self) -> None:
        """What comes is of another source than what the sink has, whatever its numbers and names."""
        self._behind = {}

    def go_by_names(self) -> None:
        """Frames have other numbers than those of what the sink has: files came late, or were removed."""
        self._by_name = True

    def _was_written(self, frame: Frame) -> bool:
        stream, behind = str(frame.stream), self._behind
        frames = behind.get(stream, {})
        last = frame.index
        if self._by_name:
            last = next((i for i, name in frames.items() if name == frame.name), -1)
        found = frames.get(last) == frame.name
        for index in [i for i in frames if i <= last]:  # frames come in order
            del frames[index]
        if not frames:
            behind.pop(stream, None)
        return found

    def _run(self) -> None:
        try:
            while items := self._next():
                self._deliver(items)
            try:
                if self._sink is not None:
                    self._sink.close()
            except Undelivered as error:
                log.warning("sink %s: %s", self.name, error)
                self.trouble = error if error.reason == "not_written" else None
                if self._last is not None and error.count:
                    self._last.add(f"undelivered:{error.reason}", error.count)
        except (
            BaseException
        ) as error:  # a sink is other people's code and a full disk: nobody else stops for it
            self._fail(error)

    def _deliver(self, items: list[_Item]) -> None:
        outcome = "undelivered:sink_failed"
        try:
            if self._stop.is_set():
                outcome = "undelivered:closed"
                return
            self._writing_since = time.monotonic()
            sink = self._opened()
            sink.write_all([(frame, outputs, seconds) for frame, outputs, seconds, _ in items])
            outcome, self.trouble = "delivered", None
            if self._lost:
                log.info("sink %s: delivers again; %d outputs were lost", self.name, self._lost)
                self._lost = 0
        except Undelivered as error:
            outcome = f"undelivered:{error.reason}"
            if error.count and self._at_sink:  # of what it took before
                self._at_sink[-1][-1].add(outcome, error.count)
            self.trouble = error if error.reason == "not_written" else None
            before, self._lost = self._lost, self._lost + len(items)
            if len(str(before)) < len(str(self._lost)) or not before:
                log.warning("sink %s: %d outputs lost: %s", self.name, self._lost, error)
        finally:
            with self._wake:
                self._writing_since, self._last = None, items[-1][-1]
                for *_, counts in self._at_sink:  # none when we were left behind: they are counted
                    counts.add(outcome)
                self._at_sink = []
                self._done += len(items)
                self._wake.notify_all()

    def _opened(self) -> Sink:
        if self._opens or self._sink is None:
            before = self._sink
            try:
                self._sink = self._open(self._stop)
            except (EdgeLstmError, OSError):
                if before is None:
                    raise
                return before  # with what it knew; tried again with the next output
            self._opens = False
            if before is not None:
                before.close()
        return self._sink

    def _next(self) -> list[_Item]:
        """What is written next, as much as the sink takes at once; nothing when all is."""
        with self._wake:
            while not self._closing and (not self._queue or not self.is_open or time.monotonic() < self._due):
                ready = self._queue and self.is_open
                self._wake.wait(max(0.0, self._due - time.monotonic()) if ready else None)
            batch, every = (1, 0.0) if self._sink is None else (self._sink.batch, self._sink.every)
            items = [self._queue.popleft() for _ in range(min(len(self._queue), batch))]
            self._at_sink = items
            self._due = time.monotonic() + every
            self._wake.notify_all()
            has_room = len(self._queue) <= self._size // 2
        if has_room:
            self._release()
        return items

    def _fail(self, error: BaseException) -> None:
        log.error("sink %s: failed, nothing more is written to it: %s", self.name, error)
        with self._wake:
            self.error = error
            for *_, counts in self._queue:
                counts.add("undelivered:sink_failed")
            self._queue.clear()
            self._wake.notify_all()
        self._release()
        try:
            if self._sink is not None:
                self._sink.__exit__(type(error), error, error.__traceback__)
        except BaseException as later:
            if later is not error:
                log.error("sink %s: could not be closed: %s", self.name, later)

    def settle(self, seconds: float) -> bool:
        """Wait until what is queued now is written; False if that takes longer. A sink that failed is waited for no more, and one that
        was waited for in vain not before it has written something."""
        with self._wake:
            wanted = self._queued
            if not self.is_open:  # it waits for its source, and nothing is lost but in a crash
                return True
            if self._done == self._late_at and self._done < wanted:
                return False
            settled = self._wake.wait_for(lambda: self._done >= wanted or self.error is not None, seconds)
            self._late_at = -1 if settled else self._done
            return settled

    def removed(self) -> None:
        """The streams are removed from a service that goes on; before :meth:`close`."""

    def let_go(self) -> None:
        """Forget the streams that it wrote for; after :meth:`close`."""

        def gone(stop: threading.Event) -> Sink:
            raise EdgeLstmError("the stream was removed")

        self._open, self.released = gone, lambda: None

    def finish(self) -> None:
        """Take nothing more; :meth:`close` waits for what is queued."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()

    def wait(self, seconds: float) -> None:
        """For the end of what is queued."""
        if not self.hangs:
            self._thread.join(seconds)

    def give_up(self) -> None:
        """What can't be delivered at once is lost."""
        self._stop.set()

    def close(self, seconds: float) -> bool:
        """Write what is queued and put the result in its place; False if that takes longer than ``seconds``."""
        self.finish()
        if self.hangs:
            return False
        self._thread.join(seconds)
        if not self._thread.is_alive():
            return True
        log.error("sink %s: not done in time, left behind", self.name)
        with self._wake:
            for *_, counts in (*self._at_sink, *self._queue):
                counts.add("undelivered:closed")
            self._queue.clear()
            self._at_sink = []
        return False


def close_all(writers: Sequence[Writer], seconds: float) -> None:
    """Together, so that one that is dead takes no time from the others."""
    begin = time.monotonic()

    def left(part: float) -> float:
        return max(0.0, begin + part * seconds - time.monotonic())

    for writer in writers:
        writer.finish()
    for writer in writers:
        writer.wait(left(PATIENCE))
    for writer in writers:
        writer.give_up()
    for writer in writers:
        writer.close(max(0.1 if writer is writers[0] else 0.0, left(1.0)))
