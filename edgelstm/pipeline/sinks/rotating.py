"""Files that are put in place at their end, where a service writes them: in parts, so that what is written for months is there and does not
fill the disk, and over the times when the disk is full."""

from __future__ import annotations

import logging
import math
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
from edgelstm.pipeline.sinks.delivery import Undelivered
from edgelstm.pipeline.sinks.room import Full, NoRoom, Reserve
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Target, Write

log = logging.getLogger("edgelstm.serve")

#: Of the moment a file was begun, UTC; sorts by time.
STAMP = "%Y%m%dT%H%M%SZ"
#: Seconds from a part that could not be written to the next try; twice as long after each further one, up to so many.
PAUSE, LONGEST = 1.0, 60.0
#: Files that are being written, each there at its end: NAME-2 of one sink may be the name of another.
_claimed: set[Path] = set()


@contextmanager
def rotating(to: Target, opened: Callable[[Target], AbstractContextManager[Write]]) -> Iterator[Write]:
    """A file that is put in place at its end, of a service that may write for months.

    With ``rotate``: ``NAME-20261128T031000Z.SUFFIX`` for ``NAME.SUFFIX``, a file for every so many seconds in which frames came, each there
    when the next begins. The newest ``keep`` of them stay. Without: ``NAME.SUFFIX``, and another, ``NAME-2.SUFFIX``, where that can't be gone on with.
    """
    parts = _Parts(to, opened, to.options.rotate, to.options.keep)
    parts.check()
    try:
        yield parts.write
    except BaseException:
        parts.end(*sys.exc_info())
        raise
    parts.close()


class _Parts:
    def __init__(
        self,
        to: Target,
        opened: Callable[[Target], AbstractContextManager[Write]],
        every: float | None,
        keep: int | None,
    ) -> None:
        self._to, self._opened, self._every, self._keep = to, opened, every, keep
        self._part: AbstractContextManager[Write] | None = None
        self._reserve: Reserve | None = None
        self._claim = Path()
        #: Those that are there, in the order in which they were made.
        self._made: list[Path] = []
        self._until = 0.0
        #: Steps in the part, and when the next one may be begun after one that failed.
        self._steps = 0
        self._again, self._pause = 0.0, PAUSE

    def check(self) -> None:
        """Whether a file can be written is known before the first frame."""
        if self._every is None:
            return self._begin(self._name(first=True))
        part = self._opened(self._to)
        part.__enter__()
        stop = _Never()
        with suppress(_Never):  # deletes what it began
            part.__exit__(_Never, stop, None)
        return None

    def write(self, frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
        now = time.monotonic()
        if now < self._again:
            raise Undelivered(f"can't write {self._to.name}", "not_written", found="no part so far")
        try:
            if self._part is not None and now >= self._until:
                self.end(None, None, None)
            if self._part is None:
                self._begin(self._name())
            try:
                self._write(frame, outputs, seconds)
            except Full:
                self.end(None, None, None)
                self._begin(self._name())
                self._write(frame, outputs, seconds)
            self._steps += 1
            if self._every is None:
                self._pause = PAUSE
        except NoRoom as error:  # the part is whole, and goes on once there is room
            raise Undelivered(f"can't write {self._to.name}", "not_written", found=error) from error
        except (
            Exception
        ) as error:  # a full disk, as each kind of file says it: that part is lost, the next may have room
            self._drop(error)
            self._again, self._pause = now + self._pause, min(2 * self._pause, LONGEST)
            lost, self._steps = self._steps, 0
            raise Undelivered(
                f"can't write {self._to.name}", "not_written", found=error, count=lost
            ) from error

    def _begin(self, path: Path) -> None:
        part = self._opened(replace(self._to, where=str(path)))
        self._write = part.__enter__()
        self._part, self._steps, self._claim = part, 0, path.resolve()
        _claimed.add(self._claim)
        self._reserve = Reserve(path.parent)
        self._until = math.inf if self._every is None else time.monotonic() + self._every

    def _taken(self) -> AbstractContextManager[Write] | None:
        """The part, which ends: with the room that was kept for that."""
        part, self._part = self._part, None
        if self._reserve is not None:
            self._reserve.close()
        _claimed.discard(self._claim)
        return part

    def _drop(self, error: Exception) -> None:
        """Delete a part that can't be gone on with."""
        part = self._taken()
        if part is not None:
            with suppress(Exception):  # it says the same again
                part.__exit__(type(error), error, error.__traceback__)

    def end(self, kind: object, error: object, trace: object) -> None:
        part = self._taken()
        if part is not None:
            part.__exit__(kind, error, trace)  # type: ignore[arg-type]
            self._pause = PAUSE
            self._made.append(self._claim)
            self._clear()

    def close(self) -> None:
        """The end. What is in a part that can't be put in place is lost."""
        steps = self._steps if self._part is not None else 0
        try:
            self.end(None, None, None)
        except Exception as error:
            if not steps:
                raise
            raise Undelivered(
                f"can't write {self._to.name}", "not_written", found=error, count=steps
            ) from error

    def _name(self, first: bool = False) -> Path:
        """Where nothing is so far, and nothing is about to be; the ``first`` may take the place of what is there."""
        path, number = self._to.path, 1
        stem, join = path.stem, "-"
        if self._every is not None:  # two in one second
            stem, join = f"{path.stem}-{datetime.now(timezone.utc).strftime(STAMP)}", "_"
        found = path.with_name(f"{stem}{path.suffix}")
        while (found.exists() and not first) or found.resolve() in _claimed:
            number += 1
            found = path.with_name(f"{stem}{join}{number}{path.suffix}")
        return found

    def _clear(self) -> None:
        """Delete the oldest, of names that only we give."""
        path = self._to.path
        mine = re.compile(rf"{re.escape(path.stem)}-\d{{8}}T\d{{6}}Z(_\d+)?{re.escape(path.suffix)}")
        if self._keep is None:
            return
        try:
            there = sorted(p for p in path.parent.iterdir() if mine.fullmatch(p.name))
            # The newest has the oldest name where the clock was set back.
            own = {made: k for k, made in enumerate(self._made)}
            there.sort(key=lambda p: own.get(p.resolve(), -1))
            for old in there[: -self._keep]:
                old.unlink()
            self._made = self._made[-self._keep :]
        except OSError as error:
            log.warning("%s: an old file can't be deleted: %s", self._to.name, error)


class _Never(EdgeLstmError):
    """Ends a file that was begun to see whether it can be."""

    def __init__(self) -> None:
        super().__init__("nothing is written")
