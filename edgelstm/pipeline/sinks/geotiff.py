"""Outputs as GeoTIFF: a file for each step, or the newest; lead times are bands, on the grid of the source."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import atomic_path, one_file
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sinks.panels import View, as_maps, image_outputs, size_of
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Write


#: Files whose steps are remembered.
NEWEST = 256


@contextmanager
def geotiff(path: Path, signature: Signature, view: View, context: Context) -> Iterator[Write]:
    """float32 bands: lead times of a forecast (each with the time that it is for), else channels.

    ``{time}`` (digits of the frame's time, UTC) or ``{index}`` in the path: a file for each step, there as soon as it is
    made; without either, the file holds the newest step. Each file is written whole or not at all.
    """
    rasterio = require("rasterio", "geo", f"writing {path}")
    spec = image_outputs(signature, view)[0]
    profile = _profile(rasterio, spec, context)
    check_folder(path)
    paths = StepPaths(path)

    def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
        bands = as_maps(outputs[spec.name], spec)
        unit = context.units.get(spec.name)
        # In memory first: of a disk that is full when the file is closed, GDAL tells standard error alone.
        with rasterio.io.MemoryFile() as memory:
            with memory.open(**profile) as file:
                file.write(bands)
                file.update_tags(output=spec.name, model=context.model, frame=frame.name)
                for band in range(profile["count"]):
                    file.set_band_description(band + 1, _described(band, spec, frame, context))
                    if unit is not None:
                        file.set_band_unit(band + 1, unit)
            with (
                atomic_path(paths(frame)) as temporary,
                temporary.open("wb") as made,
            ):
                made.write(memory.getbuffer())

    yield write


def _profile(rasterio: Any, spec: TensorSpec, context: Context) -> dict[str, Any]:
    height, width = size_of(spec)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "float32",
        "count": int(np.prod(spec.frame_shape)) // (height * width),
        "height": height,
        "width": width,
        "compress": "deflate",
    }
    grid = context.grid
    if grid is not None and (grid.rows, grid.columns) == (height, width):
        profile["crs"] = rasterio.crs.CRS.from_proj4(grid.proj4)
        profile["transform"] = rasterio.Affine(grid.dx, 0, grid.left, 0, grid.dy, grid.top)
    return profile


def _described(band: int, spec: TensorSpec, frame: Frame, context: Context) -> str:
    if spec.name not in context.leads:
        return f"{spec.name} {band}"
    lead = band // max(1, int(np.prod(spec.frame_shape[1:-2]))) + 1
    if context.interval is None:
        return f"{spec.name}, {count_of(lead, 'frame')} ahead"
    ahead = f"{lead * context.interval / 60:g} minutes ahead"
    if context.start is None or frame.time is None:
        return f"{spec.name}, {ahead}"
    due = context.start + timedelta(seconds=frame.time + lead * context.interval)
    return f"{spec.name} for {due.strftime('%Y-%m-%dT%H:%M:%SZ')}, {ahead}"


def check_folder(path: Path) -> None:
    """Whether ``path`` can be written is known before anything is computed. Raises EdgeLstmError."""
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise EdgeLstmError(
            f"can't write {path}", found=error.strerror or str(error), hint=f"Create {path.parent}"
        ) from error


class StepPaths:
    """The file of each step, none of which takes the place of another's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._each = "{index}" in path.name or "{time}" in path.name
        #: By the newest files, whose step is in it.
        self._steps: dict[str, tuple[str | None, str | None]] = {}

    def __call__(self, frame: Frame) -> Path:
        """Raises EdgeLstmError where another step, or of one file for all another stream, has that name."""
        made = step_path(self._path, frame.index, frame.name)
        mine = frame.stream, frame.name if self._each else None
        there = self._steps.setdefault(one_file(made), mine)
        if there != mine:
            raise EdgeLstmError(
                f"{made}: a file for two steps",
                found=" and ".join(", ".join(filter(None, step)) for step in (there, mine)),
                expected="{index} in its name",
            )
        if len(self._steps) > NEWEST:
            del self._steps[next(iter(self._steps))]
        return made


def step_path(path: Path, index: int, name: str) -> Path:
    """With ``{index}`` and ``{time}``, digits of the frame's time or its index, in place."""
    digits = re.sub(r"\D", "", name) or str(index)
    return path.with_name(path.name.replace("{index}", f"{index:06d}").replace("{time}", digits))
