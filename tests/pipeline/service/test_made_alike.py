"""What a state is worth depends on more than the section: scales in files, what the model declares, the very file that was opened."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from edgelstm import Pipeline, Runner
from edgelstm.pipeline.service.checkpoint import Folder
from edgelstm.pipeline.service.redact import without_user
from edgelstm.runtime import runner as runners
from edgelstm.runtime.identity import model_identity

#: The other process does the same, and takes its time to start.
ISOLATE = ["none", pytest.param("process", marks=pytest.mark.thorough)]
SERVE = '[service]\ncheckpoint = "states"\n[models.m]\npath = "m.onnx"\n'


def serve(folder: Path, text: str, caplog: pytest.LogCaptureFixture) -> tuple[Any, str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, "edgelstm.serve"):
        report = Pipeline.from_text(SERVE + text, folder).run()
    assert not report.failed
    return report, caplog.text


def scales(folder: Path, most: float) -> None:
    lines = "".join(f",{column},0,{most}\n" for column in "abc")
    (folder / "scale.csv").write_text(f"key,column,min,max\n{lines}", encoding="utf-8")


def rows(folder: Path, count: int, most: float = 1.0) -> None:
    text = "".join(f"{k % 2 * most},{k % 2},{k % 2}\n" for k in range(count))
    (folder / "t.csv").write_text("a,b,c\n" + text, encoding="utf-8")


@pytest.mark.parametrize("isolate", ISOLATE)
@pytest.mark.parametrize("own", [False, True])
def test_another_scale_is_another_preprocessing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, own: bool, isolate: str
) -> None:
    """A file of scales with other numbers, or a table whose own are others: the state summed up something else."""
    zoo.lstm().save(tmp_path / "m.onnx")
    scales(tmp_path, 1.0)
    rows(tmp_path, 4)
    scale = "own" if own else "scale.csv"
    text = f'[streams.s]\nsource = "t.csv:scale={scale}"\nisolate = "{isolate}"\n'
    serve(tmp_path, text, caplog)
    rows(tmp_path, 6)
    report, log = serve(tmp_path, text, caplog)
    assert "goes on from" in log, "the same numbers"
    assert report.streams["s"]["stepped"] == 6
    scales(tmp_path, 2.0)
    rows(tmp_path, 8, 2.0)
    report, log = serve(tmp_path, text, caplog)
    assert "its state begins anew: the checkpoint is of another preprocessing" in log
    assert report.streams["s"]["reset:restart"] == 1


def test_a_source_that_comes_back_with_other_scales(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    zoo.lstm().save(tmp_path / "m.onnx")
    scales(tmp_path, 1.0)
    rows(tmp_path, 4)
    text = '[streams.s]\nsource = "t.csv:scale=scale.csv"\nretries = 100\nretry = 0.05\n'
    serve(tmp_path, text, caplog)
    rows(tmp_path, 6)
    (tmp_path / "t.csv").rename(tmp_path / "away.csv")
    scales(tmp_path, 2.0)

    class Back(logging.Handler):
        """The table is there again once somebody missed it."""

        def emit(self, record: logging.LogRecord) -> None:
            if "try 1 of" in record.getMessage() and (tmp_path / "away.csv").exists():
                (tmp_path / "away.csv").rename(tmp_path / "t.csv")

    handler = Back()
    logging.getLogger("edgelstm.serve").addHandler(handler)
    try:
        report, log = serve(tmp_path, text, caplog)
    finally:
        logging.getLogger("edgelstm.serve").removeHandler(handler)
    assert "its source has other scales now" in log
    assert report.streams["s"]["reset:source"] == 1
    assert report.streams["s"]["stepped"] == 6


def test_weights_that_are_compatible_with_another_preprocessing_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = zoo.running_sum()
    model.save(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.ones(4, np.float32))
    text = '[streams.s]\nsource = "x.npy"\n'
    serve(tmp_path, text, caplog)
    halved = replace(
        model.signature, preprocessing={model.signature.inputs[0].name: [{"op": "scale", "factor": 0.5}]}
    )
    replace(model, signature=halved).save(tmp_path / "m.onnx")
    text = "compatible = true\n" + text
    report, log = serve(tmp_path, text, caplog)
    assert "its state begins anew: the checkpoint is of another preprocessing" in log
    assert report.streams["s"]["reset:restart"] == 1
    text = text.replace("true", "false")
    _, log = serve(tmp_path, text, caplog)
    assert "goes on from" in log, "of the same file"


def test_a_file_that_is_replaced_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is labelled with its hash is what runs."""
    zoo.running_sum().save(tmp_path / "m.onnx")
    zoo.persistence(shape=()).save(tmp_path / "new")
    old, new = model_identity(tmp_path / "m.onnx"), model_identity(tmp_path / "new")
    opened, left = runners.open_program, [tmp_path / "new"]

    def slow(path: Any, *given: Any, **more: Any) -> Any:
        program = opened(path, *given, **more)
        if left:
            left.pop().replace(path)
        return program

    monkeypatch.setattr(runners, "open_program", slow)
    with Runner.open(tmp_path / "m.onnx") as runner:
        assert (runner.signature.outputs[0].name, runner.model) == ("forecast", new)
    zoo.running_sum().save(tmp_path / "m.onnx")
    zoo.persistence(shape=()).save(tmp_path / "new")
    left.append(tmp_path / "new")
    np.save(tmp_path / "x.npy", np.ones(4, np.float32))
    serve(tmp_path, '[streams.s]\nsource = "x.npy"\nsink = "o.jsonl"\n', caplog)
    found = Folder(tmp_path / "states").load()
    assert found is not None
    assert found[0].sections["s"].model == new != old
    assert '"forecast"' in (tmp_path / "o.jsonl").read_text()


