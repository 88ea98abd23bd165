"""Outputs as JSON lines: one object for each frame."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.files import atomic_path
from edgelstm.pipeline.sinks.panels import as_float
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Target, Write

#: An output of at most so many elements is written in full.
SMALL = 64
#: A line of ``frame``'s, without its end.
Post = Callable[[Sequence[tuple[Frame, str]]], None]


class Lines:
    """The ``write`` of sinks whose every message is such a line. post: takes some of them, ``batch`` at most, at least ``every`` seconds apart."""

    def __init__(self, to: Target, post: Post, batch: int = 1, every: float = 0.0) -> None:
        self.batch, self.every = batch, every
        self._to, self._post = to, post

    def __call__(self, frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
        self.many([(frame, outputs, seconds)])

    def many(self, steps: Sequence[tuple[Frame, Mapping[str, Array], float]]) -> None:
        """Several steps in one message."""
        self._post([(step[0], line(self._to, *step)) for step in steps])


def line(to: Target, frame: Frame, outputs: Mapping[str, Any], seconds: float) -> str:
    """``{"index", "name", "time", "milliseconds", "outputs": {name: {"min", "mean", "max", "values"}}}``, of events what they say.

    Strict JSON: NaN and infinities are null.
    """
    if to.events:
        return json.dumps(dict(outputs), allow_nan=False)
    made: dict[str, Any] = {} if frame.stream is None else {"stream": frame.stream}
    made |= {
        "index": frame.index,
        "name": frame.name,
        "time": frame.time,
        "milliseconds": round(seconds * 1e3, 4),
        "outputs": {s.name: _summary(as_float(outputs[s.name], s.dtype)) for s in to.signature.outputs},
    }
    return json.dumps(made, allow_nan=False)


@contextmanager
def json_lines(to: Target) -> Iterator[Write]:
    """A :func:`line` a frame. ``-`` is standard output, a line as soon as its frame is done: to follow a
    run and keep its lines too, ``edgelstm run ... --output - | tee lines.jsonl``.
    ``to.append``: each line as soon as its frame is done, behind the lines of a file that is there.
    """
    with _opened(to.path, to.append) as add:

        def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
            add(line(to, frame, outputs, seconds) + "\n")

        yield write


@contextmanager
def _opened(path: Path, append: bool) -> Iterator[Callable[[str], None]]:
    """Adds a line, at once: somebody may be following."""

    def into(file: TextIO) -> Callable[[str], None]:
        def add(text: str) -> None:
            file.write(text)
            file.flush()

        return add

    if str(path) == "-":
        yield into(sys.stdout)
        return
    if append:
        try:
            appended = Appended(path)
        except OSError as error:
            raise EdgeLstmError(f"can't write {path}", found=error.strerror) from error
        with appended:
            yield appended.add
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield into(file)


class Appended:
    """A file of lines that is added to. A line for which a full disk has no room is taken back, and one that a lost supply cut does not run into the next."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        with path.open("rb") as written:
            self._is_cut = bool(
                written.seek(0, 2) and written.seek(-1, 2) is not None and written.read(1) != b"\n"
            )

    def add(self, text: str) -> None:
        """Raises OSError; what comes later may succeed."""
        data = (b"\n" if self._is_cut else b"") + text.encode()
        written = self._file.write(data) or 0
        if written == len(data):
            self._is_cut = False
            return
        if written:
            self._is_cut = not self._taken_back(written)
        if self._is_cut or written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _taken_back(self, count: int) -> bool:
        """Half a line is none: whether the last bytes are gone again. Something else may have cut the file meanwhile."""
        try:
            size = os.fstat(self._file.fileno()).st_size
            if size < count:
                return False
            os.ftruncate(self._file.fileno(), size - count)
        except OSError:
            return False
        return True

    def __enter__(self) -> Appended:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _summary(values: Array) -> dict[str, Any]:
    with np.errstate(invalid="ignore", over="ignore"):
        summary: dict[str, Any] = {
            "min": _plain(values.min()),
            "mean": _plain(values.mean(dtype=np.float64)),
            "max": _plain(values.max()),
        }
    if values.size <= SMALL:
        summary["values"] = _plain(values.tolist())
    return summary


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(value) if math.isfinite(value) else None
