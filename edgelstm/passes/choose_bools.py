"""choose_bools: a choice between True and False, which ONNX Runtime's CPU has no operator for, by operators of logic."""

from __future__ import annotations

import onnx

from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph, is_standard
from edgelstm.passes.shapes import element_types


def choose_bools(step: StepModel) -> StepModel:
    """Guarantees: the same Signature and numbers, and no Where between bools: c and a, or not c and b."""
    nodes = [n for n in step.model.graph.node if n.op_type == "Where" and is_standard(n)]
    if not nodes:
        return step
    types = element_types(step)
    graph = Graph(step)
    found = [
        n for n in graph.nodes if n.op_type == "Where" and types.get(n.output[0]) == onnx.TensorProto.BOOL
    ]
    if not found:
        return step
    for node in found:
        condition, a, b = node.input
        unless = graph.value("Not", [condition], f"{node.output[0]}_else")
        yes = graph.value("And", [condition, a], f"{node.output[0]}_yes")
        no = graph.value("And", [unless, b], f"{node.output[0]}_no")
        graph.remove([node])
        graph.node("Or", [yes, no], list(node.output))
    return graph.finish()
