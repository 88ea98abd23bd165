"""States that move by less than a code, or half a unit in the last place, a frame: found at calibration, kept in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
import pytest

import zoo
from edgelstm import calibrate, quantize
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.quantize.calibration import Calibration, StateGrowth, stuck_states
from edgelstm.quantize.movement import only_through_products
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.runner import Runner
from recordings import calibrated
from stepping import from_text

FRAMES, RATE = 1400, 0.004


def leaky(rate: float = RATE) -> StepModel:
    """A running mean that a product reads: s moves by ``rate`` of what it is off."""
    return from_text(
        f"""leaky (float[N, 3] x, float[N, 3] s) => (float[N, 2] y, float[N, 3] t)
        <float[3, 2] w = {{0.5, 0.2, -0.3, 0.4, 0.7, -0.6}}, float keep = {{{1 - rate}}}, float rate = {{{rate}}}>
        {{ a = Mul (s, keep)  b = Mul (x, rate)  t = Add (a, b)  y = MatMul (t, w) }}""",
        s="t",
    )


def through_a_product() -> StepModel:
    """The same, by a matrix: what the product reads of s is all that is left of it."""
    kept = ", ".join(str(v) for v in (np.eye(3) * (1 - RATE)).ravel())
    return from_text(
        f"""matrix (float[N, 3] x, float[N, 3] s) => (float[N, 3] y, float[N, 3] t)
        <float[3, 3] w = {{{kept}}}, float rate = {{{RATE}}}>
        {{ a = MatMul (s, w)  b = Mul (x, rate)  t = Add (a, b)  y = Neg (t) }}""",
        s="t",
    )


def slow_conv_gru() -> StepModel:
    """A ConvGRU whose update gate is nearly shut: (1 - z) is a difference of near-equal numbers."""
    rng = np.random.default_rng(1)
    gates, new = (", ".join(f"{v:.3f}" for v in rng.normal(0, 0.2, n)) for n in (8 * 5 * 9, 4 * 5 * 9))
    bias = ", ".join(["0"] * 4 + ["5"] * 4)
    return from_text(
        f"""gru (float[N, 1, 6, 6] x, float[N, 4, 6, 6] h) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] k)
        <float[8, 5, 3, 3] wg = {{{gates}}}, float[8] bg = {{{bias}}}, float[4, 5, 3, 3] wn = {{{new}}}, float one = {{1}}>
        {{ xh = Concat <axis = 1> (x, h)  g = Conv <pads = [1, 1, 1, 1]> (xh, wg, bg)  s = Sigmoid (g)
           r, z = Split <axis = 1, num_outputs = 2> (s)  rh = Mul (r, h)  xr = Concat <axis = 1> (x, rh)
           c = Conv <pads = [1, 1, 1, 1]> (xr, wn)  n = Tanh (c)  zh = Mul (z, h)  u = Sub (one, z)  un = Mul (u, n)
           k = Add (zh, un)  y = Neg (k) }}""",
        h="k",
    )


def frames(step: StepModel, count: int = FRAMES) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shape = step.signature.inputs[0].frame_shape
    slow = np.sign(np.sin(np.arange(count) / 250))
    return [(s + 0.2 * rng.normal(size=shape)).astype(np.float32) for s in slow]


def run(step: StepModel) -> np.ndarray:
    """Its output over a long stream."""
    with Runner(OrtProgram(step.to_bytes(), threads=1)) as runner:
        stream = runner.stream("a")
        return np.array([stream.step(frame)["y"] for frame in frames(step)])


@dataclass(frozen=True)
class Slow:
    """A model with a slow state, what was seen of it, and what it gives."""

    step: StepModel
    found: Calibration
    true: np.ndarray


@cache
def slow(make: Callable[[], StepModel]) -> Slow:
    step = make()
    return Slow(step, calibrate(step, [frames(step)], threads=1).calibration, run(step))


def off(true: np.ndarray, step: StepModel) -> float:
    """Relative error of the output over a long stream."""
    other = run(step)
    return float(np.linalg.norm(other - true) / np.linalg.norm(true))


def ignoring(calibration: Calibration) -> Calibration:
    """The same, as if nobody had looked at how states move."""
    return replace(calibration, states={n: replace(s, rounding={}) for n, s in calibration.states.items()})


INT8, TENSORRT, FP8 = {}, {"runtime": "tensorrt"}, {"runtime": "tensorrt", "precision": "fp8"}
BF16, FP16 = {"precision": "bf16"}, {"precision": "fp16"}


@pytest.mark.parametrize(
    ("make", "options"),
    [
        *product([leaky], [INT8, FP8, BF16, FP16]),
        *product([through_a_product], [INT8, BF16, FP16]),
        (slow_conv_gru, BF16),
        # Seconds each, and the others have it.
        *(
            pytest.param(make, o, marks=pytest.mark.thorough)
            for make, options in (
                (leaky, [TENSORRT]),
                (through_a_product, [TENSORRT, FP8]),
                (slow_conv_gru, [INT8, TENSORRT, FP8, FP16]),
            )
            for o in options
        ),
    ],
)
def test_a_slow_state_stays_float_and_follows(make, options) -> None:  # type: ignore[no-untyped-def]
    case = slow(make)
    step, found = case.step, case.found
    name = step.signature.states[0].name
    precision = options.get("precision", "int8")
    dtype = {"int8": "int8", "fp8": "float8e4m3fn", "bf16": "bfloat16", "fp16": "float16"}[precision]
    if precision == "fp16":
        assert not stuck_states(found, dtype), "it is fine enough"
        # A matrix of .996 has that in fp16 only to within a sixteenth of .004.
        assert off(case.true, quantize(step, found, **options).step) < (
            0.04 if make is through_a_product else 0.01
        )
        return
    rounding = stuck_states(found, dtype)[name]
    assert rounding.error > 0.02
    if make is through_a_product and precision in ("int8", "fp8"):
        # All there is to quantise carries the state.
        with pytest.raises(
            EdgeLstmError, match=r"nothing is left to quantise: found state 's' stays in float32"
        ):
            quantize(step, found, **options)
        return
    made = quantize(step, found, **options)
    assert made.step.signature.state(name).dtype == "float32"
    assert any(f"state {name!r} stays in float32" in note for note in made.notes), made.notes
    limit = 0.03 if precision in ("int8", "bf16") else 0.06
    assert off(case.true, made.step) < limit
    worse = quantize(step, ignoring(found), **options).step
    assert off(case.true, worse) > 3 * off(case.true, made.step), "what it would be otherwise"


@pytest.mark.parametrize("make", [zoo.lstm, lambda: zoo.conv_lstm(size=8)])
def test_states_that_move_are_stored_as_codes(make) -> None:  # type: ignore[no-untyped-def]
    found = calibrated(make())
    assert not any(stuck_states(found, dtype) for dtype in ("int8", "float16", "bfloat16", "float8e4m3fn"))
    assert all("int8" in found.states[n].rounding for n in ("h", "z8_h") if n in found.states)


def test_a_running_mean_that_is_quick_enough_is_stored_as_codes() -> None:
    step = leaky(0.5)
    found = calibrate(step, [frames(step)], threads=1).calibration
    assert not stuck_states(found, "int8")
    assert quantize(step, found).step.signature.state("s").dtype == "uint8"


def test_only_some_channels_are_slow() -> None:
    step = from_text(
        """some (float[N, 3] x, float[N, 3] s) => (float[N, 2] y, float[N, 3] t)
        <float[3, 2] w = {0.5, 0.2, -0.3, 0.4, 0.7, -0.6}, float[3] keep = {0.2, 0.996, 0.3}, float[3] rate = {0.8, 0.004, 0.7}>
        { a = Mul (s, keep)  b = Mul (x, rate)  t = Add (a, b)  y = MatMul (t, w) }""",
        s="t",
    )
    found = calibrate(step, [frames(step)], threads=1).calibration
    assert stuck_states(found, "int8")["s"].stuck == 1


def test_which_way_a_state_goes() -> None:
    for step, only in (
        (leaky(), False),
        (through_a_product(), True),
        (slow_conv_gru(), False),
        (zoo.lstm(), True),
    ):
        states = [s for s in step.signature.states if not s.name.endswith("_c")]
        assert all(only_through_products(step, s) is only for s in states)


def test_auto_keeps_it_too() -> None:
    step = leaky()
    made = quantize(step, precision="auto", budget=0.05, source=[frames(step)], limit=FRAMES, threads=1)
    assert made.step.signature.state("s").dtype == "float32"
    assert any("'s' stays in float32" in note for note in made.notes)


def test_rounding_in_a_file() -> None:
    found = slow(leaky).found
    data = found.to_json()
    assert Calibration.from_json(data).states["s"].rounding == found.states["s"].rounding
    del data["states"]["s"]["rounding"]
    assert Calibration.from_json(data).states["s"].rounding == {}
    for bad in ({"int4": {}}, {"int8": {"slow": -1, "error": 0, "times": 0, "stuck": 0}}):
        with pytest.raises(Exception, match=r"rounding of state 's'|malformed|slow"):
            StateGrowth.from_json("s", {"every": 1, "largest": [1.0], "rounding": bad})
