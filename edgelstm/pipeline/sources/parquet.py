"""Rows of Parquet: of one file, or of a folder of parts, which may be followed: a part can be read once its end is written."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sources.folder import PATIENCE, Follow, natural
from edgelstm.pipeline.sources.rows import Row, Rows, check_once
from edgelstm.pipeline.sources.watch import Watch

log = logging.getLogger(__name__)

SUFFIX = ".parquet"


def parts_of(folder: Path) -> list[Path]:
    """In natural order; none while a share is away."""
    try:
        found = [
            p for p in folder.iterdir() if p.suffix.lower() == SUFFIX and not p.name.startswith((".", "_"))
        ]
    except OSError:
        return []
    return sorted((p for p in found if p.is_file()), key=natural)


def open_parquet(path: Path, follow: Follow | None = None, wait: bool = True) -> Rows:
    """Rows of ``path``, a file or a folder of parts, numbered on from part to part. follow: with ``wait`` those of parts that come, too.
    Raises EdgeLstmError."""
    reader = _Reader(path)
    if not path.is_dir():
        if follow is not None:
            raise EdgeLstmError(
                f"follow: source {path}",
                found="Parquet, which can be read once its end is written",
                expected="a folder of such files, or a table of text (.csv, .tsv, .txt)",
                hint="Write one part after the other and name their folder",
            )
        return Rows(reader.names(path), lambda columns: reader.rows(path, columns, 0))
    there = parts_of(path)
    if follow is not None:  # the last may be half-written
        there = [part for part in there if reader.is_whole(part)]
    if not there:
        raise EdgeLstmError(
            f"source {path}", found="no Parquet file that can be read", expected="at least one"
        )

    def read(columns: Sequence[str]) -> Iterator[Row]:
        index = 0
        for part in parts_of(path) if follow is None else reader.that_come(path, follow, wait):
            try:
                for row in reader.rows(part, columns, index):
                    yield row
                    index = row.index + 1
            except EdgeLstmError as error:
                if follow is None:
                    raise
                log.warning("the rest of a part is left out: %s", error)

    return Rows(reader.names(there[0]), read)


class _Reader:
    """Parquet files by pyarrow."""

    def __init__(self, path: Path) -> None:
        self._arrow: Any = require("pyarrow", "tables", f"reading {path}")
        self._parquet: Any = require("pyarrow.parquet", "tables", f"reading {path}")

    def names(self, path: Path) -> tuple[str, ...]:
        """Of the columns."""
        try:
            with self._parquet.ParquetFile(path) as file:
                names = tuple(file.schema_arrow.names)
        except (OSError, self._arrow.ArrowException) as error:
            raise EdgeLstmError(f"{path}: not a Parquet file, or a damaged one", found=str(error)) from error
        check_once(path, names)
        return names

    def rows(self, path: Path, columns: Sequence[str], first: int) -> Iterator[Row]:
        """Of one file, numbered from ``first``."""
        place = 0
        try:
            with self._parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
                    for cells in self._plain(batch).to_pylist():
                        yield Row(path, first + place, cells, place=place)
                        place += 1
        except (OSError, self._arrow.ArrowException) as error:
            raise EdgeLstmError(f"{path}, row {place + 1}: can't be read", found=str(error)) from error

    def _plain(self, batch: Any) -> Any:
        """Times in nanoseconds, as pandas writes them, to the microsecond: Python's have no more."""
        arrow = self._arrow

        def shorter(column: Any) -> Any:
            if not arrow.types.is_timestamp(column.type) or column.type.unit != "ns":
                return column
            return column.cast(arrow.timestamp("us", column.type.tz), safe=False)

        return arrow.RecordBatch.from_arrays([shorter(c) for c in batch.columns], batch.schema.names)

    def is_whole(self, path: Path) -> bool:
        """Whether its end is written."""
        try:
            with self._parquet.ParquetFile(path):
                return True
        except (OSError, self._arrow.ArrowException):
            return False

    def that_come(self, folder: Path, follow: Follow, wait: bool) -> Iterator[Path]:
        """Parts that are whole, in order; one that stays half-written is left out, and one that comes too late, with a word."""
        seen: set[Path] = set()
        newest: Any = None
        came = time.monotonic()
        watch = Watch(folder, follow.stopped)
        try:
            while not follow.stopped.is_set():
                unread = False
                there = parts_of(folder)
                for part in [p for p in there if p not in seen]:
                    if newest is not None and natural(part) < newest:
                        seen.add(part)
                        log.warning("left out, it came too late: %s", part)
                        continue
                    if not self.is_whole(part):
                        if wait and _age(part) < PATIENCE:
                            unread = True
                            break  # those behind it wait too
                        if wait:
                            log.warning("left out, it can't be read: %s", part)
                        seen.add(part)
                        continue
                    seen.add(part)
                    newest = natural(part)
                    yield part
                    came = time.monotonic()
                if not wait or (follow.idle is not None and time.monotonic() - came > follow.idle):
                    return
                if not watch.wait(unread or follow.idle is not None):
                    return
        finally:
            watch.close()


def _age(path: Path) -> float:
    """Seconds since somebody wrote to it."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return PATIENCE
