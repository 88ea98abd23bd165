"""A file whose frames are not what the model takes: seen by the check, and not a success of the service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zoo
from edgelstm import Pipeline
from edgelstm.errors import EdgeLstmError


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    zoo.lstm().save(tmp_path / "m.onnx")
    np.save(tmp_path / "other.npy", np.zeros((20, 7), np.float32))
    return Pipeline.from_text(
        '[models.m]\npath = "m.onnx"\n[streams.a]\nsource = "other.npy"\n[streams.b]\nsource = "good.npy"\n',
        tmp_path,
    )


def test_the_check_takes_the_first_frame(pipeline: Pipeline, tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.zeros((20, 3), np.float32))
    with pytest.raises(EdgeLstmError, match=r"stream a: .*found.*\[7\]"):
        pipeline.check()
    np.save(tmp_path / "other.npy", np.zeros((20, 3), np.float32))
    assert set(pipeline.check().streams) == {"a", "b"}


def test_a_stream_of_which_no_frame_could_be_taken_has_failed(pipeline: Pipeline, tmp_path: Path) -> None:
    np.save(tmp_path / "good.npy", np.zeros((20, 3), np.float32))
    report = pipeline.run()
    assert report.failed == {"stream a": "none of its 20 frames is what the model takes"}
    assert report.streams["b"]["stepped"] == 20


@pytest.mark.parametrize("cell", ["n/a", "nan", ""])
def test_a_row_that_was_there_but_can_not_be_taken_is_no_gap(tmp_path: Path, cell: str) -> None:
    zoo.lstm().save(tmp_path / "m.onnx")
    rows = [f"2026-01-01T00:{k:02d}:00Z,0.1,{cell if k == 20 else 0.2},0.3" for k in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["time,a,b,c", *rows]) + "\n")
    report = Pipeline.from_text(
        """
        [models.m]
        path = "m.onnx"
        [streams.a]
        source = "t.csv:time=time"
        max_gap = 90
        gap = "reset"
        bad = "skip"
        """,
        tmp_path,
    ).run()
    counts = report.streams["a"]
    assert counts["stepped"] == 39
    assert counts["dropped:not_finite"] == 1
    assert "reset:gap" not in counts
