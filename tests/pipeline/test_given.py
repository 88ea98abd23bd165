"""Frames that a program makes itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo

pytest.importorskip("pydantic")

from edgelstm import EdgeLstmError, Pipeline, Runner
from edgelstm.pipeline import open_source

TEXT = '[models.m]\npath = "model.onnx"\n[streams.a]\nsource = "python:gauge"\nsink = "a.jsonl"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    zoo.lstm().save(tmp_path / "model.onnx")
    return tmp_path


FRAMES = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def alone(folder: Path) -> list[Any]:
    with Runner.open(folder / "model.onnx", threads=1) as runner:
        return [runner.stream("x").step(x)["y"].tolist() for x in FRAMES]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "frames",
    [FRAMES, list(FRAMES), lambda: iter(FRAMES), (x for x in FRAMES)],
    ids=lambda f: type(f).__name__,
)
def test_arrays_from_a_program(folder: Path, frames: Any) -> None:
    report = Pipeline.from_text(TEXT, folder, sources={"gauge": frames}).run()
    assert not report.failed
    made = [line["outputs"]["y"]["values"] for line in lines(folder)]
    np.testing.assert_allclose(made, alone(folder), rtol=1e-5, atol=1e-6)


def test_one_buffer_for_all_frames_and_times(folder: Path) -> None:
    """A driver writes each frame into the same memory; its times are what the policies go by."""

    def driver() -> Iterator[tuple[float, Any]]:
        buffer = np.empty(3, np.float32)
        for k, x in enumerate(FRAMES):
            buffer[:] = x
            yield 1000.0 + k + (100 if k > 5 else 0), buffer

    text = TEXT + 'queue = 16\nmax_gap = 50.0\ngap = "reset"\n'
    report = Pipeline.from_text(text, folder, sources={"gauge": driver}).run()
    assert report.streams["a"]["reset:gap"] == 1
    made = [line["outputs"]["y"]["values"] for line in lines(folder)]
    np.testing.assert_allclose(made[:6], alone(folder)[:6], rtol=1e-5, atol=1e-6)
    assert lines(folder)[0]["name"] == "1970-01-01T00:16:40.000Z"


def test_a_driver_that_fails_is_asked_again(folder: Path) -> None:
    calls = []

    def driver() -> Iterator[Any]:
        calls.append(time.monotonic())
        if len(calls) == 1:
            yield from FRAMES[:5]
            raise OSError("the cable")
        yield from FRAMES[5:]

    text = TEXT + "retries = 3\nretry = 0.01\n"
    report = Pipeline.from_text(text, folder, sources={"gauge": driver}).run()
    assert len(calls) == 2
    assert report.streams["a"]["lost"] == 1
    made = lines(folder)
    assert [line["index"] for line in made] == list(range(12))
    np.testing.assert_allclose(
        [line["outputs"]["y"]["values"] for line in made], alone(folder), rtol=1e-5, atol=1e-6
    )


def test_a_limit_counts_over_all_that_is_opened(folder: Path) -> None:
    def driver() -> Iterator[Any]:
        yield from FRAMES[:5]
        raise OSError("the cable")

    text = TEXT + "retries = 100\nretry = 0.001\nlimit = 12\n"
    report = Pipeline.from_text(text, folder, sources={"gauge": driver}).run()
    assert report.streams["a"]["stepped"] == 12


def test_one_that_waits_for_ever_holds_up_no_end(folder: Path) -> None:
    waits = threading.Event()

    def driver() -> Iterator[Any]:
        yield FRAMES[0]
        waits.set()
        threading.Event().wait()

    pipeline = Pipeline.from_text(TEXT, folder, sources={"gauge": driver})
    reports: list[Any] = []
    thread = threading.Thread(target=lambda: reports.append(pipeline.run()), daemon=True)
    thread.start()
    assert waits.wait(60)
    pipeline.stop()
    thread.join(60)
    assert reports[0].stopped


def test_what_is_no_frame(folder: Path) -> None:
    for frames, found in (
        ([1.0], "float"),
        ([np.zeros(3, complex)], "complex128"),
        ([np.zeros((3, 0))], "0 bytes"),
    ):
        report = Pipeline.from_text(TEXT, folder, sources={"gauge": frames}).run()
        assert found in report.failed["stream a"]
    with pytest.raises(EdgeLstmError, match="python:gauge: found other; expected Pipeline"):
        Pipeline.from_text(TEXT, folder, sources={"other": FRAMES}).run()
    with pytest.raises(EdgeLstmError, match="no sources from Python"):
        open_source("python:gauge")
