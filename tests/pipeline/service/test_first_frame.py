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
