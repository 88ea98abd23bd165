"""Calibration: the state is carried, and the file says all of it."""

from __future__ import annotations

import contextlib
import copy
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from edgelstm import calibrate as public_calibrate
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.passes.unroll import unroll
from edgelstm.quantize.calibrate import POINTS, Recording, _Growth, calibrate
from edgelstm.quantize.calibration import Calibration, changes, growing_states
from edgelstm.quantize.qdq import quantize
from edgelstm.quantize.ranges import METHODS
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Frame
from edgelstm.workflows.held_back import frames_of
from recordings import calibrated, recordings, smooth_frames
from stepping import Stepper, from_text

GOLDEN = Path(__file__).parents[1] / "golden" / "calibration-1.json"


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


@pytest.mark.parametrize("streams", [1, 8])
def test_correlations_are_those_of_a_loop_by_hand(streams: int) -> None:
    """Of what each weight meets, frame and old state together, in every frame of every sequence."""
    step = zoo.lstm()
    sequences = recordings(step)
    found = calibrate(step, sequences, streams=streams, threads=1)
    stepper, met = Stepper(step), []
    for sequence in sequences:
        states = stepper.initial(1)
        for frame in sequence.frames:
            met.append(np.concatenate([frame["x"], states["z9_h"][0]]).astype(np.float64))
            _, states = stepper({"x": frame["x"][None]}, states)
    rows = np.stack(met)
    wanted = rows.T @ rows / len(rows)
    rms = np.sqrt(np.diag(wanted))
    # The file holds correlations in float16.
    np.testing.assert_allclose(
        found.weights["w0"] / rms[:, None] / rms, wanted / rms[:, None] / rms, atol=1e-3
    )


def test_frames_are_not_kept() -> None:
    step = zoo.conv_lstm(size=8)
    alive: list[weakref.ref[Any]] = []
    most = 0

    def frames() -> Iterator[Frame]:
        nonlocal most
        for frame in smooth_frames(step, 3) * 20:
            frame = {"x": frame["x"].copy()}
            alive.append(weakref.ref(frame["x"]))
            most = max(most, sum(r() is not None for r in alive))
            yield frame

    calibrate(step, [Recording("a", frames())], threads=1)
    assert most <= 3


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
        stored = program.read_state(state, 0)
        worth = {s.name: s.values(stored[s.name])[None] for s in quantised.signature.states}
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
    assert found.frames == plain.frames == 60, "frames are counted, not windows"
    assert len(found.states["a0_c"].largest) == 60
    assert max(highest) == pytest.approx(
        max(t.tensor_high for t in plain.tensors.values() if t.role == "state"), rel=1e-5
    )


@pytest.mark.parametrize("frames", [1, 5])
def test_a_fixed_number_of_streams(frames: int) -> None:
    """Places without a sequence stay empty; a window that mixes streams with time takes one of them."""
    found = []
    for axis in (4, "N"):
        step = zoo.lstm(axis=axis)
        each = smooth_frames(step, 60)
        if frames > 1:
            step = unroll(step, frames)
            each = [{"x": np.stack([f["x"] for f in each[k : k + frames]])} for k in range(0, 60, frames)]
        found.append(calibrate(step, [Recording("a", each), Recording("b", each[:6])], threads=1))
    for name, t in found[1].tensors.items():
        np.testing.assert_allclose(found[0].tensor(name).high, t.high, rtol=1e-5)
        assert found[0].tensor(name).samples == t.samples


@pytest.mark.parametrize("method", METHODS)
def test_what_is_returned_is_what_the_file_holds(tmp_path: Path, method: str) -> None:
    step = zoo.lstm()
    found = calibrated(step, method=method)
    found.save(tmp_path / "a.json")
    loaded = Calibration.load(tmp_path / "a.json")
    assert loaded.to_json() == found.to_json()
    weights = ["w0", "w1"]
    assert (
        quantize(step, loaded, weights=weights).to_bytes()
        == quantize(step, found, weights=weights).to_bytes()
    )


def test_preprocessing_given_as_tuples_is_that_of_the_file(tmp_path: Path) -> None:
    plain = zoo.conv_lstm(size=8)
    ops = {"x": ({"op": "normalize", "mean": (0.1, 0.2), "std": (1.0, 2.0)},)}
    step = StepModel(plain.copy_model(), replace(plain.signature, preprocessing=ops))
    calibrated(step).save(tmp_path / "a.json")
    quantize(step, Calibration.load(tmp_path / "a.json")).check()


