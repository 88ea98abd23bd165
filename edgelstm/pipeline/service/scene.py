"""Scene cuts: a frame that has nothing to do with the one before, as when a camera is turned or a channel switched."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgelstm.pipeline.sources.source import Array, Frame

#: Rows and columns that frames are averaged down to, at most.
SIDE = 32


class Scene:
    """above: mean absolute difference of two frames in a row, averaged down to at most 32 x 32, from which on it is a cut; in the
    frames' own units (0 to 255 of a camera). Of several arrays the first counts; values that are not finite don't."""

    def __init__(self, above: float) -> None:
        self.above = above
        #: Shape of the last frame, and what it was averaged down to.
        self._last: tuple[tuple[int, ...], Array | None] = ((), None)

    def is_cut(self, frame: Frame) -> bool:
        """Look at the next frame. False for the first, and for one of another size, which is judged elsewhere."""
        data = frame.data
        array = next(iter(data.values())) if isinstance(data, Mapping) else data
        (shape, last), small = self._last, _small(array)
        self._last = (array.shape, small)
        if last is None or shape != array.shape:
            return False
        apart = np.abs(small - last)
        return bool(apart.size) and float(np.nanmean(apart) if np.isfinite(apart).any() else 0.0) > self.above


def _small(array: Array) -> Array:
    """[rows, columns] or fewer, float32: the two longest axes, averaged down, the mean of all others."""
    if array.ndim < 2:
        return np.where(np.isfinite(array), array, np.nan).astype(np.float32)
    rows, columns = sorted(sorted(range(array.ndim), key=lambda a: -array.shape[a])[:2])
    others = tuple(a for a in range(array.ndim) if a not in (rows, columns))
    height, width = array.shape[rows], array.shape[columns]
    down, across = max(1, height // SIDE), max(1, width // SIDE)
    # Every pixel of a block would cost as much as the preprocessing does: a few of each are enough.
    step_down, step_across = max(1, down // 4), max(1, across // 4)
    cut: list[slice] = [slice(None)] * array.ndim
    cut[rows] = slice(0, height // down * down, step_down)
    cut[columns] = slice(0, width // across * across, step_across)
    part = array[tuple(cut)].astype(np.float32)
    flat = part.mean(axis=others) if others else part
    m, n = max(1, down // step_down), max(1, across // step_across)
    h, w = flat.shape[0] // m * m, flat.shape[1] // n * n
    return np.asarray(flat[:h, :w].reshape(h // m, m, w // n, n).mean(axis=(1, 3)), np.float32)
