"""Vectors read in two codes, one below the other: what rounding leaves over is read too, by the same weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from edgelstm.graph.step import StepModel
from edgelstm.passes.placement import HEADROOM, REST
from edgelstm.passes.unroll import unroll
from edgelstm.quantize.calibrate import Recording, calibrate
from edgelstm.quantize.qdq import plan, quantize
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.runner import Runner
from recordings import all_weights, calibrated, compared, drift, smooth_frames
from stepping import Stepper, from_text

#: Error of weights in int8, in these graphs, rounded up.
WEIGHTS = 0.02


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products with little work too, so that a test's graph can be read."""
    monkeypatch.setattr(plan, "TWO_ROWS", 0)


def normalised(axis: Any = 1) -> StepModel:
    """A product whose output is divided by its own size, as a layer norm does: quiet frames count as much as loud ones."""
    weight = ", ".join(f"{v:.3f}" for v in np.random.default_rng(0).normal(size=48))
    return from_text(
        f"""normalised (float[{axis}, 6] x, float[{axis}, 8] s) => (float[{axis}, 8] y, float[{axis}, 8] t)
        <float[6, 8] w = {{{weight}}}, float[8] b = {{0, 0, 0, 0, 0, 0, 0, 0}}, float slow = {{0.9}}, int64[1] last = {{1}}>
        {{ m = Gemm (x, w, b)  q = Mul (m, m)  p = ReduceMean (q, last)  r = Sqrt (p)  y = Div (m, r)
           k = Mul (s, slow)  t = Add (k, y) }}""",
        s="t",
    )


def between_transposes(perm: str = "0, 2, 1") -> StepModel:
    """Convolutions of one place as a Keras model has them."""
    first, second = (
        ", ".join(f"{v:.3f}" for v in np.random.default_rng(k).normal(size=n)) for k, n in ((1, 15), (2, 10))
    )
    return from_text(
        f"""between (float[1, 1, 3] x, float[1, 1, 5] s) => (float[1, 1, 2] y, float[1, 1, 5] t)
        <float[5, 3, 1] w = {{{first}}}, float[2, 5, 1] v = {{{second}}}>
        {{ a = Transpose <perm = [{perm}]> (x)  m = Conv (a, w)  n = Transpose <perm = [{perm}]> (m)
           k = Add (n, s)  t = Tanh (k)  u = Transpose <perm = [{perm}]> (t)  o = Conv (u, v)
           y = Transpose <perm = [{perm}]> (o) }}""",
        s="t",
    )


def quantised(step: StepModel, **options: Any) -> StepModel:
    made = quantize(step, calibrated(step), weights=all_weights(step), **options)
    made.check()
    return made


def error(step: StepModel, other: StepModel, factor: float) -> float:
    """Relative error of y over frames that are ``factor`` times as large as those of the calibration."""
    found = []
    a, b = Stepper(step), Stepper(other)
    states = [p.initial(1) for p in (a, b)]
    for frame in smooth_frames(step, 30, seed=5):
        x = {"x": frame["x"][None] * np.float32(factor)}
        (wanted, states[0]), (got, states[1]) = a(x, states[0]), b(x, states[1])
        found.append(np.linalg.norm(got["y"] - wanted["y"]) / np.linalg.norm(wanted["y"]))
    return float(np.mean(found))


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("factor", [0.01, 1, 4])
def test_quiet_frames_and_loud_ones(factor: float) -> None:
    step = normalised()
    # The frames' mean is not 0 by chance: what it adds to biases is more than quiet frames have.
    assert error(step, quantised(step, correct_bias=False), factor) < WEIGHTS
    if factor != 1:
        assert error(step, quantised(step, correct_bias=False, fine=False), factor) > 5 * WEIGHTS


@pytest.mark.usefixtures("any_size")
def test_the_operators() -> None:
    assert Counter(quantised(normalised()).op_types()) == {
        "QuantizeLinear": 2,
        "Sub": 1,
        "Concat": 1,
        "DequantizeLinear": 3,  # the first row, both rows, the weight
        "Gemm": 2,  # the product, and the sum of its rows
        **{"Mul": 2, "ReduceMean": 1, "Sqrt": 1, "Div": 1, "Add": 1},
    }


@pytest.mark.usefixtures("any_size")
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4), st.sampled_from([0.01, 0.3, 1, HEADROOM])
)
def test_what_is_read_is_what_was_there(values: list[float], factor: float) -> None:
    program, largest = _identity()
    x = np.array(values, np.float32)[None] * np.float32(factor * largest)
    y, _ = program({"x": x}, program.initial(1))
    step = largest / 127 * HEADROOM * REST
    np.testing.assert_allclose(y["y"], x, rtol=1e-6, atol=0.51 * step)


_made: list[tuple[Stepper, float]] = []


def _identity() -> tuple[Stepper, float]:
    """A product that gives what it reads; and the largest value of its calibration."""
    if not _made:
        eye = ", ".join(f"{v:g}" for v in np.eye(4).ravel())
        step = from_text(
            f"""same (float[1, 4] x, float[1, 4] s) => (float[1, 4] y, float[1, 4] t)
            <float[4, 4] w = {{{eye}}}> {{ y = MatMul (x, w)  t = Tanh (y) }}""",
            s="t",
        )
        calibration = calibrated(step)
        made = quantize(step, calibration, weights=["w"], correct_bias=False)
        seen = calibration.tensor("x")
        _made.append((Stepper(made), max(-seen.tensor_low, seen.tensor_high)))
    return _made[0]


