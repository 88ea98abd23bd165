"""The helper that judges all other numbers is judged here."""

from __future__ import annotations

import numpy as np
import pytest

from tolerances import assert_close


def test_rounding_of_the_dtype_passes_and_more_does_not() -> None:
    reference = np.linspace(-3, 3, 7)
    assert_close(reference.astype(np.float16), reference, np.float16, k=1)
    assert_close(np.float32(reference) * np.float32(1 + 1e-6), reference, np.float32)
    with pytest.raises(AssertionError, match=r"6 of 7 values differ; the worst at \[0\]: .*float32, k=64"):
        assert_close(reference * (1 + 1e-4), reference, np.float32)


def test_atol_stands_for_values_that_cancel() -> None:
    assert_close([1e-6], [0.0], np.float32)
    with pytest.raises(AssertionError, match="1 of 1"):
        assert_close([1e-6], [0.0], np.float32, atol=0)


@pytest.mark.parametrize(
    ("actual", "reference"),
    [([np.nan], [1.0]), ([1.0], [np.nan]), ([np.nan], [np.nan]), ([np.inf], [1.0]), ([1.0], [np.inf])],
)
def test_not_a_number_and_infinity_are_never_close(actual: list[float], reference: list[float]) -> None:
    with pytest.raises(AssertionError, match="1 of 1"):
        assert_close(actual, reference, np.float32)


def test_infinity_equals_itself() -> None:
    assert_close([np.inf, -np.inf], [np.inf, -np.inf], np.float32)


def test_shapes_must_agree() -> None:
    with pytest.raises(AssertionError, match=r"shape \(1, 2\), expected \(2,\)"):
        assert_close([[1, 2]], [1, 2], np.float32)
