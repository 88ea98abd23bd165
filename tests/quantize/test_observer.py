"""Observer: exact where it can be, the same however the data comes, in memory that stays fixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgelstm.quantize.observer import BINS, SAMPLES, Observer

values = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-100, 100, width=32) | st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def seen(data: np.ndarray, cuts: list[int] | None = None) -> Observer:
    observer = Observer(data.shape[0])
    for part in np.split(data, cuts or [], axis=1):
        observer.add(part, 0)
    return observer


@given(values)
def test_extremes_and_moments(data: np.ndarray) -> None:
    o = seen(data)
    wide = data.astype(np.float64)
    np.testing.assert_array_equal(o.minimum, wide.min(1))
    np.testing.assert_array_equal(o.maximum, wide.max(1))
    np.testing.assert_allclose(o.mean, wide.mean(1), rtol=1e-12, atol=1e-14 * np.abs(wide).max())
    np.testing.assert_allclose(o.mean_square, (wide**2).mean(1), rtol=1e-12)
    assert o.samples == data.shape[1]
    assert (o.counts.sum(1) == data.shape[1]).all()


@given(values, st.lists(st.integers(0, 40), max_size=4))
def test_in_any_parts_it_is_the_same(data: np.ndarray, cuts: list[int]) -> None:
    whole, parts = seen(data), seen(data, sorted(cuts))
    for name in ("samples", "minimum", "maximum", "span", "counts"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name), err_msg=name)
    np.testing.assert_allclose(whole.mean_square, parts.mean_square, rtol=1e-12)
    assert whole.whole()[0] == parts.whole()[0]
    np.testing.assert_array_equal(whole.whole()[1], parts.whole()[1])


@given(values)
def test_the_histogram_is_numpys(data: np.ndarray) -> None:
    o = seen(data)
    for k, channel in enumerate(data):
        span, largest = o.span[k], float(np.abs(channel).max())
        if not span:
            assert largest == 0
            continue
        assert largest < span
        assert span / 2 <= largest or span == 2.0**-64
        counts, _ = np.histogram(channel.astype(np.float64), BINS, (-span, span))
        np.testing.assert_array_equal(o.counts[k], counts)
    span, counts = o.whole()
    assert (span, counts.sum()) == (o.span.max(), data.size)


def test_large_tensors_are_sampled_but_their_extremes_are_not() -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(4, 256, 256)).astype(np.float32)
    data[1, 17, 33] = 1000
    o = Observer(4)
    for _ in range(3):
        o.add(data, 0)
    assert o.maximum[1] == 1000
    assert o.counts.sum() <= 3 * (SAMPLES + 4 * 4)
    assert o.samples == 3 * 256 * 256


def test_spans_double_bin_exactly() -> None:
    """Values on the edges of bins, seen before and after the span grew over any distance."""
    edges = np.linspace(-1, 1, BINS, endpoint=False, dtype=np.float32)
    for times in (2.0, 64.0, 2.0**40, 2.0**120):
        o = seen(np.concatenate([edges, [times]]).astype(np.float32)[None], [BINS])
        assert o.span[0] == 2 * times
        at_once = seen(np.append(edges, np.float32(times))[None])
        np.testing.assert_array_equal(o.counts, at_once.counts)


def test_channels_of_any_sizes_make_one_histogram() -> None:
    o = seen(np.array([[1e-44, -1e-44], [1e-5, -1e-5], [3e38, -3e38], [0, 0]], np.float32))
    span, counts = o.whole()
    assert span == 2.0**128
    assert counts.sum() == 8
    # Around zero: the small ones and the zeros, by their sign.
    assert (counts[BINS // 2 - 1], counts[BINS // 2]) == (2, 4)


def test_memory_does_not_grow() -> None:
    o = Observer(2)
    rng = np.random.default_rng(0)

    def held() -> int:
        return sum(v.nbytes for v in vars(o).values() if isinstance(v, np.ndarray))

    before = held()
    for _ in range(50):
        o.add(rng.normal(size=(2, 1000)), 0)
    assert held() == before
    assert all(isinstance(v, np.ndarray | int) for v in vars(o).values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_are_known_by_the_moments(bad: float) -> None:
    o = seen(np.array([[1, bad, 2], [1, 2, 3]], np.float32))
    assert not np.isfinite(o.sum_square[0])
    assert np.isfinite(o.sum_square[1])


def test_nothing_at_all() -> None:
    o = Observer(2)
    o.add(np.zeros((0, 2), np.float32), 1)
    assert o.samples == 0
    assert o.whole()[0] == 0


def test_the_channel_axis_may_be_any() -> None:
    data = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    last, first = Observer(3), Observer(3)
    last.add(data, -1)
    first.add(np.moveaxis(data, -1, 0), 0)
    np.testing.assert_array_equal(last.counts, first.counts)
