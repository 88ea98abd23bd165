"""Which range each method takes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.quantize.observer import Observer
from edgelstm.quantize.ranges import METHODS, choose, overrides
from recordings import calibrated


def observed(
    channels: int = 4, outlier: float | None = None, scale: float = 1.0, shift: float = 0.0
) -> Observer:
    rng = np.random.default_rng(0)
    values = (scale * rng.normal(size=(channels, 20_000)) + shift).astype(np.float32)
    if outlier is not None:
        values[:, 0] = outlier
    o = Observer(channels)
    for part in np.array_split(values, 4, axis=1):  # small enough that every value is counted
        o.add(part, 0)
    return o


def test_min_max_is_what_was_seen() -> None:
    o = observed(outlier=50)
    low, high, tensor_low, tensor_high = choose(o, "minmax")
    np.testing.assert_array_equal(low, o.minimum)
    np.testing.assert_array_equal(high, o.maximum)
    assert (tensor_low, tensor_high) == (o.minimum.min(), 50)


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_one_outlier_does_not_set_the_range(method: str) -> None:
    # So far out that clipping it costs less than stretching all codes.
    o = observed(outlier=12)
    low, high, tensor_low, tensor_high = choose(o, method, percentile=99.9)
    assert tensor_high < 11
    assert (high < 11).all()
    assert (low < -2).all()
    assert tensor_low < -2
    _, plain, *_ = choose(observed(), method, percentile=99.9)
    assert (plain > 2.4).all(), "without one nearly everything is kept"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [-9, 9])
def test_zero_is_always_inside(method: str, shift: float) -> None:
    low, high, tensor_low, tensor_high = choose(observed(shift=shift), method)
    assert (low <= 0).all()
    assert (high >= 0).all()
    assert tensor_low <= 0 <= tensor_high


@pytest.mark.parametrize("method", METHODS)
def test_a_channel_that_never_moves(method: str) -> None:
    o = Observer(2)
    o.add(np.stack([np.zeros(100), np.linspace(-1, 1, 100)]).astype(np.float32), 0)
    low, high, *_ = choose(o, method, gates=None)
    assert (low[0], high[0]) == (0, 0)
    assert high[1] > 0.5


def test_recurrent_clips_only_what_gates_flatten() -> None:
    o = observed(outlier=12)
    np.testing.assert_array_equal(choose(o, "recurrent")[1], choose(o, "minmax")[1])
    gates = GateVariant()
    np.testing.assert_array_equal(choose(o, "recurrent", gates=gates)[1], choose(o, "mse", gates=gates)[1])


def test_saturated_gates_need_no_codes_but_the_forget_gate_remembers() -> None:
    # i, f, g, o all between -12 and 12: sigmoid and tanh have long flattened out there.
    low, high, *_ = choose(observed(scale=4), "mse", gates=GateVariant())
    i, f, g, o = range(4)
    assert high[i] < 10
    assert high[o] < 10
    assert high[g] < high[i], "tanh flattens sooner than sigmoid"
    assert high[f] > high[i], "a memory of 1 / (1 - f) frames still feels the difference"
    assert low[f] > 1.6 * low[g]


def quantised(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Through 8 bits with a zero point, as a pre-activation goes."""
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize("gate", range(4))
@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
def test_no_range_would_have_served_the_gates_better(gate: int, spread: float) -> None:
    """What was chosen against every share of what was seen, by the error after the activation, measured."""
    o = observed(scale=spread)
    rng = np.random.default_rng(0)
    values = (spread * rng.normal(size=(4, 20_000)))[gate]
    low, high, *_ = choose(o, "mse", gates=GateVariant())
    through = [
        lambda x: 1 / (1 + np.exp(-x)),
        lambda x: np.logaddexp(0, x),  # what a forget gate near 1 forgets, 1 - f, in its logarithm
        np.tanh,
        lambda x: 1 / (1 + np.exp(-x)),
    ][gate]

    def error(ends: tuple[float, float]) -> float:
        return float(np.mean((through(quantised(values, *ends)) - through(values)) ** 2))

    shares = np.linspace(0.25, 1, 16)
    best = min(error((a * o.minimum[gate], b * o.maximum[gate])) for a in shares for b in shares)
    assert error((low[gate], high[gate])) < 1.15 * best


