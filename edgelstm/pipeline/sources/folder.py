"""The files of a folder, one frame each: those that are there, and with ``follow`` those that come."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sources.source import Frame

log = logging.getLogger(__name__)

#: Seconds from look to look at a folder that is followed.
POLL = 0.25
#: A file that nobody wrote to for so many seconds and that can't be read is damaged, not half-written.
PATIENCE = 10.0


@dataclass(frozen=True)
class Follow:
    """Wait for further files, for ``idle`` seconds after the last one or, None, for ever; no longer than until ``stopped``."""

    on: bool = False
    idle: float | None = None
    stopped: threading.Event = field(default_factory=threading.Event, compare=False)

    def __post_init__(self) -> None:
        if self.idle is not None and (not self.on or not self.idle >= 0):
            raise EdgeLstmError("idle", found=self.idle, expected="seconds, with follow")


def files_as_frames(
    folder: Path,
    listed: Sequence[Path],
    read: Callable[[Path, int], Frame],
    *,
    suffixes: tuple[str, ...],
    order: Callable[[Path], Any],
    follow: Follow,
    skip_last: bool,
) -> Iterator[Frame]:
    """Frames of ``listed`` files in their order, then of those that come.

    A last file that can't be read (not one of another kind) is half-written: with ``follow`` it is waited for; else, with ``skip_last`` and if it is
    not the only one, it is left out with a warning. A file that stays unreadable for ``PATIENCE`` seconds is left out
    with a warning where files are followed, and an error where they are not.
    """
    queue, seen, index = list(listed), set(listed), 0
    newest = order(queue[-1])
    came = time.monotonic()
    while True:
        while queue:
            path = queue[0]
            try:
                frame = read(path, index)
            except EdgeLstmError as error:
                if follow.on:
                    if _age(path) < PATIENCE:
                        break
                    log.warning("left out, it can't be read: %s", error)
                elif skip_last and index and len(queue) == 1 and error.__cause__ is not None:
                    log.warning("left out the last file, it is half-written or damaged: %s", error)
                else:
                    raise
            else:
                yield frame
                index += 1
            queue.pop(0)
            came = time.monotonic()
        if not follow.on or (follow.idle is not None and time.monotonic() - came > follow.idle):
            return
        if follow.stopped.wait(POLL):
            return
        for path in sorted(_new(folder, seen, suffixes), key=order):
            seen.add(path)
            if order(path) < newest:
                log.warning("left out, it came too late: %s", path)
                continue
            newest = order(path)
            queue.append(path)


def _new(folder: Path, seen: set[Path], suffixes: tuple[str, ...]) -> list[Path]:
    try:
        return [
            p
            for p in folder.iterdir()
            if p not in seen
            and p.suffix.lower() in suffixes
            and not p.name.startswith(".")
            and p.stat().st_size  # a file just made holds nothing yet
        ]
    except OSError:
        return []  # a share that is away for a moment


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return PATIENCE
