"""KNMI radar composites: a folder of HDF5 files, one for every five minutes.

Each file holds ``image1/image_data``, unsigned integers [rows, columns]; the last twelve digits of its name are the
time in UTC, as in ``RAD_NL25_RAP_5min_201008260000.h5``. Accumulations come as counts of 0.01 mm, 65535 without data,
whatever the file's own calibration: ``nodata=65535;scale=0.12`` makes mm/h of five minutes. Reflectivity and all else
come in their own unit, NaN without data. A file with several images is refused unless ``FOLDER:image2`` chooses.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Grid, Place
from edgelstm.pipeline.sources.folder import Follow, files_as_frames
from edgelstm.pipeline.sources.knmi_values import calibration, choose_image, period, radar_grid
from edgelstm.pipeline.sources.source import Array, Frame, Source, check_frame_size

log = logging.getLogger(__name__)

SUFFIXES = (".h5", ".hdf5")


def open_knmi(
    folder: Path, files: Sequence[Path], image: str | None = None, follow: Follow | None = None
) -> Source:
    """Frames [rows, columns] in the order of the times in the names. Missing times are logged, and in ``gaps``.

    uint16 counts of 0.01 mm for accumulations and for files without a calibration; else float32. ``image``: which of
    several images in a file, such as ``image2``. A half-written last file is left out with a warning, or with ``follow``
    waited for.
    """
    h5py = require("h5py", "radar", f"reading the HDF5 files in {folder}")
    follow = follow or Follow()
    timed = sorted((_time(path), path) for path in files)
    times = [time for time, _ in timed]
    for (before, one), (after, other) in itertools.pairwise(timed):
        if before == after:
            raise EdgeLstmError(
                f"{folder}: two files of one time",
                found=f"{one.name}, {other.name}",
                hint="Keep one product in a folder",
            )
    interval, gaps = _gaps(times)
    for gap in gaps:
        log.warning("%s: %s", folder, gap)

    def frames() -> Iterator[Frame]:
        steps: Counter[timedelta] = Counter(b - a for a, b in itertools.pairwise(times))
        before: datetime | None = None

        def read(path: Path, index: int) -> Frame:
            time = _time(path)
            data, note = _read(h5py, path, index, image)
            usual = steps.most_common(1)[0][0] if steps else None
            gap = None
            if before is not None:
                gap = _missing(before, time, usual)
                if path not in files:
                    steps[time - before] += 1
            return Frame(index, (time - times[0]).total_seconds(), _utc(time), data, notes=(note,), gap=gap)

        for frame in files_as_frames(
            folder,
            [path for _, path in timed],
            read,
            suffixes=SUFFIXES,
            order=_time,
            follow=follow,
            skip_last=True,
            settle=True,
        ):
            assert frame.time is not None
            before = times[0] + timedelta(seconds=frame.time)
            if frame.gap is not None and len(times) <= frame.index:
                log.warning("%s: %s", folder, frame.gap)
            yield frame

    seconds = None if interval is None else interval.total_seconds()
    return Source(
        f"KNMI radar files in {folder}",
        frames,
        length=None if follow.on else len(timed),
        fps=None if seconds is None else 1 / seconds,
        gaps=gaps,
        look=True,
        place=Place(times[0], seconds, *_place(h5py, timed[0][1], image)),
        stopped=follow.stopped,
    )


def _place(h5py: Any, path: Path, image: str | None) -> tuple[Grid | None, dict[float, str]]:
    """Grid of the pixels, and units by factor of the values, as the first file says; nothing where it can't be read."""
    try:
        with h5py.File(path, "r") as file:
            name = choose_image(h5py, file, str(path), image, path.parent)
            grid = radar_grid(file, file[f"{name}/image_data"].shape)
            found = calibration(file[name], str(path))
            return grid, {} if found is None else found.units(period(file))
    except (EdgeLstmError, OSError, RuntimeError, KeyError, ValueError):
        return None, {}  # reading the first frame says what is wrong


def _time(path: Path) -> datetime:
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


def _gaps(times: Sequence[datetime]) -> tuple[timedelta | None, tuple[str, ...]]:
    """The usual time from frame to frame, and where it is exceeded."""
    steps = [b - a for a, b in itertools.pairwise(times)]
    if not steps:
        return None, ()
    interval = Counter(steps).most_common(1)[0][0]
    found = [_missing(before, after, interval) for before, after in itertools.pairwise(times)]
    return interval, tuple(gap for gap in found if gap is not None)


def _missing(before: datetime, after: datetime, interval: timedelta | None) -> str | None:
    """What is missing between two frames, in words; None when nothing is."""
    step = after - before
    if interval is None or step <= interval:
        return None
    missing = max(1, round(step / interval) - 1)
    return f"{missing} frame{'s' * (missing > 1)} missing between {_utc(before)} and {_utc(after)}"


def _utc(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%MZ")


def _read(h5py: Any, path: Path, index: int, image: str | None) -> tuple[Array, str]:
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
                return data, f"{name}: values as stored, the file has no calibration"
            data, note = found.apply(data)
            minutes = period(file) if found.accumulation else None
            return data, f"{name}, {note}" + ("" if minutes is None else f", in {minutes:g} minutes")
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
    ) as error:  # h5py's own, for damaged files of every kind
        raise EdgeLstmError(f"{where}: damaged, or not HDF5", found=str(error)) from error