@pytest.mark.parametrize(
    "variant",
    [
        GateVariant(gate="hard_sigmoid"),
        GateVariant(gate="hard_sigmoid", alpha=1 / 6),
        GateVariant(coupled=True),
        GateVariant(candidate="relu"),
        GateVariant(peephole=True, cell_clip=3.0),
    ],
    ids=lambda v: v.op_type,
)
def test_gates_of_every_kind(variant: GateVariant) -> None:
    channels = 2 * len(variant.gates)
    low, high, *_ = choose(observed(channels, scale=3), "mse", gates=variant)
    by_gate = dict(zip(variant.gates, high.reshape(-1, 2), strict=True))
    if variant.gate == "hard_sigmoid":
        flat = 0.5 / variant.alpha
        assert (by_gate["i"] < flat + 1.5).all(), "beyond that it is 1"
        assert (by_gate["f"] < flat + 1.5).all(), "a hard gate does reach 1"
    if variant.candidate == "relu":
        assert (by_gate["g"] > 9).all(), "relu never flattens out upwards"
        assert (low.reshape(-1, 2)[variant.gates.index("g")] > -4).all(), "but it does downwards"
    else:
        assert (by_gate["g"] < 5).all()


def test_a_tensor_that_is_no_multiple_of_the_gates_is_taken_as_it_is() -> None:
    o = observed(5)
    plain, gated = choose(o, "mse"), choose(o, "mse", gates=GateVariant())
    np.testing.assert_array_equal(plain[0], gated[0])


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentiles_are_those_of_the_values(percentile: float) -> None:
    o = observed(scale=2.0)
    values = 2.0 * np.random.default_rng(0).normal(size=(4, 20_000))
    low, high, *_ = choose(o, "percentile", percentile=percentile)
    step = 2 * o.span.max() / 256
    # onnxruntime leaves (100 - percentile) / 200 out on either side.
    np.testing.assert_allclose(high, np.percentile(values, 50 + percentile / 2, axis=1), atol=2 * step)
    np.testing.assert_allclose(low, np.percentile(values, 50 - percentile / 2, axis=1), atol=2 * step)


def test_a_percentile_of_frames_that_are_nearly_blank() -> None:
    values = np.zeros((2, 10_000), np.float32)
    values[0, :100] = np.linspace(0, 4, 100)  # rain on one pixel in a hundred
    values[1] = 1
    o = Observer(2)
    o.add(values, 0)
    _, high, _, tensor_high = choose(o, "percentile", percentile=90.0)
    assert high[0] == 4
    assert tensor_high == pytest.approx(1, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.sampled_from([1, 4, 8]), st.integers(1, 60)),
        elements=st.floats(-50, 50, width=32) | st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.sampled_from(METHODS),
    st.sampled_from([None, GateVariant(), GateVariant(gate="hard_sigmoid", candidate="relu")]),
)
@pytest.mark.filterwarnings("error")
def test_ranges_lie_within_what_was_seen_and_hold_zero(
    data: np.ndarray, method: str, gates: GateVariant | None
) -> None:
    o = Observer(len(data))
    o.add(data, 0)
    low, high, tensor_low, tensor_high = choose(o, method, gates=gates)
    bin_width = 2 * np.maximum(o.span, 2.0**-64) / 256
    assert (low <= 0).all()
    assert (high >= 0).all()
    assert (low >= np.minimum(o.minimum, 0) - bin_width).all()
    assert (high <= np.maximum(o.maximum, 0) + bin_width).all()
    assert tensor_low <= 0 <= tensor_high
    if data.any():
        assert max(-tensor_low, tensor_high) > 0, "something was seen, so there is a range"


def test_overrides_take_the_first_pattern_that_fits() -> None:
    table = {"*/z": {"method": "mse"}, "h*": {"method": "percentile", "percentile": 99.0}}
    default = {"method": "minmax", "percentile": 99.99}
    assert overrides(table, "h0/z", default)["method"] == "mse"
    assert overrides(table, "h0", default) == {"method": "percentile", "percentile": 99.0}
    assert overrides(table, "x", default) == default
    assert overrides({"H*": {"method": "mse"}}, "h0", default) == default, "names differ by their case"


def test_settings_of_single_tensors_reach_them_and_no_other() -> None:
    step = zoo.lstm()
    tensors = {"z9*": {"method": "percentile", "percentile": 80.0}, "x": {"method": "minmax"}}
    plain, found = calibrated(step, method="minmax"), calibrated(step, method="minmax", tensors=tensors)
    changed = {n for n in plain.tensors if plain.tensor(n).tensor_high != found.tensor(n).tensor_high}
    assert changed == {"z9_h"}
    assert found.method["tensors"] == tensors


@pytest.mark.parametrize(
    ("method", "percentile", "message"),
    [
        (
            "max",
            99.0,
            r"calibration method: found max; expected one of recurrent, minmax, percentile, entropy, mse",
        ),
        ("percentile", 12.0, r"percentile: found 12\.0; expected above 50, at most 100"),
    ],
)
def test_bad_settings(method: str, percentile: float, message: str) -> None:
    with pytest.raises(EdgeLstmError, match=message):
        choose(observed(), method, percentile=percentile)
