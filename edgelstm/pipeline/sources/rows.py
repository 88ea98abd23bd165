"""Rows of tables, one by one, under the names of their columns: those of text, and what a row is."""

from __future__ import annotations

import contextlib
import csv
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.sources.folder import Follow
from edgelstm.pipeline.sources.source import Array
from edgelstm.pipeline.sources.tail import lines_that_come, whole_lines

#: Longer lines are no table of numbers.
MAX_LINE = 1 << 20
#: Lines of a row, with cells of several lines, at most.
MAX_LINES = 50
#: Characters of a cell that a message shows.
SHOWN = 40


@dataclass(frozen=True)
class Row:
    """One row; cells are text or, in Parquet, what the column holds. index counts from 0, without the header; line, of text,
    from 1, with it. wrong: why it can't be told which cell is of which column."""

    path: Path
    index: int
    cells: Mapping[str, Any]
    line: int | None = None
    wrong: EdgeLstmError | None = None
    #: Its number in its file, where a table has several.
    place: int | None = None
    #: What stands between the digits of its numbers.
    decimal: str = "."

    @property
    def where(self) -> str:
        """For messages."""
        line = "" if self.line is None else f" (line {self.line})"
        return f"{self.path}, row {(self.index if self.place is None else self.place) + 1}{line}"

    @property
    def is_blank(self) -> bool:
        """Whether all its cells are empty."""
        return self.wrong is None and all(cell is None or cell == "" for cell in self.cells.values())

    @property
    def mark(self) -> str:
        """A hash of what it holds."""
        return f"{zlib.crc32(repr(list(self.cells.items())).encode('utf-8', 'surrogatepass')):08x}"

    def text(self, column: str) -> str:
        """A cell as text; whole numbers without a decimal point, "" for what is empty. Raises EdgeLstmError where there is none."""
        if self.wrong is not None and column not in self.cells:
            raise self.wrong
        value = self._cell(column)
        if isinstance(value, datetime):
            return value.isoformat()
        if isinstance(value, float) and not math.isfinite(value):
            return "" if math.isnan(value) else str(value)
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        text = "" if value is None else str(value).strip()
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise EdgeLstmError(
                f"{self.where}, column {column!r}", found=shown(text), expected="text in UTF-8"
            )
        return text

    def numbers(self, columns: Sequence[str]) -> tuple[Array, EdgeLstmError | None, str | None]:
        """float64 [columns], NaN for every cell that is no number; what is wrong with the first of those that are neither numbers nor
        empty; which cell is the first that is empty or NaN, in words."""
        if self.wrong is None:
            with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
                numbers = [_number(self.cells[column], self.decimal) for column in columns]
                if not any(map(math.isnan, numbers)):
                    return np.array(numbers, np.float64), None, None
        values = np.full(len(columns), math.nan)
        if self.wrong is not None:
            return values, self.wrong, None
        bad, missing = None, None
        for place, column in enumerate(columns):
            try:
                value = self._cell(column)
                if value is not None and not (isinstance(value, str) and not value.strip()):
                    values[place] = _number(value, self.decimal)
            except EdgeLstmError as error:
                bad = bad or error
            except (TypeError, ValueError, OverflowError):
                bad = bad or EdgeLstmError(
                    f"{self.where}, column {column!r}",
                    found=shown(value),
                    expected="a number" if self.decimal == "." else "a number without a point, decimal=,",
                    hint=self._hint(value),
                )
            else:
                if missing is None and math.isnan(values[place]):
                    found = "an empty cell" if value is None or not str(value).strip() else shown(value)
                    missing = f"{self.where}, column {column!r}: {found}"
        return values, bad, missing

    def _hint(self, value: object) -> str:
        if isinstance(value, str) and self.decimal == "." and _is_number(value, ","):
            return f"Where a comma stands between the digits of numbers: {self.path.name}:decimal=,"
        return (
            f"Choose the columns: {self.path.name}:columns=..., or leave such rows out (run, score, calibrate, fit-detector, "
            "detect: --on-bad-frame skip)"
        )

    def _cell(self, column: str) -> Any:
        try:
            return self.cells[column]
        except KeyError:
            raise EdgeLstmError(
                f"{self.where}: no value for column {column!r}",
                found=f"{count_of(len(self.cells), 'value')}",
            ) from None


@dataclass(frozen=True)
class Rows:
    """names: of the columns. read(columns): the rows; Parquet reads these columns only. said: how the first line was taken."""

    names: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Row]]
    said: tuple[str, ...] = ()


