"""How the inputs of a product go together: second moments of the patches that its weights meet, for rounding them well."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: A product whose rows have more weights than this is rounded to nearest: the matrix grows with their square.
LARGEST = 4096
#: Patches of a map that are looked at in each frame.
PATCHES = 16
_BUFFER = 256


@dataclass(frozen=True)
class Window:
    """Which inputs an output of a convolution sees: kernel, strides, pads (begin, then end) and dilations by axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]


class Correlation:
    """E[a aT] of the patches ``a`` [channels * taps] of one weight, in the order of its rows; memory fixed.

    ``window`` is None for vectors. Positions are drawn with a fixed seed, so equal sequences give equal matrices.
    """

    def __init__(self, channels: int, window: Window | None) -> None:
        self.size = channels * int(np.prod(window.kernel if window else ()))
        self._window = window
        self._channels = channels
        self._sum = np.zeros((self.size, self.size))
        self._count = 0
        self._random = np.random.default_rng(0)
        self._waiting: list[Array] = []
        self._rows = 0

    def add(self, activation: Array) -> None:
        """Look at an activation of one stream: [..., channels], or [..., channels, *map] under a window."""
        if self._window is None:
            # A copy: what comes in here may be a view that lasts until the next step only.
            patches = activation.reshape(-1, self._channels).astype(np.float64)
        else:
            patches = self._patches(activation)
        self._waiting.append(patches)
        self._rows += len(patches)
        if self._rows >= _BUFFER:
            self._flush()

    @property
    def matrix(self) -> Array:
        """[size, size], float64."""
        self._flush()
        matrix: Array = self._sum / max(1, self._count)
        return matrix

    def _flush(self) -> None:
        if self._waiting:
            rows = np.concatenate(self._waiting)
            self._sum += rows.T @ rows
            self._count += len(rows)
            self._waiting, self._rows = [], 0

    def _patches(self, activation: Array) -> Array:
        w = self._window
        assert w is not None
        axes = len(w.kernel)
        maps = activation.reshape(-1, *activation.shape[activation.ndim - axes - 1 :])
        sides = list(zip(w.pads[:axes], w.pads[axes:], strict=True))
        # Which map, and where on each axis the patch begins, drawn for one patch after the other.
        places = [
            max(1, (length + sum(side) - dilation * (taps - 1) - 1) // stride + 1)
            for length, side, dilation, taps, stride in zip(
                maps.shape[2:], sides, w.dilations, w.kernel, w.strides, strict=True
            )
        ]
        drawn = self._random.integers([len(maps), *places], size=(PATCHES, 1 + axes))
        index: list[Array] = [
            drawn[:, 0].reshape(-1, *[1] * (axes + 1)),
            np.arange(self._channels).reshape(-1, *[1] * axes),
        ]
        outside = np.zeros(1, bool)
        for axis in range(axes):
            start = drawn[:, 1 + axis] * w.strides[axis] - sides[axis][0]
            seen = start[:, None] + w.dilations[axis] * np.arange(w.kernel[axis])
            # [patch, 1 (channel), the axis among the others]
            seen = seen.reshape(PATCHES, *(-1 if a == axis else 1 for a in range(-1, axes)))
            length = maps.shape[axis + 2]
            outside = outside | (seen < 0) | (seen >= length)
            index.append(np.clip(seen, 0, length - 1))
        found = maps[tuple(index)].astype(np.float64)
        found[np.broadcast_to(outside, found.shape)] = 0
        patches: Array = found.reshape(PATCHES, -1)
        return patches


def to_json(matrix: Array) -> dict[str, Any]:
    """Upper triangle of the correlations in float16, and the root mean squares, base64: a few bytes a pair."""
    rms = np.sqrt(np.maximum(np.diag(matrix), 0))
    safe = np.where(rms > 0, rms, 1)
    upper = (matrix / safe[:, None] / safe)[np.triu_indices(len(matrix), 1)]
    return {
        "size": len(matrix),
        "rms": base64.b64encode(rms.astype("<f4").tobytes()).decode("ascii"),
        "correlations": base64.b64encode(upper.astype("<f2").tobytes()).decode("ascii"),
    }


def from_json(data: Mapping[str, Any]) -> Array:
    """Read what :func:`to_json` wrote, [size, size] float64. Raises ValueError for anything else."""
    size = int(data["size"])
    if not 0 < size <= LARGEST:
        raise ValueError(f"size {size}")
    rms = np.frombuffer(base64.b64decode(data["rms"], validate=True), "<f4").astype(np.float64)
    upper = np.frombuffer(base64.b64decode(data["correlations"], validate=True), "<f2").astype(np.float64)
    if len(rms) != size or len(upper) != size * (size - 1) // 2:
        raise ValueError(f"{len(rms)} and {len(upper)} numbers for size {size}")
    if not (np.isfinite(rms).all() and (np.abs(upper) <= 1.01).all()):
        raise ValueError("root mean squares that are not finite, or correlations beyond 1")
    matrix = np.eye(size)
    matrix[np.triu_indices(size, 1)] = upper
    matrix = np.triu(matrix) + np.triu(matrix, 1).T
    scaled: Array = matrix * rms[:, None] * rms
    return scaled


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of ``items``, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[round(k * (len(items) - 1) / (count - 1))] for k in range(count)]
