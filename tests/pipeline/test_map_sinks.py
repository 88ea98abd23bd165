"""Forecasts as maps: NetCDF and GeoTIFF with units, times, grid and projection, read back by other libraries."""

from __future__ import annotations

import csv
import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

import edgelstm
import zoo
from edgelstm.demo.scores import csi
from edgelstm.demo.scores import score as demo_score
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import (
    Context,
    Frame,
    Grid,
    Inputs,
    Outputs,
    Place,
    open_sink,
    open_source,
    parse_ops,
)
from exported import exported

ROOT = Path(__file__).resolve().parents[2]
CORNERS = np.array([[0, 49.362], [0, 55.974], [10.856, 55.389], [9.009, 48.895]])  # as the files state them


@pytest.fixture
def radar(radar_dir: Path) -> str:
    pytest.importorskip("h5py")
    return str(radar_dir)


@pytest.fixture(scope="module")
def nowcast() -> Path:
    return exported("nowcast_radar")


def test_the_grid_of_a_radar_file_is_where_the_file_says_its_corners_are(radar: str) -> None:
    warp = pytest.importorskip("rasterio.warp")
    with open_source(radar, limit=1) as source:
        grid, start = source.place.grid, source.place.start
    assert grid is not None
    assert start == datetime(2010, 8, 26, tzinfo=timezone.utc)
    xs = [grid.left, grid.left, grid.left + grid.dx * grid.columns, grid.left + grid.dx * grid.columns]
    ys = [grid.top + grid.dy * grid.rows, grid.top, grid.top, grid.top + grid.dy * grid.rows]
    sphere = "+proj=longlat +a=6378137 +b=6356752"
    found = np.array(warp.transform(grid.proj4, sphere, xs, ys)).T
    np.testing.assert_allclose(found, CORNERS, atol=2e-3)  # the file has three digits


def test_a_grid_goes_through_what_preprocessing_does() -> None:
    grid = Grid("+proj=longlat", 10.0, 50.0, 0.5, -0.25, 40, 80)
    cut = grid.through(parse_ops("scale=2;crop=4,6,20,30;average=3"))
    assert (cut.left, cut.top, cut.dx, cut.dy, cut.rows, cut.columns) == (13, 49, 1.5, -0.75, 6, 10)
    small = grid.through(parse_ops("resize=20,20"))
    assert (small.left, small.dx, small.dy, small.rows, small.columns) == (10, 2, -0.5, 20, 20)


def test_units_are_named_only_where_they_are_known() -> None:
    place = Place(units={0.01: "mm", 0.12: "mm/h"})
    assert place.unit(parse_ops("nodata=65535;scale=0.12;log1p=0.25")) == "mm/h"
    assert place.unit(parse_ops("scale=0.1;scale=0.1")) == "mm"
    assert place.unit(parse_ops("log1p")) is None
    assert place.unit(parse_ops("scale=0.12,3")) is None
    assert Place().unit(()) is None


@pytest.mark.parametrize(
    ("units", "unit", "factor"), [("model", None, 0.12), ("physical", "mm/h", 0.12), ("source", None, 1.0)]
)
def test_a_unit_is_that_of_the_values(
    radar: str, tmp_path: Path, units: str, unit: str | None, factor: float
) -> None:
    """Counts of 0.01 mm, which `units = "source"` gives, were called mm/h."""
    h5netcdf = pytest.importorskip("h5netcdf")
    pytest.importorskip("pydantic")
    zoo.persistence(leads=1, shape=(1, 70, 70)).save(tmp_path / "m.onnx")
    ops = "nodata=65535;scale=0.12;crop=400,300,70,70"
    report = edgelstm.run(
        tmp_path / "m.onnx", radar, tmp_path / "run.nc", limit=2, units=units, preprocess=[ops], threads=1
    )
    assert report.units == ({} if unit is None else {"forecast": unit})
    edgelstm.Pipeline.from_text(
        f'[models.m]\npath = "m.onnx"\n[streams.s]\nsource = {json.dumps(radar)}\nlimit = 2\nsink = "serve.nc"\n'
        f'units = "{units}"\npreprocess = "{ops}"\n',
        tmp_path,
    ).run()
    with open_source(radar, limit=1) as source:
        counts = next(iter(source)).data[400:470, 300:370].astype(np.float64)
    for name in ("run.nc", "serve.nc"):
        with h5netcdf.File(tmp_path / name) as file:
            found = file["forecast"]
            assert found.attrs.get("units") == unit
            np.testing.assert_allclose(found[0, 0], np.where(counts == 65535, 0, counts) * factor, rtol=1e-5)


