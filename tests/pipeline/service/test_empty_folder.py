"""Radar folders that are empty when the service starts: maps and pictures are those that `run` makes of the same files later."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydantic")

import edgelstm
import zoo
from edgelstm import Pipeline
from edgelstm.pipeline import View

rasterio = pytest.importorskip("rasterio")
h5py = pytest.importorskip("h5py")

PREPROCESS = "nodata=65535;scale=0.12;average=5;crop=0,0,40,40;log1p"
VIEW = View(lead=1, colours="rain", beside=True, caption=True, truth=True)
TEXT = f"""
[models.m]
path = "model.onnx"
[streams.north]
source = "in"
follow = true
preprocess = "{PREPROCESS}"
sink_overload = "block"
[[streams.north.sink]]
to = "out/{{time}}.tif"
[[streams.north.sink]]
to = "out/{{time}}.h5"
[[streams.north.sink]]
to = "lines.jsonl"
[[streams.north.sink]]
to = "pictures/"
lead = 1
colours = "rain"
beside = true
caption = true
truth = true
"""


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    zoo.persistence(2, (1, 40, 40)).save(tmp_path / "model.onnx")
    (tmp_path / "in").mkdir()
    return tmp_path


class Served:
    """A pipeline that runs in a thread of its own."""

    def __init__(self, text: str, base: Path) -> None:
        self.pipeline, self.reports = Pipeline.from_text(text, base), []  # type: ignore[var-annotated]
        self._thread = threading.Thread(target=lambda: self.reports.append(self.pipeline.run()))
        self._thread.start()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.pipeline.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_maps_and_pictures_are_those_of_run(folder: Path, radar_dir: Path) -> None:
    composites = sorted(radar_dir.glob("*.h5"))[:3]
    checked = Pipeline.from_text(TEXT, folder).check().streams["north"]
    assert checked["source"] == "(not there yet)"
    with Served(TEXT, folder) as served:
        for count, path in enumerate(composites, 1):
            shutil.copy2(path, folder / "part")
            (folder / "part").rename(folder / "in" / path.name)
            wait_for(lambda n=count: len(list((folder / "out").glob("*.tif"))) == n)
    assert served.reports[0].failed == {}
    assert served.reports[0].streams["north"] == {"read": 3, "stepped": 3, "delivered": 12}

    for target, view in (("r/{time}.tif", None), ("r/{time}.h5", None), ("pictures-of-run/", VIEW)):
        source, to = str(folder / "in"), f"{folder}/{target}"
        edgelstm.run(folder / "model.onnx", source, to, preprocess=[PREPROCESS], view=view, threads=1)
    for number, path in enumerate(composites):
        name = path.stem[-12:]
        with (
            rasterio.open(folder / "out" / f"{name}.tif") as mine,
            rasterio.open(folder / "r" / f"{name}.tif") as other,
        ):
            np.testing.assert_array_equal(mine.read(), other.read())
            assert (mine.crs, mine.transform, mine.units) == (other.crs, other.transform, other.units)
            assert mine.units == ("mm/h", "mm/h")
            if number:  # of the first, nobody knows when the next one comes
                assert mine.descriptions == other.descriptions
        with (
            h5py.File(folder / "out" / f"{name}.h5") as mine,
            h5py.File(folder / "r" / f"{name}.h5") as other,
        ):
            for lead in ("dataset1", "dataset2"):
                np.testing.assert_array_equal(mine[lead]["data1/data"][:], other[lead]["data1/data"][:])
                assert dict(mine[lead]["what"].attrs) == dict(other[lead]["what"].attrs)
        image = pytest.importorskip("PIL.Image")
        mine, other = (image.open(folder / d / f"{number:06d}.png") for d in ("pictures", "pictures-of-run"))
        below = 40  # above stands the stream's name, which run has none of
        np.testing.assert_array_equal(np.asarray(mine)[below:], np.asarray(other)[below:])


def test_a_first_file_that_is_still_being_written_is_waited_for(folder: Path, radar_dir: Path) -> None:
    first = min(radar_dir.glob("*.h5"))
    data = first.read_bytes()
    text = TEXT.partition("[[streams.north.sink]]")[0] + 'sink = "out/{time}.tif"\n'
    with Served(text, folder):
        half = folder / "in" / first.name
        half.write_bytes(data[:1000])
        time.sleep(0.6)  # it is looked at twice a second: that long is the case to be tested
        with half.open("ab") as file:
            file.write(data[1000:])
        wait_for(lambda: len(list((folder / "out").glob("*.tif"))) == 1)
    with rasterio.open(next((folder / "out").glob("*.tif"))) as made:
        assert made.crs is not None
        assert "stere" in made.crs.to_proj4()


def test_another_map_later_is_refused(folder: Path, radar_dir: Path) -> None:
    """Maps with the old grid would say the wrong place."""
    from dataclasses import replace

    from edgelstm.errors import EdgeLstmError
    from edgelstm.pipeline.service.channel import Channel
    from edgelstm.pipeline.service.config import StreamSection
    from edgelstm.pipeline.service.loop import Loop
    from edgelstm.pipeline.sources import open_source
    from edgelstm.runtime.runner import Runner

    section = StreamSection(source=str(radar_dir), preprocess=PREPROCESS)
    with (
        Runner.open(folder / "model.onnx", threads=1) as runner,
        open_source(str(radar_dir), limit=1) as source,
    ):
        channel = Channel("north", section, Loop("m", runner, 1, 0.0), source, {})
        grid = source.place.grid
        assert grid is not None
        channel.read(source)
        source.place = replace(source.place, grid=replace(grid, left=grid.left + 1000))
        channel.source = open_source(str(radar_dir), limit=1)
        with pytest.raises(EdgeLstmError, match="its map is another"):
            channel.read(source)


def test_units_are_as_run_has_them(folder: Path, radar_dir: Path) -> None:
    """Maps in mm/h and lines in the model's units, from one stream; `units` of the stream is for both."""
    text = TEXT.partition("[[streams.north.sink]]")[0].replace('"in"', f'"{radar_dir}"')
    text = text.replace("follow = true", "limit = 1") + 'sink = ["{time}.tif", "n.jsonl"]\n'
    shown = {}
    for units in ("", 'units = "model"\n', 'units = "physical"\n'):
        for old in folder.glob("*.[tj][is]*"):
            old.unlink()
        Pipeline.from_text(text + units, folder).run()
        with rasterio.open(next(folder.glob("*.tif"))) as map_:
            shown[units] = (
                float(map_.read(1).max()),
                map_.units[0],
                _max(folder / "n.jsonl"),
            )
    (map_value, unit, line), by_model, by_unit = shown.values()
    assert unit == "mm/h"
    np.testing.assert_allclose(map_value, np.expm1(line), rtol=1e-6)
    assert by_model == (pytest.approx(line), None, line)
    assert by_unit == (map_value, "mm/h", pytest.approx(map_value))


def _max(path: Path) -> float:
    import json

    found: float = json.loads(path.read_text())["outputs"]["forecast"]["max"]
    return found
