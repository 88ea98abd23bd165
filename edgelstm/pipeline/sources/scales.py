"""Smallest and largest value of every column of every stream, as a CSV file: what brings each stream to 0..1."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.files import read_bytes, sha256, write_text
from edgelstm.pipeline.sources.source import Array

COLUMNS = ("key", "column", "min", "max")


@dataclass(frozen=True)
class Scales:
    """By stream (the key ``""`` is for every stream without its own): (min, max), float64 [columns] each."""

    limits: Mapping[str, tuple[Array, Array]]

    @property
    def digest(self) -> str:
        """Tells these numbers from others."""
        told = {key: [low.tolist(), high.tolist()] for key, (low, high) in self.limits.items()}
        return sha256(json.dumps(told, sort_keys=True).encode())

    def apply(self, key: str, values: Array, where: object) -> Array:
        """``(values - min) / (max - min)``; a column that never changes becomes 0."""
        limits = self.limits.get(key, self.limits.get(""))
        if limits is None:
            raise EdgeLstmError(
                f"{where}: no scale for stream {key!r}",
                found=", ".join(list(self.limits)[:8]),
                expected="a line for each of its columns, or lines with an empty key for all others",
            )
        low, high = limits
        scaled: Array = (values - low) / np.where(high > low, high - low, 1)
        return scaled


def write_scales(path: Path, columns: Sequence[str], scales: Scales) -> None:
    """A line for each stream and column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key, (low, high) in scales.limits.items():
        writer.writerows(
            (key, column, repr(float(a)), repr(float(b)))
            for column, a, b in zip(columns, low, high, strict=True)
        )
    write_text(path, text.getvalue())


def read_scales(path: Path, columns: Sequence[str]) -> Scales:
    """What :func:`write_scales` wrote, in the order of ``columns``."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    try:
        rows = csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig")))
        for row in rows:
            found.setdefault(row["key"], {})[row["column"]] = (float(row["min"]), float(row["max"]))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise EdgeLstmError(
            f"{path}: not a file of scales", found=str(error), expected=f"columns {', '.join(COLUMNS)}"
        ) from error
    limits = {}
    for key, by_column in found.items():
        missing = [c for c in columns if c not in by_column]
        if missing:
            raise EdgeLstmError(
                f"{path}: stream {key!r} lacks column {missing[0]!r}", found=", ".join(by_column)
            )
        low, high = np.array([by_column[c] for c in columns], np.float64).T
        limits[key] = (low, high)
    if not limits:
        raise EdgeLstmError(f"{path}: no scales", expected=f"lines of {', '.join(COLUMNS)}")
    return Scales(limits)
