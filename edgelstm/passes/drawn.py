"""Which nodes draw random numbers, anew each time they run."""

from __future__ import annotations

from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph, is_standard

RANDOM = frozenset(
    [
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    ]
)


def draws(step: StepModel) -> str | None:
    """The first node that does, in words; Dropout only in training mode (input 2)."""
    graph = Graph(step)
    for node in graph.nodes:
        if not is_standard(node):
            continue
        training = node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])
        if node.op_type in RANDOM or (training and graph.scalar(node.input[2]) != 0):
            mode = " in training mode" if training else ""
            return f"{node.op_type} {node.name or node.output[0]!r}{mode}"
    return None
