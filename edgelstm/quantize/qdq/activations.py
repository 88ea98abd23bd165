"""What products read: codes of their activations, made once however many read them, dequantised with one scale."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgelstm.passes.graph import Graph, attribute
from edgelstm.passes.placement import HEADROOM, REST
from edgelstm.passes.products import Product, Site
from edgelstm.quantize.qdq.codes import CodeNodes, all_one, moves_only_ones
from edgelstm.quantize.qdq.plan import Plan

Array = npt.NDArray[Any]


class Activations:
    """Codes in ``graph`` as ``plan`` says. ``stored``: the graph inputs that are codes: old states."""

    def __init__(self, graph: Graph, plan: Plan, nodes: CodeNodes, stored: Collection[str]) -> None:
        self._graph = graph
        self._plan = plan
        self._nodes = nodes
        self._stored = stored
        self._made: dict[Any, str] = {}

    def is_ours(self, node: onnx.NodeProto) -> bool:
        """Whether a node that reads an old state was made here."""
        return node.output[0] in self._made.values()

    def read(self, product: Product, flat: bool = False) -> str:
        """The float value a product reads in place of its activation; ``flat``: as [streams, channels].

        It has twice the rows where the plan says so: what those of the second half make is worth :data:`REST` of what
        those of the first do.
        """
        base, common = product.activation, self._plan.common(product)
        two_rows = product.output in self._plan.two_rows
        key = ("activation", base, common, flat, two_rows)
        if key not in self._made:
            if two_rows:
                common *= HEADROOM
                codes = self._rows(product, flat)
            else:
                codes = self._codes(product)
                if flat:
                    codes = self._flat(codes, base)
            self._made[key] = self._nodes.dequantize(codes, common, f"{base}/dq")
        return self._made[key]

    def quantized(self, value: str, scale: Array, site: Site) -> str:
        """Codes of ``value``, made once. Channels get their own scales by a Mul: where ONNX Runtime turns maps to channels last, for
        quantised convolutions, QuantizeLinear of scales along an axis takes 70 ns a number, some twenty times as long."""
        key = ("quantized", value, scale.tobytes())
        if key not in self._made:
            top = float(scale.max())
            scaled = self._times(value, top / scale, site)
            self._made[key] = self._nodes.quantize(scaled, top, f"{value}/q")
        return self._made[key]

    def worth(self, codes: str, scale: Array, site: Site) -> str:
        """What codes are worth."""
        top = float(scale.max())
        return self._times(self._nodes.dequantize(codes, top, f"{codes}/float"), scale / top, site)

    # -- one code -------------------------------------------------------------------------------------------------

    def _codes(self, product: Product) -> str:
        """Codes of what a product reads."""
        base, common = product.activation, self._plan.common(product)
        if self._plan.codes.joined or base in self._plan.found.site_of:
            return self._coded(base)
        # Rounded once, after the Concat; a state's codes pass through that unchanged.
        return self._nodes.quantize(self._apart(base, common), common, f"{base}/q")

    def _coded(self, value: str) -> str:
        """Codes of ``value``: those of what it concatenates, concatenated."""
        key = ("codes", value)
        if key not in self._made:
            site = self._plan.site(value)
            if site is not None:
                self._made[key] = self._leaf(value, site)
            else:
                node = self._concat(value)
                codes = [self._coded(name) for name in node.input]
                self._made[key] = self._together(value, codes, attribute(node, "axis"))
        return self._made[key]

    def _together(self, value: str, codes: list[str], axis: int) -> str:
        """One Concat of codes, those of Concats along the same axis taken in."""
        graph, flat = self._graph, []
        for name in codes:
            inner = graph.producer(name, "Concat")
            flat += list(inner.input) if inner is not None and attribute(inner, "axis") == axis else [name]
        return graph.value("Concat", flat, f"{value}/q", axis=axis)

    def _apart(self, value: str, common: float) -> str:
        """``value`` in units of ``common``, in float: states from their codes, everything else as it is."""
        key = ("apart", value, common)
        if key not in self._made:
            site = self._plan.site(value)
            if site is None:
                node = self._concat(value)
                inputs = [self._apart(name, common) for name in node.input]
                self._made[key] = self._graph.value(
                    "Concat", inputs, f"{value}/parts", axis=attribute(node, "axis")
                )
            elif value in self._stored:
                self._made[key] = self._nodes.dequantize(self._coded(value), common, f"{value}/dq")
            else:
                self._made[key] = self._times(value, common / self._plan.scales[site.name], site)
        return self._made[key]

    def _leaf(self, value: str, site: Site) -> str:
        """Codes of a site's member: an old state is stored as codes, everything else is quantised where it is made."""
        if value in self._stored:
            return value
        if site.name in self._plan.side_by_side:
            return self._halves(value, site)
        return self.quantized(value, self._plan.scales[site.name], site)

    # -- two codes ------------------------------------------------------------------------------------------------

    def _halves(self, value: str, site: Site) -> str:
        """Two codes that together are worth ``value``: half of it, rounded, and what is left."""
        scale = self._plan.scales[site.name]
        half = self.quantized(value, 2 * scale, site)
        rest = self._graph.value("Sub", [value, self.worth(half, scale, site)], f"{value}/rest")
        return self._together(value, [half, self.quantized(rest, scale, site)], site.axis)

    def _rows(self, product: Product, flat: bool) -> str:
        """Codes of a vector, and below them codes of what rounding left over, worth :data:`REST` of those."""
        graph, base = self._graph, product.activation
        scale = HEADROOM * self._plan.common(product)
        whole = self._vector(product, flat)
        first = self._nodes.quantize(whole, scale, f"{base}/q")
        worth = self._nodes.dequantize(first, scale, f"{base}/worth")
        rest = graph.value("Sub", [whole, worth], f"{base}/rest")
        second = self._nodes.quantize(rest, scale * REST, f"{base}/rest/q")
        return graph.value("Concat", [first, second], f"{base}/rows", axis=0)

    def _vector(self, product: Product, flat: bool) -> str:
        """A vector's numbers in units of the common scale: one Mul for all of them, since an operator takes longer than
        its arithmetic."""
        common, base = self._plan.common(product), product.activation
        value = self._floats(base, common)
        if flat:
            value = self._flat(value, base)
        parts = [
            np.ones(p.channels) if p.value in self._stored else common / self._plan.scales[p.site]
            for p in product.parts
        ]
        factors = np.concatenate(parts)
        if all_one(factors):
            return value
        name = self._graph.weight(factors.astype(np.float32), f"{base}/factor")
        return self._graph.value("Mul", [value, name], f"{base}/scaled")

    def _floats(self, value: str, common: float) -> str:
        """``value`` with old states in units of ``common``, all else as it is."""
        if value in self._stored:
            return self._apart(value, common)
        if self._plan.site(value) is not None:
            return value
        node = self._concat(value)
        inputs = [self._floats(name, common) for name in node.input]
        if inputs == list(node.input):
            return value
        return self._graph.value("Concat", inputs, f"{value}/parts", axis=attribute(node, "axis"))

    # -- pieces ---------------------------------------------------------------------------------------------------

    def _flat(self, value: str, base: str) -> str:
        node = self._graph.producer(value, "Transpose")
        if node is not None and moves_only_ones(attribute(node, "perm"), self._plan.found.shapes.get(value)):
            value = node.input[0]
        made = self._made["flat", value] = self._graph.value("Flatten", [value], f"{base}/flat", axis=1)
        return made

    def _concat(self, value: str) -> onnx.NodeProto:
        node = self._graph.producer(value, "Concat")
        assert node is not None
        return node

    def _times(self, value: str, factors: Array, site: Site) -> str:
        """``value`` with each channel multiplied by its factor."""
        if all_one(factors):
            return value
        rank = len(self._plan.found.shapes[site.name])
        shape = [-1, *[1] * (rank - site.axis - 1)]
        name = self._graph.weight(factors.astype(np.float32).reshape(shape), f"{value}/factor")
        return self._graph.value("Mul", [value, name], f"{value}/scaled")
