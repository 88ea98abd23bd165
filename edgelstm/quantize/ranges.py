"""From what an Observer saw to the range that is quantised: min-max, percentile, entropy, mean square error.

"recurrent", the default, is min-max for what is fed back (to clip a state is an error of one sign, made again every
frame), and the mean square error for gate pre-activations.

Percentile and entropy (Migacz 2017, "8-bit inference with TensorRT") are onnxruntime.quantization's. The mean square
error is weighed where a value feeds a gate: an error in a pre-activation matters only as far as it moves
sigmoid or tanh, so the range may end where they have flattened out.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.quantize.observer import BINS, Observer

Array = npt.NDArray[Any]
Method = Literal["recurrent", "minmax", "percentile", "entropy", "mse"]
METHODS: tuple[str, ...] = get_args(Method)

#: Shares of the observed range tried by "mse".
_SHARES = np.linspace(1.0, 0.25, 31)
_LEVELS = 255
_Ends = tuple[Array, Array]


def check_method(method: str, percentile: float) -> None:
    """Raise EdgeLstmError for a method that is none, or a percentile out of (50, 100]."""
    if method not in METHODS:
        raise EdgeLstmError("calibration method", found=method, expected=f"one of {', '.join(METHODS)}")
    if not isinstance(percentile, int | float) or not 50 < percentile <= 100:
        raise EdgeLstmError("percentile", found=percentile, expected="above 50, at most 100")


def check_overrides(table: Mapping[str, Mapping[str, Any]], default: Mapping[str, Any]) -> None:
    """Raise EdgeLstmError for settings of single tensors that are none; ``default``: what they leave out."""
    for pattern, settings in table.items():
        unknown = sorted(set(settings) - {"method", "percentile"})
        if unknown:
            raise EdgeLstmError(
                f"settings of tensors {pattern!r}", found=f"key {unknown[0]!r}", expected="method, percentile"
            )
        check_method(**{**default, **settings})


def choose(
    seen: Observer, method: str, *, percentile: float = 99.99, gates: GateVariant | None = None
) -> tuple[Array, Array, float, float]:
    """(low, high) of each channel and (low, high) of the tensor. ``gates``: what the tensor is a pre-activation of."""
    check_method(method, percentile)
    if method == "recurrent":
        method = "minmax" if gates is None else "mse"
    low, high = np.minimum(seen.minimum, 0), np.maximum(seen.maximum, 0)
    whole = np.array([low.min()]), np.array([high.max()])
    if method == "minmax" or not whole[1][0] - whole[0][0] > 0:
        return low, high, float(whole[0][0]), float(whole[1][0])
    span, counts = seen.whole()
    all_counts, all_span = counts[None], np.array([span])
    if method == "percentile":
        low, high = _percentile(seen.counts, seen.span, (low, high), percentile)
        whole = _percentile(all_counts, all_span, whole, percentile)
    elif method == "entropy":
        # One divergence for the tensor: a channel by itself has too few values to compare distributions.
        size = max(-whole[0][0], whole[1][0])
        threshold = _entropy(counts, span, size)
        whole = np.maximum(whole[0], -threshold), np.minimum(whole[1], threshold)
        low, high = low * (threshold / size), high * (threshold / size)
    else:
        groups = None if gates is None else gates.gates
        low, high = _least_error(seen.counts, seen.span, (low, high), groups, gates)
        mixed = None if gates is None else ("g",)  # tanh: the stricter of the two
        whole = _least_error(all_counts, all_span, whole, mixed, gates)
    return low, high, float(whole[0][0]), float(whole[1][0])


def _percentile(counts: Array, span: Array, ends: _Ends, percentile: float) -> _Ends:
    collector = _collector("percentile", percentile)
    edges = np.linspace(-1, 1, BINS + 1)
    used = [k for k in range(len(span)) if counts[k].sum()]
    collector.histogram_dict = {
        k: (counts[k], edges * span[k], ends[0][k], ends[1][k], max(-ends[0][k], ends[1][k])) for k in used
    }
    with contextlib.redirect_stdout(io.StringIO()):
        found = collector.compute_percentile()
    low, high = (e.copy() for e in ends)
    for k in used:
        # An edge on the far side of zero would leave zero without a code.
        own = min(float(found[k][0]), 0.0), max(float(found[k][1]), 0.0)
        if any(own):  # else nearly all is 0, and what is not would have no code
            low[k], high[k] = own
    return low, high


def _entropy(counts: Array, span: float, size: float) -> float:
    edges = np.linspace(-span, span, BINS + 1)
    collector = _collector("entropy", 99.99)
    padded = np.append(counts, 0)  # an odd number of bins, the middle one around zero
    low, high = collector.get_entropy_threshold(
        (padded, np.append(edges, 2 * edges[-1] - edges[-2]), -size, size, size), 128
    )
    return float(np.clip(max(-low, high), size / BINS, size))


def _collector(method: str, percentile: float) -> Any:
    try:
        from onnxruntime.quantization.calibrate import HistogramCollector
    except ImportError as error:
        raise EdgeLstmError(
            f"method {method} needs ONNX Runtime", hint="pip install 'edgelstm[cpu]'"
        ) from error
    return HistogramCollector(
        method=method,
        symmetric=False,
        num_bins=BINS,
        num_quantized_bins=128,
        percentile=percentile,
        scenario="same",
    )


def _least_error(
    counts: Array, span: Array, ends: _Ends, groups: Sequence[str] | None, gates: GateVariant | None
) -> _Ends:
    """The ends, as shares of the observed ones, whose clipping and rounding together err least."""
    centre = (np.arange(BINS) + 0.5 - BINS / 2) * (span / (BINS / 2))[:, None]
    parts = 1 if groups is None else len(groups)
    if groups is not None and len(span) % parts:
        groups = None
    act = _Activation(groups, gates, len(span))
    value, steep = act(centre), act.slope(centre) ** 2 * counts
    inside = steep.sum(1, keepdims=True)
    # The sides meet only in the width of a step, so each share of each is looked at once: [side][channel, share].
    tried = [end[:, None] * _SHARES for end in ends]

    def beyond(side: int) -> tuple[Array, Array]:
        """Of what lies beyond each end: its error, and how much of ``steep`` it takes away."""
        end, outwards = tried[side][..., None], slice(None, None, -1 if side else 1)
        count = (centre[:, None] > end if side else centre[:, None] < end).sum(2)

        def total(values: Array) -> Array:
            sums = np.cumsum(values[:, outwards], 1)
            return np.take_along_axis(np.pad(sums, ((0, 0), (1, 0))), count, 1)

        moved = act(tried[side])
        # Seen from the outermost: squares of small numbers.
        far, moved = value - moved[:, :1], moved - moved[:, :1]
        lost = moved**2 * total(counts) - 2 * moved * total(counts * far) + total(counts * far**2)
        return lost, total(steep)

    lost, gone = zip(*(beyond(side) for side in (0, 1)), strict=True)
    chosen = np.zeros((2, len(span), 1), np.int64)
    for _ in range(2):
        for side in (0, 1):
            far, other_lost, other_gone = (
                np.take_along_axis(table[1 - side], chosen[1 - side], 1) for table in (tried, lost, gone)
            )
            near = tried[side]
            # Symmetric codes waste what the shorter side does not use; pre-activations have a zero point of their own.
            width = np.abs(near - far) if groups is not None else 2 * np.maximum(np.abs(near), np.abs(far))
            noise = (width / _LEVELS) ** 2 / 12
            error = noise * (inside - gone[side] - other_gone) + lost[side] + other_lost
            best = 1 + error[:, 1:].argmin(1)[:, None]
            found, before = (np.take_along_axis(error, k, 1) for k in (best, chosen[side]))
            chosen[side] = np.where(found < before, best, chosen[side])
    low, high = (np.take_along_axis(tried[side], chosen[side], 1)[:, 0] for side in (0, 1))
    return low, high


class _Activation:
    """The activation that each channel of a pre-activation goes through; identity where ``groups`` is None."""

    def __init__(self, groups: Sequence[str] | None, gates: GateVariant | None, channels: int) -> None:
        self._tanh, self._forget = np.zeros((2, channels, 1), bool)
        self._identity = groups is None or gates is None
        self._gates = gates
        if groups is not None:
            each = channels // len(groups)
            for k, name in enumerate(groups):
                self._tanh[k * each : (k + 1) * each] = name == "g"
                self._forget[k * each : (k + 1) * each] = (
                    name == "f" and gates is not None and gates.gate == "sigmoid"
                )

    def __call__(self, x: Array) -> Array:
        if self._identity or self._gates is None:
            return x
        candidate = np.maximum(x, 0) if self._gates.candidate == "relu" else np.tanh(x)
        # c settles at i g / (1 - f): what moves it is log(1 - f), which does not flatten out where f nears 1.
        forget = np.logaddexp(0, x)
        return np.where(self._tanh, candidate, np.where(self._forget, forget, self._gate(x)))

    def slope(self, x: Array) -> Array:
        h = 1e-3
        steep: Array = (self(x + h) - self(x - h)) / (2 * h)
        return steep

    def _gate(self, x: Array) -> Array:
        assert self._gates is not None
        if self._gates.gate == "hard_sigmoid":
            hard: Array = np.clip(self._gates.alpha * x + self._gates.beta, 0, 1)
            return hard
        soft: Array = 0.5 * np.tanh(0.5 * x) + 0.5
        return soft


def overrides(
    table: Mapping[str, Mapping[str, Any]], name: str, default: Mapping[str, Any]
) -> dict[str, Any]:
    """The method for the tensor ``name``: the first pattern of ``table`` that fits it, over ``default``."""
    from fnmatch import fnmatchcase

    for pattern, chosen in table.items():
        if fnmatchcase(name, pattern):
            return {**default, **chosen}
    return dict(default)
