"""Which streams each element of a value depends on, operator by operator: the table that ``stream_axis`` follows.

A value has *marks*: bits, one a stream, for every element. They are kept compact: an axis along which all elements depend
on the same streams has size 1. A rule gives the marks of a node's outputs from those of its inputs; it may claim more
dependences than there are, never fewer. What has no rule depends, element by element, on all that any of its inputs do.
Operator semantics: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from edgelstm.graph.gates import is_fused_gates
from edgelstm.passes.batching import ELEMENTWISE, REDUCTIONS, Shape
from edgelstm.passes.graph import Array, attribute, is_standard

#: Elements up to which marks are written out in full where an axis is cut or joined in the middle of a stream's elements.
MAX_FULL = 1 << 27


@dataclass(frozen=True)
class Marked:
    """A value: its shape (None: unknown), its marks (as many axes, each of size 1 or in full) and, if constant, itself."""

    shape: Shape | None
    marks: Array
    value: Array | None = None

    @property
    def streams(self) -> int:
        """Bits of all streams that any element depends on."""
        return int(np.bitwise_or.reduce(self.marks, axis=None))


@dataclass(frozen=True)
class Visit:
    """A node, what goes in (None: left out) and the shapes of what comes out."""

    node: onnx.NodeProto
    inputs: tuple[Marked | None, ...]
    shapes: tuple[Shape | None, ...]
    opset: int

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or ``default``."""
        return attribute(self.node, name, default)

    def integers(self, name: str, index: int) -> list[int] | None:
        """Integers that older opsets hold in an attribute, newer ones in a constant input; None where not known."""
        held = self.attribute(name)
        if held is None and index < len(self.inputs):
            given = self.inputs[index]
            held = None if given is None else given.value
        return None if held is None else [int(v) for v in np.asarray(held).reshape(-1)]

    def given(self, index: int) -> bool:
        """Whether input ``index`` is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def alone(self, *places: int) -> bool:
        """Whether no input but those at ``places`` depends on a stream, and those have a shape."""
        for k, item in enumerate(self.inputs):
            if item is not None and (item.shape is None if k in places else item.streams):
                return False
        return all(self.given(k) for k in places)

    def marks(self, index: int) -> Array:
        """Marks of an input that is there."""
        item = self.inputs[index]
        assert item is not None
        return item.marks

    def shape(self, index: int) -> Shape:
        """Shape of an input that is there and whose shape is known."""
        item = self.inputs[index]
        assert item is not None
        assert item.shape is not None
        return item.shape


#: Marks of each output, or of all outputs at once; None: nothing is known.
Result = list[Array] | Array | None
Rule = Callable[[Visit], Result]


def rule_of(node: onnx.NodeProto) -> Rule | None:
    """The rule of a node's operator."""
    if is_fused_gates(node):
        return _gates
    return RULES.get(node.op_type) if is_standard(node) else None


def compact(marks: Array) -> Array:
    """The same marks, every axis along which they do not change of size 1."""
    for axis, size in enumerate(marks.shape):
        if size > 1:
            first = marks.take([0], axis)
            if (marks == first).all():
                marks = first
    return marks


def over(marks: Array, axes: Sequence[int]) -> Array:
    """Every element depends on what all elements along ``axes`` do; those get size 1."""
    merged: Array = np.bitwise_or.reduce(marks, axis=tuple(a % marks.ndim for a in axes), keepdims=True)
    return merged


def _all_but(marks: Array, kept: Sequence[int]) -> Array:
    return over(marks, [a for a in range(marks.ndim) if a not in kept])


def _raised(marks: Array, rank: int) -> Array:
    return marks.reshape((1,) * (rank - marks.ndim) + marks.shape)


def _elementwise(v: Visit) -> Result:
    shape = v.shapes[0]
    if shape is None or any(i is not None and i.shape is None for i in v.inputs):
        return None
    marks = [_raised(i.marks, len(shape)) for i in v.inputs if i is not None]
    return [np.bitwise_or.reduce(np.broadcast_arrays(*marks), axis=0)] * len(v.shapes)


def _first(v: Visit) -> Result:
    """As the first input; the others are parameters."""
    return v.marks(0) if v.alone(0) else None


def _kept(*axes: int) -> Rule:
    """Elements stay apart along ``axes`` of the first input only; the others are parameters."""

    def rule(v: Visit) -> Result:
        return _all_but(v.marks(0), axes) if v.alone(0) else None

    return rule


