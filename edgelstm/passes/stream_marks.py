"""Which streams what comes out of an operator depends on, operator by operator: the table that ``stream_axis`` follows.

A rule gives the marks (``marks``) of a node's outputs from those of its inputs; it may claim more dependences than there
are, never fewer. What has no rule depends, element by element, on all that any of its inputs do.
Operator semantics: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from edgelstm.graph.gates import is_fused_gates
from edgelstm.passes.batching import ELEMENTWISE, REDUCTIONS
from edgelstm.passes.graph import Array, is_standard
from edgelstm.passes.mark_moves import MOVES
from edgelstm.passes.marks import Result, Rule, Visit, all_but, over, raised


def rule_of(node: onnx.NodeProto) -> Rule | None:
    """The rule of a node's operator."""
    if is_fused_gates(node):
        return _gates
    return RULES.get(node.op_type) if is_standard(node) else None


def _elementwise(v: Visit) -> Result:
    shape = v.shapes[0]
    if shape is None or any(i is not None and i.shape is None for i in v.inputs):
        return None
    marks = [raised(i.marks, len(shape)) for i in v.inputs if i is not None]
    return [np.bitwise_or.reduce(np.broadcast_arrays(*marks), axis=0)] * len(v.shapes)


def _first(v: Visit) -> Result:
    """As the first input; the others are parameters."""
    return v.marks(0) if v.alone(0) else None


def _kept(*axes: int) -> Rule:
    """Elements stay apart along ``axes`` of the first input only; the others are parameters."""

    def rule(v: Visit) -> Result:
        return all_but(v.marks(0), axes) if v.alone(0) else None

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
        rows = all_but(item.marks, [0]).reshape(-1)
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


def _fourier(v: Visit) -> Result:
    """Along one axis, and over real and imaginary parts, which lie last."""
    if not v.alone(0):
        return None
    axis = int(v.attribute("axis", 1))
    if v.opset >= 20:  # an input since then
        given = v.integers("axis", 2) if v.given(2) else [-2]
        if given is None:
            return None
        axis = given[0]
    return over(v.marks(0), [axis, -1])


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
    channels = all_but(v.marks(0), [1])
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
        made: Array = raised(rows, rank) | raised(columns, rank)
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
    return made | raised(v.marks(2), 2) if len(places) == 3 else made


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
        return all_but(v.marks(0), [a for a in axes if a < rank])

    return rule


def _resize(v: Visit) -> Result:
    if not v.alone(0) or v.shapes[0] is None:
        return None
    if v.attribute("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        return None
    same = [k for k, (a, b) in enumerate(zip(v.shape(0), v.shapes[0], strict=True)) if a == b]
    return all_but(v.marks(0), same)


def _recurrent(v: Visit) -> Result:
    """LSTM, GRU, RNN: apart along the batch only. X [T, N, I], Y [T, D, N, H], states [D, N, H]; layout 1 [N, ...]."""
    if any(i is not None and (i.shape is None or i.streams) for i in v.inputs[1:4]):
        return None
    first = bool(v.attribute("layout", 0))
    rows = all_but(v.marks(0), [0 if first else 1]).reshape(-1)
    for place in (5, 6):
        if v.given(place):
            rows = rows | all_but(v.marks(place), [0 if first else 1]).reshape(-1)
    if v.given(4):
        rows = rows | v.marks(4).reshape(-1)
    whole, last = ((-1, 1, 1, 1), (-1, 1, 1)) if first else ((1, 1, -1, 1), (1, -1, 1))
    return [rows.reshape(whole if k == 0 else last) for k in range(len(v.shapes))]


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
        _fourier: "DFT",
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
        **MOVES,
    }
)
