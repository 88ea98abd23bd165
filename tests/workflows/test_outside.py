"""Frames far outside what a model was exported or calibrated with are told, once; channels that never moved are named."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import zoo
from edgelstm import Runner, calibrate, export, quantize, run, verify
from edgelstm.cli import app
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature
from edgelstm.quantize.calibration import Calibration, still_notes
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.outside import LOOKS, Outside, OutsideRange
from recordings import smooth_frames


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody writes to it."""
    path = tmp_path_factory.mktemp("quantised") / "q.onnx"
    step = zoo.lstm()
    found = calibrate(step, [smooth_frames(step, 80)], threads=1).calibration
    made = quantize(step, found, path, threads=1)
    assert set(made.step.signature.ranges) == {"x"}
    return path


def test_replacing_what_brings_frames_to_units_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody who only wanted another size shall lose the declared scale without a word."""
    model = tmp_path / "m.onnx"
    step = zoo.lstm()
    ops = {"x": ({"op": "scale", "factor": 0.01},)}
    replace(step, signature=replace(step.signature, preprocessing=ops)).save(model)
    np.save(tmp_path / "x.npy", np.ones((3, 3), np.float32))
    for given, said in (("", True), ("scale=0.5", False), ("clip=0,1", True), (None, False)):
        caplog.clear()
        run(model, str(tmp_path / "x.npy"), preprocess=None if given is None else [given], threads=1)
        assert ("leaves out 'scale=0.01" in caplog.text) is said
        caplog.clear()
        verify(
            model, model, str(tmp_path / "x.npy"), preprocess=None if given is None else [given], threads=1
        )
        assert caplog.text.count("leaves out 'scale=0.01") == int(said)


def ordinary(count: int = 4) -> np.ndarray:
    return np.stack([f["x"] for f in smooth_frames(zoo.lstm(), count, 5)])


def test_a_runner_says_it_once(quantised: Path) -> None:
    with Runner.open(quantised, streams=2) as runner:
        a, b = runner.stream("a"), runner.stream("b")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            a.step(ordinary()[0])
            a.step(1.5 * ordinary()[1])
        with pytest.warns(OutsideRange, match=r"input 'x' lie far outside .* was seen"):
            runner.step({"a": ordinary()[2], "b": ordinary()[3] * 255})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            b.step(ordinary()[0] * 255)
        assert len(runner.notes) == 1


def test_only_the_first_frames_are_looked_at(quantised: Path) -> None:
    with Runner.open(quantised) as runner, warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = runner.stream("a")
        for _ in range(LOOKS):
            stream.step(ordinary()[0])
        assert runner._outside is None
        stream.step(ordinary()[0] * 255)


def test_all_streams_at_once(quantised: Path) -> None:
    with Runner.open(quantised, streams=2) as runner:
        runner.stream("a"), runner.stream("b")
        with pytest.warns(OutsideRange):
            runner.step_all(ordinary(2) * 255)


def test_run_and_verify_say_it(quantised: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "far.npy", ordinary(40) * 255)
    np.save(tmp_path / "near.npy", ordinary(40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        far = [s for s in run(quantised, str(tmp_path / "far.npy")).said if "far outside" in s]
        assert len(far) == 1
        assert not [s for s in run(quantised, str(tmp_path / "near.npy")).said if "far outside" in s]
    zoo.lstm().save(tmp_path / "m.onnx")
    pair = str(tmp_path / "m.onnx"), str(quantised)
    assert len(verify(*pair, str(tmp_path / "far.npy"), limit=40).said) == 1
    assert verify(*pair, str(tmp_path / "near.npy"), limit=40).said == []
    shown = CliRunner().invoke(app, ["run", str(quantised), "--source", str(tmp_path / "far.npy")])
    assert shown.exit_code == 0
    assert "far outside" in " ".join(shown.output.split())


def test_export_keeps_the_range_of_the_users_frames(tmp_path: Path) -> None:
    zoo.lstm().save(tmp_path / "m.onnx")
    pairs = {s.input: s.output for s in zoo.lstm().signature.states}
    frames = list(ordinary(20))
    made = export(str(tmp_path / "m.onnx"), tmp_path / "o.onnx", states=pairs, source=frames, limit=20).step
    low, high = made.signature.ranges["x"]
    assert (low, high) == (pytest.approx(np.min(frames)), pytest.approx(np.max(frames)))
    assert Signature.loads(made.signature.dumps()) == made.signature
    with Runner(OrtProgram(made.to_bytes(), threads=1)) as runner, pytest.warns(OutsideRange):
        runner.stream("a").step(frames[0] * 255)
    assert export(str(tmp_path / "m.onnx"), states=pairs, limit=4).step.signature.ranges == {}


@pytest.mark.parametrize("ranges", [{"x": [1, 0]}, {"x": [0, float("inf")]}, {"y": [0, 1]}, {"x": 3}])
def test_ranges_that_are_none(ranges: object) -> None:
    data = zoo.lstm().signature.to_json() | {"ranges": ranges}
    with pytest.raises(EdgeLstmError, match=r"ranges of inputs|malformed Signature"):
        Signature.from_json(data)


def test_channels_that_never_moved_are_named(tmp_path: Path) -> None:
    step = zoo.lstm()
    channels = step.signature.inputs[0].frame_shape[0]
    frames = ordinary(120)
    frames[:, 1:] = 0.25
    found = calibrate(step, [list(frames)], tmp_path / "c.json", threads=1)
    still = ", ".join(map(str, range(1, channels)))
    note = next(n for n in found.notes if n.startswith("input 'x'"))
    assert f"{channels - 1} of {channels} channels never moved ({still})" in note
    assert found.to_json()["notes"] == found.notes
    loaded = Calibration.load(tmp_path / "c.json")
    assert still_notes(loaded) == still_notes(found.calibration)
    assert loaded.inputs["x"].still == tuple(range(1, channels))
    # What it brings later is not lost.
    made = quantize(step, found.calibration, threads=1).step

    def outputs(model: zoo.StepModel) -> np.ndarray:
        with Runner(OrtProgram(model.to_bytes(), threads=1)) as runner:
            stream = runner.stream("a")
            steps = [stream.step(f, copy=True) for f in ordinary(120)]
        return np.stack([np.concatenate([v.ravel() for v in s.values()]) for s in steps])

    true, other = outputs(step), outputs(made)
    assert np.linalg.norm(other - true) < 0.3 * np.linalg.norm(true)
    assert not [n for n in calibrate(step, [list(ordinary(120))], threads=1).notes if "input 'x'" in n]


def test_only_five_are_named_and_inputs_that_no_product_reads_too() -> None:
    from stepping import from_text

    step = from_text(
        """shifted (float[N, 9] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] t)
        <float[9, 2] w, float half = {0.5}>
        { a = Sub (x, half)  b = Mul (a, a)  m = MatMul (b, w)  t = Add (m, s)  y = Tanh (m) }""".replace(
            "w,", "w = {" + ", ".join(["0.1"] * 18) + "},"
        ),
        s="t",
    )
    frames = np.random.default_rng(0).normal(size=(60, 9)).astype(np.float32)
    frames[:, 2:] = 0
    said = calibrate(step, [list(frames)], threads=1).notes
    assert any("input 'x': 7 of 9 channels never moved (2, 3, 4, 5, 6 and 2 more)" in n for n in said), said
    assert json.dumps(said)


def said_of(frames: np.ndarray, seen: tuple[float, float]) -> list[str]:
    outside = Outside({"x": seen})
    return [note for x in frames if not outside.done and (note := outside.look({"x": x})) is not None]


def test_frames_that_are_far_too_small_are_said_once_enough_came() -> None:
    """0 to 1 where 0 to 255 was seen."""
    rng = np.random.default_rng(4)
    frames = rng.uniform(size=(100, 8, 8)).astype(np.float32)
    assert len(said_of(frames, (0.0, 255.0))) == 1
    assert "next to nothing" in said_of(frames, (0.0, 255.0))[0]
    assert not said_of(frames[:40], (0.0, 255.0)), "too few to tell"


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda rng: np.zeros((200, 8)), (0.0, 255.0)),  # nothing there yet
        (lambda rng: np.where(np.arange(200)[:, None] > 50, 180.0, rng.uniform(size=(200, 8))), (0.0, 255.0)),
        (lambda rng: rng.normal(0, 0.002, (200, 512)), (-0.9, 0.95)),  # a silent room
        (lambda rng: rng.normal(20, 0.01, (200, 6)), (-20.0, 60.0)),  # a machine that stands still
        (lambda rng: rng.integers(0, 7, (200, 64)), (0.0, 255.0)),  # a camera at night
        (lambda rng: np.full((200, 4), np.nan), (0.0, 255.0)),
    ],
)
def test_what_is_small_for_a_while_is_no_missing_scale(make: Any, seen: tuple[float, float]) -> None:
    assert not said_of(make(np.random.default_rng(5)).astype(np.float32), seen)
