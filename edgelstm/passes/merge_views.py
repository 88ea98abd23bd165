"""merge_views: what only renames axes, or moves axes of size 1, happens at most once between two computations."""

from __future__ import annotations

import numpy as np
import onnx

from edgelstm.graph.step import StepModel
from edgelstm.passes.batching import Shape
from edgelstm.passes.graph import Graph, attribute, is_standard, renamed
from edgelstm.passes.shapes import shapes_of

#: Stream counts that no real dimension is likely to be.
_COUNTS = (7919, 6007)
_ALWAYS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")


def merge_views(step: StepModel) -> StepModel:
    """Guarantees: the same Signature and the same bits, and no chain of views, nor a view with the shape it began with.

    A view keeps all elements in their order: Reshape, Squeeze, Unsqueeze, Flatten, Identity; Transpose that only moves
    axes of size 1; Gather of the only place along an axis. A module that runs along time is full of them when there is
    one frame. Chains become one Reshape of the value they began with, or nothing. Values whose shapes are not known, or
    in which the streams do not keep an axis of their own, stay as they are.
    """
    graph = Graph(step)
    axis = step.signature.stream_axis
    counts = (axis, axis) if isinstance(axis, int) else _COUNTS
    shapes = [shapes_of(step, count) for count in counts]
    begin: dict[str, str] = {}
    alias: dict[str, str] = {}
    kept = []
    for original in graph.nodes:
        node = renamed(original, lambda name: alias.get(name, name), original.output)
        kept.append(node)
        if not _is_view(graph, node, shapes):
            continue
        value, source = node.output[0], node.input[0]
        first = begin.get(source, source)
        begin[value] = first
        ours, theirs = ([known.get(name) for known in shapes] for name in (value, first))
        if ours == theirs and None not in ours:
            kept.pop()
            if value in graph.outputs:
                kept.append(onnx.helper.make_node("Identity", [first], [value], node.name))
            else:
                alias[value] = first
        elif first != source and (target := _target(ours[0], ours[1], counts)) is not None:
            kept.pop()
            name = graph.weight(np.array(target, np.int64), f"{value}_shape")
            kept.append(onnx.helper.make_node("Reshape", [first, name], [value], node.name))
    graph.nodes = kept
    return graph.finish()


def _is_view(graph: Graph, node: onnx.NodeProto, shapes: list[dict[str, Shape]]) -> bool:
    if not is_standard(node) or not node.input or graph.constant(node.input[0]) is not None:
        return False
    if node.op_type in _ALWAYS:
        return True
    known = [each.get(node.input[0]) for each in shapes]
    if node.op_type == "Transpose":
        return all(shape is not None and _keeps_order(node, shape) for shape in known)
    if node.op_type == "Gather":
        axis = int(attribute(node, "axis", 0))
        only = graph.scalar(node.input[1]) in (0, -1)
        return only and all(shape is not None and shape[axis] == 1 for shape in known)
    return False


def _keeps_order(node: onnx.NodeProto, shape: Shape) -> bool:
    order = attribute(node, "perm", list(range(len(shape)))[::-1])
    wide = [axis for axis in order if shape[axis] != 1]
    return wide == sorted(wide)


def _target(shape: Shape | None, other: Shape | None, counts: tuple[int, int]) -> list[int] | None:
    """What a Reshape is told, -1 for the streams; None where they have no axis of their own."""
    if shape is None or other is None or 0 in shape:
        return None
    target = [a if a == b else -1 for a, b in zip(shape, other, strict=True)]
    alone = all(pair == counts for pair in zip(shape, other, strict=True) if pair[0] != pair[1])
    return target if target.count(-1) <= 1 and alone else None
