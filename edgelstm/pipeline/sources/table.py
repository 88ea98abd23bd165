"""Tables: CSV and Parquet, a frame a row, a stream for each value of a key column.

``FILE.csv:key=unit:columns=s2,s3:time=cycle:scale=own``. Read row by row: first the key column alone (whose rows end
where, what is smallest and largest), then the frames. Memory holds one number of each stream, and the scale of each.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, check_file, refuse_overwrite
from edgelstm.pipeline.sources.address import split_options
from edgelstm.pipeline.sources.folder import Follow
from edgelstm.pipeline.sources.parquet import SUFFIX, open_parquet
from edgelstm.pipeline.sources.rows import Row, Rows, open_text, with_point
from edgelstm.pipeline.sources.scales import Scales, read_scales, write_scales
from edgelstm.pipeline.sources.source import NOTHING, Array, Frame, Source
from edgelstm.pipeline.sources.stamps import CLOCKS, Stamps, ask, read_time

log = logging.getLogger(__name__)

#: Of a folder of parts.
PARTS = SUFFIX
SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
OPTIONS = ("columns", "key", "keys", "scale", "head", "time", "clock", "header", "decimal")
#: Streams that a growing table has no place for, and rows of no stream, of which it is said.
MAX_STRANGE = 100
#: Rows of a growing table that say, at the start, whether its columns hold numbers.
LOOKED_AT = 100


@dataclass(frozen=True)
class Options:
    """What stands behind the file's name."""

    columns: tuple[str, ...] = ()
    key: str | None = None
    keys: tuple[str, ...] = ()
    scale: str | None = None
    head: int | None = None
    time: str | None = None
    clock: str | None = None
    header: bool | None = None
    decimal: str = "."


class Numbers:
    """Whether each column has a number somewhere."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.rows = 0
        self._columns = columns
        self._any = np.zeros(len(columns), bool)
        self._bad: EdgeLstmError | None = None

    def look(self, values: Array, bad: EdgeLstmError | None) -> None:
        """At one row."""
        self.rows += 1
        self._any |= ~np.isnan(values)
        self._bad = self._bad or bad

    def check(self) -> None:
        """Raise EdgeLstmError for a column of words: every row would be a bad frame."""
        if self.rows > 1 and self._bad is not None and not self._any.all():
            column = self._columns[int(np.argmin(self._any))]
            raise EdgeLstmError(
                f"{self._bad.what}, and no number in column {column!r} of {count_of(self.rows, 'row')}",
                found=self._bad.found,
                expected=self._bad.expected,
                hint=self._bad.hint,
            )


@dataclass
class Span:
    """One stream of a table: rows that are wanted, its first and last, and the smallest and largest values of all its rows."""

    rows: int
    first: int
    last: int
    low: Array
    high: Array


def named_streams(keys: str) -> int:
    """How many streams ``keys=a,b`` or ``keys=81-100`` names."""
    return len({k for part in keys.split(",") for k in _range(part)})


def open_table(path: Path, given: Mapping[str, str], follow: Follow | None = None) -> Source:
    """Frames float64 [columns], in the order of the rows. Cells that are empty are NaN.

    columns: which, in this order; all but key and time if none are named. key: the column that says whose row it is; keys: only
    these, ``a,b`` or ``81-100``. head: only the first so many rows of each stream. header: whether the first line
    names the columns, ``yes`` or ``no`` (default: unless it is numbers). decimal: ``,`` where it stands between the digits of numbers. time: seconds, or ISO 8601; clock: what its numbers count,
    ``s``, ``ms``, ``us`` or ``ns``; a gap is said, and time that runs backwards within a stream is an error. scale: ``own`` brings each stream to 0..1 by its own
    smallest and largest value (of the whole file: nothing live), FILE.csv by the values that ``edgelstm scales`` wrote.
    follow: rows that come, too, of the streams that are there at the start or that ``keys`` names.
    """
    options = _options(path, given)
    if follow is not None:
        return _open_growing(path, options, follow)
    columns = _columns(path, options)
    spans = scan(path, columns, options)
    scales = None
    if options.scale == "own":
        scales = Scales({key: (span.low, span.high) for key, span in spans.items()})
    elif options.scale is not None:
        scales = read_scales(Path(options.scale), columns)
    said = [
        f"{count_of(len(columns), 'column')}: {', '.join(columns[:12])}{', ...' if len(columns) > 12 else ''}"
    ]
    if options.key is not None:
        said.append(f"{count_of(len(spans), 'stream')} by {options.key!r}")
    if options.scale == "own":
        said.append("each stream brought to 0..1 by its own smallest and largest value in the file")
    said.extend(open_rows(path, header=options.header, decimal=options.decimal).said)
    made = Source(
        f"table {path}",
        lambda: _frames(path, columns, options, spans, scales),
        length=sum(span.rows for span in spans.values()),
        said=tuple(said),
        streams=_together(spans),
    )
    made.scales = "" if scales is None else scales.digest
    return made


def _open_growing(path: Path, options: Options, follow: Follow) -> Source:
    if options.scale == "own":
        raise EdgeLstmError(
            f"follow: source {path}: scale",
            found="own, which only the whole file tells",
            expected="a file of `edgelstm scales`",
        )
    columns = _columns(path, options, follow)
    known = set(options.keys)
    learn, numbers = options.key is not None and not known, Numbers(columns)
    for row, key in _chosen(path, columns, options, {}, follow, wait=False):
        if not numbers.rows:
            _ask(row, options)
        if numbers.rows < LOOKED_AT:
            values, bad, _ = row.numbers(columns)
            numbers.look(values, bad)
        elif not learn:
            break
        if learn:
            known.add(key)
    numbers.check()
    if learn and not known:
        raise EdgeLstmError(
            f"{path}: no rows", expected="at least one of each stream, or keys=a,b that names them"
        )
    scales = None if options.scale is None else read_scales(Path(options.scale), columns)
    said = [f"{count_of(len(columns), 'column')}: {', '.join(columns)}"]
    if options.key is not None:
        said.append(f"{count_of(len(known), 'stream')} by {options.key!r}")
    made = Source(
        f"table {path}, followed",
        lambda: _frames(path, columns, options, {}, scales, follow, known),
        said=tuple(said),
        streams=max(1, len(known)),
        stopped=follow.stopped,
    )
    made.scales = "" if scales is None else scales.digest
    return made


def open_rows(
    path: Path,
    follow: Follow | None = None,
    wait: bool = True,
    header: bool | None = None,
    decimal: str = ".",
) -> Rows:
    """A table's rows: of text, of Parquet or of a folder of Parquet. Raises EdgeLstmError."""
    if path.suffix.lower() != SUFFIX and not path.is_dir():
        return open_text(path, follow, wait, header, decimal)
    for name, is_given in (("header", header is not None), ("decimal", decimal != ".")):
        if is_given:
            raise EdgeLstmError(
                f"{path}: option {name}", found="Parquet, which tells that itself", expected="text"
            )
    return open_parquet(path, follow, wait)


