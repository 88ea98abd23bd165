"""OPERA's radar composites: the ODIM_H5 data model, objects COMP and IMAGE.

Source: EUMETNET OPERA, "OPERA weather radar information model for implementation with the HDF5 file format", versions 2.0 to 2.4:
``what`` (gain, offset, nodata, undetect, times), ``where`` (projection and corners), ``datasetN/dataN/data``. Attributes of a
deeper group stand for those of the ones above it.

Frames are float32 in the unit of the quantity: NaN where no radar looks (``nodata``); where a radar found nothing (``undetect``) 0 of a rate or
an accumulation, and -32 of a reflectivity in dBZ, the least that KNMI's and OPERA's eight-bit files hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.place import Grid
from edgelstm.pipeline.sources.source import Array, check_frame_size

#: Quantities (ODIM_H5 2.4, table 17): their unit, and the value where a radar found nothing.
_QUANTITIES = {
    **dict.fromkeys(("TH", "TV", "DBZH", "DBZV", "DBZHC", "DBZVC"), ("dBZ", -32.0)),
    "RATE": ("mm/h", 0.0),
    "ACRR": ("mm", 0.0),
}
#: Versions of the model whose attributes are these.
_VERSIONS = re.compile(r"ODIM_H5/V2_[0-9]+")


@dataclass(frozen=True)
class _Data:
    """An array of a file: where, its quantity, and its attributes, the deeper ones first."""

    name: str
    quantity: str
    array: Any
    what: dict[str, Any]


def is_odim(h5py: Any, path: Path) -> bool | None:
    """Whether the file says that it is; None when it can't be read."""
    try:
        with h5py.File(path, "r") as file:
            return _text(file.attrs.get("Conventions")).startswith("ODIM_H5")
    except (OSError, RuntimeError, KeyError, ValueError):
        return None


def time_of(path: Path) -> datetime:
    """By the last twelve or fourteen digits in a row in the name, UTC."""
    found = re.findall(r"(?<!\d)(\d{12}|\d{14})(?!\d)", path.stem)
    try:
        if found:
            digits = found[-1]
            form = "%Y%m%d%H%M%S" if len(digits) == 14 else "%Y%m%d%H%M"
            return datetime.strptime(digits, form).replace(tzinfo=timezone.utc)
    except ValueError:
        pass
    raise EdgeLstmError(
        f"{path}: no time in the file's name",
        expected="twelve or fourteen digits, as in T_PAAH21_C_EUOC_20260101000000.h5",
    )


def read(h5py: Any, path: Path, index: int, name: str | None) -> tuple[Array, str, datetime | None]:
    """Values float32, what was done, and the nominal time that the file states."""
    where = f"{path} (frame {index})"
    try:
        with h5py.File(path, "r") as file:
            _check(file, where)
            data = _choose(h5py, file, where, name, path.parent)
            check_frame_size(where, data.array.shape, np.dtype(np.float32))
            if len(data.array.shape) != 2 or data.array.dtype.kind not in "iuf":
                raise EdgeLstmError(
                    f"{where}: {data.name}",
                    found=f"{data.array.dtype}{list(data.array.shape)}",
                    expected="numbers [rows, columns]",
                )
            return (*_values(data, where), _stated(file))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # h5py's, of damaged files
        raise EdgeLstmError(f"{where}: damaged, or not HDF5", found=str(error)) from error


def place(h5py: Any, path: Path, name: str | None) -> tuple[Grid | None, dict[float, str]]:
    """Grid of the pixels, and units by factor of the values; nothing where the file does not say, or can't be read."""
    try:
        with h5py.File(path, "r") as file:
            data = _choose(h5py, file, str(path), name, path.parent)
            unit, _ = _QUANTITIES.get(data.quantity, ("", 0.0))
            units = {1.0: unit} if unit else {}
            seconds = _seconds(data.what)
            if unit == "mm" and seconds:
                units[3600 / seconds] = "mm/h"
            return _grid(dict(file["where"].attrs), data.array.shape), units
    except (EdgeLstmError, OSError, RuntimeError, KeyError, ValueError, TypeError):
        return None, {}  # reading the first frame says what is wrong


def _check(file: Any, where: str) -> None:
    conventions = _text(file.attrs.get("Conventions"))
    kind = _text(file["what"].attrs.get("object"))
    if not _VERSIONS.fullmatch(conventions) or kind not in ("COMP", "IMAGE"):
        raise EdgeLstmError(
            f"{where}: not a composite of ODIM_H5",
            found=f"{conventions or 'no Conventions'}, object {kind or 'none'}",
            expected="ODIM_H5/V2_0 to V2_4, object COMP or IMAGE",
            hint="Polar volumes (PVOL, SCAN) have no grid: make a composite first, e.g. with wradlib or BALTRAD"
            if kind in ("PVOL", "SCAN")
            else None,
        )


