"""What an LSTM cell looks like in a graph, however it was written.

    c' = f * c + i * g          i, f, o = gate(z_i), gate(z_f), gate(z_o)      g = tanh or relu (z_g)
    h  = o * tanh or relu (c')

with operands in any order. Variations, as in :class:`edgelstm.graph.gates.GateVariant`:

1. gate = Sigmoid, HardSigmoid, or the latter spelt out: Clip(0.2 x + 0.5, 0, 1), Clip(x + 3, 0, 6) / 6, ...
2. peepholes: p_i * c and p_f * c and p_o * c' among the terms of z_i, z_f, z_o, each p constant.
3. coupled gates: f = 1 - i.
4. cell clip: c' = Clip(f * c + i * g, -limit, limit).

Roles follow from the arithmetic alone: i and g are multiplied with each other and told apart by their activation;
f is what c is multiplied with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import onnx

from edgelstm.graph.gates import CellActivation, GateActivation, GateVariant
from edgelstm.passes.graph import Graph, attribute


@dataclass(frozen=True)
class Cell:
    """One cell found: the values of its equations.

    terms: gate -> the values whose sum is its pre-activation, peepholes apart. peepholes: gate -> its constant.
    total: f * c + i * g, which is ``c_out`` unless that is clipped.
    """

    variant: GateVariant
    terms: dict[str, tuple[str, ...]]
    peepholes: dict[str, str]
    c: str
    c_out: str
    h: str
    total: str

    @property
    def pre_activations(self) -> tuple[str, ...]:
        """All terms of all gates."""
        return tuple(value for terms in self.terms.values() for value in terms)


@dataclass(frozen=True)
class _Activation:
    """gate(x): the value of x, and which gate it is."""

    x: str
    kind: GateActivation
    alpha: float = 0.2
    beta: float = 0.5

    def like(self, other: _Activation) -> bool:
        return (self.kind, self.alpha, self.beta) == (other.kind, other.alpha, other.beta)


_CELL_ACTIVATIONS: dict[str, CellActivation] = {"Tanh": "tanh", "Relu": "relu"}


def find_cells(graph: Graph, total: onnx.NodeProto) -> Iterator[Cell]:
    """Every reading of the Add ``total`` as the c' of a cell; all of them compute the same."""
    if total.op_type != "Add" or total.domain not in ("", "ai.onnx"):
        return
    for kept, written in permutations(total.input):
        keep, write = graph.producer(kept, "Mul"), graph.producer(written, "Mul")
        if keep is None or write is None:
            continue
        for i_value, g_value in permutations(write.input):
            i, g = _gate(graph, i_value), graph.producer(g_value, *_CELL_ACTIVATIONS)
            if i is None or g is None:
                continue
            for f_value, c in permutations(keep.input):
                coupled = _is_one_minus(graph, f_value, i_value)
                f = i if coupled else _gate(graph, f_value)
                if f is not None and f.like(i):
                    yield from _outputs(graph, total.output[0], c, i, None if coupled else f, g)


def _outputs(
    graph: Graph, total: str, c: str, i: _Activation, f: _Activation | None, g: onnx.NodeProto
) -> Iterator[Cell]:
    """Complete a cell by each h = o * act(c') found behind it."""
    for c_out, clip in [*_clipped(graph, total), (total, None)]:
        for a in graph.consumers(c_out):
            output = _CELL_ACTIVATIONS.get(a.op_type)
            for product in graph.consumers(a.output[0]) if output else ():
                if product.op_type != "Mul" or len(set(product.input)) < 2:
                    continue
                o = _gate(graph, next(name for name in product.input if name != a.output[0]))
                if output is None or o is None or not o.like(i):
                    continue
                terms: dict[str, tuple[str, ...]] = {"g": (g.input[0],)}
                peepholes: dict[str, str] = {}
                seen = {"i": (i, c), "f": (f, c), "o": (o, c_out)}
                for gate, (activation, state) in seen.items():
                    if activation is not None:
                        terms[gate], p = _without_peephole(graph, activation.x, state)
                        if p is not None:
                            peepholes[gate] = p
                variant = GateVariant(
                    peephole=bool(peepholes),
                    gate=i.kind,
                    alpha=i.alpha,
                    beta=i.beta,
                    candidate=_CELL_ACTIVATIONS[g.op_type],
                    output=output,
                    cell_clip=clip,
                    coupled=f is None,
                )
                yield Cell(variant, terms, peepholes, c, c_out, product.output[0], total)


