"""The products of a step graph (convolutions and matrix products with trained weights) and the tensors that meet in them.

A *site* is everything that must share one scale: the two ends of a state, since they are one tensor in time; the values
that a Concat along another axis than channels lays together; and, where several products share a weight (the copies of
a cell in a forecaster or a window), what stands in the same place of each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx

from edgelstm.graph.gates import is_fused_gates
from edgelstm.graph.step import StepModel
from edgelstm.passes.batching import Shape
from edgelstm.passes.graph import Graph, attribute, is_standard
from edgelstm.passes.shapes import shapes_of_one

Kind = Literal["Conv", "Gemm", "MatMul"]
Role = Literal["frame", "state", "activation", "preactivation"]


@dataclass(frozen=True)
class Part:
    """Some input channels of a product: the value they come from, whose site they are of, and how many they are."""

    value: str
    site: str
    channels: int


@dataclass(frozen=True)
class Product:
    """A Conv, Gemm or MatMul of an activation with a constant weight.

    in_axis, out_axis: axes of the weight that run over the channels it reads and makes. macs: multiply-accumulates for
    one stream.
    """

    node: onnx.NodeProto
    kind: Kind
    weight: str
    bias: str | None
    parts: tuple[Part, ...]
    output: str
    in_axis: int
    out_axis: int
    groups: int
    macs: int
    kernel: tuple[int, ...] = ()

    @property
    def activation(self) -> str:
        """The value it reads."""
        return str(self.node.input[0])


@dataclass(frozen=True)
class Site:
    """Tensors of one scale: ``name`` is the first of them in the graph. ``axis``: where their channels are."""

    name: str
    role: Role
    channels: int
    axis: int
    members: tuple[str, ...]
    states: tuple[str, ...] = ()


@dataclass(frozen=True)
class Products:
    """What :func:`find_products` found. ``sites`` by name, ``site_of`` by the name of any member."""

    products: tuple[Product, ...]
    sites: Mapping[str, Site]
    site_of: Mapping[str, str]
    shapes: Mapping[str, Shape] = field(repr=False)

    def by_weight(self) -> dict[str, list[Product]]:
        """Products that share a weight, in graph order: they are quantised alike or not at all."""
        found: dict[str, list[Product]] = {}
        for product in self.products:
            found.setdefault(product.weight, []).append(product)
        return found


def find_products(step: StepModel) -> Products:
    """Products whose activation varies and whose weight is a float32 initializer, and the sites of all they read and make.

    What can't share a scale is no product: one that uses a weight otherwise than the first that has it (transposed, or
    on a tensor of another rank), and one whose channels lie along another axis of a site than those of the first.
    """
    graph = Graph(step)
    shapes = shapes_of_one(step)
    raw = [found for node in graph.nodes if (found := _product(graph, node, shapes)) is not None]
    first: dict[str, tuple[int, ...]] = {}
    raw = [r for r in raw if first.setdefault(r.product.weight, r.use) == r.use]
    members = _members(graph, raw, shapes)
    while (odd := _odd_one(raw, members)) is not None:
        raw = [r for r in raw if r.product.weight != odd.product.weight]
        members = _members(graph, raw, shapes)
    sites: dict[str, Site] = {}
    site_of: dict[str, str] = {}
    for names, axes in members:
        site = _site(graph, names, list(axes), next(iter(axes.values())), shapes)
        sites[site.name] = site
        site_of |= dict.fromkeys(names, site.name)
    products = tuple(
        replace(r.product, parts=tuple(Part(name, site_of[name], channels) for name, channels in r.leaves))
        for r in raw
    )
    return Products(products, sites, site_of, shapes)


@dataclass(frozen=True)
class _Raw:
    """A product before the sites of its parts are known: the values it reads with their channels, and their axis."""

    product: Product
    leaves: list[tuple[str, int]]
    axis: int

    @property
    def use(self) -> tuple[int, ...]:
        """What products that share a weight must have in common."""
        return (self.product.in_axis, self.product.groups, self.axis)

    @property
    def values(self) -> list[str]:
        """All that it reads and makes."""
        return [*(name for name, _ in self.leaves), self.product.output]


def _members(
    graph: Graph, raw: Iterable[_Raw], shapes: Mapping[str, Shape]
) -> list[tuple[list[str], dict[str, int]]]:
    """The members of each site, and those of them that products read or make with the axis of their channels."""
    union = _Union([*graph.inputs, *(name for node in graph.nodes for name in node.output if name)])
    states = graph.signature.states
    for state in states:
        union.join(state.input, state.output)
    first: dict[str, _Raw] = {}
    axes: dict[str, int] = {}
    together: list[tuple[int, list[str]]] = []
    for r in raw:
        axes |= {name: r.axis for name in r.values if name not in axes}
        together += [(r.axis, g) for g in _laid_together(graph, r.product.activation, r.axis, shapes)]
        twin = first.setdefault(r.product.weight, r)
        if [channels for _, channels in r.leaves] == [channels for _, channels in twin.leaves]:
            for name, other in zip(r.values, twin.values, strict=True):
                union.join(other, name)
    for axis, group in together:
        axes |= {name: axis for name in group if name not in axes}
        for name in group:
            union.join(group[0], name)
    ends = [name for s in states for name in (s.input, s.output)]
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys((*axes, *ends)):
        groups.setdefault(union.root(name), []).append(name)
    found = [(names, {n: axes[n] for n in names if n in axes}) for names in groups.values()]
    return [(names, seen) for names, seen in found if seen]


def _odd_one(raw: Iterable[_Raw], members: Iterable[tuple[list[str], dict[str, int]]]) -> _Raw | None:
    """The first product that reads or makes a member of a site along another axis than the site's first product."""
    axis_of = {name: next(iter(axes.values())) for names, axes in members for name in names}
    return next((r for r in raw if any(axis_of[name] != r.axis for name in r.values)), None)


