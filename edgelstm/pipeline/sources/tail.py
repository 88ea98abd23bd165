"""Lines of a text file that grows: each once it is whole."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sources.folder import Follow
from edgelstm.pipeline.sources.watch import Watch


def whole_lines(file: TextIO, longest: int) -> Iterator[str]:
    """Those that are there and end in a line break; one that is still being written is left. What is longer than ``longest``
    characters is cut off."""
    part = ""
    while line := file.readline(longest):
        part = _with(part, line, longest)
        if part.endswith("\n"):
            yield part
            part = ""


def lines_that_come(file: TextIO, path: Path, longest: int, follow: Follow) -> Iterator[str]:
    """Whole lines as of :func:`whole_lines`, then those that come, as ``follow`` says. Raises EdgeLstmError when the file is cut short, replaced or removed."""
    part, came = "", time.monotonic()
    watch = Watch(path.absolute().parent, follow.stopped)
    try:
        while not follow.stopped.is_set():
            if line := file.readline(longest):
                part, came = _with(part, line, longest), time.monotonic()
                if part.endswith("\n"):
                    yield part
                    part = ""
                continue
            _check_same(file, path)
            if follow.idle is not None and time.monotonic() - came > follow.idle:
                return
            if not watch.wait(bool(part) or follow.idle is not None):
                return
    finally:
        watch.close()


def _with(part: str, line: str, longest: int) -> str:
    """What is held of a line, and its end if it has come."""
    end = "\n" if line.endswith("\n") else ""
    return (part + line.removesuffix("\n"))[:longest] + end


def _check_same(file: TextIO, path: Path) -> None:
    """At its end."""
    held = os.fstat(file.fileno())
    try:
        there = path.stat()
        found = (
            "another file in its place" if (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino) else ""
        )
    except OSError as error:
        found = str(error.strerror)
    if held.st_size < file.buffer.tell():
        found = f"{held.st_size} bytes, where {file.buffer.tell()} were read"
    if found:
        raise EdgeLstmError(
            f"{path}: followed",
            found=found,
            expected="a file that only grows",
            hint="In a pipeline file, `retries` opens it again",
        )
