"""Outputs as NetCDF-4 by the CF conventions: times, lead times, grid and projection, units."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.dtypes import np_dtype, to_float32
from edgelstm.files import atomic_path
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Context, Grid
from edgelstm.pipeline.sinks.panels import is_channels_last, size_of
from edgelstm.pipeline.sinks.room import check_room
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Write

#: What HDF5 keeps beside the values until a file is closed, in bytes, with a margin.
ROOM = 4 << 20
#: What NetCDF has no type for becomes float32; true and false become 1 and 0.
_WIDER = ("bfloat16", "float8e4m3fn", "float16")
#: Standard names of the CF table by unit, for what radar sees.
_STANDARD = {"mm/h": "lwe_precipitation_rate", "mm": "lwe_thickness_of_precipitation_amount"}


@contextmanager
def netcdf(path: Path, signature: Signature, context: Context) -> Iterator[Write]:
    """A variable for each output over ``time``, the time of the last frame that went in.

    Forecasts are [time, lead, y, x]; lead times in seconds, or in frames where nobody knows. ``stream`` says whose each step is, where
    frames say it. Memory holds one frame.
    """
    h5netcdf = require("h5netcdf", "geo", f"writing {path}")
    # Readers count from whole seconds.
    over = 0.0 if context.start is None else context.start.microsecond / 1e6
    with atomic_path(path) as temporary, h5netcdf.File(temporary, "w") as file:
        file.attrs["Conventions"] = "CF-1.11"
        file.attrs["source"] = f"{context.model} by edgelstm, of {context.source}"
        file.dimensions["time"] = None
        time = file.create_variable("time", ("time",), np.float64)
        since = "the first frame" if context.start is None else context.start.strftime("%Y-%m-%dT%H:%M:%SZ")
        time.attrs["units"] = "s" if context.start is None else f"seconds since {since}"
        time.attrs["long_name"] = f"time of the last frame that went in, since {since}"
        if context.start is not None:
            time.attrs["standard_name"], time.attrs["calendar"] = "time", "standard"
        called = _names([spec.name for spec in signature.outputs], context.grid is not None)
        variables = {
            spec.name: _variable(file, called[spec.name], spec, context) for spec in signature.outputs
        }
        count = 0
        streams: Any = None
        room = ROOM + sum(
            np.zeros(0, v.dtype).itemsize * int(np.prod(v.shape[1:])) for v in variables.values()
        )

        def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
            nonlocal count, streams
            # HDF5 can't close a file on a full disk: it takes the process with it.
            check_room(temporary.parent, room)
            file.resize_dimension("time", count + 1)
            time[count] = float(count) if frame.time is None else frame.time + over
            if frame.stream is not None and streams is None:
                streams = file.create_variable("stream", ("time",), np.dtype("O", metadata={"vlen": str}))
                streams.attrs["long_name"] = "whose frame went in"
            if streams is not None:
                streams[count] = frame.stream or ""
            for spec in signature.outputs:
                variable = variables[spec.name]
                values = _values(outputs[spec.name], spec)
                values = values.transpose(2, 0, 1) if _is_turned(spec, context.grid) else values
                variable[count] = values.reshape(variable.shape[1:])
            count += 1

        yield write


def _values(array: Array, spec: TensorSpec) -> Array:
    if spec.dtype in _WIDER:
        return to_float32(array, spec.dtype)
    return np.asarray(array, np.int8) if spec.dtype == "bool" else array


def _is_turned(spec: TensorSpec, grid: Grid | None) -> bool:
    """Whether channels lie behind the pixels of a map, as Keras has them: here they come first."""
    return (
        grid is not None and is_channels_last(spec.frame_shape) and size_of(spec) == (grid.rows, grid.columns)
    )


def _names(outputs: Sequence[str], on_map: bool) -> dict[str, str]:
    """What outputs are called: no two alike, and none as what the file says itself."""
    taken = {"time", "lead", "stream", "crs", *("xy" if on_map else "")}
    found: dict[str, str] = {}
    for output in outputs:
        name = _plain(output)
        while name in taken:
            name = f"{name}_" if name in found.values() else f"output_{name}"
        taken.add(name)
        found[output] = name
    return found


def _variable(file: Any, called: str, spec: TensorSpec, context: Context) -> Any:
    shape, names = spec.frame_shape, []
    grid = context.grid
    shape = (shape[2], *shape[:2]) if _is_turned(spec, grid) else shape
    on_grid = grid is not None and shape[-2:] == (grid.rows, grid.columns)
    lead = context.leads.get(spec.name)
    sizes = list(shape)
    if on_grid:
        # A channel axis of one says nothing.
        sizes = [
            s for k, s in enumerate(shape) if not (s == 1 and k == len(shape) - 3 and (lead is None or k > 0))
        ]
    for axis, size in enumerate(sizes):
        behind = len(sizes) - axis
        if on_grid and behind <= 2:
            name = "yx"[2 - behind]
            _axis(file, name, size, grid)
        elif axis == 0 and lead == size and file.dimensions.get("lead", size) == size:
            name = "lead"
            _lead(file, size, context)
        else:
            name = f"{called}_{axis}"
        if name not in file.dimensions:
            file.dimensions[name] = size
        names.append(name)
    dtype = np.dtype(np.float32 if spec.dtype in _WIDER else np.int8 if spec.dtype == "bool" else np_dtype(spec.dtype))  # fmt: skip
    variable = file.create_variable(
        called, ("time", *names), dtype, chunks=(1, *sizes), compression="gzip", compression_opts=4
    )
    unit = context.units.get(spec.name)
    if unit is not None:
        variable.attrs["units"] = unit
        if unit in _STANDARD:
            variable.attrs["standard_name"] = _STANDARD[unit]
    variable.attrs["long_name"] = f"output {spec.name} of {context.model}"
    if on_grid and grid is not None:
        variable.attrs["grid_mapping"] = _mapping(file, grid)
    return variable


def _axis(file: Any, name: str, size: int, grid: Grid | None) -> None:
    if name in file.variables or grid is None:
        return
    file.dimensions[name] = size
    start, step = (grid.left, grid.dx) if name == "x" else (grid.top, grid.dy)
    variable = file.create_variable(name, (name,), np.float64)
    variable[:] = start + step * (np.arange(size) + 0.5)
    degrees = "longlat" in grid.proj4
    variable.attrs["units"] = "degrees" if degrees else "m"
    variable.attrs["standard_name"] = f"projection_{name}_coordinate"
    variable.attrs["axis"] = name.upper()


def _lead(file: Any, size: int, context: Context) -> None:
    if "lead" in file.variables:
        return
    file.dimensions["lead"] = size
    variable = file.create_variable("lead", ("lead",), np.float64)
    known = context.interval is not None
    variable[:] = np.arange(1, size + 1) * (context.interval or 1.0)
    variable.attrs["units"] = "s" if known else "1"
    variable.attrs["long_name"] = "how far ahead" if known else "how many frames ahead"
    if known:
        variable.attrs["standard_name"] = "forecast_period"


def _mapping(file: Any, grid: Grid) -> str:
    """The grid mapping variable; polar stereographic in CF's words, every other projection in PROJ's."""
    if "crs" not in file.variables:
        crs = file.create_variable("crs", (), np.int32, data=np.int32(0))
        crs.attrs["proj4_params"] = grid.proj4
        given = dict(re.findall(r"\+(\w+)=(\S+)", grid.proj4))
        if given.get("proj") == "stere" and abs(float(given.get("lat_0", 0))) == 90:
            crs.attrs["grid_mapping_name"] = "polar_stereographic"
            for name, key in (
                ("latitude_of_projection_origin", "lat_0"),
                ("straight_vertical_longitude_from_pole", "lon_0"),
                ("standard_parallel", "lat_ts"),
                ("false_easting", "x_0"),
                ("false_northing", "y_0"),
                ("semi_major_axis", "a"),
                ("semi_minor_axis", "b"),
            ):
                if key in given:
                    crs.attrs[name] = float(given[key])
    return "crs"


def _plain(name: str) -> str:
    """A name as NetCDF takes it."""
    return re.sub(r"[^\w.-]", "_", name)
