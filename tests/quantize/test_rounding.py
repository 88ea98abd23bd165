"""Rounding that heeds what weights meet, and the statistics it rests on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelstm.quantize.correlation import Correlation, Window, from_json, spread, to_json
from edgelstm.quantize.qdq.rounding import round_rows


@given(st.integers(0, 1000))
def test_outputs_err_less_than_rounded_to_nearest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Inputs that go along with each other, as neighbouring pixels do.
    inputs = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 80)) * 30 + rng.normal(size=(500, 80)) * 3
    weight = rng.normal(size=(6, 80))
    scale = np.abs(weight).max(1) / 15
    codes = round_rows(weight, scale, inputs.T @ inputs / 500, 15)
    assert (codes == np.rint(codes)).all()
    assert np.abs(codes).max() <= 15
    nearest = np.rint(weight / scale[:, None])
    error, plain = (np.linalg.norm(inputs @ (c * scale[:, None] - weight).T) for c in (codes, nearest))
    assert error < 0.7 * plain


def test_inputs_that_are_apart_are_rounded_to_nearest() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 70))
    scale = np.abs(weight).max(1) / 127
    codes = round_rows(weight, scale, np.eye(70), 127)
    np.testing.assert_array_equal(codes, np.rint(weight / scale[:, None]))


def patches(image: np.ndarray, w: Window) -> np.ndarray:
    """Every patch, by plain loops."""
    rows, columns = w.kernel
    padded = np.pad(image, ((0, 0), (w.pads[0], w.pads[2]), (w.pads[1], w.pads[3])))
    found = []
    reach = [w.dilations[k] * (w.kernel[k] - 1) for k in range(2)]
    for y in range(0, padded.shape[1] - reach[0], w.strides[0]):
        for x in range(0, padded.shape[2] - reach[1], w.strides[1]):
            taps = [
                padded[:, y + w.dilations[0] * i, x + w.dilations[1] * j]
                for i in range(rows)
                for j in range(columns)
            ]
            found.append(np.stack(taps, 1).reshape(-1))
    return np.array(found)


@pytest.mark.parametrize(
    "window",
    [
        Window((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        Window((2, 3), (2, 1), (0, 2, 1, 0), (1, 2)),
        Window((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    ],
)
def test_patches_are_those_the_convolution_meets(window: Window) -> None:
    image = np.random.default_rng(0).normal(size=(2, 6, 7))
    seen = Correlation(2, window)
    for _ in range(400):
        seen.add(image)
    every = patches(image, window)
    assert seen.size == every.shape[1]
    np.testing.assert_allclose(seen.matrix, every.T @ every / len(every), atol=0.25)
    np.testing.assert_allclose(np.diag(seen.matrix), (every**2).mean(0), rtol=0.25)


def test_vectors_and_the_file() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))).astype(np.float32)
    seen = Correlation(5, None)
    for row in rows:
        seen.add(row)
    np.testing.assert_allclose(seen.matrix, rows.T.astype(np.float64) @ rows / 300, rtol=1e-5)
    np.testing.assert_allclose(from_json(to_json(seen.matrix)), seen.matrix, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"size": 99}, {"size": 10**9}, {"rms": "AAAA"}, {"rms": "?"}, {"correlations": ""}],
)
def test_broken_matrices(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json({**to_json(np.eye(5)), **change})


def test_spread() -> None:
    assert spread(list(range(10)), 3) == [0, 4, 9]
    assert spread([1, 2], 3) == [1, 2]
