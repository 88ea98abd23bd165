"""A folder of radar files in HDF5, one for a time: KNMI's and OPERA's (ODIM). What a file holds, its format's own module says."""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Grid, Place
from edgelstm.pipeline.sources import knmi, odim
from edgelstm.pipeline.sources.folder import PATIENCE, Follow, age, files_as_frames
from edgelstm.pipeline.sources.source import Array, Frame, Source

log = logging.getLogger(__name__)

SUFFIXES = (".h5", ".hdf5", ".hdf")


@dataclass(frozen=True)
class Format:
    """A format of radar files. time: of a file, by its name, in UTC. read: (values [rows, columns], what was done, the time that
    the file states, if it does). place: grid of the pixels, and units by factor of the values; nothing where a file can't be read."""

    what: str
    time: Callable[[Path], datetime]
    read: Callable[[Path, int], tuple[Array, str, datetime | None]]
    place: Callable[[Path], tuple[Grid | None, dict[float, str]]]


def open_radar(
    folder: Path, files: Sequence[Path], name: str | None = None, follow: Follow | None = None
) -> Source:
    """Frames [rows, columns] in the order of the times in the names. Missing times are logged, and in ``gaps``.

    name: which of several images in a file, such as ``image2`` of KNMI's or ``DBZH`` of OPERA's. A half-written last file is left out with a
    warning, or with ``follow`` waited for.
    """
    h5py = require("h5py", "radar", f"reading the HDF5 files in {folder}")
    follow = follow or Follow()
    if follow.on:
        _await_one(h5py, files, follow)
    kind = _format(h5py, folder, files, name)
    timed = sorted((kind.time(path), path) for path in files)
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
    known = set(files)
    whole: list[Path] = []
    made: Source | None = None

    def frames() -> Iterator[Frame]:
        steps: Counter[timedelta] = Counter(b - a for a, b in itertools.pairwise(times))
        before: datetime | None = None

        def told(usual: timedelta) -> None:
            """Of a folder that began with one file, the time from frame to frame shows later."""
            if made is not None and made.place.interval != usual.total_seconds():
                made.place = replace(made.place, interval=usual.total_seconds())

        def read(path: Path, index: int) -> Frame:
            time = kind.time(path)
            data, note, stated = kind.read(path, index)
            whole[:] = whole or [path]
            if stated is not None and abs(stated - time) >= timedelta(minutes=1):
                raise EdgeLstmError(
                    f"{path}: its name and the file say different times",
                    found=f"{_utc(time)} and {_utc(stated)}",
                    expected="one time, in UTC",
                )
            usual = steps.most_common(1)[0][0] if steps else None
            gap = None
            if before is not None:
                gap = _missing(before, time, usual)
                if path not in known:
                    steps[time - before] += 1
                    told(steps.most_common(1)[0][0])
            return Frame(index, (time - times[0]).total_seconds(), _utc(time), data, notes=(note,), gap=gap)

        for frame in files_as_frames(
            folder,
            [path for _, path in timed],
            read,
            suffixes=SUFFIXES,
            order=kind.time,
            follow=follow,
            skip_last=True,
            settle=True,
        ):
            if frame.bad is not None:
                time = kind.time(folder / frame.name)
                yield replace(frame, time=(time - times[0]).total_seconds(), name=_utc(time))
                continue
            assert frame.time is not None
            before = times[0] + timedelta(seconds=frame.time)
            if frame.gap is not None and len(times) <= frame.index:
                log.warning("%s: %s", folder, frame.gap)
            yield frame

    seconds = None if interval is None else interval.total_seconds()
    made = Source(
        f"{kind.what} in {folder}",
        frames,
        length=None if follow.on else len(timed),
        fps=None if seconds is None else 1 / seconds,
        gaps=gaps,
        look=True,
        stopped=follow.stopped,
        leaves_out=follow.on,
    )
    # Of the file that was read: the first one may have been half-written when it was listed.
    made.place = Place(times[0], seconds, *(kind.place(whole[0]) if whole else (None, {})))
    return made


def _await_one(h5py: object, files: Sequence[Path], follow: Follow) -> None:
    """Until one of the files can be read: what it is can't be told while it is being written."""
    while all(odim.is_odim(h5py, path) is None for path in sorted(files)[:8]):
        if min(map(age, files)) >= PATIENCE or follow.stopped.wait(0.1):
            return


def _format(h5py: object, folder: Path, files: Sequence[Path], name: str | None) -> Format:
    """That of the first file that can be read; where none can, the one whose names these are."""
    known = (odim.is_odim(h5py, path) for path in sorted(files)[:8])
    found = next((is_odim for is_odim in known if is_odim is not None), None)
    if found is None:
        found = re.search(r"(?<!\d)\d{12}$", min(files).stem) is None
    if found:
        return Format(
            "ODIM radar files",
            odim.time_of,
            lambda path, index: odim.read(h5py, path, index, name),
            lambda path: odim.place(h5py, path, name),
        )
    return Format(
        "KNMI radar files",
        knmi.time_of,
        lambda path, index: knmi.read(h5py, path, index, name),
        lambda path: knmi.place(h5py, path, name),
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