def test_what_a_second_model_makes_of_the_first_ones_outputs_is_in_no_unit_of_the_source(
    radar: str, tmp_path: Path
) -> None:
    """It was called mm/h, whatever it was."""
    h5netcdf = pytest.importorskip("h5netcdf")
    pytest.importorskip("pydantic")
    zoo.conv_lstm(channels=1, hidden=1, size=70).save(tmp_path / "m.onnx")
    ops = "nodata=65535;scale=0.12;crop=400,300,70,70;log1p=0.25"
    model = tmp_path / "m.onnx"
    report = edgelstm.run(
        model, radar, tmp_path / "run.nc", then=[model], limit=2, preprocess=[ops], threads=1
    )
    assert report.units == {}
    edgelstm.Pipeline.from_text(
        '[models.m]\npath = "m.onnx"\nthen = "n"\n[models.n]\npath = "m.onnx"\n[streams.s]\n'
        f'source = {json.dumps(radar)}\nlimit = 2\nsink = "serve.nc"\npreprocess = "{ops}"\n',
        tmp_path,
    ).run()
    for name in ("run.nc", "serve.nc"):
        with h5netcdf.File(tmp_path / name) as file:
            assert "units" not in file["h_next"].attrs
            assert file["h_next"].dimensions == ("time", "y", "x")
            assert file["x"][0] == 300_500.0


def test_netcdf_and_geotiff_hold_the_forecast_in_mm_an_hour_where_it_falls(
    radar: str, nowcast: Path, tmp_path: Path
) -> None:
    h5netcdf, rasterio = pytest.importorskip("h5netcdf"), pytest.importorskip("rasterio")
    edgelstm.run(nowcast, radar, tmp_path / "raw.npz", limit=3, threads=1)
    report = edgelstm.run(nowcast, radar, tmp_path / "f.nc", limit=3, threads=1)
    edgelstm.run(nowcast, radar, tmp_path / "maps" / "{time}.tif", limit=3, threads=1)
    edgelstm.run(nowcast, radar, tmp_path / "mm.npz", limit=3, units="physical", threads=1)
    assert report.units == {"forecast": "mm/h"}
    raw = np.load(tmp_path / "raw.npz")["forecast"].astype(np.float64)
    rain = np.maximum(np.expm1(raw / 0.25), 0)[:, :, 0]
    with np.load(tmp_path / "mm.npz") as file:
        np.testing.assert_allclose(file["forecast"][:, :, 0], rain, rtol=1e-5, atol=1e-6)
        said = json.loads(str(file["attrs"]))
        assert file["time"].tolist() == [0, 300, 600]
    assert (said["units"], said["interval_s"], said["leads"]) == ({"forecast": "mm/h"}, 300, {"forecast": 6})
    assert said["grid"]["left"] == 300e3
    with h5netcdf.File(tmp_path / "f.nc") as file:
        variable = file.variables["forecast"]
        assert variable.dimensions == ("time", "lead", "y", "x")
        np.testing.assert_allclose(variable[:], rain, rtol=1e-5, atol=1e-6)
        assert variable.attrs["units"] == "mm/h"
        assert file.variables["time"][:].tolist() == [0, 300, 600]
        assert file.variables["time"].attrs["units"] == "seconds since 2010-08-26T00:00:00Z"
        assert file.variables["lead"][:].tolist() == [300, 600, 900, 1200, 1500, 1800]
        crs = file.variables[variable.attrs["grid_mapping"]].attrs
        assert (crs["grid_mapping_name"], crs["standard_parallel"], crs["semi_major_axis"]) == (
            "polar_stereographic",
            60.0,
            6378137.0,
        )
        x = file.variables["x"][:]
    names = sorted(p.name for p in (tmp_path / "maps").iterdir())
    assert names == ["201008260000.tif", "201008260005.tif", "201008260010.tif"]
    with rasterio.open(tmp_path / "maps" / names[1]) as file:
        np.testing.assert_allclose(file.read(), rain[1], rtol=1e-5, atol=1e-6)
        assert file.descriptions[0] == "forecast for 2010-08-26T00:10:00Z, 5 minutes ahead"
        assert file.units[5] == "mm/h"
        column = np.arange(128)
        np.testing.assert_allclose(file.xy(0, column)[0], x)
        assert file.crs.to_dict()["proj"] == "stere"


