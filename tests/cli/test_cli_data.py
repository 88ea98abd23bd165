"""The commands for people's own data: tables, scores, detectors, pages; and options of run that go with them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import zoo
from command_line import Run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two engines of 30 rows, mixed."""
    path = tmp_path / "engines.csv"
    rng = np.random.default_rng(0)
    rows = [[n % 2 + 1, n // 2, *rng.normal(size=3).round(4).tolist()] for n in range(60)]
    path.write_text("\n".join(",".join(map(str, row)) for row in [["unit", "t", "a", "b", "c"], *rows]))
    return path


def test_a_detector_in_three_commands(run: Run, table: Path) -> None:
    zoo.lstm(head=3).save("m.onnx")
    source = f"{table}:key=unit:time=t:scale=scales.csv"
    assert run("scales", f"{table}:key=unit:time=t", "-o", "scales.csv")[0] == 0
    assert len(Path("scales.csv").read_text().splitlines()) == 1 + 2 * 3
    code, text, _ = run(
        "fit-detector",
        "m.onnx",
        "--source",
        source,
        "--target",
        "next",
        "-o",
        "d.json",
        "--method",
        "mahalanobis",
    )
    assert code == 0, text
    assert "58 normal steps" in text
    code, text, _ = run(
        "detect", "m.onnx", "--source", source, "--detector", "d.json", "-o", "s.csv", "--json"
    )
    assert code == 0
    found = json.loads(text)
    assert (found["steps"], set(found["streams"])) == (58, {"1", "2"})
    with Path("s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["anomaly"]) for row in rows) == found["anomalies"]
    assert all((float(row["score"]) > float(row["threshold"])) == bool(int(row["anomaly"])) for row in rows)
    assert "2 streams" in run("scales", f"{table}:key=unit", "-o", "again.csv")[1]


def test_what_is_wrong_is_one_line(run: Run, table: Path) -> None:
    zoo.lstm(head=3).save("m.onnx")
    zoo.lstm().save("m2.onnx")
    for arguments, message in (
        (
            ("fit-detector", "m.onnx", "--source", f"{table}:key=unit:time=t", "-o", "d.json"),
            "--target input",
        ),
        (("detect", "m.onnx", "--source", table, "--detector", "none.json"), "none.json does not exist"),
        (("score", "m.onnx", "--source", f"{table}:key=unit:time=t"), "no forecast to score"),
        (("score", "m.onnx", "--source", table, "-o", "s.txt"), "expected a .csv file"),
        (("report", "m.onnx", "--source", table, "-o", "r.pdf"), "expected a .html file"),
        (("scales", f"{table}:key=none", "-o", "s.csv"), "no column 'none'"),
        (("run", "m2.onnx", "--source", f"{table}:columns=a,b,c", "--units", "physical"), "output y [2]"),
        (("run", "m.onnx", "--source", table, "--on-gap", "never"), "on_gap: found never"),
        (("run", "m.onnx", "--source", table, "--idle", "3"), "expected seconds, with follow"),
        (("run", "m.onnx", "--source", f"{table}:columns=a,b,c", "--hop", "2"), "Leave the hop out"),
        (("run", "m.onnx", "--source", table, "--colours", "pink"), "expected blue or heat"),
    ):
        code, _, error = run(*arguments)
        assert code == 2, arguments
        assert message in error, (arguments, error)
        assert error.strip().count("\n") <= 2
    assert not [p.name for p in Path().glob("*.json")]


def test_forecasts_are_scored_and_shown(run: Run) -> None:
    zoo.persistence(shape=(1, 8, 8)).save("m.onnx")
    rng = np.random.default_rng(1)
    np.save("x.npy", rng.random((12, 1, 8, 8)).astype(np.float32))
    code, _, error = run("report", "m.onnx", "--source", "x.npy", "-o", "r.html", "--limit", 6)
    assert code == 0, error
    assert 'id="data"' in Path("r.html").read_text()
    code, text, error = run("score", "m.onnx", "--source", "x.npy", "-o", "s.csv", "--json")
    if code == 0:  # the zoo's persistence is a forecaster of K leads
        assert json.loads(text)["scores"]
    else:
        assert "no forecast to score" in error


def test_several_sources_to_one_pattern(run: Run) -> None:
    zoo.lstm().save("m.onnx")
    for name in ("a", "b"):
        np.save(f"{name}.npy", np.ones((3, 3), np.float32))
    code, text, _ = run(
        "run", "m.onnx", "--source", "a.npy", "--source", "right=b.npy", "-o", "y_{stream}.csv", "--json"
    )
    assert code == 0
    assert json.loads(text)["outs"] == {"a": "y_a.csv", "right": "y_right.csv"}
    assert Path("y_a.csv").read_text().splitlines()[1].startswith("a,0,")


def test_a_name_between_colons_is_no_picture(run: Run) -> None:
    """rich makes an emoji of :x: and of :key: in whatever is printed."""
    zoo.lstm().save("m.onnx")
    Path("t.csv").write_text("key,a,b,c\nx,1,2,3\n")
    code, _, error = run("run", "m.onnx", "--source", "none.csv:x:key=key:key:")
    assert code == 2
    assert "none.csv:x:key=key:key:" in error
    code, text, _ = run("run", "m.onnx", "--source", "t.csv:key=key", "-o", "a:x:b.csv")
    assert code == 0
    assert ":x:" in "".join(text.split())
