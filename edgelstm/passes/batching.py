"""Which nodes treat axis 0 as a batch axis: those may run once on the frames of many steps laid end to end.

A node *batches* when f(rows of a, rows of b) = rows of f(a), f(b): each row of its outputs depends on the same row
of its varying inputs and on nothing else. :func:`batches` answers from a table, operator by operator; whatever the
table does not know does not batch. Operator semantics: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx

from edgelstm.graph.gates import is_fused_gates
from edgelstm.passes.graph import attribute, is_standard, subgraphs

Shape = tuple[int, ...]
#: Stands for the stream axis, whose size is not known.
ROWS = -1
#: Operators that work element by element, their inputs broadcast against each other.
ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift Cast Ceil Celu Cos Cosh Div Elu Equal Erf Exp Floor
    Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max
    Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus
    Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
    """
#: Operators that reduce the axes they are given.
REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare
    """


@dataclass(frozen=True)
class Operand:
    """What is known of one input or output of a node.

    varying: it changes from step to step; its ``shape`` then begins with :data:`ROWS`, or is None if its axis 0 is
    not the stream axis or a dimension is unknown. A constant has its ``value`` where that is stored in the graph.
    """

    varying: bool
    shape: Shape | None
    value: npt.NDArray[Any] | None = None

    @property
    def rank(self) -> int:
        """Number of axes; only for operands whose shape is known."""
        assert self.shape is not None
        return len(self.shape)

    def spreads(self, rank: int) -> bool:
        """Whether this broadcasts against a varying tensor of ``rank`` axes without mixing its rows."""
        if self.shape is None:
            return False
        if self.varying:
            return len(self.shape) == rank
        return len(self.shape) < rank or (len(self.shape) == rank and self.shape[0] == 1)


@dataclass(frozen=True)
class Call:
    """One node with what is known of its operands; None for an input or output that is left out."""

    node: onnx.NodeProto
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand | None, ...]

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or ``default``."""
        return attribute(self.node, name, default)

    def input(self, index: int) -> Operand | None:
        """Input ``index``, None when it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def integers(self, attribute: str, index: int) -> list[int] | None:
        """A list that older opsets hold in an attribute and newer ones in constant input ``index``."""
        held = self.attribute(attribute)
        if held is not None:
            return [int(v) for v in held]
        operand = self.input(index)
        if operand is None or operand.value is None:
            return None
        return [int(v) for v in operand.value.reshape(-1)]


def batches(call: Call) -> bool:
    """Whether the node may run once on many steps' rows. False when in doubt."""
    if subgraphs(call.node):
        return False
    if is_reshape(call.node):
        return _keeps_rows(call)
    varying = [o for o in call.inputs if o is not None and o.varying]
    known = all(o.shape is not None for o in (*varying, *call.outputs) if o is not None)
    if not varying or not known:
        return False
    if is_fused_gates(call.node):
        return _first_two_vary(call)
    if not is_standard(call.node):
        return False
    rule = RULES.get(call.node.op_type)
    return rule is not None and rule(call)


def is_reshape(node: onnx.NodeProto) -> bool:
    """Whether the node only renames axes: it batches as a Reshape to [-1, *the rest of its output's shape]."""
    return is_standard(node) and node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def _keeps_rows(call: Call) -> bool:
    """Input and output both begin with the stream axis, so the elements of a row stay together."""
    x, y = call.inputs[0], call.outputs[0]
    if x is None or y is None or x.shape is None or y.shape is None:
        return False
    return x.varying and math.prod(x.shape[1:]) == math.prod(y.shape[1:])


def _broadcast(call: Call) -> bool:
    out = call.outputs[0]
    return out is not None and all(o.spreads(out.rank) for o in call.inputs if o is not None)


def _parameters(call: Call) -> bool:
    """The first input varies; the others (weights, scales, limits) do not. One output."""
    first, *others = call.inputs
    return (
        first is not None
        and first.varying
        and len(call.outputs) == 1
        and not any(o and o.varying for o in others)
    )


def _first_two_vary(call: Call) -> bool:
    z, c, *peepholes = call.inputs
    if z is None or c is None or not (z.varying and c.varying):
        return False
    return all(p is None or (not p.varying and p.spreads(c.rank)) for p in peepholes)


