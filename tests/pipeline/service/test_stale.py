"""A restart longer than ``max_gap``: the state begins anew, and what was delivered is not delivered again, whatever the source."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from edgelstm import Pipeline, Runner
from edgelstm.pipeline.service.checkpoint import Checkpoint, Folder

RNG = np.random.default_rng(11)
X = RNG.normal(size=(10, 3)).astype(np.float32)


def table(folder: Path) -> str:
    lines = [",".join(map(repr, map(float, row))) for row in X]
    (folder / "t.csv").write_text("a,b,c\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return 'source = "t.csv"'


def growing(folder: Path) -> str:
    return table(folder) + "\nfollow = true"


def timed(folder: Path) -> str:
    lines = [f"{k}," + ",".join(map(repr, map(float, row))) for k, row in enumerate(X)]
    (folder / "t.csv").write_text("t,a,b,c\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return 'source = "t.csv:time=t"'


def array(folder: Path) -> str:
    np.save(folder / "x.npy", X)
    return 'source = "x.npy"'


def watched(folder: Path) -> str:
    (folder / "in").mkdir()
    for k, x in enumerate(X):
        np.save(folder / "in" / f"{k}.npy", x)
    return 'source = "in"\nfollow = true'


def sound(folder: Path) -> str:
    with wave.open(str(folder / "x.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((X * 1000).astype("<i2").tobytes())
    return 'source = "x.wav"\nhop = 3'


def recording(folder: Path) -> str:
    writer_of = pytest.importorskip("mcap.writer").Writer
    pytest.importorskip("mcap_ros2")
    with (folder / "x.mcap").open("wb") as file:
        writer = writer_of(file)
        writer.start()
        channel = writer.register_channel("/x", "json", 0)
        for k, x in enumerate(X):
            at = 1_700_000_000_000_000_000 + k * 1_000_000_000
            writer.add_message(channel, at, json.dumps({"v": x.tolist()}).encode(), at)
        writer.finish()
    return 'source = "x.mcap:topic=/x:field=v"'


def serve(folder: Path, source: str, limit: int) -> Any:
    text = f'[service]\ncheckpoint = "states"\n[models.m]\npath = "m.onnx"\n[streams.s]\n{source}\nlimit = {limit}\nmax_gap = 5\nsink = "o.jsonl"\n'
    report = Pipeline.from_text(text, folder).run()
    assert not report.failed
    return report


def grow_old(folder: Path) -> None:
    newest = sorted((folder / "states").iterdir())[-1]
    found = Checkpoint.from_bytes(newest.read_bytes())
    Folder(folder / "states").save(Checkpoint(found.written - 3600, found.sections))


@pytest.mark.parametrize(
    "made",
    [
        table,
        growing,
        watched,
        recording,
        *(pytest.param(each, marks=pytest.mark.thorough) for each in (timed, array, sound)),
    ],
)
def test_a_stale_checkpoint_takes_the_state_and_not_the_place(
    tmp_path: Path, made: Callable[[Path], str]
) -> None:
    zoo.lstm(head=3).save(tmp_path / "m.onnx")
    source = made(tmp_path)
    serve(tmp_path, source, 4)
    grow_old(tmp_path)
    serve(tmp_path, source, 4)  # nothing new: it stays where it was
    grow_old(tmp_path)
    report = serve(tmp_path, source, 10)
    assert report.streams["s"]["reset:restart"] == 2
    assert report.streams["s"]["stepped"] == 10
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(10))
    scale = 1.0 if made is not sound else 1000 / 32768
    with Runner.open(tmp_path / "m.onnx", threads=1) as runner:
        stream = runner.stream("x")
        wanted = []
        for k, x in enumerate(X):
            if k == 4:
                stream.reset()
            wanted.append(stream.step((x * scale).astype(np.float32))["y"].tolist())
    np.testing.assert_allclose(
        [line["outputs"]["y"]["values"] for line in lines], wanted, atol=1e-6 if made is not sound else 1e-3
    )


def test_another_model_begins_where_the_last_one_stopped(tmp_path: Path) -> None:
    zoo.lstm(head=3).save(tmp_path / "m.onnx")
    source = table(tmp_path)
    serve(tmp_path, source, 4)
    zoo.lstm(head=3, hidden=(6,)).save(tmp_path / "m.onnx")
    report = serve(tmp_path, source, 10)
    assert report.streams["s"]["reset:restart"] == 1
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(10))


def test_a_table_that_was_replaced_by_another_of_the_same_names_is_read_whole(tmp_path: Path) -> None:
    """As one that is begun anew every day: its rows have the numbers of the old one's."""
    zoo.lstm(head=3).save(tmp_path / "m.onnx")
    source = growing(tmp_path)
    serve(tmp_path, source, 9)
    (tmp_path / "t.csv").write_text("a,b,c\n" + "7,8,9\n" * 6, encoding="utf-8")
    report = serve(tmp_path, source, 6)
    assert report.streams["s"]["stepped"] == 15
    assert report.streams["s"]["reset:source"] == 1
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 15
