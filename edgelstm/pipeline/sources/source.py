"""What every source gives: frames, in order, one at a time."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.place import Place

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

#: A frame larger than this is a mistake or an attack (8K RGB in float32 is 398 MB).
MAX_FRAME_BYTES = 512 * 1024**2


class NothingYet(EdgeLstmError):
    """A folder that further files come into holds none so far: what its frames are shows with the first."""


class LeftOut:
    """Frames that never become any: who wants to count them sets ``tell``, which is called with the reason, in a word."""

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = lambda reason: None


@dataclass(frozen=True)
class Frame:
    """One raw frame.

    index: 0, 1, 2, ... in the order of the source.
    time: seconds since the first frame; None when the source does not know.
    name: what people call it: a time in UTC, the file's name, a time in the video.
    data: the array as stored, or, for an .npz with several arrays, a mapping from their names.
    values: the values that stand for black and white in images and video, such as (0, 1023) of 10 bits; None where
        the file does not say.
    notes: what was done to read it, and what the file says of it, in words.
    gap: what is missing between the frame before and this one, in words; None when nothing is.
    stream: whose frame it is, where one source holds several streams. last: nothing more comes of that stream.
    bad: why it can't be taken as it is. What could be read of it is in ``data``, with NaN for the rest, else ``data`` is empty.
    missing: which of its values are NaN because the source has none, in words. late: that its time lies before that of the one before.
    mark: of a source's first frame, what tells it from another's of the same name.
    """

    index: int
    time: float | None
    name: str
    data: Array | Mapping[str, Array]
    values: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    gap: str | None = None
    stream: str | None = None
    last: bool = False
    bad: EdgeLstmError | None = None
    missing: str | None = None
    late: EdgeLstmError | None = None
    mark: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it could be read."""
        return isinstance(self.data, np.ndarray) and not self.data.size


#: So many bad frames at its beginning are no accident: the source is another than was meant.
LOOKED_AT = 100
#: ``data`` of a frame of which nothing could be read.
NOTHING: Array = np.zeros(0, np.uint8)


