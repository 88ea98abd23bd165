"""Nowcasts as ODIM HDF5 composites (OPERA Data Information Model, H5rad 2.4, object COMP): what weather services exchange."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.files import atomic_path
from edgelstm.graph.signature import TensorSpec
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Context, Grid
from edgelstm.pipeline.sinks.geotiff import StepPaths, check_folder
from edgelstm.pipeline.sinks.panels import as_maps, image_outputs, size_of
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Target, Write

#: ODIM's name of what values in a unit are.
QUANTITIES = {"mm/h": "RATE", "mm": "ACRR", "dBZ": "DBZH"}
#: As OPERA's own composites have them: exact in float32.
NODATA, UNDETECT = -9999000.0, -8888000.0
#: Bytes that HDF5 needs beside the values.
ROOM = 4 << 20
LEAD = "{lead}"


@contextmanager
def odim(to: Target) -> Iterator[Write]:
    """A dataset for each lead time, ``dataset1`` the first, float32, NaN is nodata; its ``what`` says when it is valid, the root's when the nowcast was made.

    ``{time}`` or ``{index}`` in the path: a file for each step; without, the newest. ``{lead}``, minutes ahead: a file for each lead time too, as readers
    want that look for one field. Each file is written whole or not at all.
    """
    h5py = require("h5py", "geo", f"writing {to.name}")
    rasterio = require("rasterio", "geo", f"writing {to.name}")
    spec = image_outputs(to.signature, to.view)[0]
    grid, start = to.context.grid, to.context.start
    leads = to.context.leads.get(spec.name)
    rows, columns = size_of(spec)
    for wrong, found, expected in (
        (grid is None or start is None, "a source that does not say where and when", "radar composites"),
        (
            grid is not None and (grid.rows, grid.columns) != (rows, columns),
            f"{rows} x {columns} pixels",
            f"the grid of the frames, {grid.rows} x {grid.columns}" if grid else "",
        ),
        (leads is not None and to.context.interval is None, "frames at no known interval", "an even one"),
        (
            int(np.prod(spec.frame_shape)) != (leads or 1) * rows * columns,
            list(spec.frame_shape),
            "one channel",
        ),
    ):
        if wrong:
            raise EdgeLstmError(f"{to.name}: output {spec.name!r}", found=found, expected=expected)
    assert grid is not None
    assert start is not None
    quantity = to.options.quantity or QUANTITIES.get(to.context.units.get(spec.name, ""))
    if quantity is None:
        raise EdgeLstmError(
            f"{to.name}: output {spec.name!r}",
            found=f"values in {to.context.units.get(spec.name) or 'units of the model'}",
            expected=" or ".join(QUANTITIES),
            hint='units = "physical" gives mm/h where the source is radar; quantity = "..." names any other',
        )
    check_folder(to.path)
    where, paths = _where(rasterio, grid), StepPaths(to.path)

    def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
        bands = as_maps(outputs[spec.name], spec)
        bands = bands[:, :: -1 if grid.dy > 0 else 1, :: -1 if grid.dx < 0 else 1]  # row 0 is north
        made = start + timedelta(seconds=frame.time or 0.0)
        dues = [_due(made, lead, leads, to.context) for lead in range(len(bands))]
        path = paths(frame)
        files = (
            [(path, list(zip(dues, bands, strict=True)))]
            if LEAD not in path.name
            else [(_lead_path(path, made, due), [(due, band)]) for due, band in zip(dues, bands, strict=True)]
        )
        for name, parts in files:
            with atomic_path(name) as temporary:
                # HDF5 can't close a file on a full disk: it takes the process with it.
                if shutil.disk_usage(temporary.parent).free < ROOM + bands.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                with h5py.File(temporary, "w") as file:
                    _fill(h5py, file, made, parts, where, quantity, to.context, spec)

    yield write


def _fill(
    h5py: Any,
    file: Any,
    made: datetime,
    parts: list[tuple[datetime, Array]],
    where: Mapping[str, Any],
    quantity: str,
    context: Context,
    spec: TensorSpec,
) -> None:
    def say(group: Any, **attributes: Any) -> None:
        for name, value in attributes.items():
            _attribute(h5py, group, name, value)

    say(file, Conventions="ODIM_H5/V2_4")
    say(
        file.create_group("what"),
        object="COMP",
        version="H5rad 2.4",
        date=made.strftime("%Y%m%d"),
        time=made.strftime("%H%M%S"),
        source="CMT:edgelstm",
    )
    say(file.create_group("where"), **where)
    say(file.create_group("how"), software="edgelstm", model=context.model)
    for number, (due, band) in enumerate(parts, 1):
        dataset = file.create_group(f"dataset{number}")
        day, hour = due.strftime("%Y%m%d"), due.strftime("%H%M%S")
        say(
            dataset.create_group("what"),
            product="COMP",
            startdate=day,
            starttime=hour,
            enddate=day,
            endtime=hour,
            quantity=quantity,
            gain=1.0,
            offset=0.0,
            nodata=NODATA,
            undetect=UNDETECT,
        )
        say(dataset.create_group("how"), leadtime=(due - made).total_seconds() / 60, output=spec.name)
        data = dataset.create_group("data1")
        say(
            data.create_group("what"),
            quantity=quantity,
            gain=1.0,
            offset=0.0,
            nodata=NODATA,
            undetect=UNDETECT,
        )
        values = np.where(np.isfinite(band), band, np.float32(NODATA))
        stored = data.create_dataset("data", data=values, compression="gzip", compression_opts=4)
        say(stored, CLASS="IMAGE", IMAGE_VERSION="1.2")


def _attribute(h5py: Any, group: Any, name: str, value: Any) -> None:
    """Text as ODIM has it: of a fixed length, ended by NUL, ASCII."""
    if not isinstance(value, str):
        group.attrs.create(name, value, dtype=np.int64 if isinstance(value, int) else np.float64)
        return
    text = value.encode("ascii", "replace") + b"\0"
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(text))
    kind.set_strpad(h5py.h5t.STR_NULLTERM)
    space = h5py.h5s.create(h5py.h5s.SCALAR)
    attribute = h5py.h5a.create(group.id, name.encode(), kind, space)
    attribute.write(np.array(text, f"S{len(text)}"), mtype=kind)


def _where(rasterio: Any, grid: Grid) -> dict[str, Any]:
    """Corners are those of the outer pixels' edges, in longitude and latitude on the projection's own ellipsoid."""
    left, right = sorted((grid.left, grid.left + grid.dx * grid.columns))
    low, high = sorted((grid.top, grid.top + grid.dy * grid.rows))
    shape = [
        t
        for t in grid.proj4.split()
        if t.split("=")[0] in ("+a", "+b", "+ellps", "+datum", "+R", "+rf", "+f")
    ]
    globe = " ".join(["+proj=longlat", *shape])
    warp, crs = require("rasterio.warp", "geo", "corners"), rasterio.crs.CRS
    lon, lat = warp.transform(
        crs.from_proj4(grid.proj4), crs.from_proj4(globe), [left, left, right, right], [low, high, high, low]
    )
    corners = {
        f"{c}_{axis}": values[i]
        for axis, values in (("lon", lon), ("lat", lat))
        for i, c in enumerate(("LL", "UL", "UR", "LR"))
    }
    return {
        "projdef": grid.proj4,
        **corners,
        "xsize": grid.columns,
        "ysize": grid.rows,
        "xscale": abs(grid.dx),
        "yscale": abs(grid.dy),
    }


def _due(made: datetime, lead: int, leads: int | None, context: Context) -> datetime:
    if leads is None or context.interval is None:
        return made
    return made + timedelta(seconds=(lead + 1) * context.interval)


def _lead_path(path: Path, made: datetime, due: datetime) -> Path:
    return path.with_name(path.name.replace(LEAD, f"{round((due - made).total_seconds() / 60):03d}"))
