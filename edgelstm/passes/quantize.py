"""quantize: explicit Q/DQ around the products of a step graph or window, its states stored as codes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgelstm.calibration import Calibration, TensorRange
from edgelstm.dtypes import from_float32, to_float32
from edgelstm.errors import EdgeLstmError
from edgelstm.gates import DOMAIN, GateVariant, is_fused_gates
from edgelstm.passes.equalize import FLOOR, Operand, activation_scales
from edgelstm.passes.graph import Graph, attribute, renamed
from edgelstm.passes.placement import CODES, FINE, PLACEMENT, SMALL, Codes, Target, check_target
from edgelstm.passes.products import Product, Products, Site, find_products
from edgelstm.passes.rounding import round_rows
from edgelstm.signature import Quantization, StateSpec
from edgelstm.step import StepModel, onnx_dtype

Array = npt.NDArray[Any]

#: Shares of a row's largest weight at which its scale may end.
_CLIPS = np.linspace(1.0, 0.7, 13)
#: Numbers a channel has at least in what counts as a map.
_MAP = 16


def quantize(
    step: StepModel,
    calibration: Calibration,
    target: Target = "onnxruntime",
    precision: str = "int8",
    *,
    weights: Iterable[str] | None = None,
    correct_bias: bool = True,
    fine: bool = True,
    learned: bool = True,
) -> StepModel:
    """Guarantees: the same inputs, outputs and states by name; the chosen products run on codes of ``precision``.

    A state that such a product reads is stored as codes, at one scale on both sides of the step; the cell state
    path stays as it is. Scales of the input channels, and of a quantised output's, are folded into the weights
    (``equalize``). ``weights``: names of the weights whose products are quantised; by default all but small ones
    (``placement.SMALL``). correct_bias: the mean error that rounding the weights makes is taken off the
    bias (Nagel et al. 2019, sec. 4.2). fine: what is no state is read in two codes where that costs little
    (``placement.FINE``). learned: weights are rounded together, by how their inputs go together in the calibration
    (``rounding``), not each to the nearest code.

    Raises EdgeLstmError for a target or precision that is none, for a calibration of another model or preprocessing,
    and for a model quantised already.
    """
    check_target(target, precision)
    if (target, precision) not in CODES:
        raise EdgeLstmError("precision in codes", found=precision, expected="int8 or fp8")
    check_calibration(step, calibration)
    found = find_products(step)
    chosen = set(default_weights(found)) if weights is None else set(weights)
    unknown = chosen - {p.weight for p in found.products}
    if unknown:
        raise EdgeLstmError(
            "weights to quantise",
            found=", ".join(sorted(unknown)),
            expected=f"some of {', '.join(dict.fromkeys(p.weight for p in found.products))}",
        )
    return _Quantizer(step, calibration, target, precision, found, chosen, correct_bias, fine, learned).run()


def check_calibration(step: StepModel, calibration: Calibration) -> None:
    """Raise EdgeLstmError unless ``calibration`` was made for this very model and its preprocessing."""
    if is_quantized(step):
        raise EdgeLstmError(
            "the model is quantised already",
            found=", ".join(sorted({t for t in step.op_types() if t.endswith("QuantizeLinear")})),
            expected="the float step graph it was made from",
        )
    if step.graph_hash() != calibration.model:
        raise EdgeLstmError(
            "the calibration was made for another model",
            found=f"graph {calibration.model[:12]}",
            expected=f"graph {step.graph_hash()[:12]}",
            hint="Calibrate this model: edgelstm calibrate MODEL --source S -o FILE",
        )
    # As JSON a tuple is what it becomes in a file.
    declared, used = (
        json.dumps({name: [dict(op) for op in ops] for name, ops in p.items()}, sort_keys=True)
        for p in (step.signature.preprocessing, calibration.preprocessing)
    )
    if declared != used:
        raise EdgeLstmError(
            "the calibration was made with other preprocessing",
            found=used,
            expected=f"{declared} as the model's Signature says",
            hint="Calibrate again without --preprocess, or export the model with it",
        )


def is_quantized(step: StepModel) -> bool:
    """Whether a graph has Q/DQ nodes."""
    return any(t in ("QuantizeLinear", "DequantizeLinear") for t in step.op_types())


def default_weights(found: Products) -> list[str]:
    """Weights whose products take a fair part of the work."""
    work = {name: sum(p.macs for p in products) for name, products in found.by_weight().items()}
    total = sum(work.values())
    return [name for name, macs in work.items() if macs >= SMALL * total]


@dataclass(frozen=True)
class _Output:
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


class _Quantizer:
    """The graph under reconstruction."""

    def __init__(
        self,
        step: StepModel,
        calibration: Calibration,
        target: Target,
        precision: str,
        found: Products,
        chosen: set[str],
        correct_bias: bool,
        fine: bool,
        learned: bool,
    ) -> None:
        self._codes: Codes = CODES[target, precision]
        self._placement = PLACEMENT[target]
        self._calibration = calibration
        self._found = found
        self._correct_bias = correct_bias
        self._learned = learned
        self._graph = Graph(at_opset(step, 19 if self._codes.dtype.startswith("float8") else 13))
        self._products = [p for p in found.products if p.weight in chosen]
        self._fine = self._fine_sites() if fine else frozenset()
        self._scales = self._choose_scales()
        self._stored = {s.input: s for s in self._graph.signature.states if self._is_stored(s)}
        self._made: dict[Any, str] = {}
        self._functions: dict[str, onnx.FunctionProto] = {}

    def run(self) -> StepModel:
        graph = self._graph
        kinds = {p.output: p for p in self._products}
        for node in list(graph.nodes):
            product = kinds.get(node.output[0]) if node.output else None
            if product is not None:
                self._rewrite(product, node)
        states = tuple(self._state(s) for s in graph.signature.states)
        graph.declare(replace(graph.signature, states=states))
        return graph.finish(self._functions.values())

    # -- scales ---------------------------------------------------------------------------------------------------

    def _choose_scales(self) -> dict[str, Array]:
        ranges: dict[str, Array] = {}
        power: dict[str, Array] = {}
        for product in self._products:
            for part in product.parts:
                site, seen = self._found.sites[part.site], self._seen(part.site)
                own = np.maximum(-seen.low, seen.high)
                whole = max(-seen.tensor_low, seen.tensor_high)
                # The Signature's scales lie along axis 1; a state with its channels elsewhere has one.
                one = not self._codes.per_channel or (site.states and site.axis != 1)
                ranges[part.site] = np.full(len(own), whole) if one else own
                if part.site in self._fine:
                    ranges[part.site] = ranges[part.site] / 2
                power[part.site] = seen.mean_square
        operands = [
            Operand(
                _rows(product, self._weight(product)),
                tuple(p.site for p in product.parts),
                tuple(p.channels for p in product.parts),
            )
            for product in {p.weight: p for p in self._products if p.groups == 1}.values()
        ]
        return activation_scales(ranges, power, operands, self._codes.largest, self._codes.per_channel)

    def _seen(self, site: str) -> TensorRange:
        """What the calibration saw of a site."""
        seen, channels = self._calibration.tensor(site), self._found.sites[site].channels
        if seen.channels != channels:
            raise EdgeLstmError(
                f"range of tensor {site!r}",
                found=f"{seen.channels} channels",
                expected=str(channels),
                hint="Calibrate again",
            )
        return seen

    def _fine_sites(self) -> frozenset[str]:
        """Sites that are no states and are read in two codes, the cheapest first, as far as the work allows."""
        work: dict[str, float] = {}
        barred = set()
        for product in self._products:
            channels = sum(part.channels for part in product.parts)
            for part in product.parts:
                site = self._found.sites[part.site]
                work[site.name] = work.get(site.name, 0) + product.macs * part.channels / channels
                if (
                    site.states
                    or product.kind != "Conv"
                    or not self._is_map(site)
                    or product.groups > 1
                    or not self._codes.joined
                ):
                    barred.add(site.name)
        left = FINE * sum(p.macs for p in self._products)
        chosen = []
        for name in sorted(work, key=lambda n: (work[n], n)):
            if name not in barred and work[name] <= left:
                chosen.append(name)
                left -= work[name]
        return frozenset(chosen)

    def _output_codes(self, product: Product) -> _Output:
        seen = self._seen(self._found.site_of[product.output])
        readers = self._gates_reading(product.output)
        groups = len(GateVariant.of(readers[0].op_type).gates) if readers else 1
        low = np.minimum(seen.low, 0).reshape(groups, -1).min(1)
        high = np.maximum(seen.high, 0).reshape(groups, -1).max(1)
        scale = np.maximum(high - low, FLOOR * (seen.tensor_high - seen.tensor_low)) / 255
        zero = np.clip(np.rint(-low / scale), 0, 255)
        return _Output(scale, zero, seen.channels // groups)

    # -- rewriting ------------------------------------------------------------------------------------------------

    def _rewrite(self, product: Product, node: onnx.NodeProto) -> None:
        graph, placement = self._graph, self._placement[product.kind]
        common = float(max(self._scales[part.site].max() for part in product.parts))
        if placement.output and self._at_one_place(product):
            self._as_gemm(product, node, common)
            return
        activation = self._activation(product, common)
        output = self._output_codes(product) if placement.output else None
        weight, bias = self._folded(product, common, output)
        kept = not placement.bias_apart and bias is not None
        raw = product.output
        if output is not None or (placement.bias_apart and bias is not None):
            raw = graph.fresh(f"{product.output}/product")
        new = renamed(node, lambda name: name, [raw])
        del new.input[:]
        new.input.extend([activation, weight, *([bias] if kept and bias is not None else [])])
        graph.nodes = [n for n in graph.nodes if n is not node] + [new]
        if output is not None:
            codes = graph.fresh(f"{product.output}/q")
            one, zero = self._scalar(1.0), self._zero("uint8", 128)
            graph.node("QuantizeLinear", [raw, one, zero], [codes])
            if readers := self._gates_reading(product.output):
                self._read_coded(product.output, readers, codes, output)
            else:
                one = self._scalar(float(output.scale[0]))
                zero = self._zero("uint8", int(output.zero_point[0]))
                graph.node("DequantizeLinear", [codes, one, zero], [product.output])
        elif raw != product.output:
            assert bias is not None
            graph.node("Add", [raw, bias], [product.output])
        if placement.bias_subtracted:
            self._subtract_bias(product.output)

    def _at_one_place(self, product: Product) -> bool:
        """Whether a convolution is a matrix product: one tap, one position, before and after (padding adds some)."""
        shapes = (self._found.shapes[name][2:] for name in (product.activation, product.output))
        places = math.prod(product.kernel) * math.prod(math.prod(s) for s in shapes)
        return product.kind == "Conv" and product.groups == 1 and places == 1

    def _as_gemm(self, product: Product, node: onnx.NodeProto, common: float) -> None:
        """A convolution at one place as a Gemm, which needs no quantised output."""
        graph = self._graph
        weight, bias = self._folded(product, common, None, flat=True)
        graph.nodes = [n for n in graph.nodes if n is not node]
        made = graph.value(
            "Gemm",
            [self._activation(product, common, flat=True), weight],
            f"{product.output}/product",
            transB=1,
        )
        if bias is not None:
            made = graph.value("Add", [made, bias], f"{product.output}/sum")
        axes = graph.weight(np.arange(2, 2 + len(product.kernel), dtype=np.int64), f"{product.output}/axes")
        graph.node("Unsqueeze", [made, axes], [product.output])

    def _subtract_bias(self, value: str) -> None:
        """Each Add of a constant to ``value`` becomes a Sub of what is as large the other way."""
        graph = self._graph
        for node in graph.consumers(value):
            other = [name for name in node.input if name != value]
            if node.op_type != "Add" or len(other) != 1 or (constant := graph.constant(other[0])) is None:
                continue
            graph.nodes = [n for n in graph.nodes if n is not node]
            graph.node("Sub", [value, graph.weight(-constant, f"{other[0]}/negative")], list(node.output))

    def _gates_reading(self, value: str) -> list[onnx.NodeProto]:
        """The FusedGates nodes that read ``value`` as pre-activations; none if anything else reads it."""
        readers = self._graph.consumers(value)
        plain = all(
            is_fused_gates(n) and list(n.input).count(value) == 1 and n.input[0] == value for n in readers
        )
        return readers if plain and value not in self._graph.outputs else []

    def _read_coded(self, value: str, readers: list[onnx.NodeProto], codes: str, output: _Output) -> None:
        """Let the gates read ``value`` as codes, with scales and zero points."""
        graph = self._graph
        scale = graph.weight(output.scale.astype(np.float32), f"{value}/scale")
        zeros = graph.weight(output.zero_point.astype(np.uint8), f"{value}/zero_point")
        for node in readers:
            variant = replace(GateVariant.of(node.op_type), coded=True)
            graph.nodes = [n for n in graph.nodes if n is not node]
            inputs = [codes, *node.input[1:], scale, zeros]
            graph.node(variant.op_type, inputs, list(node.output), domain=DOMAIN)
            self._functions[variant.op_type] = variant.function(graph.opset)

    def _activation(self, product: Product, common: float, flat: bool = False) -> str:
        """The float value the product reads: codes, dequantised with the scale ``common``; ``flat``: [streams, channels]."""
        key = ("activation", product.activation, common, flat)
        if key not in self._made:
            graph, base = self._graph, product.activation
            if self._codes.joined or base in self._found.site_of:
                codes = self._coded(base)
            else:
                # Rounded once, after the Concat; a state's codes pass through that unchanged.
                whole = self._apart(base, common)
                codes = graph.value(
                    "QuantizeLinear", [whole, self._scalar(common), self._own_zero()], f"{base}/q"
                )
            if flat:
                codes = self._made["flat", base] = graph.value("Flatten", [codes], f"{base}/flat", axis=1)
            made = graph.fresh(f"{base}/dq")
            graph.node("DequantizeLinear", [codes, self._scalar(common), self._own_zero()], [made])
            self._made[key] = made
        return self._made[key]

    def _coded(self, value: str) -> str:
        """Codes of ``value``: those of what it concatenates, concatenated."""
        key = ("codes", value)
        if key not in self._made:
            graph = self._graph
            site = self._found.site_of.get(value)
            if site in self._scales:
                self._made[key] = self._leaf(value, self._found.sites[site])
            else:
                node = graph.producer(value, "Concat")
                assert node is not None
                self._made[key] = self._together(
                    value, [self._coded(name) for name in node.input], attribute(node, "axis")
                )
        return self._made[key]

    def _together(self, value: str, codes: list[str], axis: int) -> str:
        """One Concat of codes, those of Concats along the same axis taken in."""
        graph, flat = self._graph, []
        for name in codes:
            inner = graph.producer(name, "Concat")
            flat += list(inner.input) if inner is not None and attribute(inner, "axis") == axis else [name]
        made = graph.fresh(f"{value}/q")
        graph.node("Concat", flat, [made], axis=axis)
        return made

    def _apart(self, value: str, common: float) -> str:
        """``value`` in units of ``common``, in float: states from their codes, everything else as it is."""
        key = ("apart", value, common)
        if key not in self._made:
            graph = self._graph
            site = self._found.sites.get(self._found.site_of.get(value, ""))
            if site is None or site.name not in self._scales:
                node = graph.producer(value, "Concat")
                assert node is not None
                inputs = [self._apart(name, common) for name in node.input]
                self._made[key] = graph.value(
                    "Concat", inputs, f"{value}/parts", axis=attribute(node, "axis")
                )
            elif value in self._stored:
                operands = [self._coded(value), self._scalar(common), self._own_zero()]
                self._made[key] = graph.value("DequantizeLinear", operands, f"{value}/dq")
            else:
                self._made[key] = self._times(value, common / self._scales[site.name], site)
        return self._made[key]

    def _leaf(self, value: str, site: Site) -> str:
        """Codes of a site's member: an old state is stored as codes, everything else is quantised where it is made."""
        if value in self._stored:
            return value
        if site.name in self._fine:
            return self._halves(value, site)
        return self._quantized(value, self._scales[site.name], site)

    def _halves(self, value: str, site: Site) -> str:
        """Two codes that together are worth ``value``: half of it, rounded, and what is left."""
        scale = self._scales[site.name]
        half = self._quantized(value, 2 * scale, site)
        rest = self._graph.value("Sub", [value, self._worth(half, scale, site)], f"{value}/rest")
        return self._together(value, [half, self._quantized(rest, scale, site)], site.axis)

    def _quantized(self, value: str, scale: Array, site: Site) -> str:
        """Codes of ``value``, made once."""
        key = ("quantized", value, scale.tobytes())
        if key not in self._made:
            graph, top = self._graph, float(scale.max())
            if self._by_axis(scale, site):
                name = graph.weight(scale.astype(np.float32), f"{value}/scale")
                operands = [value, name, self._zeros(len(scale))]
                self._made[key] = graph.value("QuantizeLinear", operands, f"{value}/q", axis=site.axis)
            else:
                operands = [self._times(value, top / scale, site), self._scalar(top), self._own_zero()]
                self._made[key] = graph.value("QuantizeLinear", operands, f"{value}/q")
        return self._made[key]

    def _worth(self, codes: str, scale: Array, site: Site) -> str:
        """What codes are worth."""
        graph, top = self._graph, float(scale.max())
        if self._by_axis(scale, site):
            name = graph.weight(scale.astype(np.float32), f"{site.name}/scale")
            operands = [codes, name, self._zeros(len(scale))]
            return graph.value("DequantizeLinear", operands, f"{codes}/float", axis=site.axis)
        operands = [codes, self._scalar(top), self._own_zero()]
        return self._times(graph.value("DequantizeLinear", operands, f"{codes}/float"), scale / top, site)

    def _by_axis(self, scale: Array, site: Site) -> bool:
        """Whether channels get their own scales from Q/DQ itself. Of a vector, where each number is a channel, ONNX Runtime
        is several times quicker at multiplying before; TensorRT has one scale for an activation."""
        return self._codes.by_axis and self._is_map(site) and not _all_one(scale / scale.max())

    def _is_map(self, site: Site) -> bool:
        """Whether each channel has many numbers."""
        return math.prod(self._found.shapes[site.name][site.axis + 1 :]) >= _MAP

    def _times(self, value: str, factors: Array, site: Site) -> str:
        """``value`` with each channel multiplied by its factor."""
        if _all_one(factors):
            return value
        rank = len(self._found.shapes[site.name])
        shape = [-1, *[1] * (rank - site.axis - 1)]
        name = self._graph.weight(factors.astype(np.float32).reshape(shape), f"{value}/factor")
        return self._graph.value("Mul", [value, name], f"{value}/scaled")

    # -- weights --------------------------------------------------------------------------------------------------

    def _folded(
        self, product: Product, common: float, output: _Output | None, flat: bool = False
    ) -> tuple[str, str | None]:
        """The dequantised weight with the channels' factors in it, and the bias; each made once however many share it.

        ``flat``: as a matrix [outputs, inputs].
        """
        columns, factors, means, powers = self._columns(product, common)
        fold = b"" if output is None else output.scale.tobytes() + output.zero_point.tobytes()
        key = ("weight", product.weight, factors.tobytes(), fold, flat)
        bias_key = (*key, "bias")
        if key in self._made:
            return self._made[key], self._made.get(bias_key)
        graph, original = self._graph, np.take(self._weight(product), columns, product.in_axis)
        wide = original * _columns(product, factors, original.shape[product.out_axis], original.ndim)
        bias = np.zeros(original.shape[product.out_axis])
        if product.bias is not None:
            constant = graph.constant(product.bias)
            assert constant is not None
            bias = np.broadcast_to(constant.reshape(-1), bias.shape).astype(np.float64)
        if output is not None:
            steps, zero_points = output.by_channel()
            wide = wide / _along(steps, product.out_axis, wide.ndim)
            bias = bias / steps + zero_points - 128
        rounded, scale = self._rounded(product, wide, powers, common)
        if self._correct_bias:
            real = to_float32(rounded, self._codes.weight_dtype) * _along(scale, product.out_axis, wide.ndim)
            moved = (real - wide) * _columns(product, means, len(bias), wide.ndim)
            bias = bias - _rows(product, moved).sum((1, 2))
        name = graph.fresh(f"{product.weight}/q")
        codes = rounded.reshape(len(rounded), -1) if flat else rounded
        graph.initializers[name] = _tensor(codes, self._codes.weight_dtype, name)
        scale_name = graph.weight(scale.astype(np.float32), f"{product.weight}/scale")
        zeros = graph.fresh(f"{product.weight}/zero_point")
        graph.initializers[zeros] = _tensor(
            np.zeros(len(scale), rounded.dtype), self._codes.weight_dtype, zeros
        )
        made = graph.fresh(f"{product.weight}/dq")
        graph.node("DequantizeLinear", [name, scale_name, zeros], [made], axis=product.out_axis)
        self._made[key] = made
        if (
            product.bias is not None
            or output is not None
            or (self._correct_bias and product.kind != "MatMul")
        ):
            self._made[bias_key] = graph.weight(bias.astype(np.float32), f"{product.weight}/bias")
        return made, self._made.get(bias_key)

    def _columns(self, product: Product, common: float) -> tuple[Array, Array, Array, Array]:
        """For each channel of the codes: the weight's column, the factor that goes into it, and the mean and mean square
        of what it carries, in the units the folded weight sees."""
        columns: list[Array] = []
        factors, means, powers = [], [], []
        first = 0
        for part in product.parts:
            seen, scale = self._seen(part.site), self._scales[part.site]
            columns.append(np.arange(first, first + part.channels))
            factors.append(scale / common)
            codes = 2 if part.site in self._fine else 1
            means.append(seen.mean / factors[-1] / codes)
            powers.append(seen.mean_square / (factors[-1] * codes) ** 2)
            if codes == 2:
                for values in (columns, factors, means, powers):
                    values.append(values[-1])
            first += part.channels
        if product.groups > 1:
            columns = [np.arange(self._weight(product).shape[product.in_axis])]
        return (np.concatenate(columns), *(np.concatenate(v) for v in (factors, means, powers)))  # type: ignore[return-value]

    def _rounded(self, product: Product, wide: Array, powers: Array, common: float) -> tuple[Array, Array]:
        """Codes of the weight and a scale for each output channel: the clipping whose error, weighed by what the input
        channels carry, is least."""
        dtype = self._codes.weight_dtype
        axes = tuple(a for a in range(wide.ndim) if a != product.out_axis)
        top = np.abs(wide).max(axes)
        top = np.where(top > 0, top, 1.0)
        weigh = np.sqrt(_columns(product, powers, len(top), wide.ndim))
        best, scale = np.full(len(top), np.inf), top / self._codes.largest
        for clip in _CLIPS if dtype == "int8" else _CLIPS[:1]:
            trial = clip * top / self._codes.largest
            along = _along(trial, product.out_axis, wide.ndim)
            error = (((_nearest(wide / along, dtype) * along - wide) * weigh) ** 2).sum(axes)
            scale = np.where(error < best, trial, scale)
            best = np.minimum(best, error)
        codes = from_float32(_nearest(wide / _along(scale, product.out_axis, wide.ndim), dtype), dtype)
        moments = self._calibration.weights.get(product.weight) if self._learned else None
        if dtype == "int8" and moments is not None and product.groups == 1:
            rows = _rows(product, wide)
            flat = rows.reshape(len(scale), -1)
            met = self._met(product, common, moments, rows.shape[2])
            try:
                together = round_rows(flat, scale, met, self._codes.largest)
            except np.linalg.LinAlgError as error:
                raise _no_moments(product.weight, "no correlations: no data has them") from error
            codes = from_float32(_unrows(product, together, wide.shape), dtype)
        return codes, scale

    def _met(self, product: Product, common: float, moments: Array, taps: int) -> Array:
        """``moments`` of the codes the folded weight meets, in its own order and units."""
        columns, factors, _, _ = self._columns(product, common)
        size = taps * sum(part.channels for part in product.parts)
        if len(moments) != size:
            raise _no_moments(product.weight, f"{len(moments)} inputs", str(size))
        share = np.bincount(columns)[columns]
        places = (columns[:, None] * taps + np.arange(taps)).ravel()
        units = np.repeat(1 / (factors * share * common), taps)
        met: Array = moments[np.ix_(places, places)] * units[:, None] * units
        return met

    def _weight(self, product: Product) -> Array:
        value = self._graph.constant(product.weight)
        assert value is not None
        return value.astype(np.float64)

    # -- states and constants -------------------------------------------------------------------------------------

    def _is_stored(self, state: StateSpec) -> bool:
        """Whether a state is kept as codes: a quantised product reads it, and it is no cell state."""
        cells = [n for n in self._graph.nodes if is_fused_gates(n)]
        if any(state.input == n.input[1] or state.output == n.output[1] for n in cells):
            return False
        return self._found.site_of.get(state.input) in self._scales

    def _state(self, state: StateSpec) -> StateSpec:
        """The state stored as codes, if a quantised product reads it; float readers get it dequantised."""
        if state.input not in self._stored:
            return state
        graph = self._graph
        site = self._found.sites[self._found.site_of[state.input]]
        scale = self._scales[site.name]
        output = self._quantized(state.output, scale, site)
        readers = [n for n in graph.consumers(state.input) if not self._is_ours(n)]
        if readers:
            value = self._worth(state.input, scale, site)
            gone = {id(n) for n in readers}
            kept = [n for n in graph.nodes if id(n) not in gone]
            swap = [
                renamed(n, lambda name: value if name == state.input else name, list(n.output))
                for n in readers
            ]
            graph.nodes = [*kept, *swap]
        worth = Quantization(
            tuple(np.float32(s).item() for s in (scale[:1] if _all_one(scale / scale[0]) else scale)),
            self._codes.zero_point,
        )
        stored = replace(state, output=output, dtype=self._codes.dtype, initial=None, quantization=worth)
        start = stored.stored(state.initial_value())
        return replace(stored, initial=start.tobytes() if start.any() else None)

    def _is_ours(self, node: onnx.NodeProto) -> bool:
        """Whether this pass made the node."""
        return node.output[0] in self._made.values()

    def _scalar(self, value: float) -> str:
        return self._graph.weight(np.array(value, np.float32), "scale")

    def _zero(self, dtype: str, value: int) -> str:
        key = ("zero", dtype, value, None)
        return self._zero_point(key, from_float32(np.array(value, np.float32), dtype), dtype)

    def _own_zero(self) -> str:
        return self._zero(self._codes.dtype, self._codes.zero_point)

    def _zeros(self, count: int) -> str:
        dtype, value = self._codes.dtype, self._codes.zero_point
        array = np.full(count, from_float32(np.array(value, np.float32), dtype))
        return self._zero_point(("zero", dtype, value, count), array, dtype)

    def _zero_point(self, key: Any, array: Array, dtype: str) -> str:
        if key not in self._made:
            name = self._graph.fresh("zero_point")
            self._graph.initializers[name] = _tensor(array, dtype, name)
            self._made[key] = name
        return self._made[key]


