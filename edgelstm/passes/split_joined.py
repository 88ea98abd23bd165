"""split_joined: a recurrence's joined product W·[x ; h] as Wx·x + Wh·h, so that the first half leaves the loop."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from edgelstm.graph.step import StepModel
from edgelstm.passes.batching import Shape
from edgelstm.passes.graph import Graph, attribute, is_standard
from edgelstm.passes.recurrence import recurrences
from edgelstm.passes.shapes import infer_shapes

Hoist = Literal["auto", "all", "none"]

#: "auto" splits these. Wx of a Gemm is then read once for all frames instead of once a frame, and reading weights is
#: what a small batch waits for. A convolution reads its weights once for a whole map: splitting it only adds an Add.
_PAYS = {"Gemm", "MatMul"}
#: What the names of the two halves of a weight end with.
INPUT, STATE = "_input", "_state"


@dataclass(frozen=True)
class _Joined:
    """A product to split: its node, what it reads through a Concat, and the weight's axis that runs over them."""

    node: onnx.NodeProto
    concat: onnx.NodeProto
    weight: npt.NDArray[Any]
    axis: int
    sizes: tuple[int, ...]
    outside: tuple[bool, ...]

    def half(self, outside: bool) -> tuple[list[str], npt.NDArray[Any]]:
        """The values of the half outside the recurrence, or inside it, and the weight's columns for them."""
        columns = np.split(self.weight, np.cumsum(self.sizes)[:-1], self.axis)
        chosen = [k for k, is_outside in enumerate(self.outside) if is_outside == outside]
        return [self.concat.input[k] for k in chosen], np.concatenate([columns[k] for k in chosen], self.axis)


def split_joined(step: StepModel, hoist: Hoist = "auto", weights: Collection[str] | None = None) -> StepModel:
    """Guarantees: the same Signature and, up to rounding, the same numbers; of a Conv, Gemm or MatMul over
    Concat(inputs, states) inside a recurrence, the part over the inputs no longer depends on the states.

    hoist: "all" splits each of them, "auto" those where it pays (Gemm, MatMul), "none" returns the step as it is.
    weights: only products with one of these weights. The weight W becomes W + :data:`INPUT` and W + :data:`STATE`.
    The weight becomes two, each stored once however many cells share it; the joined one goes unless something else
    reads it.
    """
    if hoist == "none":
        return step
    graph = Graph(step)
    found = _find(graph, infer_shapes(step), _PAYS if hoist == "auto" else {*_PAYS, "Conv"})
    if weights is not None:
        found = {key: joined for key, joined in found.items() if joined.node.input[1] in weights}
    if not found:
        return step
    nodes: list[onnx.NodeProto] = []
    halves: dict[tuple[object, ...], str] = {}
    for node in graph.nodes:
        nodes += _split(graph, found[id(node)], halves) if id(node) in found else [node]
    graph.nodes = nodes
    return graph.finish()


def _find(graph: Graph, shapes: Mapping[str, Shape], ops: Iterable[str]) -> dict[int, _Joined]:
    """The products to split, by ``id`` of their node."""
    nodes = graph.nodes
    groups, loops = recurrences(nodes, graph.signature)
    found = {}
    for members in ([nodes[k] for k in groups[g]] for g in loops):
        made_here = {name for node in members for name in node.output}
        made_here |= {s.input for s in graph.signature.states if s.output in made_here}
        for node in members:
            if node.op_type not in ops or not is_standard(node):
                continue
            concat = graph.producer(node.input[0], "Concat")
            weight = graph.constant(node.input[1])
            if concat is None or weight is None or not made_here.isdisjoint(node.input[2:]):
                continue
            axis = _weight_axis(node, concat, shapes, weight.ndim)
            outside = tuple(name not in made_here for name in concat.input)
            if axis is not None and any(outside) and not all(outside):
                sizes = tuple(shapes[name][attribute(concat, "axis")] for name in concat.input)
                found[id(node)] = _Joined(node, concat, weight, axis, sizes, outside)
    return found


def _weight_axis(
    node: onnx.NodeProto, concat: onnx.NodeProto, shapes: Mapping[str, Shape], weight_rank: int
) -> int | None:
    """Axis of the weight that runs over the joined channels; None where the product can't be split."""
    if any(name not in shapes for name in concat.input):
        return None
    rank = len(shapes[concat.input[0]])
    along = attribute(concat, "axis") % rank
    if node.op_type == "Conv":
        return 1 if along == 1 and attribute(node, "group", 1) == 1 else None
    if along == 0 or along != rank - 1 or attribute(node, "transA", 0):
        return None
    if node.op_type == "Gemm":
        return 1 if attribute(node, "transB", 0) else 0
    return 0 if weight_rank == 2 else None


def _split(graph: Graph, joined: _Joined, halves: dict[tuple[object, ...], str]) -> list[onnx.NodeProto]:
    """The nodes in place of the joined product. ``halves``: the weights made so far, since cells may share them."""
    node = joined.node
    nodes: list[onnx.NodeProto] = []
    products = []
    for outside, suffix in ((True, INPUT), (False, STATE)):
        names, columns = joined.half(outside)
        operand = names[0]
        if len(names) > 1:
            operand = graph.fresh(f"{joined.concat.output[0]}{suffix}")
            nodes.append(helper.make_node("Concat", names, [operand], axis=attribute(joined.concat, "axis")))
        key = (node.input[1], joined.axis, joined.sizes, joined.outside, outside)
        if key not in halves:
            halves[key] = graph.weight(columns, f"{node.input[1]}{suffix}")
        product = onnx.NodeProto()
        product.CopyFrom(node)
        product.name = f"{node.name}{suffix}" if node.name else ""
        product.input[:] = [operand, halves[key], *(node.input[2:] if outside else ())]
        product.output[:] = [graph.fresh(f"{node.output[0]}{suffix}")]
        nodes.append(product)
        products.append(product.output[0])
    # Gemm could add by itself, through its third input; ONNX Runtime is slower at that than at an Add of its own.
    nodes.append(helper.make_node("Add", products, list(node.output), name=node.name))
    return nodes
