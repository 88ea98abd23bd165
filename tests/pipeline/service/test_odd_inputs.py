"""What nobody means to do and somebody does: stamps that are no times, a recording under the name of another, alarms that change while they fire."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from edgelstm import Pipeline

pytest.importorskip("pydantic")

from running import MODEL, Running, folder_of_sums, section, until

HEAD = '[service]\ncheckpoint = "states"\n' + MODEL


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("place", [0, 1])
def test_a_stamp_that_is_no_time_costs_its_frame(tmp_path: Path, odd: float, place: int) -> None:
    """And no checkpoint: it ended the source, and a state of no time ended the service."""
    zoo.running_sum().save(tmp_path / "sum.onnx")
    now = time.time()
    given = [(now + k, np.array(k + 1, np.float32)) for k in range(3)]
    given.insert(place, (odd, np.array(100, np.float32)))
    text = HEAD + '[streams.s]\nsource = "python:x"\nsink = "o.jsonl"\n'
    report = Pipeline.from_text(text, tmp_path, sources={"x": given}).run()
    assert not report.failed
    assert report.streams["s"] == {"delivered": 3, "dropped:no_time": 1, "read": 4, "stepped": 3}
    assert [line["outputs"]["y"]["values"] for line in lines(tmp_path / "o.jsonl")] == [8.0, 12.0, 18.0]


def test_a_pair_has_no_partner_at_no_time(tmp_path: Path) -> None:
    zoo.two_inputs().save(tmp_path / "m.onnx")
    now = time.time()
    frames = {n: [(now + k, np.full(2, k, np.float32)) for k in range(4)] for n in "ab"}
    frames["b"].insert(2, (math.nan, np.full(2, 77, np.float32)))
    text = '[models.m]\npath = "m.onnx"\n[streams.s]\nsource = { a = "python:a", b = "python:b" }\nsink = "o.jsonl"\n'
    report = Pipeline.from_text(text, tmp_path, sources=dict(frames)).run()
    assert not report.failed
    assert report.streams["s"]["unpaired:b"] == 1
    assert [line["outputs"]["ab"]["values"] for line in lines(tmp_path / "o.jsonl")] == [
        [2.0 * k] * 2 for k in range(4)
    ]


def test_another_recording_under_the_same_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its frames have the names of the old one's: by them, those that were read would be passed over."""
    zoo.running_sum().save(tmp_path / "sum.onnx")
    text = HEAD + '[streams.s]\nsource = "x.npy"\nsink = "o.jsonl"\n'
    for first in (1, 1, 5):
        np.save(tmp_path / "x.npy", np.arange(first, first + 4, dtype=np.float32))
        report = Pipeline.from_text(text, tmp_path).run()
    assert report.streams["s"]["reset:source"] == 1
    assert "all its frames are new" in caplog.text
    made = [line["outputs"]["y"]["values"] for line in lines(tmp_path / "o.jsonl")]
    assert made == [2.0 * (3 + s) for s in (1, 3, 6, 10, 5, 11, 18, 26)]


def test_an_alarm_that_becomes_another_has_its_end(tmp_path: Path) -> None:
    """Who was told that it fired would wait for its end for ever."""
    folder_of_sums(tmp_path)
    np.save(tmp_path / "a.npy", np.full(100000, 1.0, np.float32))
    rule = {"above": 10.0, "sink": "e.jsonl"}
    text = (
        MODEL
        + '[streams.a]\nsource = "a.npy"\nrate = 100\n[streams.a.alarms.high]\nabove = 10\nsink = "e.jsonl"\n'
    )
    with Running(text, tmp_path) as running:

        def events() -> list[str]:
            path = tmp_path / "e.jsonl"
            return [line["event"] for line in lines(path)] if path.exists() else []

        until(lambda: events() == ["fired"])
        running.control.configure(
            "a", section("a", rate=100, sink=[], alarms={"high": {**rule, "above": 1e9}})
        )
        until(lambda: events() == ["fired", "cleared"])
        running.control.configure("a", section("a", rate=100, sink=[], alarms={"high": rule}))
        until(lambda: events() == ["fired", "cleared", "fired"])
        running.control.configure("a", section("a", rate=50, sink=[], alarms={"high": rule}))
        running.control.configure("a", section("a", rate=50, sink=[]))
        until(lambda: events() == ["fired", "cleared", "fired", "cleared"])
        running.pipeline.stop()
        running.ends()


def test_weights_that_lie_beside_the_model_are_watched_too(tmp_path: Path) -> None:
    """Only they change when a model is trained anew."""
    import onnx
    from onnx import numpy_helper

    zoo.running_sum().save(tmp_path / "own.onnx")
    np.save(tmp_path / "a.npy", np.ones(100000, np.float32))
    for factor, weights in ((2, "w.bin"), (4, "new")):
        model = onnx.load(tmp_path / "own.onnx")
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([factor], np.float32), "two"))
        where = tmp_path / f"{weights}.onnx"
        onnx.save_model(model, where, save_as_external_data=True, location=weights, size_threshold=0)
    (tmp_path / "w.bin.onnx").rename(tmp_path / "m.onnx")
    text = '[models.m]\npath = "m.onnx"\nwatch = true\ncompatible = true\n[streams.a]\nsource = "a.npy"\nrate = 100\nsink = "o.jsonl"\n'
    with Running(text, tmp_path) as running:
        until(lambda: running.count("a", "delivered") > 3)
        (tmp_path / "new").rename(tmp_path / "w.bin")

        def factors() -> set[float]:
            made = (tmp_path / "o.jsonl").read_text().splitlines()[:-1]
            return {json.loads(line)["outputs"]["y"]["values"] / (4 + k) for k, line in enumerate(made)}

        until(lambda: factors() == {2.0, 4.0})
        running.pipeline.stop()
        running.ends()


@pytest.mark.parametrize("sink", ["o.csv", "o.npz", "o.jsonl", "o.parquet"])
def test_a_file_whose_name_is_no_text(tmp_path: Path, sink: str) -> None:
    """It ended the sinks that write text."""
    if sink.endswith("parquet"):
        pytest.importorskip("pyarrow")
    zoo.running_sum().save(tmp_path / "sum.onnx")
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"1\xff.npy", b"2.npy"):
        np.save(tmp_path / "x.npy", np.float32(1))
        (tmp_path / "x.npy").rename(folder / os.fsdecode(name))
    text = HEAD + f'[streams.s]\nsource = "in"\nsink = "{sink}"\n'
    report = Pipeline.from_text(text, tmp_path).run()
    assert not report.failed
    assert report.streams["s"]["delivered"] == 2
    assert b"1\\" in (tmp_path / sink).read_bytes() or sink == "o.npz"
    report = Pipeline.from_text(text.replace(sink, "p.jsonl"), tmp_path).run()
    assert report.streams["s"]["stepped"] == 2, "nothing is read twice"
