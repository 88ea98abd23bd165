"""A file sink that begins a new file every so often, so that what is written for months is there in parts, and does not fill the disk."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Target, Write

log = logging.getLogger("edgelstm.serve")

#: Of the moment a file was begun, UTC; sorts by time.
STAMP = "%Y%m%dT%H%M%SZ"


@contextmanager
def rotating(to: Target, opened: Callable[[Target], AbstractContextManager[Write]]) -> Iterator[Write]:
    """``NAME-20261128T031000Z.SUFFIX`` for ``NAME.SUFFIX``: a file for every ``rotate`` seconds in which frames came, each there when the
    next begins. The newest ``keep`` of them stay."""
    assert to.options.rotate is not None
    parts = _Parts(to, opened, to.options.rotate, to.options.keep)
    parts.check()
    try:
        yield parts.write
    except BaseException:
        parts.end(*sys.exc_info())
        raise
    parts.end(None, None, None)


class _Parts:
    def __init__(
        self,
        to: Target,
        opened: Callable[[Target], AbstractContextManager[Write]],
        every: float,
        keep: int | None,
    ) -> None:
        self._to, self._opened, self._every, self._keep = to, opened, every, keep
        self._part: AbstractContextManager[Write] | None = None
        self._until = 0.0

    def check(self) -> None:
        """Whether a file can be written is known before the first frame."""
        part = self._opened(self._to)
        part.__enter__()
        stop = _Never()
        with suppress(_Never):  # deletes what it began
            part.__exit__(_Never, stop, None)

    def write(self, frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
        now = time.monotonic()
        if self._part is not None and now >= self._until:
            self.end(None, None, None)
        if self._part is None:
            part = self._opened(replace(self._to, where=str(self._name())))
            self._write = part.__enter__()
            self._part, self._until = part, now + self._every
        self._write(frame, outputs, seconds)

    def end(self, kind: object, error: object, trace: object) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.__exit__(kind, error, trace)  # type: ignore[arg-type]
            self._clear()

    def _name(self) -> Path:
        path, stamp = self._to.path, datetime.now(timezone.utc).strftime(STAMP)
        found, number = path.with_name(f"{path.stem}-{stamp}{path.suffix}"), 1
        while found.exists():  # two in one second
            number += 1
            found = path.with_name(f"{path.stem}-{stamp}_{number}{path.suffix}")
        return found

    def _clear(self) -> None:
        """Delete the oldest, of names that only we give."""
        path = self._to.path
        mine = re.compile(rf"{re.escape(path.stem)}-\d{{8}}T\d{{6}}Z(_\d+)?{re.escape(path.suffix)}")
        if self._keep is None:
            return
        try:
            for old in sorted(p for p in path.parent.iterdir() if mine.fullmatch(p.name))[: -self._keep]:
                old.unlink()
        except OSError as error:
            log.warning("%s: an old file can't be deleted: %s", self._to.name, error)


class _Never(EdgeLstmError):
    """Ends a file that was begun to see whether it can be."""

    def __init__(self) -> None:
        super().__init__("nothing is written")
