"""OPERA's composites, written as the ODIM_H5 specification says, with the European composite's real projection."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source

h5py = pytest.importorskip("h5py")

#: Of the OPERA composite: projection, 1900 x 2200 pixels of 2 km, corners in degrees.
OPERA = {
    "projdef": "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84",
    **{"LL_lon": -10.434576838640398, "LL_lat": 31.746215319325056},
    **{"UL_lon": -39.5357864125034, "UL_lat": 67.0228327583475},
    **{"UR_lon": 57.81196475014995, "UR_lat": 67.62103710275053},
    **{"LR_lon": 29.421038635578032, "LR_lat": 31.987657402779103},
}


def composite(
    folder: Path,
    minute: int,
    arrays: dict[str, Any],
    *,
    kind: str = "COMP",
    deep: bool = True,
    stated: str | None = None,
    factor: int = 100,
    conventions: str = "ODIM_H5/V2_2",
    **what: Any,
) -> Path:
    """A file of quantities and their stored arrays, attributes with each array or with the dataset above it. ``factor``: pixels in one."""
    path = folder / f"T_PAAH21_C_EUOC_2026010200{minute:02d}00.h5"
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_(conventions)
        top = file.create_group("what")
        top.attrs["object"], top.attrs["version"] = np.bytes_(kind), np.bytes_("H5rad 2.2")
        top.attrs["date"] = np.bytes_("20260102")
        top.attrs["time"] = np.bytes_(stated or f"00{minute:02d}00")
        place = file.create_group("where")
        for key, value in OPERA.items():
            place.attrs[key] = np.bytes_(value) if isinstance(value, str) else value
        rows, columns = next(iter(arrays.values())).shape
        place.attrs["xsize"], place.attrs["ysize"] = columns, rows
        place.attrs["xscale"] = place.attrs["yscale"] = 2000.0 * factor
        dataset = file.create_group("dataset1")
        times = {"startdate": "20260102", "starttime": "000000", "enddate": "20260102", "endtime": "001500"}
        said = {"gain": 1.0, "offset": 0.0, "nodata": -9999000.0, "undetect": -8888000.0, **what}
        for number, (quantity, stored) in enumerate(arrays.items(), 1):
            group = dataset.create_group(f"data{number}")
            group["data"] = stored
            here = (group if deep else dataset).require_group("what")
            for key, value in {**times, **said, "quantity": quantity}.items():
                here.attrs[key] = np.bytes_(value) if isinstance(value, str) else value
    return path


def read(spec: object) -> list[Any]:
    with open_source(str(spec)) as source:
        return list(source)


@pytest.mark.parametrize("deep", [True, False])
def test_what_no_radar_sees_and_where_it_found_nothing(tmp_path: Path, deep: bool) -> None:
    """As OPERA writes them: floating point, two values far from all others."""
    for minute in (0, 15, 45):
        stored = np.array([[1.5, -9999000], [-8888000, minute]], np.float64)
        composite(tmp_path, minute, {"RATE": stored}, deep=deep)
    with open_source(str(tmp_path)) as source:
        frames = list(source)
    for frame, minute in zip(frames, (0, 15, 45), strict=True):
        assert frame.data.dtype == np.float32
        np.testing.assert_array_equal(frame.data, np.array([[1.5, np.nan], [0, minute]], np.float32))
        assert frame.time == 60 * minute
    assert [f.name for f in frames][:2] == ["2026-01-02T00:00Z", "2026-01-02T00:15Z"]
    assert frames[2].gap == "1 frame missing between 2026-01-02T00:15Z and 2026-01-02T00:45Z"
    assert source.place.start == datetime(2026, 1, 2, tzinfo=timezone.utc)
    assert source.place.interval == 900
    assert source.place.units == {1.0: "mm/h"}
    assert source.description == f"ODIM radar files in {tmp_path}"
    assert source.said == (
        "dataset1/data1, RATE in mm/h: 1 * value + 0, NaN at -9.999e+06 (nodata), 0 at -8.888e+06 (undetect)",
    )


def test_reflectivity_in_eight_bits(tmp_path: Path) -> None:
    stored = np.array([[0, 255], [1, 100]], np.uint8)
    composite(tmp_path, 0, {"DBZH": stored}, gain=0.5, offset=-32.0, nodata=255.0, undetect=0.0)
    [frame] = read(tmp_path)
    np.testing.assert_array_equal(frame.data, np.array([[-32, np.nan], [-31.5, 18]], np.float32))


def test_accumulations_know_their_minutes(tmp_path: Path) -> None:
    composite(tmp_path, 0, {"ACRR": np.ones((2, 2))})
    with open_source(str(tmp_path)) as source:
        assert source.place.units == {1.0: "mm", 4.0: "mm/h"}
        assert source.said[0].endswith("in 15 minutes")


def test_the_grid_is_that_of_the_european_composite(tmp_path: Path) -> None:
    """Its projection was chosen so that its upper left corner is 0, 0."""
    pytest.importorskip("rasterio")
    composite(tmp_path, 0, {"RATE": np.zeros((22, 19))})
    with open_source(str(tmp_path)) as source:
        grid = source.place.grid
    assert grid is not None
    assert (grid.left, grid.top) == pytest.approx((0, 0), abs=1.0)
    assert (grid.dx, grid.dy, grid.rows, grid.columns) == (200e3, -200e3, 22, 19)
    assert "+proj=laea" in grid.proj4


def test_corners_that_do_not_fit_are_no_grid(tmp_path: Path) -> None:
    composite(tmp_path, 0, {"RATE": np.zeros((22, 19))}, factor=90)
    with open_source(str(tmp_path)) as source:
        assert source.place.grid is None


def test_one_of_several_quantities(tmp_path: Path) -> None:
    composite(tmp_path, 0, {"DBZH": np.full((2, 2), 7.0), "RATE": np.full((2, 2), 3.0)})
    with pytest.raises(EdgeLstmError, match="several arrays: found dataset1/data1 DBZH, dataset1/data2 RATE"):
        open_source(str(tmp_path))
    for spec, value in (("RATE", 3), ("dataset1/data1", 7)):
        [frame] = read(f"{tmp_path}:{spec}")
        assert (frame.data == value).all()
    with pytest.raises(EdgeLstmError, match="no 'VRAD': found dataset1/data1 DBZH"):
        open_source(f"{tmp_path}:VRAD")


def test_our_own_forecasts_are_read_back(tmp_path: Path) -> None:
    """What the sink writes: values, units, time and grid."""
    pytest.importorskip("rasterio")
    from test_odim_sink import CONTEXT, GRID, RAIN, written

    written(tmp_path / "n_201008260010.h5")
    for lead in range(3):
        with open_source(f"{tmp_path}:dataset{lead + 1}/data1") as source:
            [frame] = source
        np.testing.assert_array_equal(frame.data, RAIN[lead, 0])
        place = source.place
        assert place.units == {1.0: CONTEXT.units["rain"]}
        assert frame.name == "2010-08-26T00:10Z"
        assert place.grid is not None
        assert (place.grid.left, place.grid.top) == pytest.approx((GRID.left, GRID.top), abs=5)
        assert (place.grid.dx, place.grid.dy) == (GRID.dx, GRID.dy)
        assert (place.grid.rows, place.grid.columns) == (GRID.rows, GRID.columns)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "PVOL"}, "object PVOL; expected .* Polar volumes"),
        ({"conventions": "ODIM_H5/V3_0"}, "found ODIM_H5/V3_0"),
        ({"stated": "013000"}, "different times: found 2026-01-02T00:00Z and 2026-01-02T01:30Z"),
        (
            {"undetect": 1.0, "arrays": {"VRAD": np.ones((2, 2))}},
            "a radar found nothing: found quantity VRAD",
        ),
        ({"arrays": {"RATE": np.ones((2, 2, 2))[0, :, :, None]}}, "expected numbers"),
    ],
)
def test_what_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    given = {"arrays": {"RATE": np.ones((2, 2))}, **keys}
    if given["arrays"].get("RATE") is not None and given["arrays"]["RATE"].ndim == 3:
        path = composite(tmp_path, 0, {"RATE": np.ones((2, 2))})
        with h5py.File(path, "a") as file:
            del file["dataset1/data1/data"]
            file["dataset1/data1/data"] = given["arrays"]["RATE"]
    else:
        composite(tmp_path, 0, **given)
    with pytest.raises(EdgeLstmError, match=message):
        open_source(str(tmp_path))


def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    """Whatever byte is wrong: the right values, or one clear error."""
    path = composite(tmp_path, 0, {"RATE": np.ones((4, 4))})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        broken = bytearray(whole)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        with suppress(EdgeLstmError):
            read(tmp_path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EdgeLstmError, match="damaged, or not HDF5"):
        read(tmp_path)