def _no_moments(weight: str, found: str, expected: str | None = None) -> EdgeLstmError:
    return EdgeLstmError(
        f"what weight {weight!r} meets, in the calibration",
        found=found,
        expected=expected,
        hint="Calibrate again",
    )


def at_opset(step: StepModel, least: int) -> StepModel:
    """Guarantees: the same graph in an opset that has what Q/DQ needs (13 for scales of channels, 19 for fp8 and fp16)."""
    if step.opset >= least:
        return step
    from onnx import version_converter

    try:
        model = version_converter.convert_version(step.copy_model(), least)
    except Exception as error:  # the converter raises several unrelated classes
        raise EdgeLstmError(
            f"the model is in ONNX opset {step.opset} and can't be brought to {least}",
            found=str(error).strip().splitlines()[0],
            hint="Export it again with a newer opset",
        ) from error
    # The converter leaves functions out, and a body has to be of the model's opset.
    del model.functions[:]
    model.functions.extend(
        GateVariant.of(f.name).function(least) if f.domain == DOMAIN else f for f in step.model.functions
    )
    return StepModel(model, step.signature)


def _rows(product: Product, weight: Array) -> Array:
    """The weight as [outputs, channels, taps]."""
    moved = np.moveaxis(weight, (product.out_axis, product.in_axis), (0, 1))
    return moved.reshape(*moved.shape[:2], -1)


