"""unstack: states that a model keeps in one [layers, N, ...] tensor are reached one by one."""

from __future__ import annotations

import onnx

from edgelstm.passes.graph import Array, Graph, attribute, is_standard, renamed
from edgelstm.step import StepModel

#: Tensors of equal shape laid along a new axis: the axis, and the tensors. One Unsqueeze is a stack of one.
Stack = tuple[int, list[str]]


def unstack(step: StepModel) -> StepModel:
    """Guarantees: the same Signature, the same numbers, and no part taken out of a stack made in the same step.

    What Gather, Slice, Split and Squeeze take out of a Concat of Unsqueezed values is that value itself. Stacks that
    something else reads stay.
    """
    graph = Graph(step)
    stacks: dict[str, Stack] = {}
    same: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        node = renamed(node, lambda name: same.get(name, name), node.output)
        part = _part(graph, node, stacks) if is_standard(node) else None
        if part is None:
            nodes.append(node)
        elif node.output[0] in graph.outputs:
            nodes.append(onnx.helper.make_node("Identity", [part], [node.output[0]], node.name))
        else:
            same[node.output[0]] = part
    graph.nodes = nodes
    return graph.finish()


def _part(graph: Graph, node: onnx.NodeProto, stacks: dict[str, Stack]) -> str | None:
    """The value that ``node`` takes out of a stack; if it gives a stack itself, that is noted."""

    def axes(position: int, name: str = "axes") -> list[int] | None:
        return _integers(graph, node, position, name)

    source = node.input[0] if node.input else ""
    stack = stacks.get(source)
    result = node.output[0]
    match node.op_type:
        case "Identity" if stack:
            stacks[result] = stack
        case "Unsqueeze":
            if (new := axes(1)) and len(new) == 1:
                stacks[result] = (new[0], [source])
        case "Concat":
            parts = [stacks.get(name) for name in node.input]
            axis = attribute(node, "axis")
            if all(part is not None and part[0] == axis for part in parts):
                stacks[result] = (axis, [value for part in parts if part for value in part[1]])
        case "Slice" if stack:
            starts, ends, along, steps = (
                axes(k, name) for k, name in enumerate(("starts", "ends", "axes", "steps"), 1)
            )
            if starts and ends and len(starts) == 1 and along == [stack[0]]:
                stacks[result] = (stack[0], stack[1][starts[0] : ends[0] : steps[0] if steps else 1])
        case "Split" if stack and attribute(node, "axis", 0) == stack[0]:
            if len(node.output) == len(stack[1]):
                for name, value in zip(node.output, stack[1], strict=True):
                    stacks[name] = (stack[0], [value])
        case "Squeeze" if stack and axes(1) == [stack[0]] and len(stack[1]) == 1:
            return stack[1][0]
        case "Gather" if stack and attribute(node, "axis", 0) == stack[0]:
            index: Array | None = graph.constant(node.input[1])
            if index is not None and index.ndim == 0:
                return stack[1][int(index)]
            if index is not None and index.ndim == 1:
                stacks[result] = (stack[0], [stack[1][int(k)] for k in index])
    return None


def _integers(graph: Graph, node: onnx.NodeProto, position: int, name: str) -> list[int] | None:
    """Integers that older opsets hold in an attribute and newer ones in an input; None when not constant."""
    held = attribute(node, name)
    if held is None and len(node.input) > position and node.input[position]:
        value = graph.constant(node.input[position])
        held = None if value is None else value.reshape(-1)
    return None if held is None else [int(v) for v in held]