class Source:
    """Frames of one shape, dtype and range of values; a context manager. Iterating starts anew, from the first frame.

    description: kind and place, for people. length: number of frames, None when only reading tells.
    fps: frames per second, None when unknown. gaps: the places where frames are missing, in words. said: how the frames
    are read, in words, for a person to see once at the start. values: see :class:`Frame`.
    reframe: for sound, see :meth:`reframed`. place: when and where, and in which units. streams: how many streams the frames belong to at one time.

    look: read the first frame at once, for what it tells; a later frame that tells something new is logged as a warning.

    live: frames come once, in their own time. What is opened stays open, the first iteration goes on with it, a further one opens
    the source again and begins with what comes then. ``place.start`` stays the time from which ``Frame.time`` counts. Their size may
    change, which is a gap; what is behind it decides whether it can take them. stopped: an event that ``frames`` looks at where
    it waits, see :meth:`stop`.

    holds: whether there is a frame of a name, where the source can tell without reading: a folder.
    leaves_out: whether frames that can't be taken are left out with a warning where nobody asked for them, and not raised: what was waited for long.
    gives_bad: whether frames that can't be taken are given, see :attr:`Frame.bad` and ``late``; else they are raised.

    Iterating raises EdgeLstmError, naming file and frame, when a frame can't be read, has another dtype (or, unless it is live,
    shape) than the first, or the source ends early.
    """

    def __init__(
        self,
        description: str,
        frames: Callable[[], Iterator[Frame]],
        *,
        length: int | None = None,
        fps: float | None = None,
        gaps: tuple[str, ...] = (),
        said: tuple[str, ...] = (),
        look: bool = False,
        limit: int | None = None,
        place: Place | None = None,
        streams: int = 1,
        reframe: Callable[[int, int, int | None], Source] | None = None,
        live: bool = False,
        stopped: threading.Event | None = None,
        holds: Callable[[str], bool] | None = None,
        leaves_out: bool = False,
    ) -> None:
        self.description = description
        self.length = length
        self.fps = fps
        self.gaps = gaps
        self.said = said
        self.values: tuple[float, float] | None = None
        self.place = place or Place()
        self.streams = streams
        self.live = live
        self.gives_bad = False
        self.left_out = LeftOut()
        #: Hash of the numbers that frames were brought to a scale by; empty where they are as stored.
        self.scales = ""
        self.holds, self.leaves_out = holds, leaves_out
        self._stopped = stopped or threading.Event()
        self._peeked: Frame | None = None
        self._reframe = reframe
        self._frames = frames
        self._limit: int | None = None
        self._current: Generator[Frame, None, None] | None = None
        if limit is not None:
            self.limit(limit)
        if look:
            bad: EdgeLstmError | None = None
            looked = 0
            self.gives_bad = True
            for first in self:
                if first.bad is not None and looked < LOOKED_AT:  # it tells nothing; the next one may
                    looked += 1
                    bad = bad or first.bad
                    continue
                if first.bad is not None:
                    raise bad or first.bad
                self.said = (*said, *first.notes)
                self.values = first.values
                self._peeked = first if live else None
                break
            else:
                if bad is not None:
                    raise bad
            self.gives_bad = False
            if not live:
                self.close()

    @property
    def peeked(self) -> Frame | None:
        """Of what comes once: the frame that was read to see what it is, and that iterating begins with."""
        return self._peeked

    @property
    def is_sound(self) -> bool:
        """Whether :meth:`reframed` has to say what a frame is."""
        return self._reframe is not None

    def reframed(self, length: int, hop: int, rate: int | None = None) -> Source:
        """Of sound: frames of the newest ``length`` samples, every ``hop``, at ``rate`` Hz (None: as in the file)."""
        assert self._reframe is not None
        made = self._reframe(length, hop, rate)
        return made if self._limit is None else made.limit(self._limit)

    def limit(self, frames: int) -> Source:
        """Give the first ``frames`` only."""
        if frames < 1:
            raise EdgeLstmError("limit of frames", found=frames, expected="at least 1")
        self._limit = frames
        self.length = None if self.length is None else min(self.length, frames)
        return self

    def __iter__(self) -> Iterator[Frame]:
        if self._peeked is not None and self._current is not None:
            first, self._peeked = self._peeked, None
            return itertools.chain([first], self._current)
        self.close()
        self._current = self._checked()
        return self._current

    def _checked(self) -> Generator[Frame, None, None]:
        first: Frame | None = None
        told: set[str] = set()
        changes = 0
        count = 0
        for count, frame in enumerate(self._frames(), 1):
            if self._stopped.is_set():
                return
            if not frame.name.isascii():  # a file's name may be no text, which no sink can write
                frame = replace(frame, name=frame.name.encode("utf-8", "backslashreplace").decode())
            wrong = frame.bad or frame.late
            if wrong is not None and not self.gives_bad:
                if not self.leaves_out:
                    raise wrong
                log.warning("left out, it can't be read: %s", wrong)
                continue
            if frame.bad is not None and frame.is_empty:
                pass
            elif first is None:
                first = frame
                told.update(frame.notes)
            elif _is_like(frame, first):
                pass
            elif self.live and frame.values == first.values and _type(frame) == _type(first):
                if _form(frame) != _form(first):
                    changes += 1
                    if (
                        len(str(changes)) > len(str(changes - 1)) or changes == 1
                    ):  # not for months, a line a frame
                        log.warning(
                            "%s, frame %d: now %s, before %s%s",
                            self.description,
                            frame.index,
                            _form(frame),
                            _form(first),
                            f" ({changes} changes so far)" if changes > 1 else "",
                        )
                    first = frame
            elif (_form(frame), frame.values) != (_form(first), first.values):
                ranges = frame.values != first.values
                raise EdgeLstmError(
                    f"{self.description}: frame {frame.index} ({frame.name})",
                    found=_form(frame) + (_range(frame) if ranges else ""),
                    expected=f"{_form(first)}{_range(first) if ranges else ''} as in frame {first.index} ({first.name})",
                )
            for note in frame.notes:
                if note not in told:
                    told.add(note)
                    log.warning("%s, frame %d (%s): %s", self.description, frame.index, frame.name, note)
            yield frame
            if self._limit is not None and count >= self._limit:
                return
        if not count and not self._stopped.is_set():
            raise EdgeLstmError(f"{self.description}: no frames")

    def stop(self) -> None:
        """Give no more frames; any thread may call it. One that waits for a frame gets away from it as soon as the source can."""
        self._stopped.set()

    def close(self) -> None:
        """Close what iterating opened. May be called again. While another thread is reading, that thread will: nobody else can."""
        current, self._current, self._peeked = self._current, None, None
        if current is None:
            return
        try:
            current.close()
        except ValueError as error:
            if "already executing" not in str(error):
                raise
            self._current = current
            self.stop()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_frame_size(what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise EdgeLstmError when a frame is empty or larger than MAX_FRAME_BYTES; to be called before it is read."""
    size = math.prod(shape) * dtype.itemsize
    if not 0 < size <= MAX_FRAME_BYTES:
        raise EdgeLstmError(
            f"{what}: size of a frame",
            found=f"{dtype}{list(shape)}, {count_of(size, 'byte')}",
            expected=f"1 to {MAX_FRAME_BYTES} bytes",
        )


def _is_like(frame: Frame, first: Frame) -> bool:
    """At a glance: one array of the same form. False says nothing."""
    a, b = frame.data, first.data
    return (
        a.__class__ is b.__class__ is np.ndarray
        and a.shape == b.shape
        and a.dtype == b.dtype
        and frame.values == first.values
    )


def _form(frame: Frame) -> str:
    """Dtype and shape in words."""
    if isinstance(frame.data, Mapping):
        return ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in frame.data.items())
    return f"{frame.data.dtype}{list(frame.data.shape)}"


def _type(frame: Frame) -> object:
    """What must not change while a live source runs: names, types and number of axes."""
    if isinstance(frame.data, Mapping):
        return {name: (a.dtype, a.ndim) for name, a in frame.data.items()}
    return frame.data.dtype, frame.data.ndim


def _range(frame: Frame) -> str:
    return "" if frame.values is None else f" of values {frame.values[0]:g} to {frame.values[1]:g}"
