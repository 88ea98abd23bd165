"""ConvLSTM cells on maps: where the convolution before the gates is one that our operator computes, and computes faster.

    Concat(x, h) -> Conv 3x3 -> FusedGates_*            FusedConvLSTMCell
    Conv 3x3 (x) + Conv 3x3 (h) -> FusedGates_*         the same
    Conv 3x3 (anything) -> FusedGates_*                 the same
    Conv 3x3 (codes) -> QuantizeLinear -> FusedGates_*  FusedConvLSTMCellI8, FusedConvLSTMCellU8; see codes.py where codes come out

The last where the processor has no products of bytes: there a quantised convolution takes ONNX Runtime longer than ours in float32.

Stride 1, no dilation, no groups, padded with zeros to the size it had. The operator's way (Winograd's) makes 4x4 places at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgelstm.runtime.native.codes import code_type
from edgelstm.runtime.native.linear import Links
from edgelstm.runtime.native.wire import INT8, UINT8, Attribute, Node
from edgelstm.runtime.protocol import Array

DOMAIN = "edgelstm"
TILE = 4
#: What pays, measured (docs/native.md): channels of x and h, units, and the share of the tiles that maps fill.
LEAST_CHANNELS, LEAST_UNITS, LEAST_USE = 16, 10, 0.5
#: All weights are read for every map: few tiles pay only for few channels * units.
MANY_TILES, FEW_TILES, FEW_WEIGHTS = 9, 4, 4096
#: By the type of what it reads: the operator.
_NAMES = {None: "FusedConvLSTMCell", INT8: "FusedConvLSTMCellI8", UINT8: "FusedConvLSTMCellU8"}
_KINDS = {INT8: "i1", UINT8: "u1"}
#: A step's memory grows with a row of tiles.
WIDEST = 4096


@dataclass(frozen=True)
class _Convolution:
    """Convolutions of 3x3 over one value or two, summed: weight [rows, channels of both, 3, 3], and its name; bias [rows]."""

    sources: list[str]
    weight: Array
    name: str
    bias: Array


@dataclass(frozen=True)
class _Codes:
    """Codes by name, and what one is worth: (code - zero) * scale."""

    value: str
    scale: float
    zero: int
    dtype: int


def conv_lstm(
    links: Links, node: Node, z: str, c: str, peepholes: list[str], attributes: dict[str, Attribute]
) -> Node | None:
    """The gates together with the convolution before them; None where there is none of the right form, or it would not pay.

    node: the gates; z, c, peepholes: what they read ("" for a peephole left out); attributes: their variant's.
    """
    conv = _convolution(links, z)
    return None if conv is None else _cell(links, conv, node, z, c, peepholes, attributes)


def coded_conv_lstm(
    links: Links,
    node: Node,
    z: str,
    c: str,
    peepholes: list[str],
    attributes: dict[str, Attribute],
    worth: tuple[str, str],
) -> Node | None:
    """The same of gates that read codes, ``worth`` (code - zero point) * scale of each gate: both by name, the scale first."""
    rounded = links.producer(z, "QuantizeLinear")
    dtype = None if rounded is None else code_type(links, rounded, rounded.inputs[0])
    conv = None if rounded is None else _convolution(links, rounded.inputs[0])
    scales, zeros = links.constants.get(worth[0]), _codes_in(links, worth[1])
    if rounded is None or dtype is None or conv is None or scales is None or zeros is None:
        return None
    gates = 3 if attributes.get("coupled") else 4
    step = links.constants[rounded.inputs[1]]
    middle = _codes_in(links, rounded.inputs[2]) if len(rounded.inputs) > 2 else np.zeros(1)
    if step.size != 1 or middle is None or scales.size != gates or zeros.size != gates:
        return None
    least = -128 if dtype == INT8 else 0
    name = f"{z}/edgelstm.gate_codes"
    zero = float(middle.item())
    ends = np.array([least, least + 255]) - zero
    if name not in links.graph.tensors:
        links.graph.add_floats(name, np.concatenate([scales.reshape(-1), zeros.reshape(-1) - zero, ends]))
    # In units of a code.
    conv = _Convolution(conv.sources, conv.weight / step, f"{conv.name}/{step.item()}", conv.bias / step)
    return _cell(links, conv, node, z, c, peepholes, attributes, name)


def _cell(
    links: Links,
    conv: _Convolution,
    node: Node,
    z: str,
    c: str,
    peepholes: list[str],
    attributes: dict[str, Attribute],
    gate_codes: str = "",
) -> Node | None:
    sizes = sizes_of(links, c)
    if sizes is None or len(sizes) != 4:
        return None
    units, rest = divmod(len(conv.bias), 3 if attributes.get("coupled") else 4)
    height, width = sizes[2:]
    if rest or not pays(units, conv.weight.shape[1], height, width):
        return None
    if not all(fits(links, p, (units, height, width)) for p in peepholes if p):
        return None
    if not all(of_size(links, source, sizes) for source in conv.sources):
        return None
    bias = f"{z}/edgelstm.bias"
    if bias not in links.graph.tensors:
        links.graph.add_floats(bias, conv.bias)
    extra: dict[str, Attribute] = {}
    weight, sources, dtype = conv.weight, conv.sources, None
    codes = _read_as_codes(links, sources)
    if codes is not None:
        weight, dtype = weight * np.float32(codes.scale), codes.dtype
        sources = links.joined(codes.value) or [codes.value]
        if len(sources) != 2:
            sources = [codes.value]
        extra["zero"] = codes.zero
    matrix = np.ascontiguousarray(weight.reshape(len(conv.bias), -1), np.float32)
    # Copies of a cell have one matrix; others may multiply the same weights with codes that are worth something else.
    extra["lent"] = links.lend(f"{conv.name}*{1.0 if codes is None else codes.scale}", matrix)
    if len(sources) == 1:
        extra["recurrent"] = 0
    names = [*sources, *[""] * (2 - len(sources)), c, "", bias, *peepholes]
    if gate_codes:
        extra["rounded"] = 1
        names += [*[""] * (8 - len(names)), gate_codes]
    return Node(_NAMES[dtype], names, node.outputs, DOMAIN, {**attributes, **extra})


def _codes_in(links: Links, name: str) -> Array | None:
    """A constant tensor of codes."""
    tensor = None if name in links.graph.inputs else links.graph.tensors.get(name)
    kind = None if tensor is None else _KINDS.get(tensor.dtype)
    return None if tensor is None or kind is None else tensor.bytes_as(tensor.dtype, kind)


def _read_as_codes(links: Links, sources: list[str]) -> _Codes | None:
    """What a convolution reads, if it is codes of one scale."""
    node = links.producer(sources[0], "DequantizeLinear") if len(sources) == 1 else None
    if node is None or len(node.inputs) < 3 or node.attributes.get("block_size", 0):
        return None
    scale, zero = links.constants.get(node.inputs[1]), _codes_in(links, node.inputs[2])
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    dtype = links.graph.tensors[node.inputs[2]].dtype
    return _Codes(node.inputs[0], float(scale.item()), int(zero.item()), dtype)


def _weight(links: Links, name: str) -> Array | None:
    """A convolution's constant weight, dequantised where it is codes with a scale for each output."""
    node = links.producer(name, "DequantizeLinear")
    if node is None:
        return links.constants.get(name)
    codes, scale = _codes_in(links, node.inputs[0]), links.constants.get(node.inputs[1])
    zero: Array | None = np.zeros(1, np.int8)
    if len(node.inputs) > 2 and node.inputs[2]:
        zero = _codes_in(links, node.inputs[2])
    if (
        codes is None
        or scale is None
        or zero is None
        or codes.ndim != 4
        or node.attributes.get("block_size", 0)
    ):
        return None
    if max(scale.size, zero.size) > 1 and node.attributes.get("axis", 1) not in (0, -4):
        return None
    if {scale.size, zero.size} - {1, len(codes)} or not np.isfinite(scale).all():
        return None
    worth: Array = (codes.astype(np.float32) - zero.astype(np.float32).reshape(-1, 1, 1, 1)) * scale.reshape(
        -1, 1, 1, 1
    )
    return worth


