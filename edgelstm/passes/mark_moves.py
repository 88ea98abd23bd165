"""The rules of operators that move elements: an output's element depends on what the element did that it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgelstm.passes.batching import Shape
from edgelstm.passes.graph import Array
from edgelstm.passes.marks import Result, Rule, Visit, compact, over, raised

#: Elements up to which marks are written out in full where an axis is cut or joined in the middle of a stream's elements.
MAX_FULL = 1 << 27


def _reshape(v: Visit) -> Result:
    shape = v.shapes[0]
    return None if shape is None or not v.alone(0) else reshaped(v.marks(0), v.shape(0), shape)


def reshaped(marks: Array, old: Shape, new: Shape) -> Array | None:
    """Marks of the same elements in another shape; None where they would have to be written out and are too many."""
    if math.prod(old) != math.prod(new):
        return None
    uneven = max((k for k, d in enumerate(marks.shape) if d > 1), default=-1) + 1
    # Behind the last axis along which anything changes all elements are alike: only what stands before has to be moved.
    for cut in range(uneven, len(old) + 1):
        wanted, size = math.prod(old[:cut]), 1
        for to in range(len(new) + 1):
            if size == wanted and math.prod(new[to:]) == math.prod(old[cut:]):
                if wanted > MAX_FULL:
                    return None
                part = np.broadcast_to(marks.reshape(marks.shape[:cut]), old[:cut]).reshape(new[:to])
                return compact(part).reshape(*compact(part).shape, *[1] * (len(new) - to))
            size *= new[to] if to < len(new) else 1
    return None


def _transpose(v: Visit) -> Result:
    rank = len(v.shape(0)) if v.alone(0) else 0
    return v.marks(0).transpose(v.attribute("perm", range(rank)[::-1])) if v.alone(0) else None


def _concat(v: Visit) -> Result:
    items = [i for i in v.inputs if i is not None]
    if any(i.shape is None for i in items):
        return None
    axis = int(v.attribute("axis", 0)) % items[0].marks.ndim
    first = items[0].marks
    if (
        all(i.marks.shape == first.shape and (i.marks == first).all() for i in items)
        and first.shape[axis] == 1
    ):
        return first
    others = np.broadcast_shapes(*(tuple(d for k, d in enumerate(i.marks.shape) if k != axis) for i in items))
    parts = [
        np.broadcast_to(i.marks, (*others[:axis], i.shape[axis], *others[axis:])) for i in items if i.shape
    ]
    return compact(np.concatenate(parts, axis))


def _split(v: Visit) -> Result:
    if not v.alone(0) or any(s is None for s in v.shapes):
        return None
    marks, axis = v.marks(0), int(v.attribute("axis", 0)) % len(v.shape(0))
    if marks.shape[axis] == 1:
        return marks
    ends = np.cumsum([s[axis] for s in v.shapes if s is not None])
    return [compact(m) for m in np.split(marks, ends[:-1], axis)]


def _slice(v: Visit) -> Result:
    starts, ends = v.integers("starts", 1), v.integers("ends", 2)
    if starts is None or ends is None or not v.alone(0):
        return None
    axes, steps = v.integers("axes", 3), v.integers("steps", 4)
    if (axes is None and v.given(3)) or (steps is None and v.given(4)):
        return None
    marks = v.marks(0)
    for k, axis in enumerate(range(len(starts)) if axes is None else axes):
        if marks.shape[axis] > 1:
            step = 1 if steps is None else steps[k]
            end: int | None = ends[k]
            if step < 0 and ends[k] < -v.shape(0)[axis]:
                end = None
            cut: list[slice] = [slice(None)] * marks.ndim
            cut[axis] = slice(starts[k], end, step)
            marks = marks[tuple(cut)]
    return compact(marks)


def _gather(v: Visit) -> Result:
    data, indices = v.inputs
    if data is None or indices is None or data.shape is None or indices.shape is None:
        return None
    axis = int(v.attribute("axis", 0)) % len(data.shape)
    before, after = data.marks.shape[:axis], data.marks.shape[axis + 1 :]
    if indices.value is not None and data.marks.shape[axis] > 1:
        taken = data.marks.take(indices.value.astype(np.int64), axis)
    else:
        taken = over(data.marks, [axis]).reshape(*before, *[1] * len(indices.shape), *after)
    chosen = indices.marks.reshape(*[1] * len(before), *indices.marks.shape, *[1] * len(after))
    return compact(taken | chosen)


def _gather_elements(v: Visit) -> Result:
    if not v.alone(0, 1):
        return None
    axis = int(v.attribute("axis", 0)) % len(v.shape(0))
    if any(a != b for k, (a, b) in enumerate(zip(v.shape(0), v.shape(1), strict=True)) if k != axis):
        return None
    return over(v.marks(0), [axis]) | v.marks(1)


def _gather_nd(v: Visit) -> Result:
    if not v.alone(0, 1) or v.attribute("batch_dims", 0):
        return None
    indices = v.inputs[1]
    if indices is None or indices.value is None:
        if v.inputs[0] is not None and not v.inputs[0].streams:
            whole = over(v.marks(1), [-1])
            return whole.reshape(*whole.shape[:-1], *[1] * (len(v.shape(0)) - v.shape(1)[-1]))
        return None
    if math.prod(v.shape(0)) > MAX_FULL:
        return None
    full = np.broadcast_to(v.marks(0), v.shape(0))
    return compact(full[tuple(np.moveaxis(indices.value.astype(np.int64), -1, 0))])


def _scatter(v: Visit) -> Result:
    """ScatterND, ScatterElements: what is written over counts as still there."""
    if not v.alone(0, 2):
        return None
    data, updates, indices = v.shape(0), v.shape(2), v.inputs[1]
    if v.inputs[2] is not None and not v.inputs[2].streams:
        return v.marks(0)
    if indices is None or indices.value is None or math.prod((*data, *updates)) > MAX_FULL:
        return None
    full, new = np.broadcast_to(v.marks(0), data).copy(), np.broadcast_to(v.marks(2), updates)
    places = indices.value.astype(np.int64)
    if v.node.op_type == "ScatterND":
        at: tuple[Any, ...] = tuple(np.moveaxis(places, -1, 0))
    else:
        axis = int(v.attribute("axis", 0)) % len(data)
        grid = np.indices(places.shape)
        at = tuple(places if k == axis else grid[k] for k in range(len(data)))
    np.bitwise_or.at(full, at, new)
    return compact(full)


def _expand(v: Visit) -> Result:
    return None if v.shapes[0] is None or not v.alone(0) else raised(v.marks(0), len(v.shapes[0]))


def _tile(v: Visit) -> Result:
    repeats = v.integers("repeats", 1)
    if repeats is None or not v.alone(0):
        return None
    marks = v.marks(0)
    return np.tile(marks, [r if d > 1 else 1 for r, d in zip(repeats, marks.shape, strict=True)])


def _pad(v: Visit) -> Result:
    pads = v.integers("pads", 1)
    if pads is None or not v.alone(0):
        return None
    marks, axes = v.marks(0), v.integers("axes", 3)
    if axes is None and v.given(3):
        return None
    half = len(pads) // 2
    widths = [(0, 0)] * marks.ndim
    for k, axis in enumerate(range(half) if axes is None else axes):
        if marks.shape[axis] > 1:
            widths[axis] = (pads[k], pads[k + half])
    if min(min(w) for w in widths) < 0:
        return None
    mode: Any = v.attribute("mode", b"constant").decode()
    return np.pad(marks, widths, mode=mode)


def _one_hot(v: Visit) -> Result:
    if not v.alone(0):
        return None
    marks = v.marks(0)
    axis = int(v.attribute("axis", -1)) % (marks.ndim + 1)
    return np.expand_dims(marks, axis)


def _reverse(v: Visit) -> Result:
    if not v.alone(0, 1):
        return None
    batch, time = int(v.attribute("batch_axis", 1)), int(v.attribute("time_axis", 0))
    marks = over(v.marks(0), [time])
    lengths = [1] * marks.ndim
    lengths[batch] = v.marks(1).size
    return marks | v.marks(1).reshape(lengths)


MOVES: dict[Rule, str] = {
    _reshape: "Flatten Reshape Squeeze Unsqueeze",
    _transpose: "Transpose",
    _concat: "Concat",
    _split: "Split",
    _slice: "Slice",
    _gather: "Gather",
    _gather_elements: "GatherElements",
    _gather_nd: "GatherND",
    _scatter: "ScatterElements ScatterND",
    _expand: "Expand",
    _tile: "Tile",
    _pad: "Pad",
    _one_hot: "OneHot",
    _reverse: "ReverseSequence",
}
