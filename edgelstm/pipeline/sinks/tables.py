"""Outputs as a table, a row a step: CSV or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import atomic_path
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sinks.panels import as_float
from edgelstm.pipeline.sinks.room import check_room
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Write

#: More columns than this are no table that anybody reads.
MAX_COLUMNS = 4096
#: Rows that Parquet writes together.
GROUP = 4096
#: Bytes that wait in memory for a file of text; bytes of a cell, and of what Parquet's end says of one column in one group.
BUFFER, CELL, TOLD = 8192, 32, 256
FIXED = ("stream", "index", "name", "time", "milliseconds")


def columns(signature: Signature) -> list[str]:
    """One for each element of each output: ``y`` of one element, else ``y[0]``, ``y[1,2]``; ``output_time`` where another column is called ``time``."""
    names = [name for spec in signature.outputs for name in _names(spec)]
    if len(names) > MAX_COLUMNS:
        raise EdgeLstmError(
            "outputs as a table",
            found=f"{count_of(len(names), 'column')}",
            expected=f"at most {MAX_COLUMNS}",
            hint="Write to .npz",
        )
    head = dict.fromkeys(FIXED)
    for name in names:
        while name in head:
            name = f"output_{name}"
        head[name] = None
    return list(head)


@contextmanager
def table(path: Path, signature: Signature) -> Iterator[Write]:
    """``stream, index, name, time, milliseconds`` and a column for each element of each output."""
    head = columns(signature)
    with atomic_path(path) as temporary:
        opened = _parquet if path.suffix.lower() == ".parquet" else _csv
        with opened(temporary, head) as add:

            def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
                values = [
                    v for s in signature.outputs for v in as_float(outputs[s.name], s.dtype).ravel().tolist()
                ]
                add([frame.stream, frame.index, frame.name, frame.time, round(seconds * 1e3, 4), *values])

            yield write


@contextmanager
def _csv(path: Path, head: list[str]) -> Iterator[Any]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)

        def add(row: list[Any]) -> None:
            check_room(path.parent, BUFFER + CELL * len(row))
            writer.writerow(row)

        yield add


@contextmanager
def _parquet(path: Path, head: list[str]) -> Iterator[Any]:
    arrow = require("pyarrow", "tables", f"writing {path}")
    parquet = require("pyarrow.parquet", "tables", f"writing {path}")
    kinds = {"stream": arrow.string(), "index": arrow.int64(), "name": arrow.string()}
    schema = arrow.schema([(name, kinds.get(name, arrow.float64())) for name in head])
    rows: list[list[Any]] = []
    groups = 0
    with parquet.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            nonlocal groups
            if rows:
                groups += 1
                writer.write_table(
                    arrow.table(dict(zip(head, zip(*rows, strict=True), strict=True)), schema=schema)
                )
                rows.clear()

        def add(row: list[Any]) -> None:
            check_room(path.parent, len(head) * (CELL * (len(rows) + 1) + TOLD * (groups + 1)))
            rows.append(row)
            if len(rows) == GROUP:
                flush()

        yield add
        flush()


def _names(spec: TensorSpec) -> list[str]:
    shape = spec.frame_shape
    if int(np.prod(shape)) == 1:
        return [spec.name]
    return [f"{spec.name}[{','.join(map(str, place))}]" for place in np.ndindex(*shape)]
