"""Rows of CSV and Parquet files, one by one, under the names of their columns."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sources.folder import Follow
from edgelstm.pipeline.sources.source import Array
from edgelstm.pipeline.sources.tail import lines_that_come, whole_lines

#: Longer lines are no table of numbers.
MAX_LINE = 1 << 20


@dataclass(frozen=True)
class Row:
    """One row; cells are text or, in Parquet, what the column holds. index counts from 0, without the header."""

    path: Path
    index: int
    cells: Mapping[str, Any]

    def text(self, column: str) -> str:
        """A cell as text; whole numbers without a decimal point."""
        value = self._cell(column)
        if isinstance(value, datetime):
            return value.isoformat()
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        return "" if value is None else str(value).strip()

    def numbers(self, columns: Sequence[str]) -> Array:
        """float64 [columns]; NaN for an empty cell."""
        return np.array([self._number(column) for column in columns], np.float64)

    def _number(self, column: str) -> float:
        value = self._cell(column)
        try:
            if value is None or (isinstance(value, str) and not value.strip()):
                return math.nan
            return float(value)
        except (TypeError, ValueError):
            raise EdgeLstmError(
                f"{self.path}, row {self.index + 1}, column {column!r}",
                found=repr(value),
                expected="a number",
                hint=f"Choose the columns: {self.path.name}:columns=...",
            ) from None

    def _cell(self, column: str) -> Any:
        try:
            return self.cells[column]
        except KeyError:
            raise EdgeLstmError(
                f"{self.path}, row {self.index + 1}: no value for column {column!r}",
                found=f"{count_of(len(self.cells), 'value')}",
            ) from None


@dataclass(frozen=True)
class Rows:
    """names: of the columns. read(columns): the rows; Parquet reads these columns only. said: how the first line was taken."""

    names: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Row]]
    said: tuple[str, ...] = ()


def open_rows(
    path: Path, follow: Follow | None = None, wait: bool = True, header: bool | None = None
) -> Rows:
    """A table's rows. follow: of text, whole lines only, and with ``wait`` those that come, too.

    Text: the separator is what the first line has of tab, semicolon and comma, else white space. header: whether that line names the
    columns; None: unless it is numbers, which are a row, and columns are then called 1, 2, ... Raises EdgeLstmError.
    """
    if path.suffix.lower() != ".parquet":
        return _text(path, follow, wait, header)
    if follow is not None:
        raise EdgeLstmError(
            f"follow: source {path}",
            found="Parquet, which can be read once its end is written",
            expected="a table of text (.csv, .tsv, .txt)",
        )
    if header is not None:
        raise EdgeLstmError(
            f"{path}: option header", found="Parquet, which names its columns", expected="text"
        )
    return _parquet(path)


def _text(path: Path, follow: Follow | None, wait: bool, header: bool | None) -> Rows:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(MAX_LINE)
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeLstmError(f"{path}: not a table of text", found=str(error)) from error
    if follow is not None and not first.endswith("\n"):
        raise EdgeLstmError(f"{path}: the first line", found="no end of it yet", expected="a whole line")
    delimiter = next((d for d in "\t;," if d in first), None)
    head = _cells(_without_mark(first, delimiter), delimiter)
    if not head:
        raise EdgeLstmError(f"{path}: an empty first line", expected="names of columns, or numbers")
    headless = _is_headless(path, head, header)
    names = tuple(map(str, range(1, len(head) + 1))) if headless else tuple(head)
    _check_once(path, names)

    def read(columns: Sequence[str]) -> Iterator[Row]:
        index = 0
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                if not headless:
                    file.readline(MAX_LINE)
                given: Iterator[str] = file
                if follow is not None:
                    given = (
                        lines_that_come(file, path, MAX_LINE, follow)
                        if wait
                        else whole_lines(file, path, MAX_LINE)
                    )
                lines = (
                    csv.reader(given, delimiter=delimiter)
                    if delimiter is not None
                    else (line.split() for line in given)
                )
                for cells in lines:
                    if not any(cells):
                        continue
                    if len(cells) > len(names):
                        raise EdgeLstmError(
                            f"{path}, row {index + 1}",
                            found=f"{count_of(len(cells), 'value')}",
                            expected=f"{len(names)} as the first line has",
                        )
                    # A header may name more columns than the rows have: what is missing shows when it is asked for.
                    yield Row(path, index, dict(zip(names, cells, strict=False)))
                    index += 1
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise EdgeLstmError(f"{path}, row {index + 1}: can't be read", found=str(error)) from error

    said = f"the first line is a row; columns are called 1 to {len(names)}"
    return Rows(names, read, (said,) if headless else ())


def _cells(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _without_mark(line: str, delimiter: str | None) -> str:
    """A first line without the # that NumPy and gnuplot write before names: as a name it would move all columns by one."""
    name = line[1:].partition(delimiter)[0] if delimiter is not None else line[1:]
    return line[1:] if line.startswith("#") and name.strip() else line


def _is_headless(path: Path, head: Sequence[str], header: bool | None) -> bool:
    """Whether the first line is a row. Raises EdgeLstmError for 0,1,2,... without ``header``: pandas numbers columns so."""
    if header is not None:
        return not header
    if len(head) > 1 and list(head) == [str(k) for k in range(len(head))]:
        raise EdgeLstmError(
            f"{path}: the first line",
            found=f"{','.join(head[:4])}{',...' if len(head) > 4 else ''}: names of columns, or the first row",
            expected=f"{path.name}:header=yes or {path.name}:header=no",
        )
    return all(_is_number(cell) for cell in head)


def _check_once(path: Path, names: Sequence[str]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise EdgeLstmError(f"{path}: columns of one name", found=", ".join(twice))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> Rows:
    arrow = require("pyarrow", "tables", f"reading {path}")
    parquet = require("pyarrow.parquet", "tables", f"reading {path}")

    def read(columns: Sequence[str]) -> Iterator[Row]:
        index = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
                    for cells in batch.to_pylist():
                        yield Row(path, index, cells)
                        index += 1
        except (OSError, arrow.ArrowException) as error:
            raise EdgeLstmError(f"{path}, row {index + 1}: can't be read", found=str(error)) from error

    try:
        with parquet.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
    except (OSError, arrow.ArrowException) as error:
        raise EdgeLstmError(f"{path}: not a Parquet file, or a damaged one", found=str(error)) from error
    _check_once(path, names)
    return Rows(names, read)


def read_time(text: str, where: str) -> float:
    """Seconds: a number as it is, else ISO 8601 (UTC where no zone is given)."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise EdgeLstmError(f"{where}: time", found=repr(text), expected="seconds, or ISO 8601") from None
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
