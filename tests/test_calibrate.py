"""Calibration: the state is carried, and the file says all of it."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from edgelstm import calibrate as public_calibrate
from edgelstm.calibrate import POINTS, Recording, _Growth, calibrate
from edgelstm.calibration import Calibration, changes
from edgelstm.errors import EdgeLstmError
from edgelstm.passes.quantize import quantize
from edgelstm.passes.unroll import unroll
from edgelstm.runtime.onnxruntime import OrtProgram
from recordings import calibrated, recordings, smooth_frames
from stepping import Stepper, from_text

GOLDEN = Path(__file__).parent / "golden" / "calibration-1.json"


def test_ranges_are_those_of_a_loop_by_hand() -> None:
    step = zoo.lstm()
    sequence = smooth_frames(step, 50)
    found = calibrate(step, [Recording("a", sequence)], method="minmax", threads=1)
    stepper = Stepper(step)
    states, seen = stepper.initial(1), [stepper.initial(1)["z9_h"]]
    for frame in sequence:
        _, states = stepper({"x": frame["x"][None]}, states)
        seen.append(states["z9_h"])
    h = np.concatenate(seen)
    t = found.tensor("z9_h")
    np.testing.assert_allclose(t.minimum, h.min(0), rtol=1e-6)
    np.testing.assert_allclose(t.maximum, h.max(0), rtol=1e-6)
    np.testing.assert_allclose(t.mean, h.mean(0), rtol=1e-5, atol=1e-6)
    assert t.samples == 51, "the initial state is one of them"
    frames = np.stack([f["x"] for f in sequence])
    np.testing.assert_allclose(found.tensor("x").maximum, frames.max(0).clip(0), rtol=1e-6)
    largest = np.abs(found.states["a0_c"].largest)
    assert len(largest) == 50


def test_side_by_side_is_as_one_after_the_other() -> None:
    step = zoo.conv_lstm()
    together, alone = (calibrate(step, recordings(step), streams=n, threads=1) for n in (8, 1))
    assert (together.streams, alone.streams) == (3, 1)
    assert [d["sha256"] for d in together.data] == [d["sha256"] for d in alone.data]
    assert [d["frames"] for d in together.data] == [40, 25, 31]
    for name, t in alone.tensors.items():
        np.testing.assert_allclose(together.tensor(name).maximum, t.maximum, rtol=1e-5)
        np.testing.assert_allclose(together.tensor(name).mean, t.mean, rtol=1e-4, atol=1e-6)
        assert together.tensor(name).samples == t.samples


def test_the_same_frames_give_the_same_file() -> None:
    step = zoo.lstm()
    a, b = (json.dumps(calibrated(step).to_json()) for _ in range(2))
    assert a == b


def test_second_round_observes_under_the_state_of_the_quantised_graph() -> None:
    step = zoo.lstm()
    first = calibrated(step)
    quantised = quantize(step, first, weights=["w0", "w1"])
    second = calibrated(
        step, driver=lambda n: OrtProgram(quantised.to_bytes(), streams=n, threads=1), driven_by="that"
    )
    assert second.driven_by == "that"
    moved = changes(first, second)
    assert {m["tensor"] for m in moved} == set(first.tensors)
    assert any(m["range"] != 1 or m["mean"] > 0 for m in moved)
    np.testing.assert_array_equal(first.tensor("x").mean, second.tensor("x").mean)
    # By hand: the float step from the quantised graph's states.
    sequence = recordings(step)[0].frames
    alone = calibrate(
        step,
        [Recording("a", sequence)],
        driver=lambda n: OrtProgram(quantised.to_bytes(), streams=n, threads=1),
        threads=1,
        method="minmax",
    )
    program, stepper = OrtProgram(quantised.to_bytes(), threads=1), Stepper(step)
    state, seen = program.new_state(), []
    for frame in sequence:
        worth = {
            s.name: s.values(v)[None]
            for s, v in zip(quantised.signature.states, program.read_state(state, 0).values(), strict=True)
        }
        seen.append(stepper({"x": frame["x"][None]}, worth)[1]["z8_h"][0])
        program.step([frame], state, [0])
    np.testing.assert_allclose(alone.tensor("z8_h").maximum, np.max(seen, 0).clip(0), rtol=1e-4, atol=1e-5)


def test_windows() -> None:
    step = zoo.lstm()
    window = unroll(step, 5)
    blocks = [{"x": np.stack([f["x"] for f in smooth_frames(step, 60)[k : k + 5]])} for k in range(0, 60, 5)]
    found = calibrate(window, [Recording("a", blocks)], method="minmax", threads=1)
    plain = calibrate(step, [Recording("a", smooth_frames(step, 60))], method="minmax", threads=1)
    highest = [t.tensor_high for t in found.tensors.values() if t.role == "state"]
    assert max(highest) == pytest.approx(
        max(t.tensor_high for t in plain.tensors.values() if t.role == "state"), rel=1e-5
    )


def test_growth_keeps_few_points() -> None:
    growth = _Growth()
    for k in range(10_000):
        growth.add(k, float(k))
    result = growth.result("c")
    assert len(result.largest) <= POINTS
    assert result.largest[-1] == 9999
    assert list(result.largest) == sorted(result.largest)


def test_a_calibration_from_a_script(tmp_path: Path) -> None:
    step = zoo.lstm()
    frames = [f["x"] for f in smooth_frames(step, 40)]
    done = public_calibrate(step, [frames, frames[:20]], tmp_path / "a.calib.json", rounds=2)
    again = Calibration.load(tmp_path / "a.calib.json")
    assert again.frames == 60
    assert done.moved
    assert again.to_json() == Calibration.from_json(again.to_json()).to_json()


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (
            (5, 6),
            r"too few frames to calibrate on: found 11 frames in 2 sequences; expected at least 24\. A state needs",
        ),
        ((30, 0), r"sequence s1 is empty: expected at least one frame"),
    ],
)
def test_too_little(lengths: tuple[int, ...], message: str) -> None:
    step = zoo.lstm()
    with pytest.raises(EdgeLstmError, match=message):
        calibrate(step, recordings(step, lengths), threads=1)


def test_blank_frames() -> None:
    step = zoo.lstm()
    blank = [{"x": np.zeros(3, np.float32)}] * 30
    with pytest.raises(
        EdgeLstmError, match=r"range of tensor 'x': found 0 in every frame.* Calibrate on real frames"
    ):
        calibrate(step, [Recording("blank", blank)], threads=1)


def test_frames_that_overflow_the_model() -> None:
    step = from_text(
        "huge (float[N, 2] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] t) <float[2, 2] w = {1e30, 1e30, 1e30, 1e30}>"
        " { t = MatMul (x, w)  y = Mul (s, t) }",
        s="t",
    )
    frames = [{"x": np.full(2, 1e30, np.float32)}] * 30
    with pytest.raises(EdgeLstmError, match=r"tensor 't': found values that are infinite or not a number"):
        calibrate(step, [Recording("huge", frames)], threads=1)


def test_nothing_to_quantise() -> None:
    step = from_text("none (float[N, 2] x) => (float[N, 2] y) { y = Neg (x) }")
    with pytest.raises(EdgeLstmError, match=r"nothing to quantise in this model: found operators Neg"):
        calibrate(step, recordings(step), threads=1)


def test_quantised_already() -> None:
    step = zoo.lstm()
    with pytest.raises(EdgeLstmError, match=r"quantised already: expected the float step graph"):
        calibrated(quantize(step, calibrated(step)))


BROKEN: dict[str, tuple[Any, str]] = {
    "kind": (lambda d: d.update(kind="x"), r"here is not a calibration: found x"),
    "schema": (lambda d: d.update(schema=99), r"schema of the calibration: found 99; expected 1"),
    "one-sided": (
        lambda d: d["tensors"]["x"].update(high=[None] * 3),
        r"here: range of tensor 'x': found no high: one-sided; expected a low and a high end",
    ),
    "one-sided tensor": (
        lambda d: d["tensors"]["x"].update(tensor_low=None),
        r"found no tensor_low: one-sided",
    ),
    "zero": (
        lambda d: d["tensors"]["x"].update(tensor_low=0, tensor_high=0, low=[0] * 3, high=[0] * 3),
        r"range of tensor 'x': found 0 in every frame",
    ),
    "infinite": (
        lambda d: d["tensors"]["x"].update(tensor_high=float("inf")),
        r"'x': found a value that is infinite",
    ),
    "reversed": (
        lambda d: d["tensors"]["x"].update(tensor_low=9, tensor_high=1),
        r"found a low end above the high one",
    ),
    "channels": (
        lambda d: d["tensors"]["x"].update(low=[0]),
        r"expected one number for each channel in each",
    ),
    "missing": (lambda d: d["tensors"]["x"].pop("low"), r"malformed calibration: found KeyError 'low'"),
    "weights": (lambda d: d["weights"]["w0"].update(size=3), r"malformed calibration: found ValueError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case: str) -> None:
    change, message = BROKEN[case]
    data = copy.deepcopy(json.loads(GOLDEN.read_text()))
    change(data)
    with pytest.raises(EdgeLstmError, match=message):
        Calibration.from_json(data, "here")


def test_golden_file_loads_and_quantises_for_ever() -> None:
    found = Calibration.load(GOLDEN)
    step = zoo.lstm()
    assert found.model == step.graph_hash()
    assert found.frames == 96
    assert found.weights["w0"].shape == (7, 7)
    quantize(step, found).check()


leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
)


@settings(max_examples=150)
@given(st.data())
def test_fuzzed_files_load_or_say_why(data: st.DataObject) -> None:
    broken: Any = copy.deepcopy(json.loads(GOLDEN.read_text()))
    place = broken
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(place[key], dict | list) and place[key]) or data.draw(st.integers(0, 3)) == 0:
            place[key] = data.draw(leaves)
            break
        place = place[key]
    with contextlib.suppress(EdgeLstmError):
        Calibration.from_json(broken)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00"])
def test_what_is_no_calibration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(EdgeLstmError, match=r"c\.json is not a calibration"):
        Calibration.load(path)