def _rows(v: Visit) -> Result:
    """Rows of axis 0 stay apart, in all inputs that depend on streams."""
    shape = v.shapes[0]
    if not shape:
        return None
    merged: Array | None = None
    for item in v.inputs:
        if item is None or not item.streams:
            continue
        if not item.shape or item.shape[0] != shape[0]:
            return None
        rows = _all_but(item.marks, [0]).reshape(-1)
        merged = rows if merged is None else merged | rows
    if merged is None or any(s is None or s[:1] != shape[:1] for s in v.shapes):
        return None
    return [merged.reshape(-1, *[1] * (len(s) - 1)) for s in v.shapes if s is not None]


def _gates(v: Visit) -> Result:
    z, c = v.inputs[:2]
    if z is None or c is None or z.shape is None or c.shape is None:
        return None
    if any(p is not None and p.streams for p in v.inputs[2:]):
        return None
    return over(z.marks, [1]) | over(c.marks, [1]) if len(z.shape) == len(c.shape) else None


# -- along an axis ----------------------------------------------------------------------------------------------------


def _along(default: int) -> Rule:
    def rule(v: Visit) -> Result:
        return over(v.marks(0), [int(v.attribute("axis", default))]) if v.alone(0) else None

    return rule


def _softmax(v: Visit) -> Result:
    """Before opset 13 all axes from ``axis`` on are one."""
    if not v.alone(0):
        return None
    rank = len(v.shape(0))
    axis = int(v.attribute("axis", -1 if v.opset >= 13 else 1)) % max(rank, 1)
    return over(v.marks(0), [axis] if v.opset >= 13 else range(axis, rank))


def _normalized(v: Visit) -> Result:
    if not v.alone(0):
        return None
    rank = len(v.shape(0))
    return over(v.marks(0), range(int(v.attribute("axis", -1)) % rank, rank))


def _mean_variance(v: Visit) -> Result:
    return over(v.marks(0), v.attribute("axes", [0, 2, 3])) if v.alone(0) else None


def _batch_norm(v: Visit) -> Result:
    if not v.alone(0):
        return None
    if not v.attribute("training_mode", 0):
        return v.marks(0)
    channels = _all_but(v.marks(0), [1])
    return [channels, *[channels.reshape(-1)] * (len(v.shapes) - 1)]


def _cumulative(v: Visit) -> Result:
    axes = v.integers("axis", 1)
    return over(v.marks(0), axes) if v.alone(0) and axes else None


def _reduce(v: Visit) -> Result:
    if not v.alone(0):
        return None
    rank = len(v.shape(0))
    axes = v.integers("axes", 1)
    if axes is None and v.given(1):
        return None
    if not axes:
        if v.attribute("noop_with_empty_axes", 0):
            return v.marks(0)
        axes = list(range(rank))
    return _dropped(v, over(v.marks(0), axes) if rank else v.marks(0), axes)


def _arg(v: Visit) -> Result:
    axis = int(v.attribute("axis", 0))
    return _dropped(v, over(v.marks(0), [axis]), [axis]) if v.alone(0) else None


def _dropped(v: Visit, marks: Array, axes: Sequence[int]) -> Array:
    if v.attribute("keepdims", 1) or not marks.ndim:
        return marks
    return marks.reshape([d for k, d in enumerate(marks.shape) if k not in {a % marks.ndim for a in axes}])


# -- products and windows of neighbours -------------------------------------------------------------------------------


def _product(second: int) -> Rule:
    def rule(v: Visit) -> Result:
        if not v.alone(0, second) or v.shapes[0] is None:
            return None
        a, b = v.marks(0), v.marks(second)
        rows = over(a.reshape(1, -1) if a.ndim == 1 else a, [-1])
        columns = over(b.reshape(-1, 1) if b.ndim == 1 else b, [-2])
        rank = max(rows.ndim, columns.ndim)
        made: Array = _raised(rows, rank) | _raised(columns, rank)
        if b.ndim == 1:
            made = np.asarray(made.take(0, -1))
        return np.asarray(made.take(0, -1 if b.ndim == 1 else -2)) if a.ndim == 1 else made

    return rule


def _gemm(v: Visit) -> Result:
    places = (0, 1, 2) if v.given(2) else (0, 1)
    if not v.alone(*places):
        return None
    a = v.marks(0).T if v.attribute("transA", 0) else v.marks(0)
    b = v.marks(1).T if v.attribute("transB", 0) else v.marks(1)
    made = over(a, [1]) | over(b, [0])
    return made | _raised(v.marks(2), 2) if len(places) == 3 else made


