"""Several sources as one: frames taken at the same time become one frame, for models with several inputs."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.place import Place
from edgelstm.pipeline.sources.source import NOTHING, Frame, Source

#: Frames of each that may wait for the others.
WAITING = 32

#: Told of a frame without a partner: whose, and the number of the pair that comes next.
Count = Callable[[str, int], None]


def pair(sources: Mapping[str, Source], within: float, count: Count = lambda name, index: None) -> Source:
    """Frames with an array of each source, by its name, whose times differ by at most ``within`` seconds.

    Each frame goes with that of the others which is nearest in time; one without a partner is dropped, and ``count`` told.
    Time, name and place are those of the first source. It ends with the first that ends, and fails with the first that fails.
    Raises EdgeLstmError where times can't be compared.
    """
    lanes = [_Lane(name, source) for name, source in sources.items()]
    starts = {lane.source.place.start is None for lane in lanes}
    if len(starts) > 1:
        told = [f"{lane.name} {lane.source.description}" for lane in lanes if lane.source.place.start is None]
        raise EdgeLstmError(
            "sources to be paired",
            found=f"{', '.join(told)}: no time of day",
            expected="all with one, or none",
        )
    for lane in lanes:
        if lane.source.streams > 1 or lane.source.is_sound:
            found = "sound" if lane.source.is_sound else f"{count_of(lane.source.streams, 'stream')}"
            raise EdgeLstmError(f"source {lane.name} of a pair", found=found, expected="frames of one stream")
    return _Paired(lanes, within, count)


@dataclass
class _Timed:
    frame: Frame
    at: float


class _Lane:
    """One of the sources, read by a thread of its own."""

    def __init__(self, name: str, source: Source) -> None:
        self.name, self.source = name, source
        self.queue: deque[_Timed] = deque()
        self.ended = False
        self.error: BaseException | None = None
        #: Time of the last frame that was taken or dropped; what is missing before one that was dropped, and so before the next.
        self.last = -math.inf
        self._gap: str | None = None
        start = source.place.start
        self._epoch = 0.0 if start is None else start.timestamp()

    def begin(self) -> None:
        """Anew."""
        self.queue.clear()
        self.ended, self.error, self.last, self._gap = False, None, -math.inf, None

    def pop(self) -> Frame:
        """The first in its queue."""
        timed = self.queue.popleft()
        self.last = timed.at
        gap, self._gap = timed.frame.gap or self._gap, None
        return timed.frame if gap == timed.frame.gap else replace(timed.frame, gap=gap)

    def drop(self) -> None:
        """The first in its queue goes with none."""
        self._gap = self.pop().gap

    def when(self, frame: Frame) -> float:
        """Seconds, comparable with those of the others."""
        if frame.time is not None:
            return self._epoch + frame.time
        if self.source.fps:
            return frame.index / self.source.fps
        raise EdgeLstmError(
            f"source {self.name} of a pair",
            found=f"frame {frame.name} without a time",
            expected="times, or a rate",
        )


class _Paired(Source):
    def __init__(self, lanes: list[_Lane], within: float, count: Count) -> None:
        self._lanes, self._within, self._count = lanes, within, count
        self._wake = threading.Condition()
        first = lanes[0].source
        for lane in lanes:
            lane.source.gives_bad = True  # of a pair, it is the pair that is bad
        super().__init__(
            " with ".join(lane.source.description for lane in lanes),
            self._pairs,
            fps=first.fps,
            gaps=tuple(gap for lane in lanes for gap in lane.source.gaps),
            said=tuple(line for lane in lanes for line in lane.source.said),
            place=Place(first.place.start, first.place.interval),
            live=any(lane.source.live for lane in lanes),
        )

        told = self.left_out
        for lane in lanes:
            lane.source.left_out.tell = lambda reason: told.tell(reason)
        if any(lane.source.scales for lane in lanes):
            self.scales = " ".join(lane.source.scales or "-" for lane in lanes)

    def __iter__(self) -> Iterator[Frame]:
        if self._current is not None:
            return super().__iter__()
        self._current = self._checked()  # with the sources as they were opened
        return self._current

    def stop(self) -> None:
        super().stop()
        for lane in self._lanes:
            lane.source.stop()
        with self._wake:
            self._wake.notify_all()

    def close(self) -> None:
        super().close()
        if self._current is None:
            for lane in self._lanes:
                lane.source.close()

    def _read(self, lane: _Lane, stopped: threading.Event) -> None:
        try:
            with lane.source:
                for frame in lane.source:
                    if frame.bad is not None and frame.time is None and not lane.source.fps:
                        self._count(lane.name, self._next)  # it goes with none
                        continue
                    timed = _Timed(frame, lane.when(frame))
                    if not math.isfinite(timed.at):
                        self._count(lane.name, self._next)
                        continue
                    with self._wake:
                        while len(lane.queue) >= WAITING and not lane.source.live and not stopped.is_set():
                            self._wake.wait()
                        if stopped.is_set():
                            return
                        if len(lane.queue) >= WAITING:
                            lane.drop()
                            self._count(lane.name, self._next)
                        lane.queue.append(timed)
                        self._wake.notify_all()
        except BaseException as error:  # the other thread raises it
            lane.error = error
        finally:
            with self._wake:
                lane.ended = True
                self._wake.notify_all()

    def _pairs(self) -> Iterator[Frame]:
        self._next = 0
        stopped = threading.Event()
        lanes = self._lanes
        for lane in lanes:
            lane.begin()
            threading.Thread(
                target=self._read, args=(lane, stopped), name=f"source {lane.name}", daemon=True
            ).start()
        try:
            while (found := self._take()) is not None:
                yield _together(
                    self._next, {lane.name: frame for lane, frame in zip(lanes, found, strict=True)}
                )
                self._next += 1
            if not self._next and not self._stopped.is_set():
                raise EdgeLstmError(
                    f"{self.description}: no two frames of one time",
                    expected=f"times that differ by at most {self._within:g} s",
                )
        finally:
            stopped.set()
            for lane in lanes:
                lane.source.stop()
            with self._wake:
                self._wake.notify_all()

    def _take(self) -> list[Frame] | None:
        """The next frames that belong together; None at the end."""
        lanes = self._lanes
        with self._wake:
            while True:
                while not self._is_clear():
                    self._wake.wait()
                for lane in lanes:
                    if lane.error is not None:
                        raise lane.error
                if self._stopped.is_set() or any(not lane.queue for lane in lanes):
                    for lane in lanes:
                        for _ in lane.queue:
                            self._count(lane.name, self._next)
                        lane.queue.clear()
                    return None
                heads = [lane.queue[0] for lane in lanes]
                latest = max(head.at for head in heads)
                back = [lane for lane in lanes if self._went_back(lane)]
                early = back or [lane for lane in lanes if self._has_better(lane, latest)]
                if not early:
                    self._wake.notify_all()
                    return [lane.pop() for lane in lanes]
                if not back and any(lane.queue[0].at < lane.last for lane in early) and self._may_go_back():
                    self._wake.wait()  # a clock was set back: that of the others, too, a few frames on?
                    continue
                for lane in early:
                    lane.drop()
                    self._count(lane.name, self._next)
                self._wake.notify_all()

    def _has_better(self, lane: _Lane, latest: float) -> bool:
        """Whether the lane's first frame goes with none: it is too early, or the one behind it is nearer."""
        head = lane.queue[0]
        if latest - head.at > self._within:
            return True
        return len(lane.queue) > 1 and abs(lane.queue[1].at - latest) < latest - head.at

    def _may_go_back(self) -> bool:
        """Whether a recording that is still being read may show more."""
        return any(
            not lane.source.live and not lane.ended and len(lane.queue) < WAITING for lane in self._lanes
        )

    def _went_back(self, lane: _Lane) -> bool:
        """Whether its clock was set back behind its first frame, and the others are there already: they would wait for it in vain."""
        head = lane.queue[0].at
        others = [other.queue[0].at for other in self._lanes if other is not lane]
        if all(head - at <= self._within for at in others):
            return False
        back = (b.at for a, b in pairwise(lane.queue) if b.at < a.at)
        return (then := next(back, None)) is not None and all(
            abs(at - then) < abs(at - head) for at in others
        )

    def _is_clear(self) -> bool:
        """Whether it can be told what goes with what: of recordings the next frames are waited for, of live sources not."""
        if self._stopped.is_set() or any(
            lane.error is not None or (lane.ended and not lane.queue) for lane in self._lanes
        ):
            return True
        return all(len(lane.queue) > (0 if lane.source.live or lane.ended else 1) for lane in self._lanes)


