"""What stands around the cells of a small model, as fewer and fatter nodes, where every shape is fixed by the file.

    MatMul, Gemm, or Conv over one place, + bias, activation, * another value    FusedDense
    (x - mean) / sqrt(variance + epsilon) * gain + bias over the last axis        FusedNorm
    slices, squeezes, transposes, concatenations of small values                  FusedMove

Of a model that keeps all states in one tensor half of a step's time goes there: an operator that copies 128 numbers takes ONNX Runtime
as long as the copying of thousands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from edgelstm.runtime.native.linear import Links
from edgelstm.runtime.native.shapes import Shapes
from edgelstm.runtime.native.wire import Attribute, Node, OnnxGraph
from edgelstm.runtime.protocol import Array

DOMAIN = "edgelstm"
#: Rows up to which a product is ours: for more ONNX Runtime's own are faster.
FEW_ROWS = 4
_ACTIVATIONS = {"Sigmoid": 1, "Tanh": 2, "Relu": 3}


def fuse_around(links: Links) -> None:
    """Rewrite the graph of ``links`` in place."""
    graph = links.graph
    shapes = Shapes(graph, links.constants)
    for node in list(graph.nodes):
        fused = _dense(links, shapes, node) or _norm(links, shapes, node)
        if fused is not None:
            shapes.replace(*fused)
    drop_unused(graph)
    _move(graph, Shapes(graph, links.constants, shapes.known))


def drop_unused(graph: OnnxGraph) -> None:
    """Take out what nobody reads. Nodes come after what they read, as ONNX demands."""
    used, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if used.intersection(node.outputs):
            used.update(node.inputs)
            kept.append(node)
    graph.nodes[:] = reversed(kept)


@dataclass(frozen=True)
class _Product:
    """W x, [rows, units] whatever its shape: ``x`` and the weights by name."""

    x: str
    name: str
    weight: Array
    transposed: bool
    bias: Array


def _product(links: Links, shapes: Shapes, node: Node) -> _Product | None:
    if node.domain or len(node.inputs) < 2:
        return None
    x, name = node.inputs[:2]
    weight = links.constants.get(name)
    if weight is None or name in links.stored or x not in shapes.known or links.too_large(weight.size):
        return None
    if node.op == "MatMul" and weight.ndim == 2:
        return _Product(x, name, weight, True, np.zeros(weight.shape[1], np.float32))
    if node.op == "Gemm" and (gemm := links.gemm(node.outputs[0])) is not None:
        bias = links.constants[gemm.bias].reshape(-1) if gemm.bias else np.zeros(gemm.rows, np.float32)
        return _Product(x, name, weight, gemm.transposed, bias)
    if node.op == "Conv" and node.outputs[0] in shapes.known:
        if node.attributes.get("group", 1) != 1 or math.prod(shapes.known[x][2:]) != 1:
            return None
        units = weight.shape[0]
        bias = np.zeros(units, np.float32)
        if len(node.inputs) > 2 and node.inputs[2]:
            if node.inputs[2] not in links.constants:
                return None
            bias = links.constants[node.inputs[2]]
        return _Product(x, f"{name}/edgelstm.dense", weight.reshape(units, -1), False, bias)
    return None


def _dense(links: Links, shapes: Shapes, node: Node) -> tuple[Node, Node] | None:
    """The last node of a dense layer that begins with ``node``, and what takes its place."""
    product = _product(links, shapes, node)
    if product is None or node.outputs[0] not in shapes.known:
        return None
    units = product.weight.shape[1 if product.transposed else 0]
    rows = math.prod(shapes.known[node.outputs[0]]) // units
    if not 1 <= rows <= FEW_ROWS:
        return None
    last, bias, activation, factor = node, product.bias, 0, ""
    while (then := shapes.only_reader(last.outputs[0])) is not None:
        value, made = last.outputs[0], then.outputs[0]
        if shapes.is_view(made, value):
            last = then
            continue
        if factor or then.domain or shapes.known.get(made) != shapes.known[value]:
            break
        others = [name for name in then.inputs if name != value]
        if then.op == "Add" and not activation and len(others) == 1 and others[0] in links.constants:
            added = np.broadcast_to(links.constants[others[0]], shapes.known[made]).reshape(rows, units)
            if not np.array_equal(added, np.broadcast_to(added[0], added.shape), equal_nan=True):
                break
            bias = bias + added[0]
        elif then.op in _ACTIVATIONS and not activation:
            activation = _ACTIVATIONS[then.op]
        elif then.op == "Mul" and len(others) == 1 and shapes.known.get(others[0]) == shapes.known[value]:
            factor = shapes.computed(others[0])
        else:
            break
        last = then
    name = f"{last.outputs[0]}/edgelstm."
    links.graph.add_floats(f"{name}bias", bias)
    links.graph.add(f"{name}shape", np.array(shapes.known[last.outputs[0]], np.int64))
    attributes: dict[str, Attribute] = {"lent": links.lend(product.name, product.weight)}
    for key, value_of in (
        ("transposed", int(product.transposed)),
        ("activation", activation),
        ("factor", int(bool(factor))),
    ):
        if value_of:
            attributes[key] = value_of
    inputs = [shapes.computed(product.x), "", f"{name}bias", factor, f"{name}shape"]
    return last, Node("FusedDense", inputs, last.outputs, DOMAIN, attributes)


def _norm(links: Links, shapes: Shapes, node: Node) -> tuple[Node, Node] | None:
    """The last node of a normalisation whose division ``node`` is, and what takes its place."""
    if node.op != "Div" or node.domain or node.outputs[0] not in shapes.known:
        return None
    top, root = links.producer(node.inputs[0], "Sub"), links.producer(node.inputs[1], "Sqrt")
    total = links.producer(root.inputs[0], "Add") if root is not None else None
    if top is None or total is None:
        return None
    x, mean = top.inputs
    if not _is_mean(links, shapes, mean, x):
        return None
    variance, epsilon = total.inputs if total.inputs[1] in links.constants else total.inputs[::-1]
    constant = links.constants.get(epsilon)
    squares = links.producer(variance, "ReduceMean")
    if constant is None or constant.size != 1 or squares is None:
        return None
    square = links.producer(squares.inputs[0], "Mul", "Pow")
    if square is None or not _is_mean(links, shapes, variance, square.outputs[0]):
        return None
    apart = links.producer(square.inputs[0], "Sub")
    power = links.constants.get(square.inputs[1])
    twice = (
        power is not None and power.size == 1 and power.item() == 2
        if square.op == "Pow"
        else square.inputs[1] == square.inputs[0]
    )
    if apart is None or apart.inputs != top.inputs or not twice:
        return None
    size = shapes.known[x][-1]
    gain, bias = np.ones(size, np.float32), np.zeros(size, np.float32)
    last, stage = node, 0
    while (then := shapes.only_reader(last.outputs[0])) is not None:
        value, made = last.outputs[0], then.outputs[0]
        if shapes.is_view(made, value):
            last = then
            continue
        others = [name for name in then.inputs if name != value]
        constant = links.constants.get(others[0]) if len(others) == 1 else None
        # By rows of the value as it came, whatever it was reshaped to since.
        if (
            constant is None
            or constant.size != size
            or constant.shape[-1:] != (size,)
            or shapes.known[value][-1] != size
        ):
            break
        if then.op == "Mul" and stage < 1 and not then.domain:
            gain, stage = constant.reshape(-1), 1
        elif then.op == "Add" and stage < 2 and not then.domain:
            bias, stage = constant.reshape(-1), 2
        else:
            break
        last = then
    name = f"{last.outputs[0]}/edgelstm."
    links.graph.add_floats(f"{name}gain", gain)
    links.graph.add_floats(f"{name}bias", bias)
    links.graph.add(f"{name}shape", np.array(shapes.known[last.outputs[0]], np.int64))
    inputs = [shapes.computed(x), f"{name}gain", f"{name}bias", f"{name}shape"]
    return last, Node(
        "FusedNorm", inputs, last.outputs, DOMAIN, {"epsilon": float(links.constants[epsilon].item())}
    )


def _is_mean(links: Links, shapes: Shapes, value: str, of: str) -> bool:
    """Whether a value is the mean of ``of`` over its last axis, which stays as an axis of 1."""
    node = links.producer(value, "ReduceMean")
    if node is None or node.inputs[0] != of or of not in shapes.known or not shapes.known[of]:
        return False
    return shapes.known.get(value) == (*shapes.known[of][:-1], 1) and shapes.reduced_axes(node) == [
        len(shapes.known[of]) - 1
    ]


def _move(graph: OnnxGraph, shapes: Shapes) -> None:
    """Views that somebody reads become outputs of one node for all that are ready at the same time."""
    places = {name: k for k, node in enumerate(graph.nodes) for name in node.outputs}
    groups: dict[int, list[str]] = {}
    read = [name for node in graph.nodes if not shapes.moves(node) for name in node.inputs]
    for name in dict.fromkeys([*read, *sorted(graph.outputs)]):
        if name in places and shapes.moves(graph.nodes[places[name]]):
            ready = max(places.get(source, -1) for source in shapes.sources(name))
            groups.setdefault(ready, []).append(name)
    before = list(graph.nodes)
    for ready in sorted(groups, reverse=True):
        _move_group(graph, shapes, before[ready] if ready >= 0 else None, groups[ready])


#: Sources and outputs of a FusedMove.
MOST = 8


def _move_group(graph: OnnxGraph, shapes: Shapes, ready: Node | None, names: list[str]) -> None:
    """ready: the node behind which all that they are made of is there; None: at the beginning."""
    sources = sorted({source for name in names for source in shapes.sources(name)})
    if len(names) > MOST or len(sources) > MOST:
        return
    plan = [len(names)]
    for name in names:
        plan += [len(shapes.known[name]), *shapes.known[name]]
    codes = [shapes.codes(name, sources).reshape(-1) for name in names]
    before = list(graph.nodes)
    taken = set(names)
    # A node's other outputs, which only other moves read, are no longer needed, or the group is left as it is.
    node = Node("FusedMove", [f"{names[0]}/edgelstm.plan", *sources], list(names), DOMAIN)
    kept = []
    for old in before:
        left = [name for name in old.outputs if name not in taken]
        if len(left) == len(old.outputs):
            kept.append(old)
        elif left:
            kept.append(
                replace(old, outputs=["" if name in taken else name for name in old.outputs], data=None)
            )
    first = 0 if ready is None else before.index(ready) + 1
    after = [old for old in before[:first] if old in kept]
    graph.nodes[:] = [*after, node, *(old for old in kept if old not in after)]
    if any(
        old.data is None and not old.domain for old in graph.nodes
    ):  # a Split in part: not worth writing anew
        graph.nodes[:] = before
        return
    drop_unused(graph)
    if len(graph.nodes) >= len(before):
        graph.nodes[:] = before
        return
    graph.add(node.inputs[0], np.concatenate([np.array(plan, np.int64), *codes]))
