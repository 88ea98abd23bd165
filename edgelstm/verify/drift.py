"""What a series of errors, or of a state's range, does in the long run: settle, grow linearly or diverge. NumPy only.

The series becomes ``BLOCKS`` medians, so that single bad frames count for nothing. Curves are fitted to them by least
squares, relative to what is measured, since the noise of an error is in proportion to the error:

- settles: a level, perhaps after an exponential approach from below or above whose time constant is a quarter of the
  series or less;
- grows linearly: a line, perhaps after such an approach;
- diverges: an exponential above a floor, perhaps after such an approach.

Growth has to be proven by F-tests, against a level, against an approach to one, and against a single step (another
scene); residuals that resemble their neighbours count for less, by the factor (1 - r) / (1 + r) of the effective sample
size (Bayley and Hammersley 1946). What grows by less than a fifth of its last value settles, and so does what comes back
to where it was after a lull. Of line and exponential the better wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Series = Sequence[float] | Array

#: Fewer comparisons than this say nothing about the long run.
FEWEST = 50
BLOCKS = 24
#: Rates that are tried, per length of the series: time constants of an approach from 1/4 to 1/60 of it, and doubling
#: times from all of it to 1/90.
APPROACH = np.geomspace(4, 60, 16)
RISE = np.geomspace(0.7, 62, 28)
#: What F must reach; so large because many curves are tried.
AGAINST_LEVEL, AGAINST_APPROACH, AGAINST_STEP = 14.0, 12.0, 4.0
#: A curve with an approach, or an exponential instead of a line, must shrink the squared residuals by this factor.
PAYS, BENDS = 1.5, 1.25
#: Part of the last value that must have come by growth, and the factor of growth over the second half of what diverges.
LEAST_GROWTH, LEAST_FACTOR = 0.2, 1.8
#: A growing maximum sets records in at least this part of the blocks of the last two thirds. Where nothing grows, block k
#: does so with a chance of 1/k (Renyi 1962).
RECORDS = 0.3


@dataclass(frozen=True)
class Drift:
    """Verdict on a series.

    kind: "settles", "grows linearly", "diverges" or "too short to say".
    level: median of the last third. slope_per_1000: growth in 1,000 frames, where it grows linearly.
    doubling_frames: where it diverges; None when it is not finite. text: the verdict in words.
    """

    kind: str
    level: float
    slope_per_1000: float | None = None
    doubling_frames: float | None = None
    text: str = ""

    @property
    def grows(self) -> bool:
        """Whether it is still growing, in whatever way."""
        return self.kind in ("grows linearly", "diverges")

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; a level that is not finite becomes null."""
        return {**asdict(self), "level": self.level if math.isfinite(self.level) else None}


@dataclass(frozen=True)
class Growth:
    """Whether a longer stream would show larger values. ``largest`` so far, at ``frame``: the end of the series,
    or where it is finite no more."""

    largest: float
    frame: int
    drift: Drift

    @property
    def grows(self) -> bool:
        """Whether the largest value is still growing."""
        return self.drift.grows

    def frame_reaching(self, limit: float) -> int | None:
        """Frame at which ``limit`` is reached if growth goes on as it is; None when nothing says that it will be."""
        slope, doubling = self.drift.slope_per_1000, self.drift.doubling_frames
        if not self.largest < limit:
            return self.frame
        if slope is not None:
            ahead = 1000 * (limit - self.largest) / slope
        elif doubling is not None and self.largest > 0:
            ahead = doubling * math.log2(limit / self.largest)
        else:
            ahead = math.inf
        return self.frame + math.ceil(ahead) if math.isfinite(ahead) else None