def test_scores_are_those_of_all_frames_at_hand(radar: str, nowcast: Path, tmp_path: Path) -> None:
    count = 16
    report = edgelstm.score(nowcast, radar, tmp_path / "s.csv", limit=count, threads=1)
    with edgelstm.Runner.open(nowcast, threads=1) as runner, open_source(radar, limit=count) as source:
        inputs, mm = Inputs(runner.signature), Outputs(runner.signature, units="physical")
        stream, x, ahead, seen = runner.stream("a"), [], [], []
        for frame in source:
            ready = inputs(frame)
            missing = frame.data[250:506, 300:556] == 65535  # type: ignore[index]
            seen.append(~missing.reshape(1, 128, 2, 128, 2).any((2, 4)))
            x.append(np.maximum(np.expm1(ready["x"].astype(np.float64) / 0.25), 0))
            ahead.append(mm(stream.step(ready))["forecast"].astype(np.float64))
    truth, made = np.stack(x), np.stack(ahead)
    known = np.stack(seen)
    assert not known.all()
    wanted = demo_score(made, truth, known)
    assert [row["unit"] for row in report.rows] == ["mm/h"] * 6
    for row, lead in zip(report.rows, wanted.leads, strict=True):
        assert row["mae"] == pytest.approx(lead["mae"], rel=1e-4)
        assert row["mae_persistence"] == pytest.approx(lead["mae_persistence"], rel=1e-4)
    third = csi(made[: count - 6, 2], truth[3 : count - 3], known[3 : count - 3], 1.0)
    assert report.rows[2]["csi"] == pytest.approx(third)
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mae"]) for row in rows] == [row["mae"] for row in report.rows]
    assert [row["lead_seconds"] for row in rows][:2] == ["300.0", "600.0"]


def test_a_forecast_is_not_held_against_frames_behind_a_gap(
    radar: str, nowcast: Path, tmp_path: Path
) -> None:
    """Two spans of ten frames with a gap of an hour: the scores are those of the spans, one by one."""
    files = sorted(Path(radar).glob("*.h5"))
    folders = {"both": [*files[:10], *files[22:32]], "first": files[:10], "second": files[22:32]}
    found = {}
    for name, chosen in folders.items():
        (tmp_path / name).mkdir()
        for file in chosen:
            (tmp_path / name / file.name).symlink_to(file)
        found[name] = edgelstm.score(nowcast, str(tmp_path / name), on_gap="reset", threads=1).rows
    for k in range(6):
        assert found["both"][k]["forecasts"] == 8
        mean = (found["first"][k]["mae"] + found["second"][k]["mae"]) / 2
        assert found["both"][k]["mae"] == pytest.approx(mean, rel=1e-6)


def test_what_has_no_forecast_is_not_scored(tmp_path: Path) -> None:
    zoo.lstm().save(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float32))
    with pytest.raises(EdgeLstmError, match="no forecast to score: found output y"):
        edgelstm.score(tmp_path / "m.onnx", str(tmp_path / "x.npy"), threads=1)


GRID = Grid("+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378137 +b=6356752", 3e5, -3.65e6, 1e3, -1e3, 8, 6)
START = datetime(2024, 1, 1, 0, 0, 0, 370_000, timezone.utc)


def mapped(path: Path, shape: tuple[int, ...], context: Context, streams: str = "") -> np.ndarray:
    """Steps of a map of this shape, written; gives the map as [bands, H, W]."""
    sig = Signature(
        (TensorSpec("x", "float32", ("N", *shape)),), (TensorSpec("rain", "float32", ("N", *shape)),), ()
    )
    rain = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    with open_sink(path, sig, context=context) as sink:
        for k, stream in enumerate(streams or [None]):
            sink.write(Frame(k, k * 1.0, f"{k}", rain, stream=stream), {"rain": rain}, 0.1)
    last = len(shape) == 3 and shape[2] in (1, 3)
    return (rain.transpose(2, 0, 1) if last else rain).reshape(-1, 8, 6)


