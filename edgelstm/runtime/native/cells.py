"""Where whole LSTM cells and gates stand in a step graph, and the one node each becomes.

    Concat(x, h) -> Gemm -> FusedGates_*     FusedLSTMCell; also Gemm(h) + what does not depend on h, as windows have it
    FusedGates_* after anything else         FusedGates; FusedGatesI8, FusedGatesU8 where codes go in; see codes.py where they come out
    Concat(x, h) -> Conv -> FusedGates_*     FusedConvLSTMCell, where that is faster; FusedConvLSTMCellI8, ..U8 of codes (see maps.py)
    the equations of a GRU                   FusedGRUCell (see gru.py); FusedConvGRUCell on maps, where that is faster (see maps_gru.py)

with I8 or BF16 behind a cell's name where its weights are int8 behind DequantizeLinear, or bfloat16 behind Cast;

in the domain ``edgelstm``, for the operators in plugins/onnxruntime. Everything else stays as it is, and so does the file:
what is rewritten are the bytes that a session is opened from.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from edgelstm.runtime.native.around import drop_unused, fuse_around
from edgelstm.runtime.native.codes import fold_codes
from edgelstm.runtime.native.gru import find_gru
from edgelstm.runtime.native.linear import Links, suffix
from edgelstm.runtime.native.maps import coded_conv_lstm, conv_lstm, fits, sizes_of
from edgelstm.runtime.native.maps_gru import find_conv_gru
from edgelstm.runtime.native.two_codes import fold_two_codes
from edgelstm.runtime.native.wire import BFLOAT16, FLOAT, FLOATS, Attribute, Node, OnnxGraph
from edgelstm.runtime.protocol import Array

DOMAIN = "edgelstm"
PREFIX = "FusedGates_"
#: So many streams pay for a cell of any size; more of them only for cells of so few weights. Measured: docs/native.md.
FEW_STREAMS = 4
SMALL = 1 << 16
FLOAT_CASTS = ("Cast", "CastLike")


@dataclass(frozen=True)
class Rewritten:
    """Bytes of an ONNX file with native operators in it, how many of each there are, and the matrices of cells by the number they are
    to be lent under while a session is opened: the file no longer has them."""

    data: bytes
    counts: dict[str, int]
    matrices: dict[int, Array]


def rewrite(
    data: bytes, threads: int, streams: int = 1, *, lend: bool = True, bytes_slow: bool = False
) -> Rewritten | None:
    """The file with native operators; None where nothing in it becomes one, or it is no ONNX file.

    threads: of the session that will run it. streams: at once, at most; for many, large products are left to ONNX Runtime, which
    is faster at them. lend: whether matrices are lent; else they stay in the file, which is then whole by itself. bytes_slow: whether
    this processor has no products of bytes, so that float32 is faster for convolutions of codes. Only graphs in float32
    throughout are rewritten: others keep their rounding. Nor are those whose weights lie in another file: a session opened from bytes
    looks for it in the folder it is run from, where another model's may lie under that name.
    """
    try:
        graph = OnnxGraph(data)
    except ValueError:  # ONNX Runtime says what is wrong with it
        return None
    if any(node.nested for node in graph.nodes) or not _in_float32(graph) or graph.has_external_weights():
        return None
    links = Links(graph, None if streams <= FEW_STREAMS else SMALL)
    found = False
    for node in list(graph.nodes):
        new = _gates(links, node, bytes_slow) or find_gru(links, node) or find_conv_gru(links, node)
        if new is None:
            continue
        if threads > 1:
            new.attributes["threads"] = threads
        graph.nodes[graph.nodes.index(node)] = new
        found = True
    if not found:
        return None
    fold_codes(links)
    fold_two_codes(links)
    drop_unused(graph)
    fuse_around(links)
    made: dict[str, int] = {}
    for node in graph.nodes:
        if node.domain == DOMAIN and node.op.startswith("Fused") and not node.op.startswith(PREFIX):
            made[node.op] = made.get(node.op, 0) + 1
            if threads > 1 and node.op.startswith(("FusedDense", "FusedQuantizeLinearTwice")):
                node.attributes["threads"] = threads
    if not lend:
        _keep_matrices(graph, links)
    return Rewritten(graph.encode(DOMAIN, 1), made, links.lent if lend else {})


#: By operator: the attribute that has a lent matrix's number, and the input that the matrix is where it is not lent.
_LENT = {f"FusedLSTMCell{kind}": (("lent", 3),) for kind in ("", "I8", "BF16")} | {
    f"FusedGRUCell{kind}": (("lent_w", 2), ("lent_r", 3)) for kind in ("", "I8", "BF16")
}
_LENT |= {"FusedDense": (("lent", 1),), "FusedConvGRUCell": (("lent_w", 2), ("lent_r", 3))}
_LENT |= {
    f"FusedConvLSTMCell{read}{made}": (("lent", 3),)
    for read in ("", "I8", "U8")
    for made in ("", "QuantizeLinearI8", "QuantizeLinearU8")
}


def _keep_matrices(graph: OnnxGraph, links: Links) -> None:
    names = {number: name for (name, _), number in links.numbers.items()}
    for node in graph.nodes:
        for attribute, place in _LENT.get(node.op, ()) if node.domain == DOMAIN else ():
            number = node.attributes.pop(attribute, 0)
            if not isinstance(number, int) or not number:
                continue
            matrix = links.lent[number]
            # What was dequantised had its name from a node that may still be there.
            name = names[number] if matrix.dtype == np.float32 else f"{names[number]}/edgelstm"
            node.inputs += [""] * (place + 1 - len(node.inputs))
            node.inputs[place] = name
            if name not in graph.tensors:
                graph.add(name, matrix)


def variant_attributes(op: str) -> dict[str, Attribute] | None:
    """The attributes of the native operators for an op name of FusedGates; None for what they do not compute.

    The reader of :meth:`edgelstm.graph.gates.GateVariant.of`, for where there is no onnx; a test holds them together.
    """
    words = op.removeprefix(PREFIX).split("_")
    found: dict[str, Attribute] = {"peephole": 1} if words[0] == "peephole" else {}
    if words[0] not in ("peephole", "lstm"):
        return None
    rest = iter(words[1:])
    try:
        for word in rest:
            if word == "hard":
                found |= {"hard_sigmoid": 1, "alpha": _number(next(rest)), "beta": _number(next(rest))}
            elif word == "clip":
                found["cell_clip"] = _number(next(rest))
            elif word in _WORDS:
                found[_WORDS[word]] = 1
            else:  # what later versions may add
                return None
    except (ValueError, StopIteration):
        return None
    return found


_WORDS = {"grelu": "candidate_relu", "hrelu": "output_relu", "coupled": "coupled", "coded": "coded"}
#: By the type of its zero point, the operator that takes such codes.
_CODED = {2: "FusedGatesU8", 3: "FusedGatesI8"}


def _number(text: str) -> float:
    return float(text.replace("p", ".").replace("m", "-"))


def _in_float32(graph: OnnxGraph) -> bool:
    """Whether no tensor has another floating-point type, as far as the file says."""
    read = {name for node in graph.nodes if node.op != "Cast" for name in node.inputs} | graph.outputs
    stored = {
        name for name, t in graph.tensors.items() if t.dtype == BFLOAT16 and name not in read
    }  # weights
    found = {t.dtype for name, t in graph.tensors.items() if name not in stored} | set(graph.inputs.values())
    casts = [node.attributes.get("to", FLOAT) for node in graph.nodes if node.op in FLOAT_CASTS]
    return not ((found | {c for c in casts if isinstance(c, int)}) & FLOATS) - {FLOAT}


def _gates(links: Links, node: Node, bytes_slow: bool) -> Node | None:
    if (
        node.domain != DOMAIN
        or not node.op.startswith(PREFIX)
        or "" in node.outputs
        or len(node.outputs) != 2
    ):
        return None
    attributes = variant_attributes(node.op)
    if attributes is None:
        return None
    z, c, *peepholes = node.inputs
    if c in links.graph.tensors:  # one row for all streams: standard operators broadcast it
        return None
    coded = attributes.pop("coded", 0)
    codes = peepholes[-2:] if coded else []
    peepholes = peepholes[: len(peepholes) - len(codes)]
    if attributes.get("coupled") and len(peepholes) == 2:
        peepholes.insert(1, "")
    shape = (sizes_of(links, c) or ())[1:]
    # A row of a map, say, that is repeated over it, is left to standard operators.
    if (
        shape
        and -1 not in shape
        and not all(fits(links, p, shape) for p in peepholes if p in links.constants)
    ):
        return None
    if codes:
        cell = (
            coded_conv_lstm(links, node, z, c, peepholes, attributes, (codes[0], codes[1]))
            if bytes_slow
            else None
        )
        if cell is not None:
            return cell
        op = _CODED.get(links.graph.tensors[codes[1]].dtype) if codes[1] in links.graph.tensors else None
        names = [z, c, *peepholes, *[""] * (3 - len(peepholes)), *codes]
        return None if op is None else Node(op, names, node.outputs, DOMAIN, attributes)
    return (
        _cell(links, node, z, c, peepholes, attributes)
        or conv_lstm(links, node, z, c, peepholes, attributes)
        or Node("FusedGates", [z, c, *peepholes], node.outputs, DOMAIN, attributes)
    )


def _cell(
    links: Links, node: Node, z: str, c: str, peepholes: list[str], attributes: dict[str, Attribute]
) -> Node | None:
    """The gates together with the Gemm before them; None where there is none of the right form."""
    gemm, added = links.gemm(z), ""
    # In a window the input's product stands apart, made for all frames at once.
    add = links.producer(z, "Add")
    for one, other in permutations(add.inputs) if add is not None else ():
        found = links.gemm(one) if gemm is None and other not in links.graph.tensors else None
        # Of an input it is known that it is no row, or column, that is repeated.
        sizes = links.graph.input_sizes.get(other)
        rows = (links.graph.input_sizes.get(c) or (-1,))[0]
        if found is not None and (sizes is None or sizes == (rows, found.rows)):
            gemm, added = found, other
    if (
        gemm is None
        or links.too_large(links.constants[gemm.weight].size)
        or any(p and p not in links.constants for p in peepholes)
    ):
        return None
    units = gemm.rows // (3 if attributes.get("coupled") else 4)
    if any(links.constants[p].size not in (1, units) for p in peepholes if p):
        return None
    joined = links.joined(gemm.value)
    inputs = joined if joined is not None and len(joined) == 2 else [gemm.value, ""]
    axis = 1 if gemm.transposed else 0
    stored = links.stored_rows(gemm.weight, axis)
    extra: dict[str, Attribute] = {
        "lent": links.lend(gemm.weight, links.constants[gemm.weight], stored, axis)
    }
    if not inputs[1]:
        extra["recurrent"] = 0
    if gemm.transposed:
        extra["transposed"] = 1
    if added:
        extra["added"] = 1
        peepholes = [*peepholes, *[""] * (3 - len(peepholes)), added]
    names = [*inputs, c, "", gemm.bias, *peepholes]
    if stored is not None and stored.scale is not None:
        scale = f"{gemm.weight}/edgelstm.scale"
        if scale not in links.graph.tensors:
            links.graph.add_floats(scale, stored.scale)
        names += [*[""] * (9 - len(names)), scale]
    while not names[-1]:
        names.pop()
    return Node("FusedLSTMCell" + suffix(stored), names, node.outputs, DOMAIN, {**attributes, **extra})
