"""Whether eight bits are slower here is measured, and said with both figures."""

from __future__ import annotations

from pathlib import Path

import zoo
from edgelstm import calibrate, quantize
from edgelstm.workflows.pace import slower
from recordings import smooth_frames


def test_what_is_slower_is_said_and_in_the_json(tmp_path: Path) -> None:
    step = zoo.lstm()
    found = calibrate(step, [smooth_frames(step, 80)], threads=1).calibration
    made = quantize(step, found, tmp_path / "q.onnx", threads=1)
    assert made.milliseconds is not None
    assert made.to_json()["milliseconds"] == dict(zip(("float", "quantised"), made.milliseconds, strict=True))
    assert min(made.milliseconds) > 0
    told = [note for note in made.notes if "slower than float on this CPU" in note]
    assert told == [n for n in [slower("int8", *made.milliseconds)] if n is not None]
    assert quantize(step, found, tmp_path / "r.onnx", verify=False, threads=1).milliseconds is None


def test_a_little_slower_is_noise() -> None:
    assert slower("int8", 1.0, 1.1) is None
    said = slower("int8", 1.0, 3.0)
    assert said is not None
    assert "3 ms a step, 1 ms in float" in said
