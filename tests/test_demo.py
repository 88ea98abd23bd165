"""The demo: its page is whole and asks nothing of the network, its figures are there, and a wrong model is caught."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from edgelstm.demo import run_demo, stages
from edgelstm.demo.pictures import png, sprite
from edgelstm.errors import EdgeLstmError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    run_demo(folder, frames=40, threads=1)
    return folder


def test_the_figures(demo: Path) -> None:
    report = json.loads((demo / "report.json").read_text())
    assert report["schema"] == 1
    assert [e["name"] for e in report["examples"]] == ["moving_digits", "sensor_lstm"]
    for example in report["examples"]:
        assert example["frames"] == 40
        assert len(example["milliseconds"]) == 40
        assert 0 < example["p50_ms"] <= example["p99_ms"]
        assert example["export_error"] <= 1e-5
        assert 0 < example["recorded_error"] <= 1e-5
        assert example["mae"] < example["mae_persistence"]
        horizon = len(example["leads"])
        assert example["error_over_time"][-horizon:] == [None] * horizon
        assert None not in example["error_over_time"][:-horizon]


def test_the_page_is_one_file(demo: Path) -> None:
    page = (demo / "report.html").read_text()
    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", page)
    assert "/*DATA*/" not in page
    assert len(page) < 5e6
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert [v["kind"] for v in data["views"]] == ["images", "series"]


def test_the_page_runs_in_a_browser(demo: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=8000", "--enable-logging=stderr", "--dump-dom"]  # fmt: skip
    done = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path}", f"file://{demo}/report.html#frame=7&lead=1"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    assert 'data-ready="yes"' in done.stdout
    for text in (
        "goes in: frame 7",
        "what came: frame 9",
        "frame 7 of 40",
        "sample 7 of 40",
        "motor current",
    ):
        assert text in done.stdout


def test_a_model_that_computes_something_else_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sensor_lstm"
    shutil.copytree(EXAMPLES / "sensor_lstm", folder)
    arrays = dict(np.load(folder / "expected.npz"))
    arrays["output"][5] *= 1.001
    np.savez(folder / "expected.npz", **arrays)
    monkeypatch.setattr(stages, "_example", lambda name: folder if name == folder.name else EXAMPLES / name)
    with pytest.raises(
        EdgeLstmError, match=r"sensor_lstm does not compute what PyTorch gave.*of output at frame 5"
    ):
        run_demo(tmp_path / "out", frames=10, threads=1)
    assert not (tmp_path / "out" / "report.html").exists()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgeLstmError, match="the example nothing is not there"):
        stages._example("nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeLstmError, match="can't write into"):
        run_demo(tmp_path / "file")
    with pytest.raises(EdgeLstmError, match="does not exist"):
        run_demo(tmp_path / "out", radar=tmp_path / "none")


def test_radar(radar_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    run_demo(tmp_path, radar=radar_dir)
    (example,) = json.loads((tmp_path / "report.json").read_text())["examples"]
    assert example["frames"] == 26  # from 05:30 on: what came before trained the network
    for lead in example["leads"]:
        assert lead["mae"] < lead["mae_persistence"]
        assert lead["csi"] > lead["csi_persistence"]
    assert "2010-08-26T05:30Z" in (tmp_path / "report.html").read_text()


def test_pictures_are_real_pngs() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (7, 5)).astype(np.uint8)
    data = png(grey)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (5, 7)
    start = data.index(b"IDAT") + 4
    length = struct.unpack(">I", data[start - 8 : start - 4])[0]
    lines = np.frombuffer(zlib.decompress(data[start : start + length]), np.uint8).reshape(7, 6)
    assert set(lines[:, 0]) == {2}
    np.testing.assert_array_equal(np.cumsum(lines[:, 1:], axis=0, dtype=np.uint8), grey)
    assert sprite(np.zeros((20, 4, 4)))["columns"] == 16
