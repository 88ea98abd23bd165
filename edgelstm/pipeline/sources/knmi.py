"""KNMI radar composites.

Each file holds ``image1/image_data``, unsigned integers [rows, columns]; the last twelve digits of its name are the
time in UTC, as in ``RAD_NL25_RAP_5min_201008260000.h5``. Accumulations come as counts of 0.01 mm, 65535 without data,
whatever the file's own calibration: ``nodata=65535;scale=0.12`` makes mm/h of five minutes. Reflectivity and all else
come in their own unit, NaN without data. A file with several images is refused unless ``FOLDER:image2`` chooses.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.place import Grid
from edgelstm.pipeline.sources.knmi_values import calibration, choose_image, period, radar_grid
from edgelstm.pipeline.sources.source import Array, check_frame_size


def place(h5py: Any, path: Path, image: str | None) -> tuple[Grid | None, dict[float, str]]:
    """Grid of the pixels, and units by factor of the values, as the first file says; nothing where it can't be read."""
    try:
        with h5py.File(path, "r") as file:
            name = choose_image(h5py, file, str(path), image, path.parent)
            grid = radar_grid(file, file[f"{name}/image_data"].shape)
            found = calibration(file[name], str(path))
            return grid, {} if found is None else found.units(period(file))
    except (EdgeLstmError, OSError, RuntimeError, KeyError, ValueError):
        return None, {}  # reading the first frame says what is wrong


def time_of(path: Path) -> datetime:
    """By the digits at the end of the name."""
    match = re.search(r"(?<!\d)(\d{12})$", path.stem)
    try:
        if match:
            return datetime.strptime(match[1], "%Y%m%d%H%M").replace(tzinfo=timezone.utc)
    except ValueError:
        pass
    raise EdgeLstmError(
        f"{path}: no time in the file's name",
        expected="twelve digits at its end, as in RAD_NL25_RAP_5min_201008260000.h5",
    )


def read(h5py: Any, path: Path, index: int, image: str | None) -> tuple[Array, str, datetime | None]:
    """Values and what was done: uint16 counts of 0.01 mm for accumulations and for files without a calibration; else float32."""
    where = f"{path} (frame {index})"
    try:
        with h5py.File(path, "r") as file:
            name = choose_image(h5py, file, where, image, path.parent)
            dataset = file.get(f"{name}/image_data")
            if (
                not isinstance(dataset, h5py.Dataset)
                or len(dataset.shape) != 2
                or dataset.dtype.kind not in "iu"
            ):
                raise EdgeLstmError(
                    f"{where}: not a KNMI radar image",
                    found=f"{name}/image_data {dataset.dtype}{list(dataset.shape)}"
                    if isinstance(dataset, h5py.Dataset)
                    else f"groups {', '.join(map(repr, list(file)[:8])) or 'none'}",
                    expected=f"{name}/image_data, whole numbers [rows, columns]",
                )
            check_frame_size(where, dataset.shape, dataset.dtype)
            found = calibration(file[name], where)
            data: Array = dataset[:]
            if found is None:
                return data, f"{name}: values as stored, the file has no calibration", None
            data, note = found.apply(data)
            minutes = period(file) if found.accumulation else None
            return data, f"{name}, {note}" + ("" if minutes is None else f", in {minutes:g} minutes"), None
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
    ) as error:  # h5py's own, for damaged files of every kind
        raise EdgeLstmError(f"{where}: damaged, or not HDF5", found=str(error)) from error
