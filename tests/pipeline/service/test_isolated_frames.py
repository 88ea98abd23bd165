"""Sources in a process of their own: maps keep their place and units, and frames may change their size while they come."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from edgelstm import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.graph.step import make_step
from edgelstm.pipeline.service.isolated import open_isolated
from edgelstm.pipeline.sources import open_source

pytest.importorskip("pydantic")

from running import Running, until

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")

RADAR = """
[models.m]
path = "model.onnx"
[streams.north]
source = "in"
follow = true
isolate = "process"
preprocess = "nodata=65535;scale=0.12;average=5;crop=0,0,40,40;log1p"
sink = ["{time}.tif", "{time}.h5"]
sink_overload = "block"
"""


def test_maps_from_a_folder_that_is_empty(tmp_path: Path, radar_dir: Path) -> None:
    rasterio, h5py = pytest.importorskip("rasterio"), pytest.importorskip("h5py")
    zoo.persistence(2, (1, 40, 40)).save(tmp_path / "model.onnx")
    (tmp_path / "in").mkdir()
    with Running(RADAR, tmp_path) as running:
        for count, path in enumerate(sorted(radar_dir.glob("*.h5"))[:2], 1):
            shutil.copy2(path, tmp_path / "part")
            (tmp_path / "part").rename(tmp_path / "in" / path.name)
            until(lambda n=count: len(list(tmp_path.glob("*.tif"))) == n)  # type: ignore[misc]
        until(lambda: len(list(tmp_path.glob("*.h5"))) == 2)
        running.pipeline.stop()
        assert running.ends().failed == {}
    newest = max(tmp_path.glob("*.tif"))
    with (
        open_source(f"{tmp_path}/in") as source,
        rasterio.open(newest) as made,
        h5py.File(max(tmp_path.glob("*.h5"))) as odim,
    ):
        assert source.place.grid is not None
        assert made.transform.a == source.place.grid.dx * 5
        assert made.units == ("mm/h", "mm/h")
        assert "5 minutes ahead" in made.descriptions[0]
        assert odim["dataset2/what"].attrs["endtime"] == b"001500"


def test_a_place_that_makes_no_sense_is_not_believed(radar_dir: Path) -> None:
    from edgelstm.pipeline.service import isolated

    with open_isolated(str(radar_dir)) as far, open_source(str(radar_dir)) as near:
        assert far.place == near.place
        good: dict[str, Any] = {
            **{k: getattr(far, k) for k in ("description", "length", "fps", "gaps", "said", "streams", "live")},
            "start": None, "interval": 300.0, "grid": near.place.grid.to_json(), "units": [[0.12, "mm/h"]],  # type: ignore[union-attr]
            "scales": "", "named": False,
        }  # fmt: skip
    isolated._hello(good)
    for lie in (
        {"grid": {**good["grid"], "left": float("nan")}},
        {"grid": {**good["grid"], "rows": -1}},
        {"grid": {**good["grid"], "proj4": "x" * 20000}},
        {"grid": []},
        {"units": [["x", "mm"]]},
        {"units": [[0.1, "mm"]] * 100},
    ):
        with pytest.raises(EdgeLstmError, match="makes no sense"):
            isolated._hello({**good, **lie})


def grey_mean(path: Path) -> None:
    """y = 2 x of a picture [8, 8]."""
    from onnx import helper

    spec = ("N", 1, 8, 8)
    signature = Signature((TensorSpec("x", "float32", spec),), (TensorSpec("y", "float32", spec),), ())
    make_step([helper.make_node("Add", ["x", "x"], ["y"])], signature, []).save(path)


SIZES = [(16, 16), (16, 16), (64, 48), (8, 8), (400, 300), (400, 300), (16, 16), (800, 600), (1, 1)]


@pytest.mark.parametrize("resize", [True, False])
def test_frames_may_change_their_size(tmp_path: Path, resize: bool) -> None:
    """Larger than all before, and smaller again: each comes as it was sent; those that do not fit are refused, and the next is stepped."""
    zmq = pytest.importorskip("zmq")
    from edgelstm.pipeline.zmq_frames import Message, encode

    grey_mean(tmp_path / "model.onnx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    publisher = zmq.Context.instance().socket(zmq.PUB)
    publisher.bind(f"tcp://127.0.0.1:{port}")
    stop = threading.Event()

    def publish() -> None:
        index = 0
        while not stop.is_set():
            shape = SIZES[index % len(SIZES)]
            publisher.send_multipart(
                encode(
                    Message(
                        "cam", index, {"f": np.full(shape, index % 200, np.float32)}, index * 0.01, str(index)
                    )
                )
            )
            index += 1
            time.sleep(0.01)

    thread = threading.Thread(target=publish)
    thread.start()
    text = (
        f'[models.m]\npath = "model.onnx"\n[streams.a]\nsource = "zmq://127.0.0.1:{port}"\nisolate = "process"\nretries = 0\n'
        f'preprocess = "{"resize=8,8" if resize else "scale=1"}"\nsink = "a.npz"\nsink_overload = "block"\n'
    )
    try:
        with Running(text, tmp_path) as running:
            until(lambda: running.count("a", "stepped") > (60 if resize else 12))
            running.pipeline.stop()
            report = running.ends()
    finally:
        stop.set()
        thread.join()
        publisher.close(0)
    assert report.failed == {}
    with np.load(tmp_path / "a.npz") as made:
        for picture in made["y"]:
            assert picture.min() == picture.max(), "of one frame, and whole"
            assert float(picture.min()) % 2 == 0
        if not resize:
            assert report.streams["a"]["dropped:refused"] > 12


def test_the_working_folder_lends_no_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be anybody's, and a file of its is no part of Python."""
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4\n")
    for name in ("json", "numpy", "zipfile", "edgelstm"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    spec = f"{tmp_path / 'x.csv'}:scale=own"
    with open_isolated(spec) as far, open_source(spec) as near:
        assert len(list(far)) == 2
        assert far.scales == near.scales != "", "what a state depends on is said across"