def pays(units: int, channels: int, height: int, width: int) -> bool:
    """Whether a step is faster so than with ONNX Runtime's convolution. height, width: at most 0 where they are not known."""
    if height < 1 or not 1 <= width <= WIDEST:
        return False
    tiles = math.ceil(height / TILE) * math.ceil(width / TILE)
    used = height * width / (tiles * TILE**2)
    enough = tiles >= MANY_TILES or (tiles >= FEW_TILES and channels * units <= FEW_WEIGHTS)
    return enough and channels >= LEAST_CHANNELS and units >= LEAST_UNITS and used >= LEAST_USE


def sizes_of(links: Links, c: str) -> tuple[int, ...] | None:
    """A cell state's shape, -1 where it is not fixed: a state of the graph's, or what other gates made of one."""
    while (
        (node := links.producers.get(c)) is not None
        and node.domain == DOMAIN
        and node.op.startswith("FusedGates_")
    ):
        c = node.inputs[1]
    return links.graph.input_sizes.get(c)


def _convolution(links: Links, value: str) -> _Convolution | None:
    """What makes a value [N, rows, height, width], as convolutions."""
    if (node := links.producer(value, "Conv")) is not None:
        weight = _weight(links, node.inputs[1])
        if weight is None or weight.shape[2:] != (3, 3) or not keeps_size(node):
            return None
        bias = np.zeros(len(weight), np.float32)
        if len(node.inputs) > 2 and node.inputs[2]:
            if node.inputs[2] not in links.constants:
                return None
            bias = links.constants[node.inputs[2]].reshape(-1)
        concat = links.producer(node.inputs[0], "Concat")
        joined = concat is not None and concat.attributes.get("axis") in (1, -3) and len(concat.inputs) == 2
        sources = concat.inputs if concat is not None and joined else node.inputs[:1]
        return _Convolution(list(sources), weight, f"{node.inputs[1]}/edgelstm.conv", bias)
    if (node := links.producer(value, "Add")) is not None:
        for one, other in (node.inputs, node.inputs[::-1]):
            first = _convolution(links, one)
            if first is None:
                continue
            constant = links.constants.get(other)
            if constant is not None:
                return _plus_constant(first, constant)
            second = _convolution(links, other)
            return None if second is None else _plus(first, second)
    return None


