"""Values of a graph as sums of products with constant weights: what a cell's pre-activations are, however they were written."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from edgelstm.runtime.native.wire import BFLOAT16, FLOAT, INT8, Node, OnnxGraph
from edgelstm.runtime.protocol import Array

_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Stored:
    """How a matrix is stored in fewer bits. scale: what an int8 code of each of its rows is worth; None: it is bfloat16."""

    scale: Array | None

    def rows(self, cut: slice) -> Stored:
        """Of some rows."""
        return self if self.scale is None else Stored(self.scale[cut])


def stacked(parts: Iterable[Stored | None]) -> Stored | None:
    """Of matrices one below the other; None where they are not stored alike."""
    found = list(parts)
    scales = [p.scale for p in found if p is not None and p.scale is not None]
    if len(scales) == len(found):
        return Stored(np.concatenate(scales))
    return Stored(None) if all(p is not None for p in found) and not scales else None


def alike(one: Stored | None, other: Stored | None) -> bool:
    """Whether both are stored in the same type."""
    return suffix(one) == suffix(other)


def suffix(stored: Stored | None) -> str:
    """What stands behind the name of an operator that takes such weights."""
    return "" if stored is None else "BF16" if stored.scale is None else "I8"


@dataclass(frozen=True)
class Gemm:
    """A Gemm: weight·value + bias by the names of its inputs ("" without bias); transposed: the weight is [columns, rows]."""

    value: str
    weight: str
    bias: str
    transposed: bool
    rows: int


@dataclass(frozen=True)
class Linear:
    """sum of weights[source]·source, plus bias: weights [rows, any], bias [rows]. stored: of the weights that have fewer bits."""

    weights: dict[str, Array]
    bias: Array
    stored: dict[str, Stored] = field(default_factory=dict)

    def part(self, source: str) -> tuple[Array, Stored | None]:
        """A source's weights, and how they are stored."""
        return self.weights[source], self.stored.get(source)

    def rows(self, first: int, count: int) -> Linear:
        """Some of its rows."""
        cut = slice(first, first + count)
        stored = {name: s.rows(cut) for name, s in self.stored.items()}
        return Linear({name: w[cut] for name, w in self.weights.items()}, self.bias[cut], stored)

    def plus(self, other: Linear) -> Linear | None:
        """The sum of both; None where they have different sizes."""
        if len(self.bias) != len(other.bias):
            return None
        weights = dict(self.weights)
        for name, w in other.weights.items():
            if name in weights and weights[name].shape != w.shape:
                return None
            weights[name] = weights[name] + w if name in weights else w
        both = self.weights.keys() & other.weights.keys()  # a sum of codes is no code
        stored = {name: s for name, s in (self.stored | other.stored).items() if name not in both}
        return Linear(weights, self.bias + other.bias, stored)

    def minus(self) -> Linear:
        """Its negative."""
        negated = {name: -w for name, w in self.weights.items()}
        stored = {
            name: s
            for name, s in self.stored.items()
            if s.scale is None or (negated[name] < 127.5 * s.scale[:, None]).all()  # there is no code 128
        }
        return Linear(negated, -self.bias, stored)


