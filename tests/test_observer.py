"""Observer: exact where it can be, the same however the data comes, in memory that stays fixed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgelstm.observer import BINS, SAMPLES, Observer

values = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    elements=st.floats(-100, 100, width=32).map(lambda v: 0.0 if abs(v) < 1e-6 else v),
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
    np.testing.assert_allclose(o.mean, wide.mean(1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(o.mean_square, (wide**2).mean(1), rtol=1e-5, atol=1e-9)
    assert o.samples == data.shape[1]
    assert (o.counts.sum(1) == data.shape[1]).all()


@given(values, st.lists(st.integers(0, 40), max_size=4))
def test_in_any_parts_it_is_the_same(data: np.ndarray, cuts: list[int]) -> None:
    whole, parts = seen(data), seen(data, sorted(cuts))
    np.testing.assert_array_equal(whole.span, parts.span)
    np.testing.assert_array_equal(whole.counts, parts.counts)


@given(values)
def test_the_histogram_is_numpys(data: np.ndarray) -> None:
    o = seen(data)
    for k, channel in enumerate(data):
        span, largest = o.span[k], float(np.abs(channel).max())
        if not span:
            assert largest == 0
            continue
        assert span / 2 <= largest < span
        index = np.clip((channel * np.float32(BINS / 2 / span) + BINS / 2).astype(int), 0, BINS - 1)
        np.testing.assert_array_equal(o.counts[k], np.bincount(index, minlength=BINS))
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


def test_the_channel_axis_may_be_any() -> None:
    data = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    last, first = Observer(3), Observer(3)
    last.add(data, -1)
    first.add(np.moveaxis(data, -1, 0), 0)
    np.testing.assert_array_equal(last.counts, first.counts)
