"""What a GRU cell looks like in a graph, and the one node it becomes.

    h' = n + z (h - n)   or   (1 - z) n + z h            z, r = gate(W x + R h + b)
    n  = tanh(W x + b + r (R h + b'))                     the reset gate after the product (PyTorch, Keras's default)
    n  = tanh(W x + R (r h) + b)                          before it (ONNX's default, Keras's reset_after=False)

with operands in any order, and h' = h + z (n - h), (1 - z) h + z n, whose gate is 1 - z. gate is Sigmoid or HardSigmoid, tanh may
be Relu. Roles follow from the arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from edgelstm.runtime.native.linear import Linear, Links, Stored, alike, stacked, suffix
from edgelstm.runtime.native.wire import Attribute, Node
from edgelstm.runtime.protocol import Array

_CANDIDATES = {"Tanh": 0, "Relu": 1}


@dataclass(frozen=True)
class GruCell:
    """A cell's equations. weight [3 units, of x], recurrent [3 units, of h]: z, r, n, and how they are stored; bias: of z, r, n over x, n
    over h, [units] each; attributes: of the operators, without what is lent."""

    x: str
    h: str
    weight: Array
    recurrent: Array
    stored: tuple[Stored | None, Stored | None]
    bias: tuple[Array, Array, Array, Array]
    attributes: dict[str, Attribute]


def find_gru(links: Links, node: Node) -> Node | None:
    """The FusedGRUCell that gives the same as the Add ``node``, whose weights are new initialisers; None where it is no h'."""
    cell = find_cell(links, node)
    name = f"{node.outputs[0]}/edgelstm."
    if cell is None or f"{name}B" in links.graph.tensors:
        return None
    zero = np.zeros(len(cell.bias[0]), np.float32)
    links.graph.add_floats(f"{name}B", np.concatenate([*cell.bias[:3], zero, zero, cell.bias[3]]))
    of_x, of_h = cell.stored
    attributes = {
        **cell.attributes,
        "lent_w": links.lend(f"{name}W", cell.weight, of_x),
        "lent_r": links.lend(f"{name}R", cell.recurrent, of_h),
    }
    inputs = [cell.x, cell.h, "", "", f"{name}B"]
    for part, of in (("W", of_x), ("R", of_h)):
        if of is not None and of.scale is not None:
            links.graph.add_floats(f"{name}{part}/scale", of.scale)
            inputs.append(f"{name}{part}/scale")
    return Node("FusedGRUCell" + suffix(of_x), inputs, node.outputs, "edgelstm", attributes)


def find_cell(links: Links, node: Node) -> GruCell | None:
    """The cell whose h' the Add ``node`` is; None where it is none."""
    if node.op != "Add" or node.domain != "":
        return None
    for z, n, h, turned in _blends(links, node):
        candidate = links.producer(n, *_CANDIDATES)
        if candidate is None or h in links.graph.tensors:
            continue
        made = _cell(links, z, candidate, h, turned)
        if made is not None:
            return made
    return None


def _blends(links: Links, node: Node) -> Iterator[tuple[str, str, str, bool]]:
    """(z, n, h, turned) for every reading of ``node`` as a blend of two values; turned: z is the new one's share."""
    for base, moved in permutations(node.inputs):
        product = links.producer(moved, "Mul")
        if product is None:
            continue
        for z, change in permutations(product.inputs):
            apart = links.producer(change, "Sub")
            if apart is not None and apart.inputs[1] == base:  # base + z (other - base)
                yield z, base, apart.inputs[0], False
                yield z, apart.inputs[0], base, True
        other = links.producer(base, "Mul")
        if other is None:
            continue
        for z, kept in permutations(product.inputs):
            for share, new in permutations(other.inputs):  # z kept + (1 - z) new
                rest = links.producer(share, "Sub")
                one = links.constants.get(rest.inputs[0]) if rest is not None else None
                if (
                    rest is not None
                    and rest.inputs[1] == z
                    and one is not None
                    and one.size == 1
                    and one.item() == 1
                ):
                    yield z, new, kept, False
                    yield z, kept, new, True


