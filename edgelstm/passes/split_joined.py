"""split_joined: a recurrence's joined product W·[x ; h] as Wx·x + Wh·h, so that the first half leaves the loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgelstm.passes.batching import Shape
from edgelstm.passes.recurrence import all_names, node_inputs, recurrences
from edgelstm.passes.shapes import infer_shapes
from edgelstm.step import StepModel

Hoist = Literal["auto", "all", "none"]

#: "auto" splits these. Wx of a Gemm is read once for all frames instead of once a frame, which is what a small batch
#: waits for. A convolution reuses its weights within one frame: splitting it saves nothing.
_PAYS = {"Gemm", "MatMul"}


@dataclass(frozen=True)
class _Joined:
    """A product to split: its node, what it reads through the Concat, and the weight's axis that runs over them."""

    node: onnx.NodeProto
    concat: onnx.NodeProto
    weight: npt.NDArray[Any]
    axis: int
    outside: tuple[bool, ...]
    sizes: tuple[int, ...]

    def half(self, outside: bool) -> tuple[list[str], npt.NDArray[Any]]:
        """The values of one half and the weight's columns for them."""
        names, columns, start = [], [], 0
        for name, size, is_outside in zip(self.concat.input, self.sizes, self.outside, strict=True):
            if is_outside == outside:
                names.append(name)
                columns.append(np.take(self.weight, range(start, start + size), self.axis))
            start += size
        return names, np.concatenate(columns, self.axis)


def split_joined(step: StepModel, hoist: Hoist = "auto") -> StepModel:
    """Guarantees: the same Signature and, up to rounding, the same numbers; of every Conv, Gemm or MatMul over
    Concat(inputs, states) inside a recurrence, the part over the inputs no longer depends on the states.

    hoist: "all" splits each of them, "auto" those where it pays (Gemm, MatMul), "none" returns the step as it is.
    The weights become two initializers, each stored once; the joined one goes unless something else reads it.
    """
    if hoist == "none":
        return step
    nodes = list(step.model.graph.node)
    found = _find(step, nodes, _PAYS if hoist == "auto" else {*_PAYS, "Conv"})
    if not found:
        return step
    model = step.copy_model()
    graph = model.graph
    taken = all_names(graph)
    replaced: list[onnx.NodeProto] = []
    for k, node in enumerate(nodes):
        if k in found:
            new, weights = _split(found[k], taken)
            replaced += new
            graph.initializer.extend(weights)
        else:
            replaced.append(node)
    joined = {name for j in found.values() for name in (j.node.input[1], *j.concat.output)}
    joined -= {v.name for v in graph.output}
    used = {name for node in replaced for name in node_inputs(node)}
    del graph.node[:]
    graph.node.extend(n for n in replaced if not (set(n.output) <= joined and used.isdisjoint(n.output)))
    kept = [t for t in graph.initializer if t.name in used or t.name not in joined]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return StepModel(model, step.signature)


def _find(step: StepModel, nodes: Sequence[onnx.NodeProto], ops: Iterable[str]) -> dict[int, _Joined]:
    groups, loops = recurrences(nodes, step.signature)
    group_of = {k: g for g, group in enumerate(groups) for k in group}
    producer = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    source = producer | {s.input: producer[s.output] for s in step.signature.states if s.output in producer}
    weights = {t.name: t for t in step.model.graph.initializer}
    shapes = infer_shapes(step)
    found = {}
    for g in loops:
        for k in groups[g]:
            node = nodes[k]
            concat = nodes[producer[node.input[0]]] if node.input and node.input[0] in producer else None
            if node.op_type not in ops or concat is None or concat.op_type != "Concat":
                continue
            if node.input[1] not in weights or any(name in source for name in node.input[2:]):
                continue
            outside = tuple(name not in source or group_of[source[name]] != g for name in concat.input)
            axis = _weight_axis(node, concat, shapes)
            if axis is None or all(outside) or not any(outside):
                continue
            along = helper.get_node_attr_value(concat, "axis")
            sizes = tuple(shapes[name][along] for name in concat.input)
            found[k] = _Joined(
                node, concat, numpy_helper.to_array(weights[node.input[1]]), axis, outside, sizes
            )
    return found


def _weight_axis(node: onnx.NodeProto, concat: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """Axis of the weight that runs over the joined channels; None where the product can't be split."""
    if any(name not in shapes for name in concat.input):
        return None
    rank = len(shapes[concat.input[0]])
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    along = helper.get_node_attr_value(concat, "axis") % rank
    if node.op_type == "Conv":
        return 1 if along == 1 and attributes.get("group", 1) == 1 else None
    if along != rank - 1 or attributes.get("transA", 0):
        return None
    if node.op_type == "Gemm":
        return 1 if attributes.get("transB", 0) else 0
    return 0 if len(shapes.get(node.input[1], ())) == 2 else None


def _split(joined: _Joined, taken: set[str]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    node = joined.node
    nodes: list[onnx.NodeProto] = []
    weights = []
    products = []
    for outside, suffix in ((True, "input"), (False, "state")):
        names, columns = joined.half(outside)
        operand = names[0]
        if len(names) > 1:
            operand = fresh(f"{joined.concat.output[0]}_{suffix}", taken)
            axis = helper.get_node_attr_value(joined.concat, "axis")
            nodes.append(helper.make_node("Concat", names, [operand], axis=axis))
        weight = fresh(f"{node.input[1]}_{suffix}", taken)
        weights.append(numpy_helper.from_array(columns, weight))
        product = onnx.NodeProto()
        product.CopyFrom(node)
        product.name = f"{node.name}_{suffix}" if node.name else ""
        product.input[:] = [operand, weight, *(node.input[2:] if outside else ())]
        product.output[:] = [fresh(f"{node.output[0]}_{suffix}", taken)]
        nodes.append(product)
        products.append(product)
    if node.op_type == "Gemm":  # adds while it multiplies
        products[1].input.append(products[0].output[0])
        products[1].output[:] = node.output
        kept = [a for a in products[1].attribute if a.name != "beta"]
        del products[1].attribute[:]
        products[1].attribute.extend(kept)
    else:
        nodes.append(helper.make_node("Add", [p.output[0] for p in products], list(node.output)))
    return nodes, weights


def fresh(base: str, taken: set[str]) -> str:
    """``base``, or ``base`` with a number where that is taken; the name is taken from then on."""
    name, k = base, 0
    while name in taken:
        k += 1
        name = f"{base}_{k}"
    taken.add(name)
    return name