def test_initial_values_and_first_frames_are_in_the_range() -> None:
    """A state that only ever shrinks from its initial value: the largest it was is where it began."""
    step = from_text(
        """leak (float[N, 2] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] t)
        <float[2, 2] w = {1, 0, 0, 1}, float[1] k = {0.5}> { m = MatMul (s, w)  y = Add (m, x)  t = Mul (s, k) }""",
        s="t",
    )
    start = np.array([8, -4], np.float32)
    state = replace(step.signature.state("s"), initial=start.tobytes())
    begun = StepModel(step.copy_model(), replace(step.signature, states=(state,)))
    found = calibrated(begun, method="minmax").tensor("s")
    np.testing.assert_allclose(found.maximum, [8, 0], atol=1e-5)
    np.testing.assert_allclose(found.minimum, [0, -4], atol=1e-5)
    assert found.samples == 1 + 40 + 25 + 31


def test_states_that_are_no_floats_are_carried_along() -> None:
    step = from_text(
        """mixed (float[N, 3] x, float[N, 3] s, int64[N, 1] n, bool[N, 1] f)
        => (float[N, 3] y, float[N, 3] t, int64[N, 1] n_next, bool[N, 1] f_next)
        <float[3, 3] w = {0.5, 0.2, 0.1, 0.3, 0.1, 0.2, 0.3, 0.4, 0.1}, int64[1] one = {1}>
        { m = MatMul (s, w)  a = Add (m, x)  t = Tanh (a)  y = Neg (t)  n_next = Add (n, one)  f_next = Not (f) }""",
        s="t",
        n="n_next",
        f="f_next",
    )
    done = public_calibrate(step, [[f["x"] for f in smooth_frames(step, 40)]], rounds=2, threads=1)
    assert done.calibration.states["n"].largest[-1] == 40
    quantised = quantize(step, done.calibration)
    assert [s.dtype for s in quantised.signature.states] == ["uint8", "int64", "bool"]


def test_progress_counts_frames() -> None:
    step = zoo.lstm()
    seen: list[int] = []
    calibrated(step, progress=seen.append)
    assert sum(seen) == 40 + 25 + 31
    assert max(seen) == 3, "three side by side"


