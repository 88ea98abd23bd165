"""Shapes of a graph's values where the file fixes them, and which numbers of which others a value that is only moved consists of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from edgelstm.runtime.native.wire import FLOAT, INT8, UINT8, Node, OnnxGraph
from edgelstm.runtime.protocol import Array

Shape = tuple[int, ...]
#: Numbers in a value up to which it is followed; what is larger takes longer to move than to call for.
SMALL = 1 << 14
_BITS = 32  # of a place; what is above is the source
_SAME = frozenset(
    {
        "Sigmoid",
        "Tanh",
        "Relu",
        "Sqrt",
        "Neg",
        "Exp",
        "Log",
        "HardSigmoid",
        "Clip",
        "LeakyRelu",
        "Elu",
        "Softplus",
        "Abs",
    }
)
_BROADCAST = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})
_MOVES = frozenset(
    {"Identity", "Slice", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Flatten", "Concat", "Split"}
)
#: By the beginning of an operator's name: the input that its outputs have the shape of.
_CELLS = {
    "FusedLSTMCell": 2,
    "FusedConvLSTMCell": 2,
    "FusedGRUCell": 1,
    "FusedConvGRUCell": 1,
    "FusedGates": 1,
}


class Shapes:
    """known: shapes of float values by name. given: those of values that were known before."""

    def __init__(
        self, graph: OnnxGraph, constants: Mapping[str, Array], given: Mapping[str, Shape] | None = None
    ) -> None:
        self._graph = graph
        self._constants = constants
        self.known: dict[str, Shape] = {name: array.shape for name, array in constants.items()}
        self.known |= {
            name: shape
            for name, shape in graph.input_shapes.items()
            if graph.inputs.get(name) == FLOAT and shape is not None
        }
        #: Of values in eight bits, which are no floats.
        self._coded = {
            name: shape
            for name, shape in graph.input_shapes.items()
            if graph.inputs.get(name) in (UINT8, INT8) and shape is not None
        }
        self._numbers: dict[str, int] = {}  # of sources
        self._names: list[str] = []
        self._views: dict[str, Array] = {}
        self._computed: dict[str, str] = {}
        self._readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in dict.fromkeys(node.inputs):
                self._readers.setdefault(name, []).append(node)
            self._follow(node, given or {})

    def moves(self, node: Node) -> bool:
        """Whether a node only moves numbers, and it is known which."""
        return (
            bool(node.outputs)
            and node.domain == ""
            and all(name in self._views for name in node.outputs if name)
        )

    def only_reader(self, value: str) -> Node | None:
        """The one node that reads a value, if it is of one output, and the value none of the graph's."""
        readers = self._readers.get(value, [])
        if (
            value in self._graph.outputs
            or len(readers) != 1
            or len(readers[0].outputs) != 1
            or value not in self.known
        ):
            return None
        return readers[0]

    def is_view(self, value: str, of: str) -> bool:
        """Whether a value has the numbers of another in the same order."""
        return value in self._views and self.viewed(value) == self.viewed(of)

    def viewed(self, value: str) -> str:
        """The value that has the same numbers in the same order and was computed, not moved."""
        codes = self._views.get(value)
        if codes is None or codes.size == 0:
            return value
        source = int(codes.flat[0]) >> _BITS
        name = self._names[source]
        if codes.size != math.prod(self.known[name]):
            return value
        return name if np.array_equal(codes.reshape(-1), self._own(name).reshape(-1)) else value

    def computed(self, value: str) -> str:
        """:meth:`viewed`, under the name that it has now."""
        name = self.viewed(value)
        return self._computed.get(name, name)

    def sources(self, value: str) -> list[str]:
        """The computed values that a moved one has numbers of."""
        return [self._names[k] for k in np.unique(self._views[value] >> _BITS)]

    def codes(self, value: str, sources: Sequence[str]) -> Array:
        """source * 2^32 + place for each number of a moved value, sources counted as in the sequence."""
        codes = self._views[value]
        result = codes & ((1 << _BITS) - 1)
        for k, name in enumerate(sources):
            if name in self._numbers:
                result = result + ((codes >> _BITS) == self._numbers[name]) * (k << _BITS)
        return result

    def replace(self, last: Node, new: Node) -> None:
        """Put a node in another's place, which reads other values than it and makes those before views, too."""
        for name in last.outputs:
            self._computed[self.viewed(name)] = name
        nodes = self._graph.nodes
        nodes[next(k for k, node in enumerate(nodes) if node is last)] = new
        for name in new.inputs:
            self._readers.setdefault(name, []).append(new)

    def reduced_axes(self, node: Node) -> list[int] | None:
        """The axes of a ReduceMean, from 0; None where they are not known."""
        rank = len(self.known[node.inputs[0]])
        axes = self._ints(node, "axes", 1)
        return None if axes is None else sorted(axis % rank for axis in axes)

    def _own(self, name: str) -> Array:
        """The codes of a value that is its own source."""
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
        count = math.prod(self.known[name])
        return (np.arange(count, dtype=np.int64) + (self._numbers[name] << _BITS)).reshape(self.known[name])

    def _codes_of(self, name: str) -> Array | None:
        if name in self._views:
            return self._views[name]
        if name not in self.known or math.prod(self.known[name]) > SMALL:
            return None
        return self._own(name)

    def _follow(self, node: Node, given: Mapping[str, Shape]) -> None:
        try:
            self._follow_codes(node)
            if node.domain == "" and node.op in _MOVES:
                codes = self._moved(node)
                for name, array in zip(node.outputs, codes or [], strict=False):
                    if name:
                        self._views[name], self.known[name] = array, array.shape
            elif (shape := self._shape(node)) is not None:
                # The third of gates are codes.
                self.known |= {name: shape for name in node.outputs[:2] if name}
            else:
                self.known |= {name: given[name] for name in node.outputs if name in given}
        except (ValueError, IndexError, TypeError):  # no graph that ONNX Runtime would take: it says so
            return

    def _follow_codes(self, node: Node) -> None:
        """Where values become codes, are joined, and become floats again."""
        coded, first = self._coded, node.inputs[0] if node.inputs else ""
        if node.domain == "edgelstm" and node.op.startswith("FusedGates") and len(node.outputs) > 2:
            if (shape := self._shape(node)) is not None:
                coded[node.outputs[2]] = shape
        elif (
            node.domain == "edgelstm"
            and node.op.startswith("FusedQuantizeLinearTwice")
            and first in self.known
        ):
            rows, *rest = self.known[first]
            shape = (2 * rows if node.attributes.get("rows") else rows, *rest)
            coded.update(dict.fromkeys(node.outputs, shape))
        elif node.domain == "" and node.op == "QuantizeLinear" and first in self.known:
            coded[node.outputs[0]] = self.known[first]
        elif node.domain == "" and node.op == "Concat" and all(name in coded for name in node.inputs):
            shapes, axis = [coded[name] for name in node.inputs], node.attributes.get("axis", 0)
            assert isinstance(axis, int)
            joined = list(shapes[0])
            joined[axis] = sum(shape[axis] for shape in shapes)
            coded[node.outputs[0]] = tuple(joined)
        elif node.domain == "" and node.op == "DequantizeLinear" and first in coded:
            self.known[node.outputs[0]] = coded[first]

    def _shape(self, node: Node) -> Shape | None:
        if node.domain == "edgelstm":
            place = next((k for name, k in _CELLS.items() if node.op.startswith(name)), None)
            return None if place is None else self.known.get(node.inputs[place])
        if node.op == "ReduceMean":
            return self._reduced(node)
        shapes = [self.known.get(name) for name in node.inputs[:2]]
        if node.domain or not shapes or any(shape is None for shape in shapes):
            return None
        x, *rest = [shape for shape in shapes if shape is not None]
        if node.op in _SAME:
            return x
        if node.op in _BROADCAST:
            return tuple(np.broadcast_shapes(x, *rest))
        if node.op == "MatMul" and len(rest[0]) == 2 and len(x) > 1:
            return (*x[:-1], rest[0][1])
        if node.op == "Gemm" and not node.attributes.get("transA", 0):
            return x[0], rest[0][0 if node.attributes.get("transB", 0) else 1]
        if node.op == "Conv" and math.prod(rest[0][2:]) == 1 and self._plain(node):
            return (x[0], rest[0][0], *x[2:])
        return None

    def _reduced(self, node: Node) -> Shape | None:
        """Of a ReduceMean whose axes stay as axes of 1. They are an attribute, or from opset 18 an input, which is no float."""
        x = self.known.get(node.inputs[0])
        if node.domain or x is None or node.attributes.get("keepdims", 1) != 1:
            return None
        axes = self.reduced_axes(node)
        return None if axes is None else tuple(1 if k in axes else d for k, d in enumerate(x))

    @staticmethod
    def _plain(conv: Node) -> bool:
        """Whether a convolution of kernel 1 has no strides and no padding."""
        strides, pads = conv.attributes.get("strides") or [1], conv.attributes.get("pads") or [0]
        assert isinstance(strides, list)
        assert isinstance(pads, list)
        return (
            set(strides) == {1}
            and set(pads) == {0}
            and conv.attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        )

    def _ints(self, node: Node, attribute: str, place: int) -> list[int] | None:
        """Constant numbers that an operator has as an attribute or, in later versions, as an input."""
        found = node.attributes.get(attribute)
        if isinstance(found, list):
            return found
        if len(node.inputs) <= place or not node.inputs[place] or node.inputs[place] in self._graph.inputs:
            return None
        tensor = self._graph.tensors.get(node.inputs[place])
        return None if tensor is None else tensor.ints()

    def _moved(self, node: Node) -> list[Array] | None:
        """The codes of what a node moves, an array an output."""
        count = len(node.inputs) if node.op == "Concat" else 1
        found = [self._codes_of(name) for name in node.inputs[:count]]
        parts = [codes for codes in found if codes is not None]
        if not parts or len(parts) < len(found) or sum(part.size for part in parts) > SMALL:
            return None
        x = parts[0]
        axis = node.attributes.get("axis", 0)
        assert isinstance(axis, int)
        if node.op == "Identity":
            return [x]
        if node.op == "Concat":
            return [np.concatenate(parts, axis)]
        if node.op == "Transpose":
            order = node.attributes.get("perm")
            return [np.transpose(x, order if isinstance(order, list) else None)]
        if node.op == "Slice":
            return self._sliced(node, x)
        if node.op == "Split":
            sizes = self._ints(node, "split", 1)
            if sizes is None:
                if len(node.inputs) > 1 or x.shape[axis] % len(node.outputs):
                    return None
                sizes = [x.shape[axis] // len(node.outputs)] * len(node.outputs)
            if sum(sizes) != x.shape[axis] or len(sizes) != len(node.outputs):
                return None
            return np.split(x, np.cumsum(sizes)[:-1].tolist(), axis)
        if node.op == "Squeeze":
            axes = self._ints(node, "axes", 1)
            if axes is None and len(node.inputs) > 1:
                return None
            return [np.squeeze(x, None if axes is None else tuple(axes))]
        if node.op == "Unsqueeze":
            axes = self._ints(node, "axes", 1)
            return None if axes is None else [np.expand_dims(x, tuple(axes))]
        if node.op == "Flatten":
            axis = node.attributes.get("axis", 1)
            assert isinstance(axis, int)
            return [x.reshape(math.prod(x.shape[: axis if axis >= 0 else axis + x.ndim]), -1)]
        sizes = self._ints(node, "shape", 1)  # Reshape
        if sizes is None or node.attributes.get("allowzero", 0):
            return None
        return [x.reshape([x.shape[k] if size == 0 else size for k, size in enumerate(sizes)])]

    def _sliced(self, node: Node, x: Array) -> list[Array] | None:
        starts, ends = self._ints(node, "starts", 1), self._ints(node, "ends", 2)
        if starts is None or ends is None or len(starts) != len(ends):
            return None
        axes, steps = self._ints(node, "axes", 3), self._ints(node, "steps", 4)
        if (axes is None and len(node.inputs) > 3 and node.inputs[3]) or (
            steps is None and len(node.inputs) > 4 and node.inputs[4]
        ):
            return None
        axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
        cuts = [slice(None)] * x.ndim
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            if step < 1:  # whose ends Python reads otherwise
                return None
            cuts[axis] = slice(start, end, step)
        return [x[tuple(cuts)]]
