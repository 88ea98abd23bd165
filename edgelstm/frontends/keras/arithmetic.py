"""Convolutions and pooling by NumPy, in Keras's layout: [N, *spatial, channels]. Made to be right and readable.

A convolution is one matrix product, in blocks that stay in the processor's cache, of what the kernel sees at each place
with the kernel: four times as fast as adding up place by place of the kernel. The others do that: any number of axes,
strides and dilations is the same few lines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided

from edgelstm.frontends.keras.builder import Array, Shape

Padding = Sequence[tuple[int, int]]
#: Numbers of the windows that one product takes: half a megabyte of them stays in the cache.
_BLOCK = 2**16


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after an axis so that it gives ceil(size / stride) places; the odd one comes after."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: Shape,
    dilation: Shape,
    padding: Padding,
    groups: int = 1,
) -> Array:
    """Cross-correlation: x [N, *spatial, C], kernel [*k, C / groups, O] -> [N, *places, O]."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    *sizes, inputs, outputs = kernel.shape
    places = _places(x.shape[1:-1], sizes, strides, dilation)
    y = np.empty((len(x), *places, outputs), x.dtype)
    if not y.size:
        return y
    share = outputs // groups
    for k in range(groups):
        seen = _windows(x[..., k * inputs : (k + 1) * inputs], sizes, strides, dilation, places)
        weight = kernel[..., k * share : (k + 1) * share].reshape(-1, share)
        for part in _blocks(places, len(weight), len(x)):
            view = seen[part]
            product = view.reshape(-1, len(weight)) @ weight
            columns: Any = (*part, ..., slice(k * share, (k + 1) * share))
            y[columns] = product.reshape(*view.shape[: len(sizes) + 1], share)
    return y


def depthwise(x: Array, kernel: Array, *, strides: Shape, dilation: Shape, padding: Padding) -> Array:
    """x [N, *spatial, C], kernel [*k, C, M] -> [N, *places, C * M]: M filters for each channel alone."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    *sizes, channels, filters = kernel.shape
    places = _places(x.shape[1:-1], sizes, strides, dilation)
    y = np.zeros((len(x), *places, channels, filters), x.dtype)
    for at, seen in _seen(x, sizes, strides, dilation, places):
        y += seen[..., None] * kernel[at]
    return y.reshape(len(x), *places, channels * filters)


def conv_transpose(
    x: Array, kernel: Array, *, strides: Shape, dilation: Shape, crops: Padding, sizes: Shape
) -> Array:
    """The transpose of ``conv``: x [N, *spatial, C], kernel [*k, O, C] -> [N, *sizes, O].

    crops: how much of the full result is cut off before each axis (only the first of each pair counts: the rest is what
    ``sizes`` leaves).
    """
    kernels = kernel.shape[:-2]
    spatial = x.shape[1:-1]
    full = [
        (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(spatial, strides, kernels, dilation, strict=True)
    ]
    full = [max(f, low + n) for f, (low, _), n in zip(full, crops, sizes, strict=True)]
    y = np.zeros((len(x), *full, kernel.shape[-2]), x.dtype)
    for at in itertools.product(*map(range, kernels)):
        y[_strided(at, strides, dilation, spatial)] += x @ kernel[at].T
    kept = (slice(None), *(slice(low, low + n) for (low, _), n in zip(crops, sizes, strict=True)))
    return y[kept]


def pool(x: Array, kind: Literal["max", "average"], sizes: Shape, strides: Shape, padding: Padding) -> Array:
    """Largest value or mean of each window; what is padded counts in neither. x [N, *spatial, C]."""
    fill = -np.inf if kind == "max" else 0.0
    padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
    ones = np.pad(np.ones(x.shape[1:-1]), padding)[None, ..., None]
    once = (1,) * len(sizes)
    places = _places(padded.shape[1:-1], sizes, strides, once)
    if not math.prod(places):
        return np.zeros((len(x), *places, x.shape[-1]), x.dtype)
    windows = [seen for _, seen in _seen(padded, sizes, strides, once, places)]
    if kind == "max":
        return reduce(np.maximum, windows)
    counts = sum(seen for _, seen in _seen(ones, sizes, strides, once, places))
    mean: Array = sum(windows[1:], windows[0]) / counts
    return mean


def _places(spatial: Shape, sizes: Sequence[int], strides: Shape, dilation: Shape) -> Shape:
    return tuple(
        max((n - (k - 1) * d - 1) // s + 1, 0)
        for n, k, s, d in zip(spatial, sizes, strides, dilation, strict=True)
    )


def _windows(x: Array, sizes: Sequence[int], strides: Shape, dilation: Shape, places: Shape) -> Array:
    """A view of what the kernel sees at each place: [N, *places, *k, C]."""
    steps = x.strides[1:-1]
    return as_strided(
        x,
        (len(x), *places, *sizes, x.shape[-1]),
        (
            x.strides[0],
            *(step * s for step, s in zip(steps, strides, strict=True)),
            *(step * d for step, d in zip(steps, dilation, strict=True)),
            x.strides[-1],
        ),
        writeable=False,
    )


def _blocks(places: Shape, width: int, streams: int) -> Iterator[tuple[slice, ...]]:
    """Cuts of [N, *places] whose windows of ``width`` numbers are about ``_BLOCK`` numbers."""
    one = math.prod(places) * width
    if one <= _BLOCK or len(places) == 0:
        count = max(_BLOCK // max(one, 1), 1)
        for n in range(0, streams, count):
            yield (slice(n, n + count),)
        return
    for n in range(streams):
        for rest in _blocks(places[1:], width, places[0]):
            yield (slice(n, n + 1), *rest)


def _seen(
    x: Array, sizes: Sequence[int], strides: Shape, dilation: Shape, places: Shape
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """For each place of the kernel, what it sees at all places of the result: [N, *places, C]."""
    if not math.prod(places):
        return
    for at in itertools.product(*map(range, sizes)):
        yield at, x[_strided(at, strides, dilation, places)]


def _strided(at: Shape, strides: Shape, dilation: Shape, places: Shape) -> tuple[slice, ...]:
    """All streams, and on each axis every ``stride``-th place from where the kernel's place ``at`` begins."""
    return (
        slice(None),
        *(
            slice(i * d, i * d + (n - 1) * s + 1, s)
            for i, d, n, s in zip(at, dilation, places, strides, strict=True)
        ),
    )
