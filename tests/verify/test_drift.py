"""Verdicts on series whose truth is known: right for nearly every seed, and figures that are the truth's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.verify.drift import FEWEST, fit, growth

N = 600
TIME = np.arange(N) / N  # 0 to 1
Series = Callable[[np.random.Generator], np.ndarray]

SETTLES: dict[str, Series] = {
    "a level": lambda rng: np.ones(N),
    "a slow start": lambda rng: 1.001 - np.exp(-5 * TIME),
    "a quick start": lambda rng: 1.001 - np.exp(-30 * TIME),
    "a ramp that ends": lambda rng: np.minimum(1, 6 * TIME) + 1e-3,
    "a bad start": lambda rng: 1 + 3 * np.exp(-10 * TIME),
    "overshoot": lambda rng: 1 - np.exp(-20 * TIME) * (1 - 40 * TIME),
    "another scene": lambda rng: 1 + (rng.uniform(0.1, 0.9) < TIME),
    "ebb and flow": lambda rng: 1 + 0.5 * np.sin(2 * np.pi * (3 * TIME + rng.uniform())),
    "growth that ended": lambda rng: 1 / (1 + np.exp(-60 * (TIME - 0.3))) + 1e-6,
    "a lull": lambda rng: np.exp(-3 * TIME) + (TIME > 0.84) * rng.uniform(0.3, 0.5),
    "fading": lambda rng: np.exp(-3 * TIME),
}
GROWS: dict[str, Series] = {
    "a ramp": lambda rng: TIME + 1e-3,
    "a ramp from a level": lambda rng: 1 + 2 * TIME,
    "a slow ramp": lambda rng: 1 + 0.7 * TIME,
    "a ramp after a start": lambda rng: 1.001 - np.exp(-20 * TIME) + 1.5 * TIME,
}
DIVERGES: dict[str, Series] = {
    "a slow doubling": lambda rng: 2.0 ** (5 * TIME),
    "a doubling": lambda rng: 2.0 ** (12 * TIME),
    "a quick doubling": lambda rng: 2.0 ** (40 * TIME),
    "a doubling out of noise": lambda rng: 2.0 ** (12 * TIME) + 2.0**5,
}
CASES = [
    (kind, name, series)
    for kind, cases in (("settles", SETTLES), ("grows linearly", GROWS), ("diverges", DIVERGES))
    for name, series in cases.items()
]


def noise(rng: np.random.Generator, sigma: float, memory: float, count: int = N) -> np.ndarray:
    """Factors around 1; neighbours resemble each other over ``memory`` frames."""
    white = rng.standard_normal(count)
    if memory:
        keep = math.exp(-1 / memory)
        for k in range(1, count):
            white[k] = keep * white[k - 1] + math.sqrt(1 - keep**2) * white[k]
    return np.exp(sigma * white)


@pytest.mark.parametrize(("kind", "name", "series"), CASES, ids=[f"{k}: {n}" for k, n, _ in CASES])
@pytest.mark.parametrize(
    ("sigma", "memory"), [(0.0, 0), pytest.param(0.1, 0, marks=pytest.mark.thorough), (0.05, 5)]
)
def test_the_verdict_is_hardly_ever_wrong(
    kind: str, name: str, series: Series, sigma: float, memory: float
) -> None:
    seeds = range(30 if sigma else 3)
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        found.append(fit(series(rng) * noise(rng, sigma, memory)).kind)
    assert found.count(kind) >= len(seeds) - 1, found


@pytest.mark.parametrize("name", sorted(SETTLES))
@pytest.mark.parametrize(("sigma", "memory"), [pytest.param(0.5, 0, marks=pytest.mark.thorough), (0.3, 5)])
def test_strong_noise_is_no_growth(name: str, sigma: float, memory: float) -> None:
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        found.append(fit(SETTLES[name](rng) * noise(rng, sigma, memory)).kind)
    assert found.count("settles") >= 29, found


def test_the_figures_are_those_of_the_series() -> None:
    level = fit(0.02 * (1 - np.exp(-TIME * 20)))
    assert level.level == pytest.approx(0.02, rel=1e-3)
    assert level.text == "settles at 0.02"
    rng = np.random.default_rng(0)
    slope = fit((0.1 + 0.2 * TIME) * noise(rng, 0.05, 0))
    assert slope.slope_per_1000 == pytest.approx(0.2 / N * 1000, rel=0.05)
    assert slope.text.startswith("grows linearly by 0.3")
    assert slope.text.endswith(" in 1,000 frames")
    doubling = fit(1e-6 * 2.0 ** (10 * TIME) * noise(rng, 0.05, 0))
    assert doubling.doubling_frames == pytest.approx(N / 10, rel=0.1)
    assert doubling.text.startswith("diverges: doubles in ")


def test_frames_that_lie_apart_stretch_the_figures() -> None:
    frames = 10 * np.arange(N) + 9  # a window of ten
    near, far = fit(0.1 + TIME), fit(0.1 + TIME, frames)
    assert far.slope_per_1000 == pytest.approx(near.slope_per_1000 / 10)
    assert fit(2.0 ** (10 * TIME), frames).doubling_frames == pytest.approx(N, rel=0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("length", [3, N])
def test_what_is_not_finite_diverges(bad: float, length: int) -> None:
    series = np.ones(length)
    series[2] = bad
    drift = fit(series, np.arange(length) + 5)
    assert (drift.kind, drift.doubling_frames) == ("diverges", None)
    assert drift.text == "not finite from frame 7 on"
    assert json.loads(json.dumps(drift.to_json(), allow_nan=False))["level"] is None


def test_too_few_and_nothing_at_all() -> None:
    drift = fit(np.arange(FEWEST - 1.0))
    assert drift.kind == "too short to say"
    assert drift.text == "too short to say: 49 comparisons, 50 needed"
    assert fit([0.5]).level == 0.5
    assert fit(np.zeros(FEWEST)).text == "settles at 0"
    assert fit(np.r_[np.zeros(N - 1), 1]).kind == "settles"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(FEWEST, 2000), st.floats(-300, 300))
def test_units_do_not_matter_and_nothing_breaks(seed: int, length: int, power: float) -> None:
    rng = np.random.default_rng(seed)
    series = rng.choice([0.0, 1e-9, 1.0, 2.0], length) * rng.random(length)
    drift, scaled = fit(series), fit(series * 2.0 ** round(power))
    assert drift.kind == scaled.kind
    assert drift.kind in ("settles", "grows linearly", "diverges")
    assert fit(series) == drift


BOUNDED: dict[str, Series] = {
    "noise": lambda rng: np.abs(rng.standard_normal(N)),
    "slow noise": lambda rng: np.abs(np.log(noise(rng, 1, 20))),
    "wild noise": lambda rng: np.abs(rng.standard_t(3, N)),
    "many values": lambda rng: np.abs(rng.standard_normal((N, 64))).max(axis=1),
    "a start": lambda rng: (1 - np.exp(-8 * TIME)) * noise(rng, 0.2, 10),
    "ebb and flow": SETTLES["ebb and flow"],
}
UNBOUNDED: dict[str, Series] = {
    "a ramp": lambda rng: TIME + 0.1 * np.abs(rng.standard_normal(N)),
    "a ramp that ebbs and flows": lambda rng: np.abs(TIME + 0.3 * np.sin(2 * np.pi * 5 * TIME)),
    "a ramp, reset for a while": lambda rng: TIME * (0.5 + 0.5 * ((8 * TIME + rng.uniform()) % 1)),
    "a doubling": lambda rng: 2.0 ** (8 * TIME) * noise(rng, 0.2, 10),
}


@pytest.mark.parametrize("records", [False, True], ids=["per frame", "so far"])
@pytest.mark.parametrize(
    ("grows", "name", "series"),
    [
        (grows, name, series)
        for grows, cases in ((False, BOUNDED), (True, UNBOUNDED))
        for name, series in cases.items()
    ],
)
def test_whether_a_range_grows(grows: bool, name: str, series: Series, records: bool) -> None:
    found = []
    for seed in range(30):
        sizes = series(np.random.default_rng(seed))
        found.append(growth(np.maximum.accumulate(sizes) if records else sizes).grows)
    # The largest so far hides how much comes and goes: what it alone says is a little less sure.
    assert found.count(grows) >= (27 if records else 29)


def test_the_frame_at_which_a_limit_is_reached() -> None:
    ramp = growth(3 + 2 * np.arange(N))
    assert ramp.largest == 3 + 2 * (N - 1)
    assert ramp.frame_reaching(65504) == pytest.approx((65504 - 3) / 2, rel=0.01)
    assert ramp.frame_reaching(100) == N - 1  # long ago
    doubling = growth(2.0 ** (np.arange(N) / 100))
    assert doubling.frame_reaching(2.0**16) == pytest.approx(1600, rel=0.05)
    still = growth(np.ones(N))
    assert not still.grows
    assert still.frame_reaching(10) is None
    broken = growth(np.r_[np.ones(5), np.inf, 1])
    assert broken.grows
    assert broken.frame_reaching(65504) == 5
