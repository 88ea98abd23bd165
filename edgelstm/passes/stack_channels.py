"""Several values laid along the channel axis, as one product over stacked weights where that is possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from edgelstm.passes.batching import Shape
from edgelstm.passes.graph import Array, Graph, attribute, integers, renamed

_PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Chunk:
    """``size`` channels of ``value``, from ``start`` on."""

    value: str
    start: int
    size: int


class ChannelStack:
    """Lays values along ``axis`` of tensors of ``rank`` axes.

    Chunks of one product in another order are that product with its weights in another order; several products of
    one input are one product of stacked weights; both go through the additions in between. Such nodes are written anew,
    which pays only where the old ones go: never those whose ``id`` is in ``needed``.
    """

    def __init__(
        self, graph: Graph, shapes: Mapping[str, Shape], axis: int, rank: int, needed: set[int]
    ) -> None:
        self.graph, self.shapes, self.axis, self.rank, self.needed = graph, shapes, axis, rank, needed

    def stack(self, values: Sequence[str], size: int, base: str) -> str:
        """One value of all ``values``, each of ``size`` channels; a Concat called ``base`` where nothing better is possible."""
        found = self._stack([Chunk(value, 0, size) for value in values])
        return self.graph.value("Concat", values, base, axis=self.axis) if found is None else found

    def _stack(self, chunks: Sequence[Chunk]) -> str | None:
        chunks = [self._resolved(chunk) for chunk in chunks]
        if self._is_whole(chunks):
            return chunks[0].value
        nodes = [self.graph.producer(chunk.value) for chunk in chunks]
        if any(node is not None and node.op_type == "Add" for node in nodes):
            return self._sum(chunks)
        made = [node for node in nodes if node is not None and id(node) not in self.needed]
        if len(made) < len(nodes) or len({(node.op_type, *node.input[:1]) for node in made}) > 1:
            return None
        return self._product(chunks, made) if made[0].op_type in _PRODUCTS else None

    # -- chunks ---------------------------------------------------------------------------------------------------

    def _resolved(self, chunk: Chunk) -> Chunk:
        """The same channels before Split and Slice."""
        node = self.graph.producer(chunk.value, "Split", "Slice")
        if node is None:
            return chunk
        start = self._split_start(node, chunk.value) if node.op_type == "Split" else self._slice_start(node)
        if start is None:
            return chunk
        return self._resolved(Chunk(node.input[0], chunk.start + start, chunk.size))

    def _split_start(self, node: onnx.NodeProto, value: str) -> int | None:
        if attribute(node, "axis", 0) % self.rank != self.axis:
            return None
        before = list(node.output)[: list(node.output).index(value)]
        if any(name not in self.shapes for name in before):
            return None
        return sum(self.shapes[name][self.axis] for name in before)

    def _slice_start(self, node: onnx.NodeProto) -> int | None:
        """First channel of a Slice that takes a run of channels and all of every other axis."""
        whole, axis = self.shapes.get(node.input[0]), cut_axis(self.graph, node)
        starts = integers(self.graph, node, "starts", 1)
        forwards = integers(self.graph, node, "steps", 4) in (None, [1])
        if whole is None or axis is None or axis % self.rank != self.axis or not starts or not forwards:
            return None
        return starts[0] % whole[self.axis]

    def _is_whole(self, chunks: Sequence[Chunk]) -> bool:
        """Whether the chunks, one after the other, are one value from its first channel to its last."""
        at = 0
        for chunk in chunks:
            if chunk.value != chunks[0].value or chunk.start != at:
                return False
            at += chunk.size
        shape = self.shapes.get(chunks[0].value)
        return shape is not None and len(shape) == self.rank and shape[self.axis] == at

    # -- sums -----------------------------------------------------------------------------------------------------

    def _sum(self, chunks: Sequence[Chunk]) -> str | None:
        """A sum of stacks. Constant terms may stand in some chunks only: elsewhere they are 0."""
        rests: list[Chunk] = []
        constants: list[Chunk] = []
        pairs: list[list[Chunk]] = []
        nothing = Chunk("", 0, chunks[0].size)
        for chunk in chunks:
            node = self.graph.producer(chunk.value, "Add")
            if node is None:
                rests.append(chunk)
                constants.append(nothing)
                continue
            if id(node) in self.needed:
                return None
            terms = [name for name in node.input if self.graph.constant(name) is None]
            if not terms or any(self.shapes.get(name) != self.shapes.get(chunk.value) for name in terms):
                return None
            parts = [Chunk(name, chunk.start, chunk.size) for name in terms]
            constant = [Chunk(name, chunk.start, chunk.size) for name in node.input if name not in terms]
            if pairs and [self._kind(part) for part in parts] != [self._kind(part) for part in pairs[0]]:
                parts.reverse()
            pairs.append(parts)
            rests.append(parts[0] if constant else chunk)
            constants.append(constant[0] if constant else nothing)
        if any(constant.value for constant in constants):
            rest, bias = self._stack(rests), self._constants(constants, self.axis - self.rank)
            if rest is None or bias is None:
                return None
            return self._add(rest, self.graph.weight(bias, f"{rest}_bias"))
        kinds = {tuple(map(self._kind, pair)) for pair in pairs}
        if len(pairs) < len(chunks) or len(kinds) > 1:
            return None
        first, second = (self._stack(side) for side in zip(*pairs, strict=True))
        return None if first is None or second is None else self._add(first, second)

    def _add(self, a: str, b: str) -> str:
        return self.graph.value("Add", [a, b], f"{a}_sum")

    def _kind(self, chunk: Chunk) -> tuple[str, ...]:
        """Terms of one kind may be stacked with each other."""
        source = self._resolved(chunk).value
        node = self.graph.producer(source, *_PRODUCTS, "Add")
        if node is None:
            return ("", source)
        return (node.op_type,) if node.op_type == "Add" else (node.op_type, node.input[0])

    # -- products and constants -----------------------------------------------------------------------------------

    def _product(self, chunks: Sequence[Chunk], nodes: Sequence[onnx.NodeProto]) -> str | None:
        """Conv, Gemm and MatMul of one input, with equal attributes."""
        first = nodes[0]
        axis = self._weight_axis(first)
        if axis is None or any(_settings(node) != _settings(first) for node in nodes):
            return None
        used = [replace(c, value=n.input[1]) for c, n in zip(chunks, nodes, strict=True)]
        weight = self._constants(used, axis)
        if weight is None:
            return None
        inputs = [first.input[0], self.graph.weight(weight, f"{first.input[1]}_stacked")]
        used = [replace(c, value="".join(n.input[2:3])) for c, n in zip(chunks, nodes, strict=True)]
        if any(c.value for c in used):
            bias = self._constants(used, -1)
            if bias is None:
                return None
            inputs.append(self.graph.weight(bias, f"{first.output[0]}_bias"))
        new = renamed(first, str, [self.graph.fresh(f"{first.output[0]}_stacked")])
        new.input[:] = inputs
        self.graph.nodes = [*self.graph.nodes, new]
        return str(new.output[0])

    def _weight_axis(self, node: onnx.NodeProto) -> int | None:
        """Axis of the weight, counted from its end, that runs over the output channels; None if those are not on our axis."""
        weight = self.graph.constant(node.input[1])
        if weight is None:
            return None
        if node.op_type == "Conv":
            return -weight.ndim if self.axis == 1 and attribute(node, "group", 1) == 1 else None
        if self.axis != self.rank - 1 or weight.ndim != 2:
            return None
        return -2 if attribute(node, "transB", 0) else -1

    def _constants(self, chunks: Sequence[Chunk], axis: int) -> Array | None:
        """Those channels of constants laid along ``axis`` (counted from the end, as broadcasting does); 0 where a chunk is of no value."""
        values = [np.zeros((), np.float32) if not c.value else self.graph.constant(c.value) for c in chunks]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        rank = max(-axis, *(value.ndim for value in known))
        parts = []
        for chunk, value in zip(chunks, known, strict=True):
            value = value.reshape([1] * (rank - value.ndim) + list(value.shape))
            if value.shape[axis] == 1:
                parts.append(np.repeat(value, chunk.size, axis))
            else:
                parts.append(value.take(range(chunk.start, chunk.start + chunk.size), axis))
        # Apart from ``axis`` the parts must broadcast to one shape before they can be joined.
        shape = list(np.broadcast_shapes(*(np.delete(p.shape, axis).astype(int).tolist() for p in parts)))
        shape.insert(rank + axis, chunks[0].size)
        parts = [np.broadcast_to(part, shape) for part in parts]
        dtype = next(value.dtype for chunk, value in zip(chunks, known, strict=True) if chunk.value)
        return np.concatenate(parts, axis).astype(dtype)


def cut_axis(graph: Graph, node: onnx.NodeProto) -> int | None:
    """The one axis along which a Split or Slice cuts."""
    if node.op_type == "Split":
        return int(attribute(node, "axis", 0))
    axes, starts = integers(graph, node, "axes", 3), integers(graph, node, "starts", 1)
    if axes is None and starts is not None:
        axes = list(range(len(starts)))
    return axes[0] if axes is not None and len(axes) == 1 else None


def _settings(node: onnx.NodeProto) -> list[bytes]:
    return sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
