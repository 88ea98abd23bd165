"""Outputs as JSON lines: one object for each frame."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.files import atomic_path
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.sinks.panels import as_float
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Write

#: An output of at most so many elements is written in full.
SMALL = 64


@contextmanager
def json_lines(path: Path, signature: Signature, append: bool = False) -> Iterator[Write]:
    """``{"index", "name", "time", "milliseconds", "outputs": {name: {"min", "mean", "max", "values"}}}`` a frame.

    Strict JSON: NaN and infinities are null. ``-`` is standard output, a line as soon as its frame is done: to follow a
    run and keep its lines too, ``edgelstm run ... --output - | tee lines.jsonl``.
    append: each line as soon as its frame is done, behind the lines of a file that is there.
    """
    with _opened(path, append) as file:

        def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
            line: dict[str, Any] = {} if frame.stream is None else {"stream": frame.stream}
            line |= {
                "index": frame.index,
                "name": frame.name,
                "time": frame.time,
                "milliseconds": round(seconds * 1e3, 4),
                "outputs": {s.name: _summary(as_float(outputs[s.name], s.dtype)) for s in signature.outputs},
            }
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()  # somebody may be following

        yield write


@contextmanager
def _opened(path: Path, append: bool) -> Iterator[TextIO]:
    if str(path) == "-":
        yield sys.stdout
        return
    if append:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise EdgeLstmError(f"can't write {path}", found=error.strerror) from error
        with file:
            _end_line(path, file)
            yield file
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file


def _end_line(path: Path, file: TextIO) -> None:
    """A line that was cut short, by a full disk or a lost supply, must not run into the next."""
    with path.open("rb") as written:
        if written.seek(0, 2) and written.seek(-1, 2) is not None and written.read(1) != b"\n":
            file.write("\n")


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