def _einsum(v: Visit) -> Result:
    equation = v.attribute("equation", b"").decode().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    names = terms.split(",")
    if "." in equation or not arrow or any(i is None or i.shape is None for i in v.inputs):
        return None
    made: Array = np.zeros([1] * len(result), v.marks(0).dtype)
    for k, term in enumerate(names):
        if len(set(term)) != len(term):
            return None
        marks = over(v.marks(k), [a for a, n in enumerate(term) if n not in result])
        left = [n for n in term if n in result]
        marks = marks.reshape([d for a, d in enumerate(marks.shape) if term[a] in result])
        marks = marks.transpose([left.index(n) for n in result if n in left])
        made = made | marks.reshape(
            [marks.shape[[n for n in result if n in left].index(n)] if n in left else 1 for n in result]
        )
    return made


def _neighbours(*kept: int, weights: int | None = None) -> Rule:
    """Convolution and pooling: apart along ``kept`` and every spatial axis whose window is a single element."""

    def rule(v: Visit) -> Result:
        if not v.alone(0):
            return None
        rank = len(v.shape(0))
        kernel = v.attribute("kernel_shape")
        if kernel is None and weights is not None and v.given(weights):
            kernel = v.shape(weights)[2:]
        axes = list(kept)
        if kernel is not None:
            strides = v.attribute("strides", [1] * len(kernel))
            pads = v.attribute("pads", [0] * 2 * len(kernel))
            for k, size in enumerate(kernel):
                if size == strides[k] == 1 and pads[k] == pads[k + len(kernel)] == 0:
                    axes.append(k + 2)
        return _all_but(v.marks(0), [a for a in axes if a < rank])

    return rule


def _resize(v: Visit) -> Result:
    if not v.alone(0) or v.shapes[0] is None:
        return None
    if v.attribute("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        return None
    same = [k for k, (a, b) in enumerate(zip(v.shape(0), v.shapes[0], strict=True)) if a == b]
    return _all_but(v.marks(0), same)


def _recurrent(v: Visit) -> Result:
    """LSTM, GRU, RNN: apart along the batch only. X [T, N, I], Y [T, D, N, H], states [D, N, H]; layout 1 [N, ...]."""
    if any(i is not None and (i.shape is None or i.streams) for i in v.inputs[1:4]):
        return None
    first = bool(v.attribute("layout", 0))
    rows = _all_but(v.marks(0), [0 if first else 1]).reshape(-1)
    for place in (5, 6):
        if v.given(place):
            rows = rows | _all_but(v.marks(place), [0 if first else 1]).reshape(-1)
    if v.given(4):
        rows = rows | v.marks(4).reshape(-1)
    whole, last = ((-1, 1, 1, 1), (-1, 1, 1)) if first else ((1, 1, -1, 1), (1, -1, 1))
    return [rows.reshape(whole if k == 0 else last) for k in range(len(v.shapes))]


# -- moving elements --------------------------------------------------------------------------------------------------


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
    return None if v.shapes[0] is None or not v.alone(0) else _raised(v.marks(0), len(v.shapes[0]))


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


def _like(v: Visit) -> Result:
    """Of the other input only the type counts."""
    return v.marks(0)


def _nothing(v: Visit) -> Result:
    """Of the input only the shape counts."""
    return np.zeros_like(v.marks(0), shape=())


def _table(rules: dict[Rule, str]) -> dict[str, Rule]:
    return {op: rule for rule, names in rules.items() for op in names.split()}


RULES = _table(
    {
        _elementwise: f"{ELEMENTWISE} BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Clip Shrink Bernoulli",
        _like: "CastLike",
        _nothing: "EyeLike RandomNormalLike RandomUniformLike",
        _first: "DequantizeLinear Dropout QuantizeLinear Trilu",
        _kept(0, 1): "GlobalAveragePool GlobalLpPool GlobalMaxPool InstanceNormalization",
        _kept(0): "DepthToSpace GroupNormalization LRN SpaceToDepth",
        _rows: "AffineGrid Attention GridSample RotaryEmbedding STFT Col2Im MaxUnpool DeformConv",
        _along(-1): "LpNormalization TopK",
        _softmax: "Hardmax LogSoftmax Softmax",
        _normalized: "LayerNormalization RMSNormalization",
        _mean_variance: "MeanVarianceNormalization",
        _batch_norm: "BatchNormalization",
        _cumulative: "CumSum",
        _reduce: REDUCTIONS,
        _arg: "ArgMax ArgMin",
        _product(1): "MatMul MatMulInteger",
        _product(3): "QLinearMatMul",
        _gemm: "Gemm",
        _einsum: "Einsum",
        _neighbours(0, weights=1): "Conv ConvInteger ConvTranspose",
        _neighbours(0, weights=3): "QLinearConv",
        _neighbours(0, 1): "AveragePool LpPool MaxPool",
        _resize: "Resize Upsample",
        _recurrent: "GRU LSTM RNN",
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
)
