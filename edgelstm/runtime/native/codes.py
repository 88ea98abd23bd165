"""Where a new h is stored as codes: the QuantizeLinear behind the gates, and the Mul before it that gives channels scales of their own,
become the gates' own, which have h in their registers.

    FusedGates* -> Mul by a constant -> QuantizeLinear      FusedGates*QuantizeLinearI8, FusedGates*QuantizeLinearU8
    FusedConvLSTMCell* -> the same                          FusedConvLSTMCell*QuantizeLinearI8, ..U8

The codes have the bits that ONNX Runtime's QuantizeLinear would give. Where nobody else reads h, it is not written at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgelstm.runtime.native.linear import Links
from edgelstm.runtime.native.wire import INT8, UINT8, Node

#: By the type of the codes: what stands behind the operator's name.
_CODES = {UINT8: "QuantizeLinearU8", INT8: "QuantizeLinearI8"}
#: By operator: its inputs before those about codes.
_INPUTS = {"FusedGates": 5, "FusedGatesI8": 7, "FusedGatesU8": 7}
_INPUTS |= {f"FusedConvLSTMCell{read}": 9 for read in ("", "I8", "U8")}
Readers = Mapping[str, list[Node]]


@dataclass(frozen=True)
class _Stored:
    """How h becomes codes: the nodes that do it, the QuantizeLinear last; the constant that it is multiplied by before, or ""; the
    type of the codes."""

    nodes: list[Node]
    factor: str
    dtype: int


def fold_codes(links: Links) -> None:
    """Rewrite the graph of ``links`` in place."""
    graph = links.graph
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in dict.fromkeys(node.inputs):
            readers.setdefault(name, []).append(node)
    gone: list[Node] = []
    for k, node in enumerate(graph.nodes):
        if node.domain != "edgelstm" or node.op not in _INPUTS:
            continue
        h, c_out = node.outputs
        stored = next((s for reader in readers.get(h, []) if (s := _stored(links, readers, h, reader))), None)
        if stored is None:
            continue
        gone += stored.nodes
        quantize = stored.nodes[-1]
        constants = [stored.factor, *quantize.inputs[1:]]
        graph.declare(quantize.outputs[0], _first_state(links, node.inputs[_old_cell(node)]), stored.dtype)
        kept = h in graph.outputs or any(reader not in stored.nodes for reader in readers[h])
        graph.nodes[k] = Node(
            node.op + _CODES[stored.dtype],
            [*node.inputs, *[""] * (_INPUTS[node.op] - len(node.inputs)), *constants],
            [h if kept else "", c_out, quantize.outputs[0]],
            node.domain,
            {**node.attributes, "factor": 1} if stored.factor else node.attributes,
        )
    graph.nodes[:] = [node for node in graph.nodes if node not in gone]


def _first_state(links: Links, c: str) -> str:
    """The value of that shape from which a cell state came through other cells, as in a forecaster's later frames."""
    makers = {
        node.outputs[1]: node
        for node in links.graph.nodes
        if node.op.startswith(("FusedGates", "FusedConvLSTMCell")) and len(node.outputs) > 1
    }
    for _ in makers:
        c = makers[c].inputs[_old_cell(makers[c])] if c in makers else c
    return c


def _old_cell(node: Node) -> int:
    """The place of the cell state among its inputs."""
    return 1 if node.op.startswith("FusedGates") else 2


def _stored(links: Links, readers: Readers, h: str, reader: Node) -> _Stored | None:
    """How a node that reads h makes codes of it; None where it does not, or in a way that is not the gates'."""
    if reader.domain == "" and reader.op == "QuantizeLinear":
        dtype = code_type(links, reader, h)
        return None if dtype is None else _Stored([reader], "", dtype)
    if reader.domain or reader.op != "Mul" or len(reader.inputs) != 2:
        return None
    scaled = reader.outputs[0]
    factor = next((name for name in reader.inputs if name != h), "")
    values = links.constants.get(factor)
    # One number, or one a channel: [C, 1, 1].
    if (
        factor not in links.graph.tensors
        or values is None
        or values.size not in (1, max(values.shape, default=1))
    ):
        return None
    after = readers.get(scaled, [])
    if (
        scaled in links.graph.outputs
        or len(after) != 1
        or (after[0].domain, after[0].op) != ("", "QuantizeLinear")
    ):
        return None
    dtype = code_type(links, after[0], scaled)
    return None if dtype is None else _Stored([reader, after[0]], factor, dtype)


def code_type(links: Links, quantize: Node, value: str) -> int | None:
    """The type of the codes that a QuantizeLinear makes of a value; None where it is none of eight bits, with constants of one number
    or one a channel."""
    x, scale, zero = (*quantize.inputs, "")[:3]
    values, attributes = links.constants.get(scale), quantize.attributes
    known = {"axis", "block_size", "output_dtype", "precision", "saturate"}
    if (
        x != value
        or scale not in links.graph.tensors
        or values is None
        or values.ndim > 1
        or set(attributes) - known
    ):
        return None
    if attributes.get("block_size", 0) or attributes.get("precision", 0):
        return None
    if values.size != 1 and attributes.get("axis", 1) != 1:
        return None
    named = attributes.get("output_dtype", 0)
    if not zero:
        return INT8 if named == INT8 else UINT8 if named in (0, UINT8) else None
    tensor = links.graph.tensors.get(zero)
    if (
        tensor is None
        or zero in links.graph.inputs
        or tensor.dtype not in _CODES
        or named not in (0, tensor.dtype)
    ):
        return None
    places = tensor.bytes_as(tensor.dtype, "u1")
    return tensor.dtype if places is not None and places.size == values.size else None