def _cell(links: Links, z: str, candidate: Node, h: str, turned: bool) -> GruCell | None:
    units = _units(links, candidate.inputs[0])
    if units is None:
        return None
    inner = _candidate(links, candidate.inputs[0], h, units)
    if inner is None:
        return None
    r, x, n_x, n_h, b_n, b_rn, after = inner
    (w_n, w_stored), (r_n, r_stored) = n_x, n_h
    if x in links.graph.tensors:
        return None
    gates: dict[str, Linear] = {}
    kinds = set()
    for name, value in (("z", z), ("r", r)):
        found = _gate(links, value, {h: units * links.taps})
        if found is None or set(found[0].weights) != {x, h} or len(found[0].bias) != units:
            return None
        gates[name] = found[0]
        kinds.add(found[1])
    if len(kinds) > 1:
        return None
    hard, alpha, beta = kinds.pop()
    if turned:  # 1 - gate(a) = gate(-a)
        if hard and beta != 0.5:
            return None
        gates["z"] = gates["z"].minus()
    weight = np.concatenate([gates["z"].weights[x], gates["r"].weights[x], w_n])
    recurrent = np.concatenate([gates["z"].weights[h], gates["r"].weights[h], r_n])
    if links.too_large(weight.size + recurrent.size):
        return None
    if (
        recurrent.shape != (3 * units, units * links.taps)
        or len({w.shape for w in (gates["z"].weights[x], w_n)}) > 1
    ):
        return None
    of_x, of_h = (
        stacked([*(gates[g].stored.get(source) for g in ("z", "r")), last])
        for source, last in ((x, w_stored), (h, r_stored))
    )
    if not alike(of_x, of_h):
        of_x = of_h = None
    attributes: dict[str, Attribute] = {"linear_before_reset": int(after)}
    if hard:
        attributes |= {"hard_sigmoid": 1, "alpha": alpha, "beta": beta}
    if _CANDIDATES[candidate.op]:
        attributes["candidate_relu"] = 1
    biases = (gates["z"].bias, gates["r"].bias, b_n, b_rn)
    return GruCell(x, h, weight, recurrent, (of_x, of_h), biases, attributes)


_Part = tuple[Array, Stored | None]
_Inner = tuple[str, str, _Part, _Part, Array, Array, bool]


def _candidate(links: Links, value: str, h: str, units: int) -> _Inner | None:
    """r, x, and n's weights and biases of x and of h, and whether the reset gate works on the product."""
    widths = {h: units * links.taps}
    node = links.producer(value, "Add")
    for from_x, product in permutations(node.inputs) if node is not None else ():
        mul = links.producer(product, "Mul")
        if mul is None:
            continue
        first = links.linear(from_x, widths)
        for r, from_h in permutations(mul.inputs):
            second = links.linear(from_h, widths)
            if (
                first is not None
                and second is not None
                and set(second.weights) == {h}
                and len(first.weights) == 1
            ):
                (x,) = first.weights
                if x != h and len(first.bias) == len(second.bias) == units:
                    return r, x, first.part(x), second.part(h), first.bias, second.bias, True
    for mul in (n for n in links.graph.nodes if n.op == "Mul" and n.domain == "" and h in n.inputs):
        reset_h = mul.outputs[0]
        total = links.linear(value, {reset_h: units * links.taps})
        if (
            total is None
            or reset_h not in total.weights
            or len(total.weights) != 2
            or len(total.bias) != units
        ):
            continue
        (x,) = total.weights.keys() - {reset_h}
        r = mul.inputs[0] if mul.inputs[1] == h else mul.inputs[1]
        if x != h:
            zero = np.zeros(units, np.float32)
            return r, x, total.part(x), total.part(reset_h), total.bias, zero, False
    return None


def _units(links: Links, value: str) -> int | None:
    """Rows of a sum in which there is a product with constant weights."""
    gemm = links.gemm(value)
    if gemm is not None:
        return gemm.rows
    node = links.producer(value, "Conv")
    if node is not None and node.inputs[1] in links.constants:
        return len(links.constants[node.inputs[1]])
    node = links.producer(value, "MatMul")
    if node is not None and node.inputs[1] in links.constants and links.constants[node.inputs[1]].ndim == 2:
        return int(links.constants[node.inputs[1]].shape[1])
    node = links.producer(value, "Split")
    if node is not None:
        rows = _units(links, node.inputs[0])
        place = None if rows is None else links.place(node, value, rows)
        return None if place is None else place[1]
    node = links.producer(value, "Add", "Mul")
    found = [_units(links, name) for name in node.inputs] if node is not None else []
    return next((n for n in found if n is not None), None)


_Kind = tuple[bool, float, float]


def _gate(links: Links, value: str, widths: dict[str, int]) -> tuple[Linear, _Kind] | None:
    """``value`` as gate(sum): the sum, and which gate it is; a Split may come after the gate."""
    node = links.producer(value, "Split")
    if node is not None:
        whole = _gate(links, node.inputs[0], widths)
        place = None if whole is None else links.place(node, value, len(whole[0].bias))
        return None if whole is None or place is None else (whole[0].rows(*place), whole[1])
    node = links.producer(value, "Sigmoid", "HardSigmoid")
    total = None if node is None else links.linear(node.inputs[0], widths)
    if node is None or total is None:
        return None
    if node.op == "Sigmoid":
        return total, (False, 0.2, 0.5)
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return (total, (True, alpha, beta)) if isinstance(alpha, float) and isinstance(beta, float) else None
