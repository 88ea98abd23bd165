"""Channel equalisation: which scale each channel of an activation gets, the weights taking up what differs.

x and h meet in one product though their ranges differ, and so do the channels of each. A product with weight W does not
change when channel c of its activation is divided by s_c and column c of W multiplied by it. So every channel may be
rounded at a step of its own, at no cost when it runs; what one gains there, the weights lose where a row's columns
then differ more in size. (Nagel et al. 2019 and Xiao et al. 2023 do this between layers; here a state's range
decides, since it is the same tensor on both sides.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: How far scales follow the channels' own ranges: 0 one scale for all, 1 each its own.
_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
#: How much wider than its range a site's scales may be, for the sake of the weights it shares rows with.
_WIDER = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
#: Rounding errors of activations differ from frame to frame and mostly cancel in c; those of weights are the same every
#: frame and add up. With a forget gate around 1/2 a constant error leaves three times the power, with a longer memory more.
_CONSTANT = 4.0
_ROUNDS = 2
#: Factors that take an operator of their own when it runs have to be worth it: without them there is this much more noise.
_WORTH_IT = 1.3
#: A channel that hardly moves gets no smaller a scale than this part of the largest: its weights must not explode.
FLOOR = 1e-3


@dataclass(frozen=True)
class Operand:
    """One product as equalisation sees it.

    weight: [outputs, channels, taps], each row what makes one output channel. sites: the site of each part of its
    channels, in order; sizes: how many channels each has.
    """

    weight: Array
    sites: tuple[str, ...]
    sizes: tuple[int, ...]

    @cached_property
    def squares(self) -> Array:
        """Sum over the taps of the squared weights: [outputs, channels]."""
        squares: Array = (self.weight**2).sum(2)
        return squares

    @cached_property
    def tops(self) -> Array:
        """The largest |weight| of each channel's taps: [outputs, channels]."""
        tops: Array = np.abs(self.weight).max(2)
        return tops


def activation_scales(
    ranges: Mapping[str, Array],
    mean_square: Mapping[str, Array],
    products: Sequence[Operand],
    largest: float,
    per_channel: bool,
    steps: Mapping[str, float] | None = None,
    multiplied: Collection[str] = (),
) -> dict[str, Array]:
    """The scale of each channel, [channels] by site, for codes of at most ``largest``.

    ranges: largest |value| of each channel. steps: by site, how far apart numbers are that are told apart, as a part of
    the scale; 1 where nothing is said. multiplied: sites whose channels are multiplied by factors when it runs, unless
    all that meets in a product has one scale. Chosen so that the noise in the products' outputs is least: rounding an
    activation to steps s_c adds sum_c W_oc^2 s_c^2 / 12 to output o, rounding its row of weights d_o^2 / 12
    sum_c E[a_c^2] / s_c^2, where d_o = max_c |W_oc| s_c / largest.
    """
    steps = dict.fromkeys(ranges, 1.0) | dict(steps or {})
    if not per_channel:
        return {name: np.full(len(r), r.max() / largest) for name, r in ranges.items()}
    ranges = {name: _pooled(r, mean_square[name]) for name, r in ranges.items()}
    scales = {name: _scales(r, 1.0, 1.0, largest) for name, r in ranges.items()}
    for _ in range(_ROUNDS):
        for name in ranges:
            reading = [p for p in products if name in p.sites]

            def noise(trial: Array, name: str = name, reading: Sequence[Operand] = reading) -> float:
                return sum(_noise(p, scales | {name: trial}, mean_square, largest, steps) for p in reading)

            trials = [_scales(ranges[name], s, w, largest) for s in _SHARES for w in _WIDER]
            scales[name] = min(trials, key=noise)
    for product in products:
        if set(product.sites) <= set(multiplied):
            top = max(float(scales[name].max()) for name in product.sites)
            plain = scales | {name: np.full(len(scales[name]), top) for name in product.sites}
            reading = [p for p in products if not set(p.sites).isdisjoint(product.sites)]
            less, more = (
                sum(_noise(p, s, mean_square, largest, steps) for p in reading) for s in (scales, plain)
            )
            if more <= _WORTH_IT * less:
                scales = plain
    return scales


def _pooled(ranges: Array, mean_square: Array) -> Array:
    """Ranges that new frames will rarely leave.

    One channel has few extremes to learn its range from, its mean square is well known; so how far above their
    root mean square channels reach is taken from all of them: the median, where a channel was not seen farther.
    """
    rms = np.sqrt(mean_square)
    moving = (ranges > 0) & (rms > 0)
    if not moving.any():
        return ranges
    factor = float(np.median(ranges[moving] / rms[moving]))
    pooled: Array = np.minimum(np.maximum(ranges, factor * rms), ranges.max())
    return pooled


def _scales(ranges: Array, share: float, wider: float, largest: float) -> Array:
    top = float(ranges.max())
    own = np.maximum(ranges, FLOOR * top)
    scales: Array = wider * top ** (1 - share) * own**share / largest
    return scales


def _noise(
    product: Operand,
    scales: Mapping[str, Array],
    mean_square: Mapping[str, Array],
    largest: float,
    steps: Mapping[str, float],
) -> float:
    """Mean noise power of the product's outputs, relative to their own power."""
    s = np.concatenate([scales[name] for name in product.sites])
    power = np.concatenate([mean_square[name] for name in product.sites])
    rounding = np.concatenate([scales[name] * steps[name] for name in product.sites])
    activation = product.squares @ rounding**2
    step = (product.tops * s).max(1) / largest
    taps = product.weight.shape[2]
    weight = step**2 * float((power / s**2).sum()) * taps
    signal = product.squares @ power
    return float((activation + _CONSTANT * weight).sum() / max(float(signal.sum()), 1e-30))