def leaves_of(
    graph: Graph, value: str, channel_axis: int, shapes: Mapping[str, Shape]
) -> list[tuple[str, int]]:
    """(value, channels) of what is concatenated along the channels to make ``value``, in order.

    Of a Concat along another axis, whose inputs are made of the same channels, the first stands for all. A state's
    new value is one tensor, however it is made.
    """
    whole = [(value, int(shapes[value][channel_axis]))]
    node = _concat(graph, value, shapes)
    if node is None:
        return whole
    inputs = [leaves_of(graph, name, channel_axis, shapes) for name in node.input]
    if attribute(node, "axis") % len(shapes[value]) == channel_axis:
        return [leaf for leaves in inputs for leaf in leaves]
    alike = len({tuple(channels for _, channels in leaves) for leaves in inputs}) == 1
    return inputs[0] if alike else whole


def _laid_together(
    graph: Graph, value: str, channel_axis: int, shapes: Mapping[str, Shape]
) -> list[list[str]]:
    """Groups of values that a Concat along another axis than channels makes one."""
    node = _concat(graph, value, shapes)
    if node is None or leaves_of(graph, value, channel_axis, shapes)[0][0] == value:
        return []
    groups = [g for name in node.input for g in _laid_together(graph, name, channel_axis, shapes)]
    if attribute(node, "axis") % len(shapes[value]) != channel_axis:
        columns = [[name for name, _ in leaves_of(graph, i, channel_axis, shapes)] for i in node.input]
        groups += [list(column) for column in zip(*columns, strict=True)]
    return groups


def _concat(graph: Graph, value: str, shapes: Mapping[str, Shape]) -> onnx.NodeProto | None:
    """The Concat whose inputs ``value`` may be replaced by."""
    node = graph.producer(value, "Concat")
    if node is None or any(name not in shapes for name in node.input):
        return None
    return None if any(value == s.output for s in graph.signature.states) else node


def _product(graph: Graph, node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> _Raw | None:
    if not is_standard(node) or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    activation, weight = node.input[0], node.input[1]
    if graph.constant(activation) is not None or weight not in graph.initializers:
        return None
    value = graph.constant(weight)
    assert value is not None
    if value.dtype != np.float32 or any(name not in shapes for name in (activation, node.output[0])):
        return None
    kind: Kind = "Conv" if node.op_type == "Conv" else "Gemm" if node.op_type == "Gemm" else "MatMul"
    if kind == "Conv":
        in_axis, out_axis, channel_axis = 1, 0, 1
    else:
        plain = kind == "MatMul" or (
            not attribute(node, "transA", 0)
            and attribute(node, "alpha", 1.0) == 1.0
            and attribute(node, "beta", 1.0) == 1.0
        )
        if value.ndim != 2 or not plain:
            return None
        transposed = kind == "Gemm" and attribute(node, "transB", 0)
        in_axis, out_axis = (1, 0) if transposed else (0, 1)
        channel_axis = len(shapes[activation]) - 1
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if bias is not None and (constant := graph.constant(bias)) is not None:
        if constant.size not in (1, value.shape[out_axis]):
            return None
    elif bias is not None:
        return None
    leaves = leaves_of(graph, activation, channel_axis, shapes)
    # Of the output [rows, O, *spatial] each element takes a whole row of the weight.
    per_element = value.size // value.shape[out_axis]
    macs = math.prod(abs(d) for d in shapes[node.output[0]]) * per_element
    groups = attribute(node, "group", 1) if kind == "Conv" else 1
    kernel = value.shape[2:] if kind == "Conv" else ()
    product = Product(node, kind, weight, bias, (), node.output[0], in_axis, out_axis, groups, macs, kernel)
    return _Raw(product, leaves, channel_axis)


def _site(graph: Graph, members: list[str], named: list[str], axis: int, shapes: Mapping[str, Shape]) -> Site:
    states = tuple(s.name for s in graph.signature.states if s.input in members or s.output in members)
    role: Role = "activation"
    if states:
        role = "state"
    elif any(name in graph.inputs for name in members):
        role = "frame"
    elif any(is_fused_gates(n) and n.input[0] == name for name in named for n in graph.consumers(name)):
        role = "preactivation"
    return Site(named[0], role, int(shapes[named[0]][axis]), axis, tuple(members), states)


class _Union:
    """Disjoint sets of names; the one named first in the graph stands for its set."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parent: dict[str, str] = {}
        self._order = {name: k for k, name in enumerate(names)}

    def root(self, name: str) -> str:
        while (parent := self._parent.get(name, name)) != name:
            name = parent
        return name

    def join(self, a: str, b: str) -> None:
        first, second = sorted(
            (self.root(a), self.root(b)), key=lambda n: self._order.get(n, len(self._order))
        )
        if first != second:
            self._parent[second] = first
