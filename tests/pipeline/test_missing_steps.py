"""Sound and video keep time: what is missing takes the time that it would have taken."""

from __future__ import annotations

import logging
import wave
from pathlib import Path

import numpy as np
import pytest

from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import Frame, open_source
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sinks import open_sink

#: Index, time in hops of 0.01 s, gap, and at which hop it should be heard: two steps dropped, samples lost, a source that begins anew, a camera away for an hour.
STEPS = [
    (0, 0.0, None, 0),
    (1, 1.2, None, 1),
    (4, 3.9, None, 4),
    (5, 8.0, "3 hops lost", 8),
    (6, 108.0, None, 108),
    (2, 3.0, None, 109),
    (3, 360003.0, None, 110),
]


def signature(*shape: int) -> Signature:
    return Signature(
        (TensorSpec("x", "float32", ("N", 4)),), (TensorSpec("y", "float32", ("N", *shape)),), ()
    )


def frames(scale: float, *, timed: bool = True) -> list[Frame]:
    return [Frame(i, at * scale if timed else None, str(i), np.zeros(4), gap=gap) for i, at, gap, _ in STEPS]


def test_sound_has_silence_where_steps_are_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        open_sink(tmp_path / "a.wav", signature(80), context=Context(hop=(8000, 80))) as sink,
    ):
        for frame in frames(0.01):
            sink.write(frame, {"y": np.full(80, 0.5, np.float32)}, 0.0)
    with wave.open(str(tmp_path / "a.wav")) as file:
        heard = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 80)
    assert np.flatnonzero(heard.all(axis=1)).tolist() == [place for *_, place in STEPS]
    assert len(heard) - np.count_nonzero(heard.any(axis=1)) == 104
    assert "a.wav: silence in the place of 104 missing steps" in caplog.text
    assert "a.wav: closed up: 1 break of more than 600 s" in caplog.text


@pytest.mark.parametrize("hop", [1, 4])
def test_a_video_shows_the_picture_before(tmp_path: Path, hop: int) -> None:
    """Without times by the numbers alone, of windows every fourth."""
    pytest.importorskip("av")
    with open_sink(tmp_path / "a.mp4", signature(16, 16), fps=10) as sink:
        for index in (3, 4, 5, 9):
            sink.write(Frame(hop * index, None, "", np.zeros(4)), {"y": np.eye(16, dtype=np.float32)}, 0.0)
    with open_source(str(tmp_path / "a.mp4")) as source:
        times = [frame.time for frame in source]
    np.testing.assert_allclose(times, [0.0, 0.1, 0.2, 0.6], atol=1e-3)
