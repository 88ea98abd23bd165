"""Frames that a program makes itself: ``source = "python:NAME"`` in a pipeline file, and NAME given to ``Pipeline``."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timezone

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.place import Place
from edgelstm.pipeline.sources.clock import utc
from edgelstm.pipeline.sources.source import Array, Frame, Source, check_frame_size
from edgelstm.runtime.frames import unmasked

PREFIX = "python:"
#: What a program gives: an array, a mapping of arrays, or (seconds since 1970, one of these).
Item = Array | Mapping[str, Array] | tuple[float, "Array | Mapping[str, Array]"]
#: What is asked for frames each time that the source is opened, or frames that are there once.
Frames = Callable[[], Iterable[Item]] | Iterable[Item]


def open_given(name: str, given: Mapping[str, Frames]) -> Source:
    """The source ``python:NAME``. A callable is asked for frames each time it is opened, also after it raised; frames that come from an iterator are
    gone when they were read. Each comes once: none is passed over, whatever its number. A frame without a time has the time at
    which it was given."""
    if name not in given:
        raise EdgeLstmError(
            f"source {PREFIX}{name}",
            found=", ".join(map(str, given)) or "no sources from Python",
            expected=f"Pipeline.from_file(..., sources={{{name!r}: frames}})",
        )
    frames, start, stopped = given[name], time.time(), threading.Event()

    def numbered() -> Iterator[Frame]:
        for index, item in enumerate(frames() if callable(frames) else frames):
            stamp, data = time.time(), item
            if isinstance(item, tuple):
                stamp, data = float(item[0]), item[1]
            try:
                when = utc(stamp)
            except (ValueError, OverflowError, OSError):  # what is no time of day is dropped, and counted
                stamp, when = math.nan, "no time"
            yield Frame(index, stamp - start, when, _checked(name, index, data))

    return Source(
        f"Python's {name}",
        numbered,
        live=True,
        place=Place(datetime.fromtimestamp(start, timezone.utc)),
        stopped=stopped,
    )


def _checked(name: str, index: int, data: object) -> Array | Mapping[str, Array]:
    if isinstance(data, Mapping):
        return {str(key): _array(name, index, value) for key, value in data.items()}
    return _array(name, index, data)


def _array(name: str, index: int, data: object) -> Array:
    if not isinstance(data, np.ndarray) or data.dtype.kind not in "biuf":
        raise EdgeLstmError(
            f"source {PREFIX}{name}: frame {index}",
            found=f"{data.dtype}{list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__,
            expected="a NumPy array of numbers, a mapping of them, or (seconds since 1970, one of these)",
        )
    check_frame_size(f"source {PREFIX}{name}: frame {index}", data.shape, data.dtype)
    if isinstance(data, np.ma.MaskedArray):
        data = unmasked(data)
    copy: Array = data.copy()  # the program may write the next frame into it while this one waits
    return copy
