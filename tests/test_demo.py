"""The demo: its page is whole and asks nothing of the network, its figures are there, and a wrong model is caught."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from edgelstm.demo import _Silent, run_demo, stages
from edgelstm.demo.pictures import png, sprite
from edgelstm.demo.scores import csi, score
from edgelstm.errors import EdgeLstmError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FRAMES = 20


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    run_demo(folder, frames=FRAMES, threads=1)
    return folder


@pytest.mark.thorough
def test_the_figures(demo: Path) -> None:
    report = json.loads((demo / "report.json").read_text())
    assert report["schema"] == 1
    assert [e["name"] for e in report["examples"]] == ["moving_digits", "sensor_lstm"]
    for example in report["examples"]:
        assert example["frames"] == FRAMES
        assert len(example["milliseconds"]) == FRAMES
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
    for mark in ("/*DATA*/", "/*STYLE*/", "/*SCRIPT*/"):
        assert mark not in page
    assert "default-src 'none'" in page  # the browser itself would refuse any request
    assert len(page) < 5e6
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert [v["kind"] for v in data["views"]] == ["images", "series"]


def test_the_page_runs_in_a_browser(demo: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=8000", "--enable-logging=stderr", "--dump-dom"]  # fmt: skip
    done = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path}", f"file://{demo}/report.html#frame=7&lead=2"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    assert 'data-ready="yes"' in done.stdout
    for text in (
        "frame 7<",
        "frame 9<",
        f"frame 7 of {FRAMES - 1}",
        f"sample 7 of {FRAMES - 1}",
        "motor current",
    ):
        assert text in done.stdout


@pytest.mark.thorough
def test_a_model_that_computes_something_else_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sensor_lstm"
    shutil.copytree(EXAMPLES / "sensor_lstm", folder)
    arrays = dict(np.load(folder / "expected.npz"))
    arrays["output"][5] *= 1.001
    np.savez(folder / "expected.npz", **arrays)
    monkeypatch.setattr(
        stages, "find_example", lambda name: folder if name == folder.name else EXAMPLES / name
    )
    with pytest.raises(
        EdgeLstmError, match=r"sensor_lstm does not compute what PyTorch gave.*of output at frame 5"
    ):
        run_demo(tmp_path / "out", frames=20, threads=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_damaged_recordings_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sensor_lstm"
    shutil.copytree(EXAMPLES / "sensor_lstm", folder)
    monkeypatch.setattr(stages, "find_example", lambda name: folder)
    (folder / "expected.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(
        EdgeLstmError, match=r"expected\.npz can't be read.*the arrays that record_expected\.py writes"
    ):
        stages.sensors(20, 1, _Silent)
    np.savez(folder / "expected.npz", steps=np.arange(3), output=np.zeros((3, 7)))
    with pytest.raises(EdgeLstmError, match=r"expected\.npz: recorded 'output' at frame 0.*\[7\] and \[48\]"):
        stages.sensors(20, 1, _Silent)
    (folder / "expected.npz").unlink()
    with pytest.raises(EdgeLstmError, match=r"expected\.npz does not exist"):
        stages.sensors(20, 1, _Silent)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgeLstmError, match="the example nothing is not there"):
        stages.find_example("nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeLstmError, match="can't write into"):
        run_demo(tmp_path / "file")
    with pytest.raises(EdgeLstmError, match="frames of the demo: found 5; expected at least 20"):
        run_demo(tmp_path / "out", frames=5)
    with pytest.raises(EdgeLstmError, match="does not exist"):
        run_demo(tmp_path / "out", radar=tmp_path / "none")


def test_scores_are_what_their_names_say() -> None:
    random = np.random.default_rng(0)
    truth, ahead, known = random.random((9, 4)), random.random((9, 3, 4)), random.random((9, 4)) < 0.7
    known[5] = False
    result = score(ahead, truth, known)
    for k in (1, 2, 3):
        made = range(9 - 3)  # all leads of these have come
        errors = [
            abs(ahead[t, k - 1, p] - truth[t + k, p]) for t in made for p in range(4) if known[t + k, p]
        ]
        same = [abs(truth[t, p] - truth[t + k, p]) for t in made for p in range(4) if known[t + k, p]]
        assert result.leads[k - 1]["mae"] == pytest.approx(np.mean(errors))
        assert result.leads[k - 1]["mae_persistence"] == pytest.approx(np.mean(same))
        assert np.isnan(result.model[k - 1, 5 - k])  # nothing of frame 5 counts
        assert np.isnan(result.persistence[k - 1, -k:]).all()
    yes, no = np.array([2.0, 2.0, 0.0, 2.0]), np.array([2.0, 0.0, 2.0, 2.0])
    assert csi(yes, no, np.array([True, True, True, False]), 1.0) == pytest.approx(1 / 3)


@pytest.mark.thorough
def test_radar(radar_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    run_demo(tmp_path, radar=radar_dir)
    (example,) = json.loads((tmp_path / "report.json").read_text())["examples"]
    assert example["frames"] == 26  # from 05:30 on: what came before trained the network
    for lead in example["leads"]:
        assert lead["mae"] < lead["mae_persistence"]
        assert lead["csi"] > lead["csi_persistence"]
    # The table in examples/nowcast_radar/README.md, made with PyTorch.
    assert example["mae"] == pytest.approx(0.3241, abs=1e-3)
    assert np.mean([lead["csi"] for lead in example["leads"]]) == pytest.approx(0.598, abs=2e-3)
    page = (tmp_path / "report.html").read_text()
    assert "2010-08-26 05:30 UTC" in page
    assert "2010-08-26 05:25 UTC" not in page


@pytest.mark.thorough
def test_radar_that_the_network_was_trained_on_is_not_scored(radar_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    for path in sorted(radar_dir.glob("*.h5"))[:8]:
        (tmp_path / path.name).symlink_to(path)
    with pytest.raises(EdgeLstmError, match="holds too little to forecast: found 0 composites"):
        run_demo(tmp_path / "out", radar=tmp_path)


def test_radar_without_h5py_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "RAD_NL25_RAP_5min_201008260530.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(EdgeLstmError, match=r"pip install 'edgelstm\[radar\]'"):
        run_demo(tmp_path / "out", radar=tmp_path)


@pytest.mark.thorough
def test_the_wheel_brings_what_the_demo_needs(tmp_path: Path) -> None:
    """Installed, without a checkout in sight. Base and cpu are enough: no torch, no HDF5, no plotting, no imaging package
    is even looked for."""
    pytest.importorskip("hatchling")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*pip, *build, str(EXAMPLES.parent)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    code = """
import sys
for name in ("torch", "h5py", "matplotlib", "PIL", "av", "sklearn"):
    sys.modules[name] = None
from edgelstm.demo import run_demo, stages
print(stages.find_example("moving_digits"), stages.find_example("nowcast_radar"))
run_demo("out", frames=20, threads=1)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=120,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    code = "from edgelstm.engine.plugin_build import find_source; print(find_source())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == str((tmp_path / "site" / "edgelstm" / "_plugins").resolve())
    inside = tmp_path / "site" / "edgelstm" / "_examples"
    assert done.stdout.split() == [str(inside / "moving_digits"), str(inside / "nowcast_radar")]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "moving_digits.onnx",
        "report.html",
        "report.json",
        "sensor_lstm.onnx",
    ]


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