@pytest.mark.parametrize("shape", [(8, 6), (1, 8, 6), (8, 6, 1), (8, 6, 3)])
def test_maps_lie_where_they_do_wherever_the_model_has_its_channels(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Keras has them behind the pixels: those became 8 bands of 6 x 1 pixels that lay nowhere."""
    rasterio, h5netcdf = pytest.importorskip("rasterio"), pytest.importorskip("h5netcdf")
    context = Context(START, None, GRID, {"rain": "mm/h"})
    rain = mapped(tmp_path / "a.tif", shape, context)
    with rasterio.open(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.read(), rain)
        assert (file.transform.c, file.transform.f, file.transform.e) == (3e5, -3.65e6, -1e3)
    mapped(tmp_path / "a.nc", shape, context)
    with h5netcdf.File(tmp_path / "a.nc") as file:
        found = file["rain"]
        assert found.dimensions[-2:] == ("y", "x")
        assert "crs" in file.variables
        np.testing.assert_array_equal(found[0].reshape(-1, 8, 6), rain)
        np.testing.assert_array_equal(file["y"][:2], [-3.6505e6, -3.6515e6])
    if rain.shape[0] == 1:
        h5py = pytest.importorskip("h5py")
        mapped(tmp_path / "a.h5", shape, context)
        with h5py.File(tmp_path / "a.h5") as file:
            np.testing.assert_array_equal(file["dataset1/data1/data"], rain[0])


def test_netcdf_says_the_fraction_of_a_second_at_which_a_source_began_and_whose_a_step_is(
    tmp_path: Path,
) -> None:
    """Times were early by what a camera's or a recording's start has behind its whole second."""
    h5netcdf = pytest.importorskip("h5netcdf")
    mapped(tmp_path / "a.nc", (8, 6), Context(START), "ab")
    with h5netcdf.File(tmp_path / "a.nc") as file:
        assert file["time"].attrs["units"] == "seconds since 2024-01-01T00:00:00Z"
        np.testing.assert_allclose(file["time"][:], [0.37, 1.37])
        assert [s.decode() if isinstance(s, bytes) else s for s in file["stream"][:]] == ["a", "b"]


def test_netcdf_of_outputs_of_any_name_and_type(tmp_path: Path) -> None:
    """`y`, the commonest name of an output, is an axis of a map; two names may be one to NetCDF; true and false it has none of."""
    h5netcdf = pytest.importorskip("h5netcdf")
    shapes = {"y": (2, 8, 6), "x": (3, 8, 6), "time": (4,), "crs": (4,), "a/b": (4,), "a_b": (4,)}
    outputs = tuple(
        TensorSpec(n, "bool" if n == "a_b" else "float32", ("N", *shape)) for n, shape in shapes.items()
    )
    sig = Signature((TensorSpec("in", "float32", ("N", 8, 6)),), outputs, ())
    context = Context(START, 300.0, GRID, {"y": "mm/h"}, {"y": 2, "x": 3})
    made = {n: np.full(shape, k) for k, (n, shape) in enumerate(shapes.items())} | {"a_b": np.ones(4, bool)}
    with open_sink(tmp_path / "a.nc", sig, context=context) as sink:
        sink.write(Frame(0, 0.0, "0", np.zeros((8, 6))), made, 0.1)
    with h5netcdf.File(tmp_path / "a.nc") as file:
        found = {name: file[name] for name in file.variables if name.startswith(("output", "a_b"))}
        assert {name: float(v[:].ravel()[0]) for name, v in found.items()} == {
            "output_y": 0, "output_x": 1, "output_time": 2, "output_crs": 3, "a_b": 4, "a_b_": 1,
        }  # fmt: skip
        assert found["output_y"].dimensions == ("time", "lead", "y", "x")
        assert (
            file[found["output_y"].attrs["grid_mapping"]].attrs["grid_mapping_name"] == "polar_stereographic"
        )


def test_the_newest_map_is_replaced_by_a_whole_one_only(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    zoo.persistence(shape=(1, 8, 9)).save(tmp_path / "m.onnx")
    x = np.random.default_rng(0).random((3, 1, 8, 9)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "newest.tif").write_bytes(b"what was there")
    x[0, 0, 0, 0] = np.nan
    np.save(tmp_path / "bad.npy", x)
    with pytest.raises(EdgeLstmError, match="NaN"):
        edgelstm.run(tmp_path / "m.onnx", str(tmp_path / "bad.npy"), tmp_path / "newest.tif", threads=1)
    assert (tmp_path / "newest.tif").read_bytes() == b"what was there"
    edgelstm.run(tmp_path / "m.onnx", str(tmp_path / "x.npy"), tmp_path / "newest.tif", threads=1)
    with rasterio.open(tmp_path / "newest.tif") as file:
        assert (file.height, file.width) == (8, 9)
    with pytest.raises(EdgeLstmError, match="can't write"):
        edgelstm.run(
            tmp_path / "m.onnx", str(tmp_path / "x.npy"), tmp_path / "no" / "such" / "a.tif", threads=1
        )


def test_a_full_disk_is_seen_before_hdf5_meets_it(
    radar: str, nowcast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 crashes when it closes a file there, so room is looked for before each frame."""
    pytest.importorskip("h5netcdf")
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(EdgeLstmError, match=r"can't write .*f\.nc: found No space left on device"):
        edgelstm.run(nowcast, radar, tmp_path / "f.nc", limit=3, threads=1)
    assert not list(tmp_path.iterdir())
