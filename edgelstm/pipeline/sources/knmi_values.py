"""What a KNMI radar file says its values are: which image, its calibration, its "no data".

Source: the KNMI HDF5 data format specification 3.5 (groups ``imageN`` and ``imageN/calibration``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.place import Grid
from edgelstm.pipeline.sources.source import Array

#: A count of an accumulation, in mm, and the count without data: those of the five-minute product.
COUNT, NODATA = 0.01, 65535

_FORMULA = re.compile(
    r"GEO\s*=\s*(?P<a>[-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*\*\s*PV\s*(?P<b>(?:[-+]\s*){1,2}[\d.]+(?:[eE][-+]?\d+)?)?\s*"
)


@dataclass(frozen=True)
class Calibration:
    """``GEO = factor * PV + offset`` of what ``quantity`` names; PV in ``nodata`` stand for nothing."""

    quantity: str
    factor: float
    offset: float
    nodata: tuple[int, ...]

    @property
    def accumulation(self) -> bool:
        """Whether values are mm of precipitation, from 0 up."""
        return "ACCUMULATED" in self.quantity.upper() and "MM" in self.quantity.upper() and not self.offset

    def units(self, minutes: float | None) -> dict[float, str]:
        """The unit of a frame's values by the factor that they are multiplied with afterwards."""
        if self.accumulation:
            rate = {} if minutes is None else {COUNT * 60 / minutes: "mm/h"}
            return {COUNT: "mm", **rate}
        found = re.search(r"\[(.+?)\]", self.quantity)
        return {1.0: found[1]} if found else {}

    def formula(self) -> str:
        """As the file writes it."""
        return f"GEO = {self.factor:g} * PV" + (
            f" {'+' if self.offset > 0 else '-'} {abs(self.offset):g}" if self.offset else ""
        )

    def apply(self, stored: Array) -> tuple[Array, str]:
        """(frame, what was done). Accumulations in counts of 0.01 mm, 65535 where there is nothing, whatever the file's
        own count; every other quantity in its unit, float32, NaN where there is nothing."""
        nothing = ", ".join(map(str, self.nodata)) or "none"
        unit = f"{self.quantity or 'values'}: {self.formula()}, nothing at PV {nothing}"
        usual = self.factor == COUNT and self.nodata == (NODATA,) and stored.dtype == np.uint16
        if self.accumulation and usual:
            return stored, f"{unit}; read as counts"
        missing = np.isin(stored, self.nodata)
        if not self.accumulation:
            geo = stored.astype(np.float64) * self.factor + self.offset
            geo[missing] = np.nan
            return geo.astype(np.float32), f"{unit}; read as the file says, NaN where there is nothing"
        counts = stored.astype(np.float64) * (self.factor / COUNT)
        known = counts[~missing]
        whole = abs(self.factor / COUNT - round(self.factor / COUNT)) < 1e-6
        fits = not known.size or known.max() < NODATA
        counts[missing] = NODATA
        # float32 holds whole numbers to 2^24: no count of the file is lost.
        frame = np.rint(counts).astype(np.uint16) if whole and fits else counts.astype(np.float32)
        return frame, f"{unit}; brought to counts of {COUNT} mm, {NODATA} where there is nothing"


def choose_image(h5py: Any, file: Any, where: str, wanted: str | None, folder: Path) -> str:
    """The image group to read: the only one, or ``wanted``. EdgeLstmError when there are several and none is named."""
    names = sorted(
        (n for n in file if re.fullmatch(r"image\d+", n) and isinstance(file.get(n), h5py.Group)),
        key=lambda n: int(n[5:]),
    )
    if wanted is not None and wanted not in names:
        raise EdgeLstmError(
            f"{where}: no image {wanted!r}", found=", ".join(names) or "none", expected="one of the file's"
        )
    if wanted is None and len(names) > 1:
        listed = ", ".join(
            f"{n} {_text(file[n].attrs.get('image_geo_parameter'))}".strip() for n in names[:8]
        )
        raise EdgeLstmError(
            f"{where}: several images",
            found=listed,
            expected="one",
            hint=f"Choose one by the source {folder}:{names[0]}",
        )
    return wanted or (names[0] if names else "image1")


def calibration(group: Any, where: str) -> Calibration | None:
    """Of an image group; None where the file has none, or says that its values are not calibrated."""
    table = group.get("calibration")
    quantity = _text(group.attrs.get("image_geo_parameter"))
    formula = "" if table is None else _text(table.attrs.get("calibration_formulas"))
    if table is None or _text(table.attrs.get("calibration_flag")) == "N" or not formula:
        return None
    match = _FORMULA.fullmatch(formula.strip())
    if match is None:
        raise EdgeLstmError(f"{where}: calibration", found=formula, expected="GEO = a * PV + b")
    offset = re.sub(r"\s", "", match["b"] or "0").replace("+-", "-").replace("--", "").replace("++", "")
    outside = _numbers(table.attrs.get("calibration_out_of_image"))
    # A missing value of 0 says nothing: it is what a dry pixel has, too.
    missing = [v for v in _numbers(table.attrs.get("calibration_missing_data")) if v]
    return Calibration(quantity, float(match["a"]), float(offset), tuple(sorted({*outside, *missing})))


def period(file: Any) -> float | None:
    """Minutes from the start to the end that the file states; None without them."""
    overview = file.get("overview")
    if overview is None:
        return None
    try:
        start, end = (
            datetime.strptime(_text(overview.attrs.get(f"product_datetime_{edge}"))[:20], "%d-%b-%Y;%H:%M:%S")
            for edge in ("start", "end")
        )
    except ValueError:
        return None
    minutes = (end - start).total_seconds() / 60
    return minutes if minutes > 0 else None


def radar_grid(file: Any, shape: tuple[int, ...]) -> Grid | None:
    """Where the pixels lie, from the file's ``geographic`` group; None where it does not say."""
    geo = file.get("geographic")
    projection = None if geo is None else geo.get("map_projection")
    if projection is None:
        return None
    proj4 = _text(projection.attrs.get("projection_proj4_params"))
    try:
        dx, dy, left, top = (
            float(np.asarray(geo.attrs[f"geo_{key}"]).ravel()[0])
            for key in ("pixel_size_x", "pixel_size_y", "column_offset", "row_offset")
        )
    except (KeyError, IndexError, ValueError):
        return None
    if _text(geo.attrs.get("geo_dim_pixel")).upper() != "KM,KM" or not proj4 or not dx or not dy:
        return None
    # Lengths in the file are km, of the ellipsoid too; row 0 lies `row_offset` pixels from the projection's origin.
    return Grid(_in_metres(proj4), left * dx * 1e3, top * dy * 1e3, dx * 1e3, dy * 1e3, shape[0], shape[1])


def _in_metres(proj4: str) -> str:
    """PROJ parameters with the axes of the ellipsoid in metres, where the file has them in km."""

    def longer(match: re.Match[str]) -> str:
        value = float(match[2])
        return f"{match[1]}{value * 1e3:.10g}" if value < 1e5 else match[0]

    return re.sub(r"(\+(?:a|b)=)([\d.]+)", longer, proj4)


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return value.decode("latin-1") if isinstance(value, bytes) else "" if value is None else str(value)


def _numbers(value: Any) -> list[int]:
    return [] if value is None else [int(v) for v in np.asarray(value).ravel()]
