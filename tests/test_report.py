"""report: the page of one's own model says what happened, asks nothing of the network, and draws itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm
import zoo
from edgelstm.errors import EdgeLstmError

ROOT = Path(__file__).resolve().parents[1]


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1].replace("<\\/", "</"))
    return data


def drawn(page: Path) -> str:
    """The page as a browser leaves it, its script run to the end."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=8000",
        "--dump-dom",
    ]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    example = ROOT / "examples" / "moving_digits"
    edgelstm.export(str(example / "model.safetensors"), folder / "digits.onnx", limit=2, threads=1)
    edgelstm.report(
        folder / "digits.onnx", str(example / "test_stream.npz"), folder / "r.html", limit=25, threads=1
    )
    return folder / "r.html"


def test_a_forecast_beside_what_came(digits: Path) -> None:
    data = data_of(digits)
    titles = [p["title"] for p in data["pictures"]]
    assert titles[:3] == ["input x", "forecast, 1 ahead", "what came, 1 ahead"]
    assert [p["shift"] for p in data["pictures"]][:3] == [0, 0, 1]
    assert data["pictures"][2]["of"] == 0
    assert len(data["scores"]) == 10
    assert all(row["mae"] < row["mae_persistence"] for row in data["scores"])
    text = digits.read_text("utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert "default-src 'none'" in text


def test_the_page_draws_itself(digits: Path) -> None:
    page = drawn(digits)
    assert 'data-ready="yes"' in page
    assert page.count("<canvas") == 13
    assert "last frame repeated" in page


def test_states_over_time_are_those_of_the_runner(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    zoo.lstm().save(model)
    x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    made = edgelstm.report(model, str(tmp_path / "x.npy"), tmp_path / "r.html", threads=1)
    assert made.frames == 9
    data = data_of(tmp_path / "r.html")
    with edgelstm.Runner.open(model, threads=1) as runner:
        stream = runner.stream("a")
        found = []
        for frame in x:
            stream.step(frame)
            found.append(stream.values())
    for chart in data["states"]:
        lines = {line["name"]: line["values"] for line in chart["lines"]}
        values = [step[chart["title"]] for step in found]
        np.testing.assert_allclose(lines["mean"], [v.mean() for v in values], rtol=1e-4)
        np.testing.assert_allclose(lines["largest"], [v.max() for v in values], rtol=1e-4)
    inputs = [c for c in data["signals"] if c["title"].startswith("input")]
    np.testing.assert_allclose([c["lines"][0]["values"] for c in inputs], x.T, rtol=1e-4)
    assert len(data["milliseconds"]) == 9
    assert 'data-ready="yes"' in drawn(tmp_path / "r.html")


def test_what_is_no_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeLstmError, match=r"expected a \.html file"):
        edgelstm.report(tmp_path / "m.onnx", "x.npy", tmp_path / "r.pdf")