def open_text(
    path: Path,
    follow: Follow | None = None,
    wait: bool = True,
    header: bool | None = None,
    decimal: str = ".",
) -> Rows:
    """Rows of text. follow: whole lines only, and with ``wait`` those that come, too. The separator is what the first line has of tab, semicolon
    and comma, else white space. header: whether that line names the columns; None: unless it is numbers, which are a row, and columns are
    then called 1, 2, ... decimal: ``,`` where it stands between the digits of numbers; a comma separates then only in a first line without white space.
    Raises EdgeLstmError.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
            first = file.readline(MAX_LINE)
        first.encode()  # of the header, nothing may be spoilt
    except (OSError, UnicodeError) as error:
        raise EdgeLstmError(f"{path}: not a table of text", found=str(error)) from error
    if follow is not None and not first.endswith("\n"):
        raise EdgeLstmError(f"{path}: the first line", found="no end of it yet", expected="a whole line")
    separators = "\t;" if decimal == "," and len(first.split()) > 1 else "\t;,"
    delimiter = next((d for d in separators if d in first), None)
    head = _cells(_without_mark(first, delimiter), delimiter)
    if not head:
        raise EdgeLstmError(f"{path}: an empty first line", expected="names of columns, or numbers")
    headless = _is_headless(path, head, header, decimal)
    names = tuple(map(str, range(1, len(head) + 1))) if headless else tuple(head)
    check_once(path, names)

    def read(columns: Sequence[str]) -> Iterator[Row]:
        index = 0
        try:
            # Bytes that are no UTF-8 spoil the cell that they are in.
            with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
                begin = 0
                if not headless:
                    file.readline(MAX_LINE)
                    begin = 1
                width = 0  # of the first row, where white space separates
                blank: list[int] = []  # lines of separators alone
                for line, cells, unread in _lines(file, path, delimiter, len(names), follow, wait):
                    if unread is None and not any(cells):
                        if len(cells) > 1:
                            blank.append(begin + line)
                        continue
                    # Those between others are rows of nothing; those at the end are a spreadsheet's.
                    for at in blank:
                        yield Row(path, index, dict.fromkeys(names, ""), at, decimal=decimal)
                        index += 1
                    blank.clear()
                    # A header may name more columns than the rows have: what is missing shows when it is asked for.
                    row = Row(
                        path, index, dict(zip(names, cells, strict=False)), begin + line, decimal=decimal
                    )
                    found = unread or (count_of(len(cells), "value") if len(cells) > len(names) else None)
                    expected = f"{count_of(len(names), 'value')}, as the first line has"
                    if delimiter is None and len(cells) < (width := width or len(cells)):
                        # An empty cell between white space can't be seen: all behind it would be another column's.
                        row, found = replace(row, cells={}), count_of(len(cells), "value")
                        expected = f"{count_of(width, 'value')}, as the first row has"
                    if found is not None:
                        row = replace(row, wrong=EdgeLstmError(row.where, found=found, expected=expected))
                    yield row
                    index += 1
        except OSError as error:
            raise EdgeLstmError(f"{path}, row {index + 1}: can't be read", found=str(error)) from error

    said = f"the first line is a row; columns are called 1 to {len(names)}"
    return Rows(names, read, (said,) if headless else ())


def _lines(
    file: TextIO, path: Path, delimiter: str | None, width: int, follow: Follow | None, wait: bool
) -> Iterator[tuple[int, list[str], str | None]]:
    """Lines from here on: their number, from 1, their cells, and why they have none."""
    given: Iterator[str] = file
    if follow is not None:
        given = lines_that_come(file, path, MAX_LINE, follow) if wait else whole_lines(file, MAX_LINE)
    ahead: deque[str] = deque()
    number = 0
    while (line := ahead.popleft() if ahead else next(given, None)) is not None:
        number += 1
        # Of a quote that nobody closed, no other row may become a part; nor are rows to come waited for.
        if delimiter is not None and '"' not in line:
            yield number, line.rstrip("\r\n").split(delimiter), None
            continue
        more = _rest(line, given, ahead, delimiter, width) if follow is None and line.count('"') % 2 else 0
        whole = line + "".join(ahead.popleft() for _ in range(more))
        try:
            yield number, _cells(whole, delimiter), None
        except csv.Error as error:
            yield number, [], str(error)
        number += more


def _rest(line: str, given: Iterator[str], ahead: deque[str], delimiter: str | None, width: int) -> int:
    """How many of the next lines belong to the row that ``line`` begins, in a cell of several lines. ``ahead``: read already."""
    if delimiter is None:
        return 0
    for count in range(1, MAX_LINES):
        if count > len(ahead):
            ahead.extend(islice(given, 1))
        if count > len(ahead):
            return 0
        if ahead[count - 1].count('"') % 2:
            with contextlib.suppress(csv.Error):
                if len(_cells("".join([line, *islice(ahead, count)]), delimiter)) == width:
                    return count
            return 0
    return 0


def shown(value: object) -> str:
    """A cell for a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _cells(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _without_mark(line: str, delimiter: str | None) -> str:
    """A first line without the # that NumPy and gnuplot write before names: as a name it would move all columns by one."""
    name = line[1:].partition(delimiter)[0] if delimiter is not None else line[1:]
    return line[1:] if line.startswith("#") and name.strip() else line


def _is_headless(path: Path, head: Sequence[str], header: bool | None, decimal: str) -> bool:
    """Whether the first line is a row. Raises EdgeLstmError for 0,1,2,... without ``header``: pandas numbers columns so."""
    if header is not None:
        return not header
    if len(head) > 1 and list(head) == [str(k) for k in range(len(head))]:
        raise EdgeLstmError(
            f"{path}: the first line",
            found=f"{','.join(head[:4])}{',...' if len(head) > 4 else ''}: names of columns, or the first row",
            expected=f"{path.name}:header=yes or {path.name}:header=no",
        )
    return all(_is_number(cell, decimal) for cell in head)


def check_once(path: Path, names: Sequence[str]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise EdgeLstmError(f"{path}: columns of one name", found=", ".join(twice))


def _number(value: Any, decimal: str = ".") -> float:
    if isinstance(value, str):
        if "_" in value:  # 1_000 is Python's, no file's
            raise ValueError(value)
        if decimal != ".":
            value = with_point(value, decimal)
    return float(value)


def with_point(text: str, decimal: str) -> str:
    """A number as Python reads it. Raises ValueError for one with a point: it may stand between thousands, and 1.234 be 1234."""
    if decimal != "." and "." in text:
        raise ValueError(text)
    return text.replace(decimal, ".", 1)


def _is_number(cell: str, decimal: str = ".") -> bool:
    try:
        float(with_point(cell, decimal))
    except ValueError:
        return False
    return True
