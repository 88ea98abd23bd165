"""A file whose frames are not what the model takes: seen by the check, and not a success of the service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zoo
from edgelstm import Pipeline
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline.inputs import Inputs
from edgelstm.pipeline.wording import as_key


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


def pictures(folder: Path, *sizes: tuple[int, int]) -> Path:
    pytest.importorskip("PIL")
    folder.mkdir()
    for index, size in enumerate(sizes):
        netpbm = f"P5 {size[1]} {size[0]} 255\n".encode() + bytes(size[0] * size[1])
        (folder / f"{index}.pgm").write_bytes(netpbm)
    return folder


def of_pictures(tmp_path: Path, *more: str) -> Pipeline:
    zoo.persistence(1, (1, 4, 4)).save(tmp_path / "m.onnx")
    text = ['[models.m]\npath = "m.onnx"', '[streams.a]\nsource = "in"', *more]
    return Pipeline.from_text("\n".join(text), tmp_path)


HINT = 'preprocess = "resize=4,4"'


@pytest.mark.parametrize("follow", [False, True])
def test_of_a_folder_the_check_takes_the_first_file_and_leaves_all_as_they_are(
    tmp_path: Path, follow: bool
) -> None:
    folder = pictures(tmp_path / "in", (8, 6), (8, 6))
    pipeline = of_pictures(tmp_path, f"follow = {str(follow).lower()}")
    before = {path.name: path.stat() for path in folder.iterdir()}
    with pytest.raises(EdgeLstmError, match=r"stream a: .*found \[8, 6\]") as caught:
        pipeline.check()
    assert HINT in str(caught.value)
    assert "--preprocess" not in str(caught.value)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == {
        name: stat.st_mtime_ns for name, stat in before.items()
    }
    assert set(of_pictures(tmp_path, "follow = true", HINT).check().streams) == {"a"}, "the hint is right"


def test_a_damaged_first_file_hides_no_second_one(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", (4, 4), (8, 6))
    (folder / "0.pgm").write_bytes(b"P5 4 4 255\n")
    with pytest.raises(EdgeLstmError, match=r"found \[8, 6\]"):
        of_pictures(tmp_path).check()


def test_what_grows_and_holds_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelstm.workflows.serve_check.PATIENCE", 0.2)
    zoo.lstm().save(tmp_path / "m.onnx")
    (tmp_path / "t.csv").write_text("a,b,c\n")
    (tmp_path / "in").mkdir()
    streams = '[streams.a]\nsource = "t.csv"\nfollow = true\n[streams.b]\nsource = "in"\nfollow = true\n'
    found = Pipeline.from_text('[models.m]\npath = "m.onnx"\n' + streams, tmp_path).check()
    assert set(found.streams) == {"a", "b"}


def test_the_log_of_a_refused_frame_says_the_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures(tmp_path / "in", (8, 6))
    of_pictures(tmp_path).run()
    (line,) = [r.getMessage() for r in caplog.records if "dropped (refused)" in r.getMessage()]
    assert HINT in line
    assert "--" not in line


def test_of_several_inputs_the_hint_says_which() -> None:
    specs = tuple(TensorSpec(name, "float32", ("N", 1, 4, 4)) for name in ("a", "b"))
    inputs = Inputs(Signature(specs, (TensorSpec("y", "float32", ("N", 1)),), ()), say=as_key)
    pictures = {"a": np.zeros((4, 4)), "b": np.zeros((8, 6, 3), np.uint8)}
    with pytest.raises(EdgeLstmError) as caught:
        inputs(pictures)
    assert str(caught.value.hint).endswith('preprocess = "b:resize=4,4;grey"')


def test_of_a_camera_the_check_takes_the_frame_that_it_was_opened_with(tmp_path: Path) -> None:
    pytest.importorskip("av")
    zoo.persistence(1, (1, 4, 4)).save(tmp_path / "m.onnx")
    text = '[models.m]\npath = "m.onnx"\n[streams.a]\nsource = "example:camera"\n'
    with pytest.raises(EdgeLstmError, match=r"stream a: .*found \[64, 64, 3\]") as caught:
        Pipeline.from_text(text, tmp_path).check()
    hint = 'preprocess = "resize=4,4;grey"'
    assert hint in str(caught.value)
    assert set(Pipeline.from_text(f"{text}{hint}\n", tmp_path).check().streams) == {"a"}
