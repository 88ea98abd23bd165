"""What is read and stored in codes, in how many, and at which scales: decided before the graph is touched."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.passes.graph import Graph
from edgelstm.passes.placement import (
    CODES,
    FINE,
    HEADROOM,
    PLACEMENT,
    REST,
    TWO_ROWS,
    Codes,
    Placement,
    Target,
)
from edgelstm.passes.products import Product, Products, Site
from edgelstm.quantize.calibration import Calibration, TensorRange, stuck_states
from edgelstm.quantize.qdq.equalize import FLOOR, Operand, activation_scales

Array = npt.NDArray[Any]

#: Numbers a channel has at least in what counts as a map.
_MAP = 16


@dataclass(frozen=True)
class OutputCodes:
    """Codes of a product's output: scale and zero point of each group of its channels, [gates] or [1], of ``each`` channels.

    One for a gate, not for a channel: what a channel reaches in new frames is known less well, and ONNX Runtime, which
    moves the convolution's layout through a DequantizeLinear, is slow where that has an axis.
    """

    scale: Array
    zero_point: Array
    each: int

    def by_channel(self) -> tuple[Array, Array]:
        """Scale and zero point of each channel."""
        return np.repeat(self.scale, self.each), np.repeat(self.zero_point, self.each)


@dataclass(frozen=True)
class Plan:
    """The products to quantise and how.

    side_by_side: sites read in two codes each worth half, which double the channels. two_rows: outputs of the products
    that read two codes one below the other, the second for what the first leaves over, which double the rows.
    scales: of each channel, by site. unrounded: states that would stand still as codes; they are stored in float32, and what
    products read of them is rounded when it is read.
    """

    codes: Codes
    placement: Mapping[str, Placement]
    found: Products
    calibration: Calibration
    products: tuple[Product, ...]
    side_by_side: frozenset[str]
    two_rows: frozenset[str]
    scales: Mapping[str, Array]
    unrounded: frozenset[str] = frozenset()

    def common(self, product: Product) -> float:
        """The one scale at which all that a product reads is dequantised."""
        return float(max(self.scales[part.site].max() for part in product.parts))

    def site(self, value: str) -> Site | None:
        """The site ``value`` is of, if it is quantised."""
        name = self.found.site_of.get(value, "")
        return self.found.sites[name] if name in self.scales else None

    def seen(self, site: str) -> TensorRange:
        """What the calibration saw of a site."""
        return seen(self.found, self.calibration, site)

    def at_one_place(self, product: Product) -> bool:
        """Whether a convolution is a matrix product."""
        return at_one_place(self.found, product)

    def output(self, product: Product, gates: int) -> OutputCodes:
        """Codes of what a product makes, its channels in so many groups."""
        seen = self.seen(self.found.site_of[product.output])
        low = np.minimum(seen.low, 0).reshape(gates, -1).min(1)
        high = np.maximum(seen.high, 0).reshape(gates, -1).max(1)
        scale = np.maximum(high - low, FLOOR * (seen.tensor_high - seen.tensor_low)) / 255
        zero = np.clip(np.rint(-low / scale), 0, 255)
        return OutputCodes(scale, zero, seen.channels // gates)


def make_plan(
    graph: Graph,
    found: Products,
    calibration: Calibration,
    target: Target,
    precision: str,
    weights: Collection[str],
    fine: bool,
) -> Plan:
    """The plan for the products of ``weights``. ``fine``: what is no state may be read in two codes."""
    codes = CODES[target, precision]
    products = tuple(p for p in found.products if p.weight in weights)
    side_by_side, two_rows = frozenset[str](), frozenset[str]()
    if fine and codes.joined:
        side_by_side = _side_by_side(found, products)
        if graph.signature.stream_axis == 1:
            two_rows = frozenset(p.output for p in products if _reads_two_rows(found, p))
    scales = _scales(graph, found, calibration, codes, products, side_by_side, two_rows)
    placement = PLACEMENT[target]
    unrounded = frozenset(stuck_states(calibration, "int8" if codes.largest == 127 else codes.dtype))
    return Plan(codes, placement, found, calibration, products, side_by_side, two_rows, scales, unrounded)


def seen(found: Products, calibration: Calibration, site: str) -> TensorRange:
    """What a calibration saw of a site. Raises EdgeLstmError where that has other channels."""
    seen, channels = calibration.tensor(site), found.sites[site].channels
    if seen.channels != channels:
        raise EdgeLstmError(
            f"range of tensor {site!r}",
            found=f"{count_of(seen.channels, 'channel')}",
            expected=str(channels),
            hint="Calibrate again",
        )
    return seen


def is_map(found: Products, site: Site) -> bool:
    """Whether each channel of a site has many numbers."""
    return math.prod(found.shapes[site.name][site.axis + 1 :]) >= _MAP


def at_one_place(found: Products, product: Product) -> bool:
    """Whether a convolution is a matrix product: one tap, one position, before and after (padding adds some)."""
    shapes = (found.shapes[name][2:] for name in (product.activation, product.output))
    places = math.prod(product.kernel) * math.prod(math.prod(s) for s in shapes)
    return product.kind == "Conv" and product.groups == 1 and places == 1


def _side_by_side(found: Products, products: Collection[Product]) -> frozenset[str]:
    """Maps that are no states, the cheapest to read first, as far as the work allows."""
    work: dict[str, float] = {}
    barred = set()
    for product in products:
        channels = sum(part.channels for part in product.parts)
        for part in product.parts:
            site = found.sites[part.site]
            work[site.name] = work.get(site.name, 0) + product.macs * part.channels / channels
            if site.states or product.kind != "Conv" or not is_map(found, site) or product.groups > 1:
                barred.add(site.name)
    left = FINE * sum(p.macs for p in products)
    chosen = []
    for name in sorted(work, key=lambda n: (work[n], n)):
        if name not in barred and work[name] <= left:
            chosen.append(name)
            left -= work[name]
    return frozenset(chosen)


def _reads_two_rows(found: Products, product: Product) -> bool:
    """Whether a product has one vector, not all of it states, and enough work beside what two rows cost."""
    vector = at_one_place(found, product) or len(found.shapes[product.activation]) == 2
    one = math.prod(found.shapes[product.output]) == found.sites[found.site_of[product.output]].channels
    states = all(found.sites[part.site].states for part in product.parts)
    return vector and one and not states and product.macs >= TWO_ROWS


def _scales(
    graph: Graph,
    found: Products,
    calibration: Calibration,
    codes: Codes,
    products: Collection[Product],
    side_by_side: Collection[str],
    two_rows: Collection[str],
) -> dict[str, Array]:
    ranges: dict[str, Array] = {}
    power: dict[str, Array] = {}
    steps: dict[str, float] = {}
    for product in products:
        for part in product.parts:
            site, range_ = found.sites[part.site], seen(found, calibration, part.site)
            own = np.maximum(-range_.low, range_.high)
            # The Signature's scales lie along axis 1; a state with its channels elsewhere has one.
            one = not codes.per_channel or (site.states and site.axis != 1)
            whole = max(-range_.tensor_low, range_.tensor_high)
            if site.role == "frame":
                # What never moved may still: a sensor that was unplugged. Its range is not known, the others' may do.
                own = np.where(range_.maximum > range_.minimum, own, np.maximum(own, whole))
            ranges[part.site] = np.full(len(own), whole) if one else own
            if part.site in side_by_side:
                ranges[part.site] = ranges[part.site] / 2
            power[part.site] = range_.mean_square
            step = HEADROOM * REST if product.output in two_rows and not site.states else 1.0
            steps[part.site] = max(step, steps.get(part.site, 0.0))
    operands = [
        Operand(
            rows_of(product, weight_of(graph, product)),
            tuple(p.site for p in product.parts),
            tuple(p.channels for p in product.parts),
        )
        for product in {p.weight: p for p in products if p.groups == 1}.values()
    ]
    # Elsewhere the factors are in Q/DQ itself, or in how a state is stored.
    vectors = {n for n in ranges if not found.sites[n].states and not is_map(found, found.sites[n])}
    multiplied = vectors if codes.joined else ()
    return activation_scales(ranges, power, operands, codes.largest, codes.per_channel, steps, multiplied)


def weight_of(graph: Graph, product: Product) -> Array:
    """A product's weight in float64."""
    value = graph.constant(product.weight)
    assert value is not None
    return value.astype(np.float64)


def rows_of(product: Product, weight: Array) -> Array:
    """The weight as [outputs, channels, taps]."""
    moved = np.moveaxis(weight, (product.out_axis, product.in_axis), (0, 1))
    return moved.reshape(*moved.shape[:2], -1)