def _plus_constant(conv: _Convolution, constant: Array) -> _Convolution | None:
    rows = len(conv.bias)
    if constant.shape not in ((rows, 1, 1), (1, rows, 1, 1)):
        return None
    return _Convolution(conv.sources, conv.weight, conv.name, conv.bias + constant.reshape(-1))


def _plus(one: _Convolution, other: _Convolution) -> _Convolution | None:
    # Each over one value: how many channels those of a joined one have is not known.
    if len(one.sources) != 1 or len(other.sources) != 1 or len(one.bias) != len(other.bias):
        return None
    weight = np.concatenate([one.weight, other.weight], axis=1)
    return _Convolution(
        one.sources + other.sources, weight, f"{one.name}+{other.name}", one.bias + other.bias
    )


def keeps_size(conv: Node) -> bool:
    """Whether a convolution of 3x3 is of the kind at the head of this module."""
    found = conv.attributes
    padded = (
        found.get("pads") == [1] * 4
        if found.get("auto_pad", "NOTSET") == "NOTSET"
        else found.get("auto_pad") in ("SAME_UPPER", "SAME_LOWER")
    )
    return (
        padded
        and found.get("group", 1) == 1
        and (found.get("kernel_shape") or [3, 3]) == [3, 3]
        and all((found.get(name) or [1, 1]) == [1, 1] for name in ("strides", "dilations"))
    )


def of_size(links: Links, source: str, sizes: tuple[int, ...]) -> bool:
    """Whether a value has the places of maps of those sizes, as far as the file says: standard operators repeat one of fewer."""
    found = links.graph.input_sizes.get(source)
    return found is None or (len(found) == 4 and (found[0], *found[2:]) == (sizes[0], *sizes[2:]))


def fits(links: Links, peephole: str, shape: tuple[int, ...]) -> bool:
    """Whether a peephole is a constant that the operators know how to spread over a cell state [units, places...]."""
    if peephole not in links.graph.tensors or peephole not in links.constants:
        return False
    found = links.constants[peephole].shape
    while len(found) > len(shape) and found[0] == 1:
        found = found[1:]
    return math.prod(found) == 1 or found in (shape, (shape[0], *[1] * (len(shape) - 1)))
