"""Where a value is read in two codes, as quantised products of frames read it: what makes both, as one operator.

    Mul -> QuantizeLinear -> DequantizeLinear -> Mul -> Sub from the value -> Mul -> QuantizeLinear    FusedQuantizeLinearTwiceI8, ..U8

Each Mul, by a constant, may be missing; a Concat of both codes along the first axis goes into it. The codes have the bits that ONNX
Runtime's own operators would give.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgelstm.runtime.native.codes import code_type
from edgelstm.runtime.native.linear import Links
from edgelstm.runtime.native.wire import INT8, UINT8, Attribute, Node

_NAMES = {UINT8: "FusedQuantizeLinearTwiceU8", INT8: "FusedQuantizeLinearTwiceI8"}


@dataclass
class _Found:
    """The nodes that make two codes of x, the first QuantizeLinear among them; and the constants by name, "" where there is none."""

    x: str
    first: Node
    last: Node
    dtype: int
    scales: tuple[str, str, str]
    zero: str
    factor: str = ""
    worth_factor: str = ""
    nodes: list[Node] = field(default_factory=list)


def fold_two_codes(links: Links) -> None:
    """Rewrite the graph of ``links`` in place."""
    graph = links.graph
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in dict.fromkeys(node.inputs):
            readers.setdefault(name, []).append(node)
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    for node in list(graph.nodes):
        found = _find(links, producers, node)
        if found is None:
            continue
        codes, rest = found.first.outputs[0], node.outputs[0]
        inside = [n.outputs[0] for n in found.nodes if n is not found.first and n is not node]
        if any(name in graph.outputs or any(r not in found.nodes for r in readers[name]) for name in inside):
            continue
        attributes: dict[str, Attribute] = {}
        outputs, gone = [codes, rest], found.nodes
        joined = next((n for n in readers.get(rest, []) if (n.domain, n.op) == ("", "Concat")), None)
        if (
            joined is not None
            and joined.inputs == [codes, rest]
            and joined.attributes.get("axis") == 0
            and not {codes, rest} & graph.outputs
            and all(r is joined for r in readers[rest])
            and all(r is joined or r in found.nodes for r in readers[codes])
        ):
            outputs, gone = [joined.outputs[0]], [*gone, joined]
            attributes["rows"] = 1
        elif not all(graph.declare(name, found.x, found.dtype) for name in outputs):
            continue
        if found.factor:
            attributes["factor"] = 1
        if found.worth_factor:
            attributes["worth_factor"] = 1
        scale, worth, rest_scale = found.scales
        inputs = [found.x, found.factor, scale, worth, found.worth_factor, rest_scale, found.zero]
        new = Node(_NAMES[found.dtype], inputs, outputs, "edgelstm", attributes)
        graph.nodes[graph.nodes.index(found.first)] = new
        graph.nodes[:] = [n for n in graph.nodes if n not in gone]


def _find(links: Links, producers: dict[str, Node], last: Node) -> _Found | None:
    """What ends with that QuantizeLinear, if it is the second of two codes."""

    def made_by(name: str, op: str) -> Node | None:
        node = producers.get(name)
        return node if node is not None and (node.domain, node.op) == ("", op) else None

    def through_factor(name: str) -> tuple[str, str, list[Node]]:
        """What a value is before a Mul by a constant, if there is one; the constant, and the node."""
        mul = made_by(name, "Mul")
        for value, factor in (
            (mul.inputs, mul.inputs[::-1]) if mul is not None and len(mul.inputs) == 2 else ()
        ):
            values = links.constants.get(factor)
            # One number, or one a channel: [C, 1, 1].
            if factor in links.graph.tensors and values is not None:
                if values.size in (1, max(values.shape, default=1)):
                    return value, factor, [mul] if mul is not None else []
                break
        return name, "", []

    if (last.domain, last.op) != ("", "QuantizeLinear"):
        return None
    left, again, nodes = through_factor(last.inputs[0])
    sub = made_by(left, "Sub")
    if sub is None:
        return None
    x, known = sub.inputs
    known, worth_factor, more = through_factor(known)
    back = made_by(known, "DequantizeLinear")
    first = None if back is None else made_by(back.inputs[0], "QuantizeLinear")
    if back is None or first is None:
        return None
    scaled, factor, before = (
        (first.inputs[0], "", []) if first.inputs[0] == x else through_factor(first.inputs[0])
    )
    dtype = code_type(links, first, first.inputs[0])
    zeros = {tuple(node.inputs[2:]) for node in (first, back, last)}
    scales = (first.inputs[1], back.inputs[1], last.inputs[1])
    if (
        scaled != x
        or factor != again
        or dtype is None
        or code_type(links, last, last.inputs[0]) != dtype
        or len(zeros) != 1
        or not any(zeros)
        or back.attributes.get("block_size", 0)
        or any(links.constants.get(s) is None or s not in links.graph.tensors for s in scales)
        or any(links.constants[s].size != 1 or links.constants[s].ndim > 1 for s in scales)
    ):
        return None
    nodes = [*before, first, back, *more, sub, *nodes, last]
    return _Found(x, first, last, dtype, scales, first.inputs[2], factor, worth_factor, nodes)