def _along(default: int | None, *, every_input: bool = False) -> Callable[[Call], bool]:
    """Works along one axis, which must not be axis 0."""

    def rule(call: Call) -> bool:
        first = call.inputs[0]
        axis = call.attribute("axis", default)
        if first is None or not first.varying or axis is None or axis % first.rank == 0:
            return False
        if every_input:
            return all(o is not None and o.varying for o in call.inputs)
        return not any(o and o.varying for o in call.inputs[1:])

    return rule


def _axes(call: Call, listed: list[int] | None) -> bool:
    """The axes are listed, and axis 0 is not among them."""
    first = call.inputs[0]
    if first is None or not first.varying or not listed:
        return False
    return all(axis % first.rank != 0 for axis in listed)


def _reduce(call: Call) -> bool:
    return _axes(call, call.integers("axes", 1))


def _slice(call: Call) -> bool:
    return _axes(call, call.integers("axes", 3)) and not any(o and o.varying for o in call.inputs[1:])


def _cumsum(call: Call) -> bool:
    return _axes(call, call.integers("axis", 1))


def _pad(call: Call) -> bool:
    if not _parameters(call):
        return False
    axes = call.integers("axes", 3)
    if axes is not None:
        return _axes(call, axes)
    pads = call.integers("pads", 1)
    return bool(pads) and pads is not None and pads[0] == 0 and pads[len(pads) // 2] == 0


def _resize(call: Call) -> bool:
    if not _parameters(call):
        return False
    if call.attribute("axes") is not None:
        return _axes(call, call.integers("axes", -1))
    index = 1 if call.node.op_type == "Upsample" or len(call.inputs) == 2 else 2
    scales = call.input(index)
    if scales is not None and scales.value is not None and scales.value.size:
        return float(scales.value.reshape(-1)[0]) == 1.0
    return False


def _transpose(call: Call) -> bool:
    order = call.attribute("perm")
    return order is not None and int(order[0]) == 0


def _matmul(call: Call) -> bool:
    a, b = call.inputs
    if a is None or b is None or a.shape is None or b.shape is None:
        return False
    if a.varying and b.varying:
        return a.rank == b.rank >= 3
    if a.varying:
        return b.rank <= 2 <= a.rank or (a.rank >= 3 and b.spreads(a.rank))
    return b.rank >= 3 and a.spreads(b.rank)


def _gemm(call: Call) -> bool:
    a, b, c = call.input(0), call.input(1), call.input(2)
    if a is None or b is None or not a.varying or b.varying or call.attribute("transA", 0):
        return False
    return c is None or c.spreads(2)


def _gather(call: Call) -> bool:
    data, indices = call.inputs
    if data is None or indices is None or data.shape is None:
        return False
    axis = int(call.attribute("axis", 0)) % max(data.rank, 1)
    if indices.varying:  # a look-up in a table
        return not data.varying and axis == 0
    return axis != 0


def _tile(call: Call) -> bool:
    repeats = call.integers("repeats", 1)
    return bool(repeats) and repeats is not None and repeats[0] == 1


def _expand(call: Call) -> bool:
    x, shape = call.inputs[0], call.integers("shape", 1)
    if x is None or shape is None or not x.varying:
        return False
    return len(shape) < x.rank or (len(shape) == x.rank and shape[0] == 1)


def _quantize(call: Call) -> bool:
    first, scale = call.inputs[0], call.input(1)
    if not _parameters(call) or first is None or scale is None or scale.shape is None:
        return False
    return math.prod(scale.shape) == 1 or call.attribute("axis", 1) % first.rank != 0


def _table(rules: Mapping[Callable[[Call], bool], str]) -> dict[str, Callable[[Call], bool]]:
    return {op: rule for rule, names in rules.items() for op in names.split()}


RULES = _table(
    {
        _broadcast: ELEMENTWISE,
        _parameters: """
            AveragePool BatchNormalization CastLike Clip Conv ConvInteger ConvTranspose DepthToSpace
            GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization InstanceNormalization LRN LpPool MaxPool
            QLinearConv SpaceToDepth
            """,
        _along(-1): "Hardmax LayerNormalization LogSoftmax LpNormalization RMSNormalization Softmax TopK",
        _along(0): "ArgMax ArgMin Split",
        _along(None, every_input=True): "Concat",
        _reduce: REDUCTIONS,
        _slice: "Slice",
        _cumsum: "CumSum",
        _pad: "Pad",
        _resize: "Resize Upsample",
        _transpose: "Transpose",
        _matmul: "MatMul",
        _gemm: "Gemm",
        _gather: "Gather",
        _tile: "Tile",
        _expand: "Expand",
        _quantize: "QuantizeLinear DequantizeLinear",
    }
)