def fit_scales(spec: str, out: PathLike) -> int:
    """Write the smallest and largest values of each stream of a table, and give how many streams there are."""
    if Path(out).suffix.lower() != ".csv":
        raise EdgeLstmError(f"output {out}", expected="a .csv file")
    file, given = split_options(spec, OPTIONS)
    path = check_file(file)
    refuse_overwrite(out, (path,))
    options = _options(path, {name: value for name, value in given.items() if name != "scale"})
    columns = _columns(path, options)
    spans = scan(path, columns, options, strict=True)
    write_scales(Path(out), columns, Scales({key: (s.low, s.high) for key, s in spans.items()}))
    return len(spans)


def _columns(path: Path, options: Options, follow: Follow | None = None) -> tuple[str, ...]:
    names = open_rows(path, follow, header=options.header, decimal=options.decimal).names
    for name in (*options.columns, *filter(None, (options.key, options.time))):
        if name not in names:
            raise EdgeLstmError(
                f"{path}: no column {name!r}", found=", ".join(names), expected="one of these"
            )
    return options.columns or tuple(n for n in names if n not in (options.key, options.time))


def scan(path: Path, columns: Sequence[str], options: Options, strict: bool = False) -> dict[str, Span]:
    """All streams of a table by key, in the order in which they begin; the only one has the key ``""``.

    Cells that are no numbers count as empty, with ``strict`` they are an error; so is a column that has no number.
    """
    spans: dict[str, Span] = {}
    numbers = Numbers(columns)
    # The scale of a stream is that of all its rows, whatever part of them is wanted.
    for row, key in _chosen(path, columns, replace(options, head=None), {}):
        values, bad, _ = row.numbers(columns)
        if bad is not None and strict:
            raise bad
        if not numbers.rows:
            _ask(row, options)
        numbers.look(values, bad)
        span = spans.get(key)
        if span is None:
            spans[key] = Span(1, row.index, row.index, values.copy(), values.copy())
            continue
        if options.head is None or span.rows < options.head:
            span.rows, span.last = span.rows + 1, row.index
        np.fmin(span.low, values, out=span.low)
        np.fmax(span.high, values, out=span.high)
    numbers.check()
    if not spans:
        wanted = f" of {options.key} {', '.join(options.keys[:3])}" if options.keys else ""
        raise EdgeLstmError(f"{path}: no rows{wanted}", expected="at least one")
    return spans


def _ask(row: Row, options: Options) -> None:
    """Raise EdgeLstmError where the times may mean several things; one that is none is its row's affair."""
    if options.time is None:
        return
    where = f"{row.where}, column {options.time!r}"
    try:
        text = _time(row, options)
        read_time(text, where, options.clock)
    except EdgeLstmError:
        return
    ask(text, where, options.clock)


