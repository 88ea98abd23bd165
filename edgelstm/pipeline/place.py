"""When and where the frames of a source were taken, and in which units: what outputs say beside their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

Op = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """Pixels on a map. proj4: the projection as PROJ writes it, in metres. left, top: the outer corner of the first pixel;
    dx, dy: from pixel to pixel (dy is below 0 where rows go south), all in metres of the projection."""

    proj4: str
    left: float
    top: float
    dx: float
    dy: float
    rows: int
    columns: int

    def through(self, ops: Sequence[Op]) -> Grid:
        """The grid of what ``crop``, ``average`` and ``resize`` make of these pixels."""
        grid = self
        for op in ops:
            if op["op"] == "crop":
                grid = replace(
                    grid,
                    left=grid.left + op["left"] * grid.dx,
                    top=grid.top + op["top"] * grid.dy,
                    rows=op["height"],
                    columns=op["width"],
                )
            elif op["op"] == "average":
                f = op["factor"]
                grid = replace(
                    grid, dx=grid.dx * f, dy=grid.dy * f, rows=grid.rows // f, columns=grid.columns // f
                )
            elif op["op"] == "resize":
                rows, columns = op["height"], op["width"]
                grid = replace(
                    grid,
                    dx=grid.dx * grid.columns / columns,
                    dy=grid.dy * grid.rows / rows,
                    rows=rows,
                    columns=columns,
                )
        return grid

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "proj4": self.proj4,
            "left": self.left,
            "top": self.top,
            "dx": self.dx,
            "dy": self.dy,
            "rows": self.rows,
            "columns": self.columns,
        }


@dataclass(frozen=True)
class Place:
    """What a source knows of its frames. start: the time of the first; interval: seconds from frame to frame.

    units: what values are in once they were multiplied by a factor, such as ``{0.01: "mm", 0.12: "mm/h"}``.
    """

    start: datetime | None = None
    interval: float | None = None
    grid: Grid | None = None
    units: Mapping[float, str] = field(default_factory=dict)

    def unit(self, ops: Sequence[Op]) -> str | None:
        """The unit of :func:`edgelstm.pipeline.units.physical` values behind ``ops``; None when it is not known."""
        factor = 1.0
        for op in ops:
            if op["op"] == "scale":
                if op.get("offset", 0.0):
                    return None
                factor *= op["factor"]
            elif op["op"] in ("log1p", "normalize"):
                break
        return next((u for f, u in self.units.items() if abs(factor - f) <= 1e-6 * f), None)


@dataclass(frozen=True)
class Context:
    """What a sink may say beside the values: when, where, in which unit (by output name), of what.

    leads: output name to the axis of lead times' length K, for outputs that are forecasts of the frames. hop: of sound, (rate in Hz, samples
    from frame to frame).
    """

    start: datetime | None = None
    interval: float | None = None
    grid: Grid | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    leads: Mapping[str, int] = field(default_factory=dict)
    hop: tuple[int, int] | None = None
    model: str = ""
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": self.model,
            "source": self.source,
            "start": None if self.start is None else self.start.isoformat(),
            "interval_s": self.interval,
            "grid": None if self.grid is None else self.grid.to_json(),
            "units": dict(self.units),
            "leads": dict(self.leads),
        }
