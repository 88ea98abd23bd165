"""A sink in a thread of its own behind a bounded queue: one that is slow or dead stalls no stream."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal

from edgelstm.pipeline.service.counters import Counts, is_worth_a_line
from edgelstm.pipeline.sinks import Sink
from edgelstm.pipeline.sources.source import Array, Frame

log = logging.getLogger("edgelstm.serve")

SinkOverload = Literal["drop_oldest", "block"]
_Item = tuple[Frame, Mapping[str, Array], float, Counts]


class Writer:
    """Takes outputs, which must stay valid, and writes them one by one.

    behind: by stream, index and name of the frames whose outputs the sink has from before a restart. overload, of a full queue: ``drop_oldest``, or ``block`` the streams until there is room. A sink that fails is closed, and
    what it would have got is counted.
    """

    def __init__(
        self,
        name: str,
        open_sink: Callable[[], Sink],
        size: int,
        overload: SinkOverload,
        behind: Mapping[str, Mapping[int, str]] | None = None,
    ) -> None:
        self.name = name
        self._sink = open_sink()
        self._size, self._overload = size, overload
        self._queue: deque[_Item] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._queued = self._done = 0
        self._behind = {stream: dict(frames) for stream, frames in (behind or {}).items()}
        #: What made the sink fail.
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def put(self, frame: Frame, outputs: Mapping[str, Array], seconds: float, counts: Counts) -> None:
        """Queue the outputs of one step."""
        if self._behind and self._was_written(frame):
            counts.add("written_before")
            return
        with self._wake:
            while (
                self._overload == "block"
                and len(self._queue) >= self._size
                and not self._closing
                and self.error is None
            ):
                self._wake.wait()
            if self.error is not None or self._closing:
                counts.add("undelivered:sink_failed" if self.error else "undelivered:closed")
                return
            if len(self._queue) >= self._size:
                *_, whose = self._queue.popleft()
                self._done += 1
                if is_worth_a_line(whose.add("undelivered:overload")):
                    log.warning("sink %s: too slow, outputs dropped", self.name)
            self._queue.append((frame, outputs, seconds, counts))
            self._queued += 1
            self._wake.notify_all()

    @property
    def is_catching_up(self) -> bool:
        """Whether outputs may still come that it has."""
        return bool(self._behind)

    def _was_written(self, frame: Frame) -> bool:
        stream = str(frame.stream)
        frames = self._behind.get(stream, {})
        found = frames.get(frame.index) == frame.name
        for index in [i for i in frames if i <= frame.index]:  # frames come in order
            del frames[index]
        if not frames:
            self._behind.pop(stream, None)
        return found

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                frame, outputs, seconds, counts = item
                try:
                    self._sink.write(frame, outputs, seconds)
                except BaseException:
                    counts.add("undelivered:sink_failed")
                    raise
                counts.add("delivered")
                with self._wake:
                    self._done += 1
                    self._wake.notify_all()
            self._sink.close()
        except (
            BaseException
        ) as error:  # a sink is other people's code and a full disk: nobody else stops for it
            self._fail(error)

    def _next(self) -> _Item | None:
        with self._wake:
            while not self._queue and not self._closing:
                self._wake.wait()
            if not self._queue:
                return None
            item = self._queue.popleft()
            self._wake.notify_all()
            return item

    def _fail(self, error: BaseException) -> None:
        log.error("sink %s: failed, nothing more is written to it: %s", self.name, error)
        with self._wake:
            self.error = error
            for *_, counts in self._queue:
                counts.add("undelivered:sink_failed")
            self._queue.clear()
            self._wake.notify_all()
        try:
            self._sink.__exit__(type(error), error, error.__traceback__)
        except BaseException as later:
            if later is not error:
                log.error("sink %s: could not be closed: %s", self.name, later)

    def settle(self, seconds: float) -> bool:
        """Wait until what is queued now is written; False if that takes longer. A sink that failed is waited for no more."""
        with self._wake:
            wanted = self._queued
            return self._wake.wait_for(lambda: self._done >= wanted or self.error is not None, seconds)

    def close(self, seconds: float) -> bool:
        """Write what is queued and put the result in its place; False if that takes longer than ``seconds``."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            return True
        log.error("sink %s: not done within %g s, left behind", self.name, seconds)
        with self._wake:
            for *_, counts in self._queue:
                counts.add("undelivered:closed")
            self._queue.clear()
        return False