def test_the_file_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    step = zoo.lstm()
    sizes = []
    for count in (300, 1200):
        frames = smooth_frames(step, 60) * (count // 60)
        calibrate(step, [Recording("a", frames)], threads=1).save(tmp_path / "a.json")
        sizes.append((tmp_path / "a.json").stat().st_size)
    assert sizes[1] < 1.2 * sizes[0], "counts get longer, not more"


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
    with pytest.raises(
        EdgeLstmError,
        match=r"state 's': found a value that is infinite or not a number at frame 0;.*overflow",
    ):
        calibrate(step, [Recording("huge", frames)], threads=1)


def test_a_state_that_overflows_though_no_product_meets_it() -> None:
    step = from_text(
        """sum (float[N, 2] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] t)
        <float[2, 2] w = {1, 0, 0, 1}, float[1] k = {10}> { y = MatMul (x, w)  a = Add (s, x)  t = Mul (a, k) }""",
        s="t",
    )
    frames = [{"x": np.ones(2, np.float32)}] * 60
    with pytest.raises(EdgeLstmError, match=r"state 's': found .* at frame 38; expected finite values"):
        calibrate(step, [Recording("ones", frames)], threads=1)


def test_a_tensor_inside_that_overflows() -> None:
    step = from_text(
        """inside (float[N, 2] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] t)
        <float[2, 2] w = {1e30, 1e30, 1e30, 1e30}> { z = MatMul (x, w)  y = Tanh (z)  t = Neg (s) }""",
        s="t",
    )
    frames = [{"x": np.full(2, 1e30, np.float32)}] * 30
    with pytest.raises(EdgeLstmError, match=r"tensor 'z': found values that are infinite or not a number"):
        calibrate(step, [Recording("huge", frames)], threads=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "max"}, r"calibration method: found max"),
        ({"tensors": {"[xz]*": {"method": "max"}}}, r"calibration method: found max"),
        ({"tensors": {"*": {}, "x": {"percentile": 3.0}}}, r"percentile: found 3\.0; expected above 50"),
        ({"tensors": {"x": {"percentile": "99"}}}, r"percentile: found 99; expected above 50"),
        (
            {"tensors": {"x": {"methd": "mse"}}},
            r"settings of tensors 'x': found key 'methd'; expected method, percentile",
        ),
        ({"streams": 0}, r"streams: found 0; expected at least 1"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(options: dict[str, Any], message: str) -> None:
    step = zoo.lstm()

    def frames() -> Any:
        raise AssertionError("read")
        yield

    with pytest.raises(EdgeLstmError, match=message):
        calibrate(step, [Recording("a", frames())], threads=1, **options)


def test_no_sequences() -> None:
    with pytest.raises(EdgeLstmError, match=r"too few frames.*: found 0 frames in 0 sequences"):
        calibrate(zoo.lstm(), [], threads=1)


def test_a_frame_that_is_none() -> None:
    step = zoo.lstm()
    frames = smooth_frames(step, 30)
    frames[7] = {"x": np.full(3, np.nan, np.float32)}
    with pytest.raises(EdgeLstmError, match=r"frame 7 of stream 'sequence 0', input 'x': found 3 values"):
        calibrate(step, [Recording("a", frames)], threads=1)
    frames[7] = {"x": np.zeros(4, np.float32)}
    with pytest.raises(
        EdgeLstmError, match=r"input 'x': found float32\[4\]; expected a NumPy array float32\[3\]"
    ):
        calibrate(step, [Recording("a", frames)], threads=1)


def test_nothing_is_written_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(EdgeLstmError, match="too few frames"):
        public_calibrate(zoo.lstm(), [[np.ones(3, np.float32)] * 5], tmp_path / "a.calib.json")
    assert list(tmp_path.iterdir()) == []


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
    "on one side of zero": (
        lambda d: d["tensors"]["x"]["low"].__setitem__(1, 0.25),
        r"'x': found \[0\.25, [\d.]+\]: one-sided; expected .* since 0 needs a code. Calibrate again",
    ),
    "beyond float32": (
        lambda d: d["tensors"]["x"]["maximum"].__setitem__(1, 1e39),
        r"'x': found a value that is infinite",
    ),
    "mean square below zero": (
        lambda d: d["tensors"]["x"]["mean_square"].__setitem__(1, -1.0),
        r"'x': found a value that is infinite or not a number",
    ),
    "growth of a state": (
        lambda d: d["states"]["a0_c"].update(every=0),
        r"here: growth of state 'a0_c': found every 0 frames",
    ),
    "growth that is infinite": (
        lambda d: d["states"]["a0_c"].update(largest=[float("inf")]),
        r"growth of state 'a0_c': found every 1 frame: inf; expected finite sizes",
    ),
    "preprocessing": (
        lambda d: d["preprocessing"].update(x=["scale"]),
        r"malformed calibration: found ValueError",
    ),
    "what can't be written": (
        lambda d: d["method"].update(percentile=float("nan")),
        r"malformed calibration",
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
        r"'x': found \[9, 1\]: reversed; expected a low end of at most 0",
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
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([-1, 0, 1, 1e39, -1e39, 2**70, "lstm", "AAAA", [], {}, [0], [1, 2, 3], {"x": 1}])
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in JSON data; of a long list its ends stand for all."""
    keys = list(data) if isinstance(data, dict) else list(range(len(data))) if isinstance(data, list) else []
    inner = [p for key in (*keys[:6], *keys[6:][-1:]) for p in places(data[key], (*path, key))]
    return [*([path] if path else []), *inner]


@settings(max_examples=250, deadline=None)
@given(st.data())
@pytest.mark.filterwarnings("error")
def test_fuzzed_files_are_of_use_or_say_why(data: st.DataObject) -> None:
    """What loads can be written again, compared and quantised with, or is refused there."""
    broken: Any = copy.deepcopy(json.loads(GOLDEN.read_text()))
    *path, key = data.draw(st.sampled_from(places(broken)))
    place = broken
    for step_in in path:
        place = place[step_in]
    if data.draw(st.booleans()):
        place[key] = data.draw(leaves)
    elif isinstance(place, dict):
        del place[key]
    else:
        place.insert(key, data.draw(leaves))
    with contextlib.suppress(EdgeLstmError):
        found = Calibration.from_json(broken)
        json.dumps(found.to_json(), allow_nan=False)
        changes(Calibration.load(GOLDEN), found)
        growing_states(found)
        quantize(zoo.lstm(), found, weights=["w0", "w1"])


def test_tensors_of_other_sizes() -> None:
    data = json.loads(GOLDEN.read_text())
    data["tensors"]["x"] = data["tensors"]["y"]
    with pytest.raises(EdgeLstmError, match=r"range of tensor 'x': found 2 channels; expected 3. Calibrate"):
        quantize(zoo.lstm(), Calibration.from_json(data))
    data = json.loads(GOLDEN.read_text())
    data["weights"]["w0"] = data["weights"]["w1"]
    with pytest.raises(
        EdgeLstmError, match=r"what weight 'w0' meets.*: found 9 inputs; expected 7. Calibrate"
    ):
        quantize(zoo.lstm(), Calibration.from_json(data))


def test_a_tensor_or_weight_that_was_not_observed() -> None:
    data = json.loads(GOLDEN.read_text())
    del data["weights"]["w0"]
    quantize(zoo.lstm(), Calibration.from_json(data)).check()  # rounded to nearest then
    del data["tensors"]["x"]
    with pytest.raises(EdgeLstmError, match=r"the calibration has no range for tensor 'x': found 5 others"):
        quantize(zoo.lstm(), Calibration.from_json(data))


def test_correlations_that_no_data_has() -> None:
    """Three inputs each the opposite of both others: within bounds one by one, impossible together."""
    step = from_text(
        "three (float[N, 12] x) => (float[N, 2] y) <float[12, 2] w = {"
        + ", ".join("0.5" for _ in range(24))
        + "}> { y = MatMul (x, w) }"
    )
    found = calibrated(step)
    against = -np.ones((12, 12)) + 2 * np.eye(12)
    with pytest.raises(
        EdgeLstmError, match=r"what weight 'w' meets.*: found no correlations: no data has them"
    ):
        quantize(step, replace(found, weights={"w": 1e6 * against}), weights=["w"])


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00"])
def test_what_is_no_calibration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(EdgeLstmError, match=r"c\.json is not a calibration"):
        Calibration.load(path)


def test_frames_that_can_not_be_taken_are_left_out_and_the_check_has_the_right_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As if they were not in the file."""
    step = zoo.lstm()
    step.save(tmp_path / "m.onnx")
    rows = [[f"{v:.3f}" for v in row] for row in np.random.default_rng(2).normal(size=(140, 3))]
    for name, bad in (("good", {}), ("bad", {3: ["n/a", "0", "0"], 60: ["1", "", "0"], 130: ["1"]})):
        lines = ["a,b,c"]
        for k, row in enumerate(rows):
            lines += [",".join(bad[k])] if k in bad else []
            lines.append(",".join(row))
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    good, bad_table = str(tmp_path / "good.csv"), str(tmp_path / "bad.csv")
    with pytest.raises(EdgeLstmError, match="row 4"):
        public_calibrate(step, bad_table, threads=1)
    made = [
        public_calibrate(step, source, on_bad_frame=policy, sequence=70, threads=1).calibration
        for source, policy in ((good, "error"), (bad_table, "skip"))
    ]
    assert made[0].frames == made[1].frames
    for name, seen in made[0].tensors.items():
        assert (seen.minimum == made[1].tensors[name].minimum).all()
        assert (seen.maximum == made[1].tensors[name].maximum).all()
    for before, after in zip(*(c.data for c in made), strict=True):
        held = [list(frames_of(step, entry["check"], None)) for entry in (before, after)]
        assert len(held[0]) == len(held[1]) > 0
        assert all((a["x"] == b["x"]).all() for a, b in zip(*held, strict=True))
    assert "left out: 3 frames, the first: " in caplog.text
    assert "row 4" in caplog.text
    with pytest.raises(EdgeLstmError, match="found zero; expected error or skip"):
        public_calibrate(step, good, on_bad_frame="zero", threads=1)  # type: ignore[arg-type]
