"""expand_rnn: ONNX's LSTM operator, one step of it, becomes a Gemm and FusedGates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from edgelstm.gates import DOMAIN, CellActivation, GateVariant
from edgelstm.passes.graph import Array, Graph, attribute
from edgelstm.passes.shapes import note_shapes
from edgelstm.step import StepModel, value_shape

#: Rows of the operator's W, R and B, and what FusedGates wants.
_ONNX_ORDER, _ORDER = "iofg", "ifgo"
_CELL_ACTIVATIONS: dict[str, CellActivation] = {"Tanh": "tanh", "Relu": "relu"}


def expand_rnn(step: StepModel) -> StepModel:
    """Guarantees: the same Signature, the same numbers up to rounding, and no LSTM operator that is one plain step.

    Expanded is an ``LSTM`` over a sequence of one, forward, with constant weights and both initial states given:
    Y, Y_h and Y_c then come from [W | R]·[x ; h] + b and FusedGates, peepholes and hard sigmoids included. All others
    stay: longer sequences and other directions are windows; ``clip``, ``input_forget`` and ``sequence_lens`` other than
    one, and activations that FusedGates has no variant for, mean something else.

    Source: the operator LSTM of ONNX (gates i, o, f, c; Y [T, directions, N, H], with ``layout`` 1 [N, T, ...]).
    """
    graph = Graph(step)
    noted = note_shapes(step).model.graph
    shapes = {v.name: value_shape(v) for v in (*noted.input, *noted.value_info)}
    functions = []
    for node in [n for n in graph.nodes if n.op_type == "LSTM" and n.domain in ("", "ai.onnx")]:
        variant = _variant(graph, node)
        weights = _weights(graph, node)
        time = 1 if attribute(node, "layout", 0) else 0
        x = shapes.get(node.input[0])
        if variant is None or weights is None or x is None or x[time] != 1:
            continue
        functions.append(variant.function(graph.opset))
        _expand(graph, node, variant, *weights, time)
    return graph.finish(functions)


def _variant(graph: Graph, node: onnx.NodeProto) -> GateVariant | None:
    names = [a.decode() for a in attribute(node, "activations", [b"Sigmoid", b"Tanh", b"Tanh"])]
    refused = attribute(node, "clip") is not None or attribute(node, "input_forget", 0)
    if refused or attribute(node, "direction", b"forward") != b"forward" or len(names) != 3:
        return None
    gate, candidate, output = (name.capitalize() for name in names)
    if candidate not in _CELL_ACTIVATIONS or output not in _CELL_ACTIVATIONS:
        return None
    lengths = _input(node, 4)
    if lengths and not _all_one(graph.constant(lengths)):
        return None
    peephole = bool(_input(node, 7))
    plain = GateVariant(
        peephole=peephole, candidate=_CELL_ACTIVATIONS[candidate], output=_CELL_ACTIVATIONS[output]
    )
    if gate == "Sigmoid":
        return plain
    if gate == "Hardsigmoid":
        # Only activations that take parameters have an entry, and the gate's is the first.
        alpha = [*attribute(node, "activation_alpha", []), 0.2][0]
        beta = [*attribute(node, "activation_beta", []), 0.5][0]
        return replace(plain, gate="hard_sigmoid", alpha=alpha, beta=beta)
    return None


def _weights(graph: Graph, node: onnx.NodeProto) -> tuple[Array, Array, list[Array]] | None:
    """[W | R] [4H, inputs + H] and b [4H] with the gates in our order, and the peepholes i, f, o."""
    w, r = graph.constant(node.input[1]), graph.constant(node.input[2])
    if w is None or r is None or not (_input(node, 5) and _input(node, 6)):
        return None
    joined = np.concatenate([w[0], r[0]], axis=1)
    bias = np.zeros(len(joined), joined.dtype)
    if _input(node, 3):
        both = graph.constant(node.input[3])
        if both is None:
            return None
        bias = both[0].reshape(2, -1).sum(axis=0)
    peepholes: list[Array] = []
    if _input(node, 7):
        p = graph.constant(node.input[7])
        if p is None:
            return None
        i, o, f = np.split(p[0], 3)
        peepholes = [i, f, o]
    return _reordered(joined), _reordered(bias), peepholes


def _reordered(rows: Array) -> Array:
    parts = dict(zip(_ONNX_ORDER, np.split(rows, 4), strict=True))
    return np.concatenate([parts[gate] for gate in _ORDER])


def _expand(
    graph: Graph,
    node: onnx.NodeProto,
    variant: GateVariant,
    weight: Array,
    bias: Array,
    peepholes: Sequence[Array],
    time: int,
) -> None:
    base = node.output[0] or node.output[1] or node.output[2]
    # Directions lie on axis 0 of the states, or on axis 1 with layout 1: beside the streams, as time does in x.
    x = _reshaped(graph, "Squeeze", node.input[0], [time], f"{base}_x")
    h = _reshaped(graph, "Squeeze", node.input[5], [time], f"{base}_h")
    c = _reshaped(graph, "Squeeze", node.input[6], [time], f"{base}_c")
    joined = graph.value("Concat", [x, h], f"{base}_inputs", axis=1)
    z = graph.value(
        "Gemm",
        [joined, graph.weight(weight, f"{base}_weight"), graph.weight(bias, f"{base}_bias")],
        f"{base}_gates",
        transB=1,
    )
    p = [
        graph.weight(values, f"{base}_{name}")
        for name, values in zip(variant.inputs[2:], peepholes, strict=True)
    ]
    after = [graph.fresh(f"{base}_{name}") for name in ("h_next", "c_next")]
    graph.remove([node])
    graph.node(variant.op_type, [z, c, *p], after, domain=DOMAIN)
    # Y [T, D, N, H] or [N, T, D, H]; Y_h and Y_c [D, N, H] or [N, D, H].
    for output, value, axes in (
        (_output(node, 0), after[0], [1, 2] if time else [0, 1]),
        (_output(node, 1), after[0], [time]),
        (_output(node, 2), after[1], [time]),
    ):
        if output:
            _reshaped(graph, "Unsqueeze", value, axes, output, exact=True)


def _reshaped(
    graph: Graph, op_type: str, value: str, axes: list[int], name: str, *, exact: bool = False
) -> str:
    """Squeeze or Unsqueeze; before opset 13 the axes are an attribute."""
    output = name if exact else graph.fresh(name)
    if graph.opset < 13:
        graph.node(op_type, [value], [output], axes=axes)
    else:
        graph.node(op_type, [value, graph.weight(np.array(axes, np.int64), f"{output}_axes")], [output])
    return output


def _input(node: onnx.NodeProto, place: int) -> str:
    return str(node.input[place]) if len(node.input) > place else ""


def _output(node: onnx.NodeProto, place: int) -> str:
    return str(node.output[place]) if len(node.output) > place else ""


def _all_one(lengths: Array | None) -> bool:
    return lengths is not None and bool((lengths == 1).all())
