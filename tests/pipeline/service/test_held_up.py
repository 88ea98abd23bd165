"""Files of a source that can wait lose nothing; a stream that nobody can hold up is never held up by another's sink."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from edgelstm import Pipeline
from edgelstm.pipeline.sinks import lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    zoo.running_sum().save(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.ones(3000, np.float32))
    return tmp_path


def run(folder: Path, text: str, **sources: Any) -> Any:
    return Pipeline.from_text('[models.m]\npath = "m.onnx"\n' + text, folder, sources=sources).run()


@pytest.mark.parametrize("sink", ["o.jsonl", "o.csv"])
def test_a_file_gets_every_line_of_a_file(folder: Path, sink: str) -> None:
    """By default, however much faster frames are read than lines are written."""
    report = run(folder, f'[streams.s]\nsource = "x.npy"\nsink_queue = 2\nsink = "{sink}"\n')
    assert report.streams["s"]["delivered"] == 3000
    assert len((folder / sink).read_text().splitlines()) == 3000 + (sink == "o.csv")


def test_a_dead_file_holds_up_its_own_stream_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live stream of the same model goes on while the other's disk hangs, and the other loses nothing."""
    seen, alive = threading.Event(), threading.Event()
    add = lines.Appended.add

    def slow(self: lines.Appended, text: str) -> None:
        if '"stream": "file"' in text:
            seen.set()
            alive.wait(60)
        add(self, text)

    monkeypatch.setattr(lines.Appended, "add", slow)

    def frames() -> Iterator[Any]:
        seen.wait(60)
        for k in range(500):
            yield np.array(k, np.float32)
        alive.set()

    report = run(
        folder,
        '[streams.file]\nsource = "x.npy"\nsink_queue = 4\nsink = "o.jsonl"\n'
        '[streams.live]\nsource = "python:cam"\nsink = "l.jsonl"\nsink_queue = 1000\n',
        cam=frames,
    )
    assert report.streams["live"]["stepped"] == 500
    assert report.streams["file"]["delivered"] == 3000
    assert [json.loads(line)["index"] for line in (folder / "o.jsonl").read_text().splitlines()] == list(
        range(3000)
    )


def test_what_is_dropped_is_said_once_with_the_key(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "edgelstm.serve"):
        report = run(
            folder,
            '[streams.s]\nsource = "x.npy"\nsink_queue = 1\nsink_overload = "drop_oldest"\nsink = "o.jsonl"\n',
        )
    assert report.streams["s"]["undelivered:overload"] > 1
    said = [r.message for r in caplog.records if "slower than its stream" in r.message]
    assert len(said) == 1
    assert 'sink_overload = "block"' in said[0]
