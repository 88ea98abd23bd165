"""What every source gives: frames, in order, one at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError

Array = npt.NDArray[Any]

#: A frame larger than this is a mistake or an attack (8K RGB in float32 is 398 MB).
MAX_FRAME_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class Frame:
    """One raw frame.

    index: 0, 1, 2, ... in the order of the source.
    time: seconds since the first frame; None when the source does not know.
    name: what people call it: a time in UTC, the file's name, a time in the video.
    data: the array as stored, or, for an .npz with several arrays, a mapping from their names.
    """

    index: int
    time: float | None
    name: str
    data: Array | Mapping[str, Array]


class Source:
    """Frames of one shape and dtype; a context manager. Iterating starts anew, from the first frame.

    description: kind and place, for people. length: number of frames, None when only reading tells.
    fps: frames per second, None when unknown. gaps: the places where frames are missing, in words.

    Iterating raises EdgeLstmError, naming file and frame, when a frame can't be read, has another shape or dtype than
    the first, or the source ends early.
    """

    def __init__(
        self,
        description: str,
        frames: Callable[[], Iterator[Frame]],
        *,
        length: int | None = None,
        fps: float | None = None,
        gaps: tuple[str, ...] = (),
        limit: int | None = None,
    ) -> None:
        self.description = description
        self.length = length
        self.fps = fps
        self.gaps = gaps
        self._frames = frames
        self._limit: int | None = None
        self._current: Generator[Frame, None, None] | None = None
        if limit is not None:
            self.limit(limit)

    def limit(self, frames: int) -> Source:
        """Give the first ``frames`` only."""
        if frames < 1:
            raise EdgeLstmError("limit of frames", found=frames, expected="at least 1")
        self._limit = frames
        self.length = None if self.length is None else min(self.length, frames)
        return self

    def __iter__(self) -> Iterator[Frame]:
        self.close()
        self._current = self._checked()
        return self._current

    def _checked(self) -> Generator[Frame, None, None]:
        first: Frame | None = None
        for frame in itertools.islice(self._frames(), self._limit):
            if first is None:
                first = frame
            elif _form(frame) != _form(first):
                raise EdgeLstmError(
                    f"{self.description}: frame {frame.index} ({frame.name})",
                    found=_form(frame),
                    expected=f"{_form(first)} as in frame {first.index} ({first.name})",
                )
            yield frame
        if first is None:
            raise EdgeLstmError(f"{self.description}: no frames")

    def close(self) -> None:
        """Close what iterating opened. May be called again."""
        if self._current is not None:
            self._current.close()
            self._current = None

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
            found=f"{dtype}{list(shape)}, {size} bytes",
            expected=f"1 to {MAX_FRAME_BYTES} bytes",
        )


def _form(frame: Frame) -> str:
    """Dtype and shape in words."""
    if isinstance(frame.data, Mapping):
        return ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in frame.data.items())
    return f"{frame.data.dtype}{list(frame.data.shape)}"