def _clipped(graph: Graph, total: str) -> Iterator[tuple[str, float | None]]:
    for node in graph.consumers(total):
        bounds = _clip_bounds(graph, node)
        if bounds is not None and node.input[0] == total and 0 < bounds[1] == -bounds[0] < np.inf:
            yield node.output[0], bounds[1]


def _clip_bounds(graph: Graph, node: onnx.NodeProto) -> tuple[float, float] | None:
    """Limits of a Clip, infinite where left out; None where they vary."""
    if node.op_type != "Clip":
        return None
    bounds = []
    for k, (name, default) in enumerate((("min", -np.inf), ("max", np.inf))):
        limit: float | None = attribute(node, name, default)
        if len(node.input) > k + 1 and node.input[k + 1]:
            limit = graph.scalar(node.input[k + 1])
        if limit is None:
            return None
        bounds.append(float(limit))
    return bounds[0], bounds[1]


def _is_one_minus(graph: Graph, value: str, subtracted: str) -> bool:
    node = graph.producer(value, "Sub")
    return node is not None and graph.scalar(node.input[0]) == 1 and node.input[1] == subtracted


# -- gates ----------------------------------------------------------------------------------------------------------


def _gate(graph: Graph, value: str) -> _Activation | None:
    """``value`` as gate(x)."""
    node = graph.producer(value)
    if node is None:
        return None
    if node.op_type == "Sigmoid":
        return _Activation(node.input[0], "sigmoid")
    if node.op_type == "HardSigmoid":
        alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
        return _Activation(node.input[0], "hard_sigmoid", _decimal(alpha), _decimal(beta))
    return _spelt_out(graph, value)


def _spelt_out(graph: Graph, value: str) -> _Activation | None:
    """scale * Clip(a x + b, low, high) + shift whose limits become 0 and 1."""
    clipped, scale, shift = _affine(graph, value)
    node = graph.producer(clipped, "Clip", "Min")
    if node is None or scale <= 0:
        return None
    inside, low, high = node.input[0], 0.0, np.inf
    if node.op_type == "Clip":
        bounds = _clip_bounds(graph, node)
        low, high = bounds or (np.nan, np.nan)
    else:  # Relu capped: how some exporters write relu6
        relu = graph.producer(inside, "Relu")
        limit = graph.scalar(node.input[1]) if len(node.input) == 2 else None
        if relu is None or limit is None:
            return None
        inside, high = relu.input[0], limit
    if not np.allclose((scale * low + shift, scale * high + shift), (0, 1), rtol=0, atol=1e-6):
        return None
    x, alpha, beta = _affine(graph, inside)
    return _Activation(x, "hard_sigmoid", _decimal(scale * alpha), _decimal(scale * beta + shift))


def _affine(graph: Graph, value: str) -> tuple[str, float, float]:
    """``value`` as scale * x + shift: x, scale, shift.

    At most one addition and one multiplication are taken off. Others belong to x: the bias of a layer with one
    channel is a constant of one element too.
    """
    x, scale, shift = value, 1.0, 0.0
    seen: set[bool] = set()
    while (node := graph.producer(x, "Add", "Sub", "Mul", "Div")) is not None:
        first, second = node.input
        if node.op_type in ("Add", "Mul") and graph.scalar(second) is None:
            first, second = second, first
        number, adds = graph.scalar(second), node.op_type in ("Add", "Sub")
        if number is None or adds in seen or (number == 0 and not adds):
            break
        seen.add(adds)
        x = first
        if adds:
            shift += scale * (number if node.op_type == "Add" else -number)
        else:
            scale *= number if node.op_type == "Mul" else 1 / number
    return x, scale, shift


def _decimal(value: float) -> float:
    """The number that was meant by a float32: 0.2 for 0.20000000298, 1/6 for 0.16666667."""
    for meant in (1 / 6, 0.2, 0.25, 0.5):
        if abs(value - meant) < 1e-7:
            return meant
    return float(str(np.float32(value)))


def _without_peephole(graph: Graph, value: str, state: str) -> tuple[tuple[str, ...], str | None]:
    """The terms of a pre-activation apart from p * ``state``, and p; without one, the value itself."""
    node = graph.producer(value, "Add")
    if node is None:
        return (value,), None
    for term, other in permutations(node.input):
        p = _peephole(graph, term, state)
        if p is not None:
            return (other,), p
        terms, p = _without_peephole(graph, term, state)
        if p is not None:
            return (*terms, other), p
    return (value,), None


def _peephole(graph: Graph, value: str, state: str) -> str | None:
    node = graph.producer(value, "Mul")
    for p, c in permutations(node.input) if node is not None else ():
        if c == state and graph.constant(p) is not None:
            return str(p)
    return None