def test_who_reads_two_rows() -> None:
    def is_so(step: StepModel, **options: Any) -> bool:
        return "Sub" in quantised(step, **options).op_types()

    large = zoo.lstm(192, (64,), axis=1)
    assert is_so(large)
    assert not is_so(large, fine=False)
    assert not is_so(large, target="tensorrt")
    assert not is_so(zoo.lstm(191, (64,), axis=1)), "the operators around it take longer"
    assert not is_so(zoo.lstm(192, (64,))), "with many streams in a call the arithmetic would double"


@pytest.mark.usefixtures("any_size")
def test_vectors_of_three_axes_stay_in_one_code() -> None:
    step = from_text(
        """three (float[1, 1, 3] x, float[1, 1, 2] s) => (float[1, 1, 2] y, float[1, 1, 2] t)
        <float[3, 2] w = {1, 2, 3, -1, 0, 2}> { y = MatMul (x, w)  k = Add (y, s)  t = Tanh (k) }""",
        s="t",
    )
    made = quantised(step)
    assert "Sub" not in made.op_types()
    assert max(drift(step, made).values()) < 0.05


def test_old_states_are_codes_and_lose_nothing_more() -> None:
    """x and h meet in one product: h is stored as codes, x is read in two."""
    step = zoo.lstm(192, (64,), axis=1, head=None)
    two, one = quantised(step), quantised(step, fine=False)
    assert two.signature.state("z9_h").dtype == "uint8"
    assert max(drift(step, two, 60).values()) < 0.8 * max(drift(step, one, 60).values())
    assert len(two.to_bytes()) < len(one.to_bytes()) + 4096, "the weights are stored once"


@pytest.mark.usefixtures("any_size")
def test_streams_do_not_see_each_other() -> None:
    step = zoo.lstm(axis=1)
    data = quantised(step).to_bytes()
    frames = [smooth_frames(step, 12, seed=k) for k in range(3)]
    with Runner(OrtProgram(data, streams=3, threads=1)) as many:
        streams = [many.stream(str(k)) for k in range(3)]
        together = [many.step({str(k): frames[k][t] for k in range(3)}) for t in range(12)]
        states = [s.snapshot() for s in streams]
    for k in range(3):
        with Runner(OrtProgram(data, threads=1)) as alone:
            stream = alone.stream("0")
            for t in range(12):
                y = stream.step(frames[k][t])["y"]
            np.testing.assert_allclose(y, together[-1][str(k)]["y"], rtol=1e-5)
            for name, value in stream.snapshot().items():
                np.testing.assert_allclose(value, states[k][name], rtol=1e-5)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("make", [normalised, lambda: zoo.lstm(axis=1)], ids=["normalised", "lstm"])
def test_windows(make: Callable[[], StepModel]) -> None:
    """A window of the quantised step is that step; of the float step, quantised, it stays as near."""
    step = make()
    two = quantised(step)
    assert "Sub" in two.op_types()
    for t in compared(two, unroll(two, 4), 40).tensors:
        assert t.worst < 1e-3, t.name
    window = unroll(step, 4)
    frames = smooth_frames(step, 80)
    blocks = [{"x": np.stack([f["x"] for f in frames[k : k + 4]])} for k in range(0, 80, 4)]
    found = calibrate(window, [Recording("a", blocks)], threads=1)
    assert max(drift(step, quantize(window, found, weights=all_weights(window)), 80).values()) < 0.08


@pytest.mark.usefixtures("any_size")
def test_convolutions_of_one_place_lose_the_transposes_around_them() -> None:
    step = between_transposes()
    made = quantised(step)
    assert not {"Conv", "Transpose"} & set(made.op_types())
    assert max(drift(step, made).values()) < WEIGHTS
    one = quantised(step, fine=False)
    assert max(drift(step, one).values()) < 0.04


def test_a_transpose_that_does_more_stays() -> None:
    step = from_text(
        """moves (float[1, 2, 3] x, float[1, 6, 1] s) => (float[1, 1, 3] y, float[1, 6, 1] t)
        <float[3, 6, 1] w = {1, 2, 3, 4, 5, 6, 0, 1, 0, -1, 0, 2, 3, 1, -2, 0, 1, 0}, int64[3] to = {1, 6, 1}>
        { a = Transpose <perm = [0, 2, 1]> (x)  b = Reshape (a, to)  k = Add (b, s)  t = Tanh (k)
          m = Conv (t, w)  y = Transpose <perm = [2, 0, 1]> (m) }""",
        s="t",
    )
    made = quantised(step)
    assert made.op_types().count("Transpose") == 2
    assert max(drift(step, made).values()) < 0.04


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize(
    "make",
    [lambda: zoo.lstm(axis=1), normalised, between_transposes],
    ids=["lstm", "normalised", "convolutions"],
)
def test_it_runs_in_integers(make: Callable[[], StepModel], tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    made = quantised(make())
    ort.InferenceSession(made.to_bytes(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    operators = Counter(n.op_type for n in graph.node)
    assert not {"Conv", "FusedConv", "MatMul"} & set(operators), operators
    assert operators["QGemm"] + operators["MatMulIntegerToFloat"] == len(all_weights(make()))
    assert operators["Gemm"] == made.op_types().count("Sub") > 0, "only sums of two rows are left in float"