def fit(series: Series, frames: Sequence[int] | Array | None = None) -> Drift:
    """Verdict on ``series``, numbers of at least 0; ``frames`` says when each was taken (default 0, 1, 2, ...)."""
    values = np.asarray(series, np.float64)
    at = np.arange(len(values)) if frames is None else np.asarray(frames)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        return Drift("diverges", math.inf, text=f"not finite from frame {at[bad[0]]} on")
    level = float(np.median(values[2 * len(values) // 3 :])) if len(values) else 0.0
    if len(values) < FEWEST:
        return Drift(
            "too short to say", level, text=f"too short to say: {len(values)} comparisons, {FEWEST} needed"
        )
    blocks = _Blocks(values)
    curve = blocks.growing() if blocks.scale else None
    if curve is None:
        return Drift("settles", level, text=f"settles at {figure(level)}")
    span = float(at[-1] - at[0]) * len(at) / (len(at) - 1)
    if curve.rate:
        doubling = math.log(2) / curve.rate * span
        return Drift("diverges", level, None, doubling, f"diverges: doubles in {doubling:,.0f} frames")
    slope = 1000 * curve.slope * blocks.scale / span
    return Drift("grows linearly", level, slope, None, f"grows linearly by {figure(slope)} in 1,000 frames")


def growth(largest: Series, frames: Sequence[int] | Array | None = None) -> Growth:
    """Whether a range still grows; ``largest`` holds the largest size of each frame, or the largest so far.

    It grows when what is largest in each frame does, or when the largest so far does and keeps setting records.
    """
    values = np.asarray(largest, np.float64)
    records = np.maximum.accumulate(values)
    bad = np.flatnonzero(~np.isfinite(values))
    last = int(bad[0]) if len(bad) else len(values) - 1
    at = np.arange(len(values)) if frames is None else np.asarray(frames)
    drift = fit(values, at)
    if drift.kind == "settles":
        ends = np.array([block[-1] for block in np.array_split(records, BLOCKS)])[BLOCKS // 3 :]
        if (np.diff(ends) > 0).mean() >= RECORDS:
            drift = fit(records, at)
    return Growth(float(records[last]), int(at[last]), drift)


def figure(value: float) -> str:
    """Three digits that a person can read: 0.012, 2,750, 1.3e-07."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e9 else f"{value:.3g}"


@dataclass
class _Curve:
    """A fitted curve: weighted residuals and their sum of squares, coefficients, row of the columns that fitted best."""

    rss: float
    residuals: Array
    coefficients: Array
    row: int
    rate: float = 0.0

    @property
    def slope(self) -> float:
        return float(self.coefficients[1])


class _Blocks:
    """Medians ``v`` of a series, 1 in the middle, at times ``u`` from 0 to 1."""

    def __init__(self, values: Array) -> None:
        medians = np.array([np.median(block) for block in np.array_split(values, BLOCKS)])
        times = (np.arange(len(values)) + 0.5) / len(values)
        self.u = np.array([block.mean() for block in np.array_split(times, BLOCKS)])
        #: What 1 stands for; 0 when there is nothing to fit.
        self.scale = float(np.median(medians)) or float(medians.max())
        self.v = medians / (self.scale or 1.0)
        self.weights = 1 / (self.v + 0.05)
        self.approach = np.exp(-APPROACH[:, None] * self.u)

    def growing(self) -> _Curve | None:
        """The curve by which it grows; None when it settles."""
        one = np.ones((1, BLOCKS))
        line = self.settling(one, self.u[None])
        best, share = line, line.slope / (line.coefficients[0] + line.slope)
        exponential = self.exponential(one)
        if exponential is not None and exponential.rss * BENDS < line.rss:
            floor, size = exponential.coefficients[:2]
            factor = (floor + size) / (floor + size * math.exp(-exponential.rate / 2))
            if factor > LEAST_FACTOR:
                best, share = exponential, 1 - 1 / factor
        steps = (np.arange(BLOCKS) >= np.arange(2, BLOCKS - 1)[:, None]).astype(float)
        against = {
            AGAINST_LEVEL: self.best(one),
            AGAINST_APPROACH: self.settling(one),
            AGAINST_STEP: self.best(np.repeat(one, len(steps), 0), steps),
        }
        # What comes back to where it was after a lull has not grown, nor has what is large in its last block alone; but
        # two bad blocks at the start do not hide growth.
        if self.v[-3:].min() <= np.sort(self.v[: BLOCKS // 2])[-3]:
            return None
        if share > LEAST_GROWTH and all(_f(other, best) > least for least, other in against.items()):
            return best
        return None

    def settling(self, *columns: Array, positive: int = 0) -> _Curve:
        """The best fit of ``columns``, with an approach if that pays."""
        plain = self.best(*columns, positive=positive)
        count = len(self.approach)
        rows = [np.repeat(column, count, 0) for column in columns]
        more = self.best(*rows, np.tile(self.approach, (len(columns[0]), 1)), positive=positive)
        more.row //= count
        return more if more.rss * PAYS < plain.rss else plain

    def exponential(self, one: Array) -> _Curve | None:
        """The best exponential above a floor of at least 0; None when none fits."""
        rise = np.exp(RISE[:, None] * (self.u - 1))
        floored = self.settling(np.repeat(one, len(rise), 0), rise, positive=2)
        bare = self.settling(rise, positive=1)
        bare.coefficients = np.insert(bare.coefficients, 0, 0.0)
        curve = min(floored, bare, key=lambda c: c.rss)
        curve.rate = float(RISE[curve.row])
        return curve if math.isfinite(curve.rss) else None

    def best(self, *columns: Array, positive: int = 0) -> _Curve:
        """Least squares for every row of ``columns``; of those whose first ``positive`` coefficients are, the best."""
        designs = np.stack(columns, axis=-1) * self.weights[:, None]
        y = self.v * self.weights
        q, r = np.linalg.qr(designs)
        coefficients = np.linalg.solve(
            r + 1e-12 * np.eye(r.shape[-1]), (np.swapaxes(q, 1, 2) @ y)[..., None]
        )[..., 0]
        residuals = y - (designs @ coefficients[..., None])[..., 0]
        # The least that counts, so that two perfect fits compare as equals.
        rss = (residuals**2).sum(axis=1) + 1e-9
        rss = np.where((coefficients[:, :positive] >= 0).all(axis=1), rss, np.inf)
        row = int(np.argmin(rss))
        return _Curve(float(rss[row]), residuals[row], coefficients[row], row)


def _f(other: _Curve, best: _Curve) -> float:
    """How much worse ``other`` is, in units of what is left of ``best``'s residuals."""
    r = best.residuals
    alike = min(max(float(r[1:] @ r[:-1]) / best.rss + 0.05, 0.0), 0.8)
    return (other.rss - best.rss) / best.rss * (BLOCKS - 4) * (1 - alike) / (1 + alike)