def _time(row: Row, options: Options) -> str:
    """The cell of a time; where a comma stands between digits, seconds have one."""
    assert options.time is not None
    text = row.text(options.time)
    is_number = re.fullmatch(r"[+-]?\d*,\d*", text) is not None
    return with_point(text, options.decimal) if options.decimal != "." and is_number else text


def _chosen(
    path: Path,
    columns: Sequence[str],
    options: Options,
    counts: dict[str, int],
    follow: Follow | None = None,
    wait: bool = True,
) -> Iterator[tuple[Row, str]]:
    """The rows of the streams that are wanted, with their key."""
    wanted = set(options.keys)
    nameless = 0
    needed = [*columns, *filter(None, (options.key, options.time))]
    for row in open_rows(path, follow, wait, options.header, options.decimal).read(needed):
        if row.is_blank and (options.key or options.time):  # it is nobody's, or the next time tells of it
            continue
        key = ""
        if options.key is not None:
            try:
                key = row.text(options.key)
                if not key:
                    found, expected = "an empty cell", "whose row it is"
                    raise EdgeLstmError(
                        f"{row.where}, column {options.key!r}", found=found, expected=expected
                    )
            except EdgeLstmError as error:
                # Whose row it is can't be told, so no stream's policy says what to do with it.
                if follow is None and not wanted:
                    raise
                nameless += 1
                if wait and nameless <= MAX_STRANGE:
                    log.warning("a row is left out: %s", error)
                continue
        if wanted and key not in wanted:
            continue
        counts[key] = counts.get(key, 0) + 1
        if options.head is None or counts[key] <= options.head:
            yield row, key


def _frames(
    path: Path,
    columns: Sequence[str],
    options: Options,
    spans: Mapping[str, Span],
    scales: Scales | None,
    follow: Follow | None = None,
    known: Collection[str] = (),
) -> Iterator[Frame]:
    strange: set[str] = set()
    stamps = Stamps(options.clock)
    for index, (row, key) in enumerate(_chosen(path, columns, options, {}, follow)):
        if known and key not in known:  # there is no place for its state
            if key not in strange and len(strange) < MAX_STRANGE:
                strange.add(key)
                log.warning(
                    "%s: rows of %s %r are left out: it was not there at the start; keys=a,b names streams that come later",
                    path,
                    options.key,
                    key,
                )
            continue
        values, bad, missing = row.numbers(columns)
        if scales is not None:
            values = scales.apply(key, values, path)
        stamp, gap, late, name = None, None, None, f"row {row.index + 1}"
        if row.wrong is not None:
            values = NOTHING
        elif options.time is not None:
            try:
                told = row.text(options.time)
                read = stamps.read(key, _time(row, options), f"{row.where}, column {options.time!r}")
            except EdgeLstmError as error:
                values, bad = NOTHING, bad or error
            else:
                name, stamp, gap, late = told, read.seconds, read.gap, read.late
        last = options.key is not None and key in spans and spans[key].last == row.index
        stream = None if options.key is None else key
        yield Frame(
            index,
            stamp,
            name,
            values,
            gap=gap,
            stream=stream,
            last=last,
            bad=bad,
            missing=missing,
            late=late,
            mark=None if index else row.mark,
        )


def _together(spans: Mapping[str, Span]) -> int:
    """How many streams are open at one time, at most."""
    edges = sorted([(s.first, 1) for s in spans.values()] + [(s.last + 0.5, -1) for s in spans.values()])
    now = most = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most


def _options(path: Path, given: Mapping[str, str]) -> Options:
    made: dict[str, Any] = {}
    for name, value in given.items():
        if not value:
            raise EdgeLstmError(f"{path}: option {name}", found="nothing", expected=f"{name}=VALUE")
        if name == "columns":
            made[name] = tuple(value.split(","))
        elif name == "keys":
            made[name] = tuple(k for part in value.split(",") for k in _range(part))
        elif name == "head":
            if not value.isdecimal() or not int(value):
                raise EdgeLstmError(f"{path}: head", found=value, expected="a number of rows, at least 1")
            made[name] = int(value)
        elif name == "header":
            if value not in ("yes", "no"):
                raise EdgeLstmError(f"{path}: header", found=value, expected="yes or no")
            made[name] = value == "yes"
        elif name == "decimal" and value not in (",", "."):
            raise EdgeLstmError(f"{path}: decimal", found=value, expected=", or .")
        elif name == "clock" and value not in CLOCKS:
            raise EdgeLstmError(f"{path}: clock", found=value, expected=", ".join(CLOCKS))
        else:
            made[name] = value
    if "clock" in made and "time" not in made:
        raise EdgeLstmError(f"{path}: clock without a time", expected="time=COLUMN too")
    if "keys" in made and "key" not in made:
        raise EdgeLstmError(f"{path}: keys without a key", expected="key=COLUMN too")
    return Options(**made)


def _range(part: str) -> list[str]:
    low, dash, high = part.partition("-")
    if dash and low.isdecimal() and high.isdecimal() and int(high) - int(low) < 1_000_000:
        return [str(k) for k in range(int(low), int(high) + 1)]
    return [part]