class Links:
    """Who makes which value of a graph, and its constants in float32, those too that it has in fewer bits (int8 behind
    DequantizeLinear, bfloat16 behind Cast). most: weights a cell may have, if that is limited."""

    #: The axis of channels, and columns of a matrix for each of them.
    axes: tuple[int, int] = (1, -1)
    taps = 1

    def __init__(self, graph: OnnxGraph, most: int | None = None) -> None:
        self.graph = graph
        self.most = most
        #: Matrices by the number under which they are lent, a number for each in this process.
        self.lent: dict[int, Array] = {}
        self.numbers: dict[tuple[str, str], int] = {}
        self.producers: dict[str, Node] = {
            name: node for node in graph.nodes for name in node.outputs if name
        }
        # An initialiser that is an input too may be fed something else.
        self.constants: dict[str, Array] = {}
        for name, tensor in graph.tensors.items():
            values = None if name in graph.inputs else tensor.floats()
            if values is not None:
                self.constants[name] = values
        #: By the name of a constant that is stored in fewer bits: how, and which of its axes has a scale for each place.
        self.stored: dict[str, tuple[Stored, int | None]] = {}
        for node in graph.nodes:
            self._unpack(node)

    def _unpack(self, node: Node) -> None:
        """Let what a DequantizeLinear or Cast makes of a constant matrix be a constant."""
        if node.domain or node.op not in ("DequantizeLinear", "Cast") or node.inputs[0] in self.graph.inputs:
            return
        tensor = self.graph.tensors.get(node.inputs[0])
        if tensor is None or len(tensor.dims) != 2:
            return
        if node.op == "Cast":
            halves = tensor.bytes_as(BFLOAT16, "<u2")
            if halves is not None and node.attributes.get("to") == FLOAT:
                self.constants[node.outputs[0]] = (halves.astype("<u4") << 16).view(np.float32)
                self.stored[node.outputs[0]] = Stored(None), None
            return
        codes = tensor.bytes_as(INT8, "i1")
        scale = self.constants.get(node.inputs[1])
        axis, block = node.attributes.get("axis", 1), node.attributes.get("block_size", 0)
        if codes is None or scale is None or block or axis not in (-2, -1, 0, 1):
            return
        assert isinstance(axis, int)
        axis %= 2
        if scale.ndim == 0:
            scale = np.full(codes.shape[axis], scale, np.float32)
        if scale.shape != (codes.shape[axis],) or not (np.isfinite(scale) & (scale > 0)).all():
            return
        if len(node.inputs) > 2 and node.inputs[2]:
            zero = self.graph.tensors.get(node.inputs[2])
            places = None if zero is None else zero.bytes_as(INT8, "i1")
            if places is None or places.any() or node.inputs[2] in self.graph.inputs:
                return
        self.constants[node.outputs[0]] = codes * np.expand_dims(scale, 1 - axis)
        self.stored[node.outputs[0]] = Stored(scale), axis

    def stored_rows(self, weight: str, axis: int) -> Stored | None:
        """How a constant matrix is stored, whose rows run along that axis; None: in float32, or with scales of columns."""
        found, along = self.stored.get(weight, (None, None))
        return found if along in (None, axis) else None

    def too_large(self, weights: int) -> bool:
        """Whether a cell of so many weights is left to ONNX Runtime."""
        return self.most is not None and weights > self.most

    def lend(self, name: str, matrix: Array, stored: Stored | None = None, axis: int = 0) -> int:
        """The number of a matrix; the same for the same name. Where it is ``stored`` in fewer bits, its rows along ``axis``, it is lent so."""
        key = name, suffix(stored)
        if key not in self.numbers:
            self.numbers[key] = number = next(_NUMBERS)
            kind: type = np.float32
            if stored is not None and stored.scale is None:
                matrix, kind = (np.require(matrix, np.float32, ["C"]).view(np.uint32) >> 16), np.uint16
            elif stored is not None and stored.scale is not None:
                # Exact: the float is code * scale, rounded once.
                matrix, kind = np.rint(matrix / np.expand_dims(stored.scale, 1 - axis)), np.int8
            self.lent[number] = np.require(matrix.astype(kind), kind, ["C", "A"])
        return self.numbers[key]

    def producer(self, value: str, *ops: str) -> Node | None:
        """The standard operator of one of those kinds that makes a value."""
        node = self.producers.get(value)
        return node if node is not None and node.domain == "" and node.op in ops else None

    def gemm(self, value: str) -> Gemm | None:
        """The plain Gemm with constant weights that makes a value."""
        node = self.producer(value, "Gemm")
        if node is None:
            return None
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
        if any(node.attributes.get(name, default) != default for name, default in plain.items()):
            return None
        transposed = not node.attributes.get("transB", 0)
        a, weight, bias = (*node.inputs, "")[:3]
        if weight not in self.constants or self.constants[weight].ndim != 2:
            return None
        rows = self.constants[weight].shape[1 if transposed else 0]
        if bias and (bias not in self.constants or self.constants[bias].shape not in ((rows,), (1, rows))):
            return None
        return Gemm(a, weight, bias, transposed, rows)

    def joined(self, value: str) -> list[str] | None:
        """What a value is put together of along its second axis (of two, since a Gemm reads it)."""
        node = self.producer(value, "Concat")
        return node.inputs if node is not None and node.attributes.get("axis") in self.axes else None

    def linear(self, value: str, widths: dict[str, int]) -> Linear | None:
        """A value [N, rows] as a sum; None where it is none of constant weights, or a matrix belongs to values joined of which no
        more than one size is unknown. widths: the second axis of values where it is known."""
        gemm = self.gemm(value)
        if gemm is not None:
            weight = self.constants[gemm.weight]
            bias = self.constants[gemm.bias].reshape(-1) if gemm.bias else np.zeros(gemm.rows, np.float32)
            parts = self._parts(gemm.value, weight.T if gemm.transposed else weight, widths)
            stored = self.stored_rows(gemm.weight, 1 if gemm.transposed else 0)
            return None if parts is None else Linear(parts, bias, _of_each(parts, stored))
        if (node := self.producer(value, "MatMul")) is not None:
            matrix = self.constants.get(node.inputs[1])
            if matrix is None or matrix.ndim != 2:
                return None
            parts = self._parts(node.inputs[0], matrix.T, widths)
            stored = self.stored_rows(node.inputs[1], 1)
            zeros = np.zeros(matrix.shape[1], np.float32)
            return None if parts is None else Linear(parts, zeros, _of_each(parts, stored))
        if (node := self.producer(value, "Split")) is not None:
            whole = self.linear(node.inputs[0], widths)
            place = None if whole is None else self.place(node, value, len(whole.bias))
            return None if whole is None or place is None else whole.rows(*place)
        if (node := self.producer(value, "Add")) is not None:
            for one, other in (node.inputs, node.inputs[::-1]):
                first = self.linear(one, widths)
                if first is None:
                    continue
                constant = self.constants.get(other)
                if constant is not None:
                    fits = constant.shape in (first.bias.shape, (1, *first.bias.shape))
                    return replace(first, bias=first.bias + constant.reshape(-1)) if fits else None
                second = self.linear(other, widths)
                return None if second is None else first.plus(second)
        return None

    def place(self, split: Node, value: str, rows: int) -> tuple[int, int] | None:
        """(First row, rows) of a value that a Split along the second axis gives of ``rows``."""
        if split.attributes.get("axis", 0) not in self.axes:
            return None
        sizes = split.attributes.get("split")
        if len(split.inputs) > 1 and split.inputs[1]:
            tensor = self.graph.tensors.get(split.inputs[1])
            sizes = None if tensor is None else tensor.ints()
            if sizes is None:
                return None
        if sizes is None:
            count = len(split.outputs)
            if rows % count:
                return None
            sizes = [rows // count] * count
        if not isinstance(sizes, list) or sum(sizes) != rows or len(sizes) != len(split.outputs):
            return None
        index = split.outputs.index(value)
        return sum(sizes[:index]), sizes[index]

    def _parts(self, value: str, weight: Array, widths: dict[str, int]) -> dict[str, Array] | None:
        """The columns of a matrix that belong to each of the values that ``value`` is joined of."""
        joined = self.joined(value)
        if joined is None:
            return {value: weight}
        unknown = [name for name in joined if name not in widths]
        if len(unknown) > 1 or len(set(joined)) < len(joined):
            return None
        left = weight.shape[1] - sum(widths[name] for name in joined if name in widths)
        if left < 0 or (unknown and left == 0) or (not unknown and left != 0):
            return None
        parts, at = {}, 0
        for name in joined:
            size = widths.get(name, left)
            parts[name] = weight[:, at : at + size]
            at += size
        return parts


def _of_each(parts: dict[str, Array], stored: Stored | None) -> dict[str, Stored]:
    return {} if stored is None else dict.fromkeys(parts, stored)