def test_a_table_that_grew_between_two_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its only stream had not ended; one of a key had, and says that its state begins anew."""
    zoo.lstm().save(tmp_path / "m.onnx")
    made = {}
    for counts in ((4, 6), (6,)):
        for count in counts:
            rows(tmp_path, count)
            report, _ = serve(tmp_path, '[streams.s]\nsource = "t.csv"\nsink = "o.jsonl"\n', caplog)
            assert report.streams["s"]["stepped"] == count
        lines = (tmp_path / "o.jsonl").read_text().splitlines()
        made[counts] = [json.loads(line)["outputs"]["y"]["values"] for line in lines]
        for path in (tmp_path / "o.jsonl", *(tmp_path / "states").iterdir()):
            path.unlink()
    assert made[4, 6] == made[6,]
    text = '[streams.s]\nsource = "k.csv:key=k"\n'
    for count in (4, 6):
        keyed = "".join(f"p,{k % 2},1,0\n" for k in range(count))
        (tmp_path / "k.csv").write_text("k,a,b,c\n" + keyed, encoding="utf-8")
        report, log = serve(tmp_path, text, caplog)
    assert "stream s:p: its state begins anew: it had ended before the restart" in log
    assert report.streams["s:p"]["reset:restart"] == 1


@pytest.mark.parametrize("isolate", ISOLATE)
def test_a_folder_goes_by_names(tmp_path: Path, caplog: pytest.LogCaptureFixture, isolate: str) -> None:
    """By numbers, a file that came late would let another be stepped twice, and one that was removed would hide one."""
    zoo.running_sum().save(tmp_path / "m.onnx")
    folder = tmp_path / "in"
    folder.mkdir()
    text = f'[streams.s]\nsource = "in"\nisolate = "{isolate}"\nsink = "o.jsonl"\n'
    for come, go in (([0, 1, 3], []), ([2, 10], []), ([11], [3, 10]), ([12], [])):
        for k in come:
            np.save(folder / f"{k}.npy", np.float32(k))
        for k in go:
            (folder / f"{k}.npy").unlink()
        serve(tmp_path, text, caplog)
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [f"{k}.npy" for k in (0, 1, 3, 10, 11, 12)]
    assert [line["outputs"]["y"]["values"] for line in lines] == [
        2.0 * (3 + s) for s in (0, 1, 4, 14, 25, 37)
    ]


def test_lines_behind_a_checkpoint_go_by_names_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A crash, and two files that came late: what is there is not written again, though its number is another."""
    zoo.running_sum().save(tmp_path / "m.onnx")
    folder = tmp_path / "in"
    folder.mkdir()
    text = '[streams.s]\nsource = "in"\nsink = "o.jsonl"\n'
    for k in (0, 2):
        np.save(folder / f"{k}.npy", np.float32(k))
    serve(tmp_path, text, caplog)
    saved = {path.name: path.read_bytes() for path in (tmp_path / "states").iterdir()}
    for k in (4, 6):
        np.save(folder / f"{k}.npy", np.float32(k))
    serve(tmp_path, text, caplog)
    for path in (tmp_path / "states").iterdir():
        path.unlink()
    for name, data in saved.items():  # as if it had been killed before the next one
        (tmp_path / "states" / name).write_bytes(data)
    for k in (1, 5, 8):
        np.save(folder / f"{k}.npy", np.float32(k))
    report, _ = serve(tmp_path, text, caplog)
    assert report.streams["s"]["written_before"] == 2
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [f"{k}.npy" for k in (0, 2, 4, 6, 5, 8)]


@pytest.mark.parametrize("path", ["/x", "/stream@main", "", "?key=a@b", ":554/1"])
def test_a_camera_with_another_password_is_the_same(path: str) -> None:
    assert without_user(f"rtsp://me:old@cam{path}") == without_user(f"rtsp://me:new@cam{path}")
    assert without_user(f"rtsp://cam{path}") != without_user(f"rtsp://dam{path}")
