"""Types that NumPy lacks, against ml_dtypes, which onnx brings along."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgelstm.dtypes import DTYPES, from_float32, np_dtype, to_float32
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Quantization, Signature, StateSpec, TensorSpec

floats = hnp.arrays(np.float32, 64, elements=st.floats(-440, 440, width=32))
KINDS = {"bfloat16": ml_dtypes.bfloat16, "float8e4m3fn": ml_dtypes.float8_e4m3fn, "float16": np.float16}


@pytest.mark.parametrize("dtype", KINDS)
@given(floats)
def test_rounding_is_that_of_ml_dtypes(dtype: str, values: np.ndarray) -> None:
    coded = from_float32(values, dtype)
    assert coded.dtype == np_dtype(dtype)
    want = values.astype(KINDS[dtype])
    np.testing.assert_array_equal(coded.view(np.uint8), want.view(np.uint8))
    np.testing.assert_array_equal(to_float32(coded, dtype), want.astype(np.float32))


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "bool"])
def test_what_can_be_held_stays_as_it_is(dtype: str) -> None:
    values = np.array([0, 1, 2, 96], np.float32)
    np.testing.assert_array_equal(to_float32(from_float32(values, dtype), dtype), values)


def test_out_of_range_saturates() -> None:
    values = np.array([1e9, -1e9, np.nan], np.float32)
    np.testing.assert_array_equal(from_float32(values[:2], "int8"), [127, -128])
    np.testing.assert_array_equal(
        to_float32(from_float32(values, "float8e4m3fn"), "float8e4m3fn"), [448, -448, np.nan]
    )


def test_a_state_with_a_scale_for_each_channel() -> None:
    state = StateSpec("h", "h", "h_next", "int8", ("N", 2, 3), quantization=Quantization((0.5, 0.01)))
    values = np.array([[1.2, 63.5, 99], [0.011, -1.28, 0]], np.float32)
    stored = state.stored(values)
    np.testing.assert_array_equal(stored, [[2, 127, 127], [1, -128, 0]])
    np.testing.assert_allclose(state.values(stored), [[1, 63.5, 63.5], [0.01, -1.28, 0]], rtol=1e-6)
    signature = Signature((TensorSpec("x", "float32", ("N", 1)),), (), (state,))
    assert Signature.loads(signature.dumps()) == signature


@given(floats.map(lambda v: v / 128), st.integers(-128, 127))
def test_stored_and_worth_are_inverse_within_half_a_step(values: np.ndarray, zero: int) -> None:
    state = StateSpec("h", "h", "h_next", "int8", ("N", 64), quantization=Quantization((0.06,), zero))
    inside = np.clip(values, (-128 - zero) * 0.06, (127 - zero) * 0.06)
    assert np.abs(state.values(state.stored(values)) - inside).max() <= 0.0301


@pytest.mark.parametrize("scale", [(), (0.0,), (float("inf"),), (float("nan"), 1.0)])
def test_scales_that_are_none(scale: tuple[float, ...]) -> None:
    with pytest.raises(
        EdgeLstmError, match=r"scale of a quantised state: found .*; expected finite numbers above 0"
    ):
        Quantization(scale)


def test_scales_for_other_channels() -> None:
    with pytest.raises(
        EdgeLstmError, match=r"scales of state 'h': found 3; expected 1, or one for each channel of \[2\]"
    ):
        StateSpec("h", "h", "h_next", "int8", ("N", 2), quantization=Quantization((1.0, 1.0, 1.0)))