def _together(index: int, frames: Mapping[str, Frame]) -> Frame:
    first = next(iter(frames.values()))
    data = {}
    for name, frame in frames.items():
        if not isinstance(frame.data, np.ndarray):
            raise EdgeLstmError(f"source {name} of a pair", found="several arrays a frame", expected="one")
        data[name] = frame.data
    values = {frame.values for frame in frames.values()}
    gaps = [frame.gap for frame in frames.values() if frame.gap is not None]
    notes = tuple(note for frame in frames.values() for note in frame.notes)
    same = next(iter(values)) if len(values) == 1 else None
    bad = next((frame.bad for frame in frames.values() if frame.bad is not None), None)
    missing = next((frame.missing for frame in frames.values() if frame.missing is not None), None)
    gap = gaps[0] if gaps else None
    if bad is not None:
        return Frame(index, first.time, first.name, NOTHING, gap=gap, bad=bad)
    return Frame(index, first.time, first.name, data, same, notes, gap, missing=missing)


def open_pair(
    specs: Mapping[str, str], open_one: Callable[[str], Source], within: float, count: Count
) -> Source:
    """All of them opened, or none: see :func:`pair`."""
    with ExitStack() as stack:
        sources = {}
        for name, spec in specs.items():
            try:
                sources[name] = stack.enter_context(open_one(spec))
            except EdgeLstmError as error:
                raise EdgeLstmError(
                    f"{name}: {error.what}", found=error.found, expected=error.expected, hint=error.hint
                ) from error
        made = pair(sources, within, count)
        stack.pop_all()
        return made
