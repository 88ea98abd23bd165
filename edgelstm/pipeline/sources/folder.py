"""The files of a folder, one frame each: those that are there, and with ``follow`` those that come."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.sources.source import NOTHING, Frame, LeftOut
from edgelstm.pipeline.sources.watch import Watch

log = logging.getLogger(__name__)

#: A file that nobody wrote to for so many seconds and that can't be read is damaged, not half-written.
PATIENCE = 10.0
#: Seconds without a change after which a new file counts as whole, where its kind can't tell: of a file whose size was reserved before
#: it was filled, HDF5 reads zeros.
SETTLED = 1.0


@dataclass(frozen=True)
class Follow:
    """Wait for further files, for ``idle`` seconds after the last one or, None, for ever; no longer than until ``stopped``. left_out: told of
    files that come too late."""

    on: bool = False
    idle: float | None = None
    stopped: threading.Event = field(default_factory=threading.Event, compare=False)
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    def __post_init__(self) -> None:
        if self.idle is not None and (not self.on or not self.idle >= 0):
            raise EdgeLstmError("idle", found=self.idle, expected="seconds, with follow")


def natural(path: Path) -> tuple[list[int | str], str]:
    """Key of the order in which people count: 9 before 10."""
    # Text and numbers alternate, so like is compared with like.
    parts = [int(p) if p.isdecimal() else p.lower() for p in re.split(r"([0-9]+)", path.name)]
    return parts, path.name


def files_as_frames(
    folder: Path,
    listed: Sequence[Path],
    read: Callable[[Path, int], Frame],
    *,
    suffixes: tuple[str, ...],
    order: Callable[[Path], Any],
    follow: Follow,
    skip_last: bool,
    settle: bool = False,
) -> Iterator[Frame]:
    """Frames of ``listed`` files in their order, then of those that come.

    A last file that can't be read (not one of another kind) is half-written: with ``follow`` it is waited for; else, with ``skip_last`` and if it is
    not the only one, it is left out with a warning. A file that can't be read, where files are followed one that stays so for ``PATIENCE``
    seconds, is a bad frame (:attr:`edgelstm.pipeline.sources.source.Frame.bad`). settle: a file that is followed is read once
    nobody has written to it for ``SETTLED`` seconds.
    """
    if not follow.on:
        yield from _there(listed, read, skip_last)
        return
    queue, seen, index, left_out = list(listed), set(listed), 0, 0
    newest = order(queue[-1])
    came = time.monotonic()
    looked = _Looked()
    watch = Watch(folder, follow.stopped)
    try:
        while True:
            while queue:
                path = queue[0]
                if settle and not looked.is_settled(path):
                    break
                try:
                    frame = read(path, index)
                except EdgeLstmError as error:
                    if age(path) < PATIENCE:
                        break
                    yield Frame(index, None, path.name, NOTHING, bad=error)
                    index += 1
                    left_out += 1
                else:
                    if left_out and frame.gap is None:
                        frame = replace(
                            frame, gap=f"{count_of(left_out, 'file')} left out that can't be read"
                        )
                    left_out = 0
                    yield frame
                    index += 1
                queue.pop(0)
                came = time.monotonic()
            if follow.idle is not None and time.monotonic() - came > follow.idle:
                return
            if not watch.wait(bool(queue) or follow.idle is not None):
                return
            there = _list(folder, suffixes)
            if there is not None:
                seen.intersection_update(there)  # for months: what was removed need not be known
            for place, path in _new(there or set(), seen, order, follow.left_out):
                if place < newest:
                    log.warning("left out, it came too late: %s", path)
                    follow.left_out.tell("late")
                    continue
                newest = place
                queue.append(path)
    finally:
        watch.close()


def _new(
    there: set[Path], seen: set[Path], order: Callable[[Path], Any], left_out: LeftOut
) -> list[tuple[Any, Path]]:
    """Files that were not there before, in their order; they are known then."""
    found = []
    for path in there - seen:
        if not _size(path):  # just made
            continue
        seen.add(path)
        try:
            found.append((order(path), path))
        except EdgeLstmError as error:
            log.warning("left out: %s", error)
            left_out.tell("no_time")
    return sorted(found)


def _there(listed: Sequence[Path], read: Callable[[Path, int], Frame], skip_last: bool) -> Iterator[Frame]:
    """Those that are there, and no others."""
    for index, path in enumerate(listed):
        try:
            frame = read(path, index)
        except EdgeLstmError as error:
            if not (skip_last and index and index == len(listed) - 1 and error.__cause__ is not None):
                yield Frame(index, None, path.name, NOTHING, bad=error)
                continue
            log.warning("left out the last file, it is half-written or damaged: %s", error)
        else:
            yield frame


class _Looked:
    """When a file was seen as it is now."""

    def __init__(self) -> None:
        self._seen: tuple[Path, int, int, float] | None = None

    def is_settled(self, path: Path) -> bool:
        """Whether it did not change for ``SETTLED`` seconds, by its own time or by what was seen: clocks of shares differ."""
        try:
            now = path.stat()
        except OSError:
            return True  # reading it says what is wrong
        if time.time() - now.st_mtime >= SETTLED:
            return True
        if self._seen is None or self._seen[:3] != (path, now.st_size, now.st_mtime_ns):
            self._seen = (path, now.st_size, now.st_mtime_ns, time.monotonic())
        return time.monotonic() - self._seen[3] >= SETTLED


def _list(folder: Path, suffixes: tuple[str, ...]) -> set[Path] | None:
    """None while a share is away."""
    try:
        return {p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")}
    except OSError:
        return None


def _size(path: Path) -> int:
    """A file just made holds nothing yet."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def age(path: Path) -> float:
    """Seconds since somebody wrote to a file."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return PATIENCE