def _unrows(product: Product, rows: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of :func:`_rows`."""
    moved = np.moveaxis(np.empty(shape), (product.out_axis, product.in_axis), (0, 1)).shape
    return np.moveaxis(rows.reshape(moved), (0, 1), (product.out_axis, product.in_axis))


def _columns(product: Product, values: Array, outputs: int, rank: int) -> Array:
    """One number per input channel, shaped to multiply the weight."""
    if product.groups == 1:
        return _along(values, product.in_axis, rank)
    # Row o of a grouped convolution reads the channels of its group.
    rows = np.repeat(np.asarray(values, np.float64).reshape(product.groups, -1), outputs // product.groups, 0)
    return rows.reshape(*rows.shape, *[1] * (rank - 2))


def _along(values: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return np.asarray(values, np.float64).reshape(shape)


def _all_one(factors: Array) -> bool:
    return bool((factors == 1).all())


def _nearest(values: Array, dtype: str) -> Array:
    """The nearest numbers ``dtype`` has, symmetric."""
    if dtype == "int8":
        return np.clip(np.rint(values), -127, 127)
    return to_float32(from_float32(values, dtype), dtype)


def _tensor(codes: Array, dtype: str, name: str) -> onnx.TensorProto:
    if dtype == "float8e4m3fn":
        return helper.make_tensor(name, onnx_dtype(dtype), codes.shape, codes.tobytes(), raw=True)
    return numpy_helper.from_array(codes, name)
