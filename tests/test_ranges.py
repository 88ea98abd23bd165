"""Which range each method takes."""

from __future__ import annotations

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.gates import GateVariant
from edgelstm.observer import Observer
from edgelstm.ranges import METHODS, choose, overrides


def observed(
    channels: int = 4, outlier: float | None = None, scale: float = 1.0, shift: float = 0.0
) -> Observer:
    rng = np.random.default_rng(0)
    values = (scale * rng.normal(size=(channels, 20_000)) + shift).astype(np.float32)
    if outlier is not None:
        values[:, 0] = outlier
    o = Observer(channels)
    o.add(values, 0)
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
    assert tensor_high < 9
    assert (high < 9).all()
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


def test_overrides_take_the_first_pattern_that_fits() -> None:
    table = {"*/z": {"method": "mse"}, "h*": {"method": "percentile", "percentile": 99.0}}
    default = {"method": "minmax", "percentile": 99.99}
    assert overrides(table, "h0/z", default)["method"] == "mse"
    assert overrides(table, "h0", default) == {"method": "percentile", "percentile": 99.0}
    assert overrides(table, "x", default) == default


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