def _choose(h5py: Any, file: Any, where: str, wanted: str | None, folder: Path) -> _Data:
    """The only array, or the one that ``wanted`` names, by its quantity or as ``dataset1/data2``."""
    all_of_them = there = list(_arrays(h5py, file))
    if wanted is not None:
        there = [d for d in all_of_them if wanted in (d.quantity, d.name)]
        if not there:
            raise EdgeLstmError(
                f"{where}: no {wanted!r}", found=_listed(all_of_them), expected="one of these"
            )
    if len(there) != 1:
        raise EdgeLstmError(
            f"{where}: {'several arrays' if there else 'no array'}",
            found=_listed(there),
            expected="one",
            hint=f"Choose one by the source {folder}:{there[0].quantity or there[0].name}" if there else None,
        )
    return there[0]


def _arrays(h5py: Any, file: Any) -> Iterator[_Data]:
    above = _attributes(file, "what")
    for dataset in _numbered(h5py, file, "dataset"):
        mine = {**above, **_attributes(file[dataset], "what")}
        for data in _numbered(h5py, file[dataset], "data"):
            what = {**mine, **_attributes(file[dataset][data], "what")}
            array = file[dataset][data].get("data")
            if isinstance(array, h5py.Dataset):
                yield _Data(f"{dataset}/{data}", _text(what.get("quantity")), array, what)


def _numbered(h5py: Any, group: Any, stem: str) -> list[str]:
    names = [n for n in group if re.fullmatch(rf"{stem}[0-9]+", n) and isinstance(group.get(n), h5py.Group)]
    return sorted(names, key=lambda n: int(n[len(stem) :]))[:256]


def _listed(data: list[_Data]) -> str:
    return ", ".join(f"{d.name} {d.quantity}".strip() for d in data[:8]) or "none"


def _values(data: _Data, where: str) -> tuple[Array, str]:
    try:
        gain, offset = (float(_one(data.what[key])) for key in ("gain", "offset"))
        nodata, undetect = (
            None if key not in data.what else float(_one(data.what[key])) for key in ("nodata", "undetect")
        )
    except KeyError as error:
        raise EdgeLstmError(
            f"{where}: {data.name}", found=f"no {error.args[0]}", expected="gain and offset, as ODIM asks"
        ) from error
    stored: Array = data.array[:]
    unit, nothing = _QUANTITIES.get(data.quantity, ("", None))
    found = stored == undetect if undetect is not None else np.zeros(stored.shape, bool)
    if nothing is None and undetect is not None and found.any():
        raise EdgeLstmError(
            f"{where}: {data.name} has pixels where a radar found nothing",
            found=f"quantity {data.quantity or 'not named'}",
            expected=f"one whose value is then known: {', '.join(_QUANTITIES)}",
        )
    values = (stored.astype(np.float64) * gain + offset).astype(np.float32)
    if nothing is not None:
        values[found] = nothing
    if nodata is not None:
        values[stored == nodata] = np.nan
    note = f"{data.name}, {data.quantity or 'quantity not named'}{f' in {unit}' if unit else ''}: {gain:g} * value + {offset:g}"
    if nodata is not None:
        note += f", NaN at {nodata:g} (nodata)"
    if undetect is not None:
        note += f", {nothing:g} at {undetect:g} (undetect)" if nothing is not None else ""
    seconds = _seconds(data.what)
    if unit == "mm" and seconds:
        note += f", in {seconds / 60:g} minutes"
    return values, note


def _stated(file: Any) -> datetime | None:
    what = _attributes(file, "what")
    return _moment(what, "date", "time")


def _seconds(what: dict[str, Any]) -> float | None:
    """From the start to the end that the file states."""
    start, end = (_moment(what, f"{edge}date", f"{edge}time") for edge in ("start", "end"))
    if start is None or end is None or end <= start:
        return None
    return (end - start).total_seconds()


def _moment(what: dict[str, Any], date: str, time: str) -> datetime | None:
    try:
        text = _text(what.get(date)) + _text(what.get(time))
        return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


def _grid(where: dict[str, Any], shape: tuple[int, ...]) -> Grid | None:
    """From projection, pixel size and the corner's longitude and latitude, which rasterio (PROJ) projects; None without it."""
    projection = _text(where.get("projdef"))
    try:
        from rasterio.warp import transform
    except ImportError:
        return None
    dx, dy = float(_one(where["xscale"])), float(_one(where["yscale"]))
    projection = re.sub(r"\+units=\S+", "+units=m", projection)
    if not projection or not dx > 0 or not dy > 0 or re.search(r"\+proj=(longlat|latlong)", projection):
        return None
    corners = {}
    for corner in ("UL", "LR"):
        longitude, latitude = (float(_one(where[f"{corner}_{axis}"])) for axis in ("lon", "lat"))
        try:
            xs, ys = transform("EPSG:4326", projection, [longitude], [latitude])
        except Exception:  # GDAL's own, of projections that it does not know
            return None
        corners[corner] = xs[0], ys[0]
    (left, top), (right, bottom) = corners["UL"], corners["LR"]
    # Corners that don't fit the size by a pixel are those of something else.
    if abs(right - left - shape[1] * dx) > dx or abs(top - bottom - shape[0] * dy) > dy:
        return None
    return Grid(projection, left, top, dx, -dy, shape[0], shape[1])


def _attributes(group: Any, name: str) -> dict[str, Any]:
    found = group.get(name)
    return {} if found is None else dict(found.attrs)


def _one(value: Any) -> Any:
    return np.asarray(value).ravel()[0]


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return value.decode("latin-1") if isinstance(value, bytes) else "" if value is None else str(value)
