"""Products of int8 codes with numbers in fixed point (plugins/onnxruntime/dot.h), where the processor has the instructions; else in float32."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from test_native_operators import attributes
from test_native_weights import Gru, Lstm, cell_model

import native_library
from edgelstm.graph.gates import GateVariant
from native_library import naive
from tolerances import assert_close

Array = np.ndarray[Any, Any]
#: All gates open, relu: c' is the sum of g where it is positive.
OPEN = GateVariant(gate="hard_sigmoid", alpha=0.0, beta=1.0, candidate="relu", output="relu")
EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


def in_fixed_point(library: Path) -> bool:
    loaded = ctypes.CDLL(str(library))
    loaded.edgelstm_native_isa.restype = ctypes.c_char_p
    return bytes(loaded.edgelstm_native_isa()).decode() in ("avx512vnni", "avx2vnni", "neondot")


def sums(library: Path, codes: Array, scale: Array, x: Array, h: Array) -> Array:
    """What a cell makes of codes [units, inputs + width] and rows x [N, inputs], h [N, width], biases 0."""
    units = len(codes)
    w = np.zeros((4 * units, codes.shape[1]), np.int8)
    w[2 * units : 3 * units] = codes
    constants = [numpy_helper.from_array(a, n) for n, a in (("w", w), ("scale", np.tile(scale, 4)))]
    feeds = {"x": x, "h": h, "c": np.zeros((len(x), units), np.float32)}
    names = ["x", "h", "c", "w", *[""] * 5, "scale"]
    session = native_library.session(
        cell_model("FusedLSTMCellI8", names, feeds, constants, 2, **attributes(OPEN)), library
    )
    above, below = (
        session.run(None, {**feeds, "x": s * x, "h": s * h})[1] for s in (np.float32(1), np.float32(-1))
    )
    result: Array = above.astype(float) - below
    return result


def rounded(rows: Array) -> Array:
    """Rows as they are multiplied: to 2^-21 of the power of two below their largest number; as they are where that is 256 or very small."""
    most = np.abs(rows.astype(float)).max(axis=1, keepdims=True, initial=0)
    unit = np.exp2(np.floor(np.log2(np.where(most > 0, most, 1))) - 21)
    fixed = np.rint(rows / unit) * unit
    result: Array = np.where((most < 256) & (most >= 2.0**-100), fixed, rows.astype(float))
    return result


def check(library: Path, codes: Array, scale: Array, x: Array, h: Array) -> None:
    found = sums(library, codes, scale, x, h)
    w = codes.astype(float) * scale[:, None].astype(float)
    size, exact, stored = 0.0, 0.0, 0.0
    plain = np.full((len(x), 1), not in_fixed_point(library))
    for part, of_it in ((x, w[:, : x.shape[1]]), (h, w[:, x.shape[1] :])):
        exact = exact + part.astype(float) @ of_it.T
        stored = stored + rounded(part) @ of_it.T
        most = np.abs(part).max(axis=1, initial=0).astype(float)[:, None]
        size = size + most * np.abs(of_it).sum(axis=1)
        plain |= (most >= 256) | (most < 2.0**-100)
    # Three sums of bytes are put together, each rounded once; in float32 each addition is.
    allowed = np.where(plain, 2 + codes.shape[1], 5) * EPS * size + 2.0**-148
    assert (np.abs(found - stored) <= allowed).all()
    assert (np.abs(found - exact) <= allowed + EPS * size).all()


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.sampled_from([1, 2, 3, 4, 5, 7, 16, 17, 61, 131]),
    width=st.sampled_from([1, 2, 3, 5, 13, 64, 67, 127]),
    rows=st.sampled_from([1, 2, 3, 4, 5, 7]),
    size=st.lists(st.integers(-140, 12), min_size=2, max_size=2),
    spread=st.sampled_from([0, 1, 12, 40]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_sum_is_that_of_the_numbers_in_fixed_point(
    library: Path, inputs: int, width: int, rows: int, size: list[int], spread: int, seed: int
) -> None:
    """Whatever their size, denormal ones too, all alike or some much smaller than others, whole rows of zeros among them."""
    rng = np.random.default_rng(seed)

    def numbers(count: int, exponent: int) -> Array:
        sizes = np.exp2(exponent - rng.uniform(0, spread, (rows, count)))
        drawn = (rng.uniform(-2, 2, (rows, count)) * sizes).astype(np.float32)
        return np.where(rng.random((rows, 1)) < 0.1, np.float32(0), drawn)

    codes = rng.integers(-128, 128, (width, inputs + width)).astype(np.int8)
    scale = rng.uniform(1e-3, 8e-3, width).astype(np.float32)
    check(library, codes, scale, numbers(inputs, size[0]), numbers(width, size[1]))


@pytest.mark.parametrize("code", [-128, -1, 0, 127])
@pytest.mark.parametrize("bits", [0x3FFFFF, 0x208080, 0x207F7F, 0x200000])
def test_the_largest_sums_of_bytes_fit(library: Path, code: int, bits: int) -> None:
    """As many inputs as are multiplied so, all alike: bytes of -128 and of 127."""
    x = np.full((1, 32767), bits * 2.0**-21, np.float32)
    codes = np.full((1, 32768), code, np.int8)
    exact = float(x[0].astype(float).sum() + 1) * code
    found = sums(library, codes, np.ones(1, np.float32), x, np.ones((1, 1), np.float32))
    assert_close(found, [[exact]], np.float32, k=4 if in_fixed_point(library) else 32768)


def test_more_inputs_than_that_are_multiplied_too(library: Path) -> None:
    x = np.full((2, 32800), 1.75, np.float32)
    found = sums(
        library, np.full((1, 32801), 127, np.int8), np.ones(1, np.float32), x, np.ones((2, 1), np.float32)
    )
    assert_close(found, [[127 * (1.75 * 32800 + 1)]] * 2, np.float32, k=32800)


@pytest.mark.parametrize("large", [300.0, 1e6, 1.7e9, 1e30])
def test_a_column_of_huge_numbers_that_no_weight_reads_takes_nothing_from_the_others(
    library: Path, large: float
) -> None:
    """Times in seconds beside measured values, in a model that learned to pass over them."""
    rng = np.random.default_rng(0)
    x, h = rng.normal(size=(3, 12)).astype(np.float32), rng.normal(size=(3, 5)).astype(np.float32)
    codes = rng.integers(-127, 128, (5, 17)).astype(np.int8)
    codes[:, 4] = 0
    x[1, 4] = large
    scale = np.full(5, 0.01, np.float32)
    found = sums(library, codes, scale, x, h)
    exact = np.concatenate([x, h], axis=1).astype(float) @ (codes * scale[:, None].astype(float)).T
    assert_close(found, exact, np.float32, k=17)


@settings(max_examples=40, deadline=None)
@given(
    bad=st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]),
    where=st.sampled_from(["x", "h"]),
    at=st.integers(0, 66),
    gru=st.sampled_from([None, True, False]),
    seed=st.integers(0, 99),
)
def test_what_is_not_finite_comes_out_as_the_equations_have_it(
    library: Path, bad: float, where: str, at: int, gru: bool | None, seed: int
) -> None:
    """NaN makes NaN of its own row, everywhere; infinity saturates gates, and is NaN times a code of 0."""
    cell: Any = Lstm("I8", GateVariant(), 67, 67, 3) if gru is None else Gru("I8", gru, 67, 67, 3)
    session = native_library.session(cell.model, library)
    good = session.run(None, cell.feeds)
    cell.feeds[where][1, at] = bad
    found = session.run(None, cell.feeds)
    with np.errstate(invalid="ignore"):
        expected = cell.expected()
    for a, b, before in zip(found, expected if gru is None else [expected], good, strict=True):
        assert a[0].tobytes() == before[0].tobytes()
        assert a[2].tobytes() == before[2].tobytes()
        if np.isnan(bad):
            assert np.isnan(a[1]).all()
        assert_close(np.where(np.isnan(a), 77, a), np.where(np.isnan(b), 77, b), np.float32, k=200)


def test_rows_of_every_kind_keep_their_bits_beside_each_other(library: Path) -> None:
    """Two rows are multiplied at once where both are in fixed point: a row must not show whom it stood beside."""
    cell = Lstm("I8", GateVariant(), 61, 131, 7)
    cell.feeds["x"][1] *= np.float32(1e20)
    cell.feeds["x"][2] = 0
    cell.feeds["h"][3] *= np.float32(1e-39)
    cell.feeds["h"][4, 5] = np.inf
    session = native_library.session(cell.model, library)
    rows = [session.run(None, {n: a[k : k + 1] for n, a in cell.feeds.items()}) for k in range(7)]
    for order in (range(7), (6, 1, 0, 2, 5, 4, 3), (0, 5, 6), (3, 0, 5, 2)):
        together = session.run(None, {n: a[list(order)] for n, a in cell.feeds.items()})
        for place, k in enumerate(order):
            for a, b in zip(together, rows[k], strict=True):
                assert a[place].tobytes() == b[0].tobytes()


@pytest.mark.parametrize("inputs", [5, 6, 64])
def test_a_cell_without_a_recurrent_input_takes_all_of_x(library: Path, inputs: int) -> None:
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(-128, 128, (12, inputs)).astype(np.int8), np.full(12, 0.01, np.float32)
    feeds = {
        "x": rng.normal(size=(2, inputs)).astype(np.float32),
        "c": rng.normal(size=(2, 3)).astype(np.float32),
    }
    constants = [numpy_helper.from_array(a, n) for n, a in (("w", codes), ("scale", scale))]
    names = ["x", "", "c", "w", *[""] * 5, "scale"]
    cell = cell_model("FusedLSTMCellI8", names, feeds, constants, 2, recurrent=0, **attributes(GateVariant()))
    x, c = (a.astype(float) for a in feeds.values())
    w = naive.worth(codes, scale.astype(float))
    expected = naive.lstm_cell(GateVariant(), x, np.zeros((2, 0)), c, w, np.zeros(12))
    for a, b in zip(native_library.session(cell, library).run(None, feeds), expected, strict=True):
        assert_close(a, b, np.float32, k=64)
