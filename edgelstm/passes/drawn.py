"""Which nodes draw random numbers, anew each time they run, or learn from the frames."""

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


def learns(step: StepModel) -> str | None:
    """The first BatchNormalization in training mode that gives its statistics on, in words: a runtime keeps them from call to call."""
    for node in step.model.graph.node:
        training = any(a.name == "training_mode" and a.i for a in node.attribute)
        if is_standard(node) and node.op_type == "BatchNormalization" and training and any(node.output[1:]):
            return f"BatchNormalization {node.name or node.output[0]!r} in training mode"
    return None
