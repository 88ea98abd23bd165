"""What a calibration sees of one tensor: extremes, moments and a histogram for each channel, in memory that stays fixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BINS = 256
#: Of a larger tensor, this many values a frame go into the histogram (extremes and moments see them all).
SAMPLES = 1 << 16
#: No span is smaller: what is so small is nothing beside what any other value will be.
_LEAST = 2.0**-64


class Observer:
    """Statistics of ``channels`` channels over any number of arrays.

    The histogram of a channel has :data:`BINS` bins over [-span, span], span a power of two: a value beyond doubles
    the span and bins merge in pairs, so nothing has to be known beforehand and nothing is seen twice.
    """

    def __init__(self, channels: int) -> None:
        self.samples = 0
        self.minimum = np.full(channels, np.inf)
        self.maximum = np.full(channels, -np.inf)
        self.sum = np.zeros(channels)
        self.sum_square = np.zeros(channels)
        self.span = np.zeros(channels)
        self.counts = np.zeros((channels, BINS), np.int64)

    def add(self, values: Array, axis: int) -> None:
        """Count ``values``, whose ``axis`` runs over the channels."""
        flat = np.moveaxis(values, axis, 0).reshape(len(self.span), -1)
        if not flat.size:
            return
        self.samples += flat.shape[1]
        np.minimum(self.minimum, flat.min(1), out=self.minimum)
        np.maximum(self.maximum, flat.max(1), out=self.maximum)
        self.sum += flat.sum(1, dtype=np.float64)
        self.sum_square += np.einsum("cn,cn->c", flat, flat, dtype=np.float64)
        if not np.isfinite(self.sum_square).all():
            return  # there is no range to find; whoever asks for it will say so
        self._widen(np.maximum(-self.minimum, self.maximum))
        stride = -(-flat.size // SAMPLES)
        if stride > 1:
            # Another phase every time, so that no pixel is left out for good.
            flat = flat[:, self.samples // flat.shape[1] % stride :: stride]
        self._count(flat)

    @property
    def mean(self) -> Array:
        """Mean of each channel."""
        mean: Array = self.sum / max(1, self.samples)
        return mean

    @property
    def mean_square(self) -> Array:
        """Mean square of each channel."""
        mean: Array = self.sum_square / max(1, self.samples)
        return mean

    def whole(self) -> tuple[float, Array]:
        """(span, counts [BINS]) of all channels together."""
        span = float(self.span.max(initial=0.0))
        counts = np.zeros(BINS, np.int64)
        for own in np.unique(self.span):
            if own:
                merged = self.counts[self.span == own].sum(0)
                np.add.at(counts, _merged_bins(span / own), merged)
        # Channels that never left zero.
        counts[BINS // 2] += int(self.counts[self.span == 0].sum())
        return span, counts

    def _widen(self, largest: Array) -> None:
        wider = (largest >= self.span) & np.isfinite(largest) & (largest > 0)
        if not wider.any():
            return
        needed = np.zeros_like(self.span)
        # Larger than any value; half of it is not.
        needed[wider] = np.maximum(np.ldexp(1.0, np.frexp(largest[wider])[1]), _LEAST)
        for channel in np.flatnonzero(needed > self.span):
            old, self.span[channel] = self.span[channel], needed[channel]
            before = self.counts[channel].copy()
            self.counts[channel] = 0
            if old:
                np.add.at(self.counts[channel], _merged_bins(needed[channel] / old), before)
            else:
                self.counts[channel, BINS // 2] = before.sum()

    def _count(self, flat: Array) -> None:
        channels = len(self.span)
        scale = np.divide(BINS / 2, self.span, out=np.zeros(channels), where=self.span > 0)
        # In float64 scaling is exact and a tiny negative value stays one, so bins that merge later agree.
        index = np.floor(flat * scale[:, None]).astype(np.int64) + BINS // 2
        index += (np.arange(channels) * BINS)[:, None]
        self.counts += np.bincount(index.ravel(), minlength=channels * BINS).reshape(channels, BINS)


def _merged_bins(times: float) -> Array:
    """Which bin each bin falls into when the span is ``times`` (a power of two) as large."""
    # Beyond BINS times nothing changes any more, but no integer would hold it.
    merged: Array = (np.arange(BINS) - BINS // 2) // int(min(times, BINS)) + BINS // 2
    return merged
