"""The reference's convolutions, made quick, against the plain sum over the places of the kernel."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.frontends.keras import arithmetic


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, dict[str, object], int]:
    """Any rank, strides, dilation, padding and groups; now and then blocks smaller than one place's window."""
    rank, groups = draw(st.integers(1, 3)), draw(st.sampled_from((1, 1, 2, 3)))
    sizes = [draw(st.integers(1, 3)) for _ in range(rank)]
    spatial = [draw(st.integers(1, 7)) for _ in range(rank)]
    options: dict[str, object] = {
        "strides": tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        "dilation": tuple(draw(st.integers(1, 2)) for _ in range(rank)),
        "padding": tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(rank)),
        "groups": groups,
    }
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.normal(size=(draw(st.integers(1, 3)), *spatial, 2 * groups))
    kernel = rng.normal(size=(*sizes, 2, 3 * groups))
    return x, kernel, options, draw(st.sampled_from((1, 20, 300, 2**16)))


def plainly(x: np.ndarray, kernel: np.ndarray, **options: object) -> np.ndarray:
    """The definition, one place at a time."""
    strides, dilation, groups = options["strides"], options["dilation"], int(options["groups"])  # type: ignore[call-overload]
    x = np.pad(x, ((0, 0), *options["padding"], (0, 0)))  # type: ignore[misc]
    *sizes, inputs, outputs = kernel.shape
    places = [
        max((n - (k - 1) * d - 1) // s + 1, 0)
        for n, k, s, d in zip(x.shape[1:-1], sizes, strides, dilation, strict=True)  # type: ignore[call-overload]
    ]
    y = np.zeros((len(x), *places, outputs))
    for place in itertools.product(*map(range, places)):
        for at in itertools.product(*map(range, sizes)):
            where = tuple(p * s + a * d for p, a, s, d in zip(place, at, strides, dilation, strict=True))  # type: ignore[call-overload]
            for k in range(groups):
                share = slice(k * outputs // groups, (k + 1) * outputs // groups)
                seen = x[(slice(None), *where, slice(k * inputs, (k + 1) * inputs))]
                y[(slice(None), *place, share)] += seen @ kernel[at][:, share]
    return y


@settings(max_examples=60, deadline=None)
@given(cases())
def test_convolution_is_its_definition(case: tuple[np.ndarray, np.ndarray, dict[str, object], int]) -> None:
    x, kernel, options, block = case
    held, arithmetic._BLOCK = arithmetic._BLOCK, block
    try:
        found = arithmetic.conv(x, kernel, **options)  # type: ignore[arg-type]
    finally:
        arithmetic._BLOCK = held
    expected = plainly(x, kernel, **options)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
