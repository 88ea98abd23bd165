"""Nowcasts as ODIM HDF5: read back by GDAL, and by the importer of pysteps where that is installed."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.place import Context, Grid
from edgelstm.pipeline.sinks import Options
from edgelstm.pipeline.sinks.odim import NODATA
from exported import exported
from peers import frame

h5py = pytest.importorskip("h5py")
rasterio = pytest.importorskip("rasterio")
ROOT = Path(__file__).resolve().parents[2]
PROJ = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378137 +b=6356752 +x_0=0 +y_0=0"
GRID = Grid(PROJ, 300e3, -3950e3, 2000.0, -2000.0, 4, 6)
START = datetime(2010, 8, 26, 0, 0, tzinfo=timezone.utc)
CONTEXT = Context(START, 300.0, GRID, {"rain": "mm/h"}, {"rain": 3}, None, "m.onnx", "radar")
SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("N", 1, 4, 6)),), (TensorSpec("rain", "float32", ("N", 3, 1, 4, 6)),), ()
)
RAIN = np.random.default_rng(0).gamma(1, 3, (3, 1, 4, 6)).astype(np.float32)
RAIN[0, 0, 0, 0] = np.nan


def written(path: Path) -> None:
    with open_sink(path, SIGNATURE, context=CONTEXT) as sink:
        sink.write(frame(2, None, 600.0), {"rain": RAIN}, 0.1)


def test_it_is_as_the_model_says(tmp_path: Path) -> None:
    """Attributes of chapter 4 of the ODIM specification, with the types it asks for."""
    written(tmp_path / "n-{index}.h5")
    with h5py.File(tmp_path / "n-000002.h5") as file:
        what = file["what"].attrs
        assert (what["object"], what["version"], what["date"], what["time"]) == (
            b"COMP",
            b"H5rad 2.4",
            b"20100826",
            b"001000",
        )
        assert file.attrs["Conventions"] == b"ODIM_H5/V2_4"
        kind = file["what"].attrs.get_id("object").get_type()
        assert (kind.get_size(), kind.get_strpad()) == (5, h5py.h5t.STR_NULLTERM)
        where = file["where"].attrs
        assert (where["xsize"], where["ysize"], where["xscale"], where["projdef"]) == (
            6,
            4,
            2000,
            PROJ.encode(),
        )
        assert where["xsize"].dtype == np.int64
        assert where["xscale"].dtype == np.float64
        assert [d for d in file if d.startswith("dataset")] == ["dataset1", "dataset2", "dataset3"]
        due = file["dataset2/what"].attrs
        assert (due["startdate"], due["starttime"], due["quantity"], due["product"]) == (
            b"20100826",
            b"002000",
            b"RATE",
            b"COMP",
        )
        assert file["dataset2/how"].attrs["leadtime"] == 10
        found = file["dataset1/data1/data"][:]
        assert found[0, 0] == NODATA
        np.testing.assert_array_equal(np.where(found == NODATA, np.nan, found), RAIN[0, 0])


def test_gdal_reads_every_lead_time(tmp_path: Path) -> None:
    written(tmp_path / "n.h5")
    for lead in range(3):
        with rasterio.open(f'HDF5:"{tmp_path}/n.h5"://dataset{lead + 1}/data1/data') as file:
            found = file.read(1)
            np.testing.assert_array_equal(np.where(found == NODATA, np.nan, found), RAIN[lead, 0])


def test_pysteps_reads_a_file_of_each_lead_time_where_it_lies(tmp_path: Path) -> None:
    importers = pytest.importorskip("pysteps.io.importers", reason="pysteps is not installed")
    written(tmp_path / "n-{time}-{lead}.h5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n-2-005.h5", "n-2-010.h5", "n-2-015.h5"]
    for lead in range(3):
        rain, quality, said = importers.import_odim_hdf5(
            str(tmp_path / f"n-2-{5 * lead + 5:03d}.h5"), qty="RATE"
        )
        assert quality is None
        np.testing.assert_array_equal(rain, RAIN[lead, 0].astype(np.float64))
        assert (said["projection"], said["unit"], said["yorigin"]) == (PROJ, "mm/h", "upper")
        corners = [said[k] for k in ("x1", "y1", "x2", "y2")]
        np.testing.assert_allclose(corners, [300e3, -3958e3, 312e3, -3950e3], atol=0.01)  # metres
        assert (said["xpixelsize"], said["ypixelsize"]) == (2000, 2000)


def test_rows_that_go_north_are_turned(tmp_path: Path) -> None:
    from dataclasses import replace

    with open_sink(
        tmp_path / "n.h5",
        SIGNATURE,
        context=replace(CONTEXT, grid=Grid(PROJ, 300e3, -3958e3, 2000.0, 2000.0, 4, 6)),
    ) as sink:
        sink.write(frame(2, None, 600.0), {"rain": RAIN[:, :, ::-1]}, 0.1)
    written(tmp_path / "same.h5")
    with h5py.File(tmp_path / "n.h5") as turned, h5py.File(tmp_path / "same.h5") as same:
        np.testing.assert_array_equal(turned["dataset1/data1/data"], same["dataset1/data1/data"])
        assert dict(turned["where"].attrs) == dict(same["where"].attrs)


def test_radar_in_and_a_nowcast_out(radar_dir: Path, tmp_path: Path) -> None:
    """Composites of KNMI, the shipped model, and the same values and place as the GeoTIFF has."""
    model = exported("nowcast_radar")
    edgelstm.run(model, str(radar_dir), tmp_path / "n-{time}.h5", limit=2, threads=1)
    edgelstm.run(model, str(radar_dir), tmp_path / "n-{time}.tif", limit=2, threads=1)
    edgelstm.run(model, str(radar_dir), tmp_path / "n.nc", limit=2, threads=1)
    with (
        rasterio.open(tmp_path / "n-201008260005.tif") as map_,
        h5py.File(tmp_path / "n-201008260005.h5") as file,
    ):
        for lead in range(6):
            np.testing.assert_array_equal(file[f"dataset{lead + 1}/data1/data"][:], map_.read(lead + 1))
        assert file["dataset6/what"].attrs["endtime"] == b"003500"
        where = file["where"].attrs
        assert (where["xsize"], where["ysize"]) == (map_.width, map_.height)
        with rasterio.open(
            f"netcdf:{tmp_path}/n.nc:forecast"
        ) as other:  # GDAL has a NetCDF reader of its own
            np.testing.assert_allclose(other.bounds, map_.bounds)
            assert other.crs.to_dict()["proj"] == map_.crs.to_dict()["proj"] == "stere"
            np.testing.assert_array_equal(other.read(6 + 3), map_.read(3))
        warp = pytest.importorskip("rasterio.warp")
        sphere = "+proj=longlat +a=6378137 +b=6356752"
        x, y = warp.transform(
            sphere,
            where["projdef"].decode(),
            [where["LL_lon"], where["UR_lon"]],
            [where["LL_lat"], where["UR_lat"]],
        )
        np.testing.assert_allclose([x[0], y[0], x[1], y[1]], list(map_.bounds), atol=0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": None}, "does not say where and when"),
        ({"start": None}, "does not say where and when"),
        ({"units": {}}, 'found values in units of the model; expected mm/h or mm or dBZ. units = "physical"'),
        ({"interval": None}, "no known interval"),
        ({"grid": Grid(PROJ, 0, 0, 1, 1, 8, 6)}, "the grid of the frames, 8 x 6"),
        ({"leads": {}}, "one channel"),
    ],
)
def test_what_is_wrong_is_said_at_once(tmp_path: Path, change: Any, said: str) -> None:
    from dataclasses import replace

    with pytest.raises(EdgeLstmError) as caught:
        open_sink(tmp_path / "n.h5", SIGNATURE, context=replace(CONTEXT, **change))
    assert said in str(caught.value)
    open_sink(
        tmp_path / "n.h5", SIGNATURE, context=replace(CONTEXT, units={}), options=Options(quantity="VIL")
    ).close()
    assert not list(tmp_path.iterdir())
