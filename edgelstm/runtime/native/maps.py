"""ConvLSTM cells on maps: where the convolution before the gates is one that our operator computes, and computes faster.

    Concat(x, h) -> Conv 3x3 -> FusedGates_*            FusedConvLSTMCell
    Conv 3x3 (x) + Conv 3x3 (h) -> FusedGates_*         the same
    Conv 3x3 (anything) -> FusedGates_*                 the same

Stride 1, no dilation, no groups, padded with zeros to the size it had. The operator's way (Winograd's) makes 4x4 places at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgelstm.runtime.native.linear import Links
from edgelstm.runtime.native.wire import Attribute, Node
from edgelstm.runtime.protocol import Array

DOMAIN = "edgelstm"
TILE = 4
#: What pays, measured (docs/native.md): channels of x and h, units, and the share of the tiles that maps fill.
LEAST_CHANNELS, LEAST_UNITS, LEAST_USE = 16, 10, 0.5
#: All weights are read for every map: few tiles pay only for few channels * units.
MANY_TILES, FEW_TILES, FEW_WEIGHTS = 9, 4, 4096
#: A step's memory grows with a row of tiles.
WIDEST = 4096


@dataclass(frozen=True)
class _Convolution:
    """Convolutions of 3x3 over one value or two, summed: weight [rows, channels of both, 3, 3], and its name; bias [rows]."""

    sources: list[str]
    weight: Array
    name: str
    bias: Array


def conv_lstm(
    links: Links, node: Node, z: str, c: str, peepholes: list[str], attributes: dict[str, Attribute]
) -> Node | None:
    """The gates together with the convolution before them; None where there is none of the right form, or it would not pay.

    node: the gates; z, c, peepholes: what they read ("" for a peephole left out); attributes: their variant's.
    """
    conv = _convolution(links, z)
    sizes = _sizes(links, c)
    if conv is None or sizes is None or len(sizes) != 4:
        return None
    units, rest = divmod(len(conv.bias), 3 if attributes.get("coupled") else 4)
    height, width = sizes[2:]
    if rest or not _pays(units, conv.weight.shape[1], height, width):
        return None
    if not all(_fits(links, p, (units, height, width)) for p in peepholes if p):
        return None
    bias = f"{z}/edgelstm.bias"
    if bias not in links.graph.tensors:
        links.graph.add_floats(bias, conv.bias)
    matrix = np.ascontiguousarray(conv.weight.reshape(len(conv.bias), -1))
    lent: dict[str, Attribute] = {"lent": links.lend(conv.name, matrix)}
    if len(conv.sources) == 1:
        lent["recurrent"] = 0
    names = [*conv.sources, *[""] * (2 - len(conv.sources)), c, "", bias, *peepholes]
    return Node("FusedConvLSTMCell", names, node.outputs, DOMAIN, {**attributes, **lent})


def _pays(units: int, channels: int, height: int, width: int) -> bool:
    """Whether a step is faster so than with ONNX Runtime's convolution. height, width: at most 0 where they are not known."""
    if height < 1 or not 1 <= width <= WIDEST:
        return False
    tiles = math.ceil(height / TILE) * math.ceil(width / TILE)
    used = height * width / (tiles * TILE**2)
    enough = tiles >= MANY_TILES or (tiles >= FEW_TILES and channels * units <= FEW_WEIGHTS)
    return enough and channels >= LEAST_CHANNELS and units >= LEAST_UNITS and used >= LEAST_USE


def _sizes(links: Links, c: str) -> tuple[int, ...] | None:
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
        weight = links.constants.get(node.inputs[1])
        if weight is None or weight.shape[2:] != (3, 3) or not _keeps_size(node):
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


def _keeps_size(conv: Node) -> bool:
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


def _fits(links: Links, peephole: str, shape: tuple[int, int, int]) -> bool:
    """Whether a peephole is a constant that the operator knows how to spread over maps [units, height, width]."""
    if peephole not in links.graph.tensors or peephole not in links.constants:
        return False
    found = links.constants[peephole].shape
    while len(found) > 3 and found[0] == 1:
        found = found[1:]
    return math.prod(found) == 1 or found in (shape, (shape[0], 1, 1))
