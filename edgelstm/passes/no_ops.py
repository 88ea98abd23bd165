"""Which nodes give back one of the values they were given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from edgelstm.passes.batching import Shape, is_reshape
from edgelstm.passes.graph import Graph, attribute, integers, is_standard


@dataclass(frozen=True)
class Facts:
    """What is known of a graph's values: shapes (see ``passes.shapes``) and ONNX element types."""

    graph: Graph
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]

    def keeps_shape(self, node: onnx.NodeProto) -> bool:
        """Whether the first output is known to have the first input's shape."""
        shape = self.shapes.get(node.output[0])
        return shape is not None and shape == self.shapes.get(node.input[0])


def same_as(node: onnx.NodeProto, facts: Facts) -> str | None:
    """The value that the node's first output always equals; None when there is none or another output is read."""
    graph = facts.graph
    if not is_standard(node) or not node.input:
        return None
    if any(name and (name in graph.outputs or graph.consumers(name)) for name in node.output[1:]):
        return None
    rule = _RULES.get(node.op_type)
    if rule is not None and rule(node, facts):
        return str(node.input[0])
    return _undone(node, facts)


def _undone(node: onnx.NodeProto, facts: Facts) -> str | None:
    """The value before Reshapes (Squeezes, Unsqueezes) or two Transposes of which the last undoes the others."""
    before = facts.graph.producer(node.input[0])
    if before is None:
        return None
    shape = facts.shapes.get(node.output[0])
    while shape is not None and before is not None and is_reshape(node) and is_reshape(before):
        if shape == facts.shapes.get(before.input[0]):
            return str(before.input[0])
        before = facts.graph.producer(before.input[0])
    if before is not None and node.op_type == before.op_type == "Transpose" and is_standard(before):
        first, second = attribute(before, "perm"), attribute(node, "perm")
        if first and second and [first[axis] for axis in second] == sorted(second):
            return str(before.input[0])
    return None


Rule = Callable[[onnx.NodeProto, Facts], bool]


def _always(node: onnx.NodeProto, facts: Facts) -> bool:
    return True


def _one_to_one(node: onnx.NodeProto, facts: Facts) -> bool:
    return len(node.input) == 1


def _split(node: onnx.NodeProto, facts: Facts) -> bool:
    return len(node.output) == 1


def _dropout(node: onnx.NodeProto, facts: Facts) -> bool:
    """Unless in training mode (input 2 since opset 12)."""
    return len(node.input) < 3 or not node.input[2] or facts.graph.scalar(node.input[2]) == 0


def _cast(node: onnx.NodeProto, facts: Facts) -> bool:
    return bool(facts.types.get(node.input[0]) == attribute(node, "to"))


def _keeps_shape(node: onnx.NodeProto, facts: Facts) -> bool:
    return facts.keeps_shape(node)


def _transpose(node: onnx.NodeProto, facts: Facts) -> bool:
    """Only axes of size 1 move."""
    perm, shape = attribute(node, "perm"), facts.shapes.get(node.input[0])
    if perm is None or shape is None or not facts.keeps_shape(node):
        return False
    moved = [axis for axis in perm if shape[axis] != 1]
    return moved == sorted(moved)


def _slice(node: onnx.NodeProto, facts: Facts) -> bool:
    """All of it, forwards."""
    has_steps = len(node.input) > 4 and node.input[4]
    steps = integers(facts.graph, node, "steps", 4) if has_steps else []
    return steps is not None and set(steps) <= {1} and facts.keeps_shape(node)


def _pad(node: onnx.NodeProto, facts: Facts) -> bool:
    pads = integers(facts.graph, node, "pads", 1)
    return pads is not None and not any(pads)


_RULES: dict[str, Rule] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    **dict.fromkeys(("Concat", "Sum", "Mean", "Max", "Min"), _one_to_one),
    "Split": _split,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile"), _keeps_shape),
    "Transpose": _transpose,
    "Slice": _slice,
    "Pad": _pad,
}
