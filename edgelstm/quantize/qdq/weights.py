"""What products multiply with: int8 or fp8 weights that take up the scales around them, rounded together, and biases."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.dtypes import from_float32, to_float32
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.passes.graph import Graph
from edgelstm.passes.products import Product
from edgelstm.quantize.qdq.codes import tensor
from edgelstm.quantize.qdq.plan import OutputCodes, Plan, rows_of, weight_of
from edgelstm.quantize.qdq.rounding import round_rows

Array = npt.NDArray[Any]

#: Shares of a row's largest weight at which its scale may end.
_CLIPS = np.linspace(1.0, 0.7, 13)


class Weights:
    """Weights in ``graph`` as ``plan`` says. correct_bias, learned: see :func:`edgelstm.quantize.qdq.quantize`."""

    def __init__(self, graph: Graph, plan: Plan, correct_bias: bool, learned: bool) -> None:
        self._graph = graph
        self._plan = plan
        self._correct_bias = correct_bias
        self._learned = learned
        self._made: dict[Any, tuple[str, str | None]] = {}

    def folded(
        self, product: Product, output: OutputCodes | None, flat: bool = False
    ) -> tuple[str, str | None]:
        """The dequantised weight with the channels' factors in it, and the bias; each made once however many share it.

        ``flat``: as a matrix [outputs, inputs].
        """
        columns, factors, means, powers = self._columns(product)
        fold = b"" if output is None else output.scale.tobytes() + output.zero_point.tobytes()
        key = (product.weight, factors.tobytes(), fold, flat)
        if key in self._made:
            return self._made[key]
        graph, dtype = self._graph, self._plan.codes.weight_dtype
        original = np.take(weight_of(graph, product), columns, product.in_axis)
        wide = original * _by_input(product, factors, original.shape[product.out_axis], original.ndim)
        bias = np.zeros(original.shape[product.out_axis])
        if product.bias is not None:
            constant = graph.constant(product.bias)
            assert constant is not None
            bias = np.broadcast_to(constant.reshape(-1), bias.shape).astype(np.float64)
        if output is not None:
            steps, zero_points = output.by_channel()
            wide = wide / _along(steps, product.out_axis, wide.ndim)
            bias = bias / steps + zero_points - 128
        rounded, scale = self._rounded(product, wide, powers)
        if self._correct_bias:
            real = to_float32(rounded, dtype) * _along(scale, product.out_axis, wide.ndim)
            moved = (real - wide) * _by_input(product, means, len(bias), wide.ndim)
            bias = bias - rows_of(product, moved).sum((1, 2))
        name = graph.fresh(f"{product.weight}/q")
        graph.initializers[name] = tensor(rounded.reshape(len(rounded), -1) if flat else rounded, dtype, name)
        scale_name = graph.weight(scale.astype(np.float32), f"{product.weight}/scale")
        zeros = graph.fresh(f"{product.weight}/zero_point")
        graph.initializers[zeros] = tensor(np.zeros(len(scale), rounded.dtype), dtype, zeros)
        made = graph.fresh(f"{product.weight}/dq")
        graph.node("DequantizeLinear", [name, scale_name, zeros], [made], axis=product.out_axis)
        has_bias = product.bias is not None or output is not None
        bias_name = None
        if has_bias or (self._correct_bias and product.kind != "MatMul"):
            bias_name = graph.weight(bias.astype(np.float32), f"{product.weight}/bias")
        self._made[key] = made, bias_name
        return self._made[key]

    def _columns(self, product: Product) -> tuple[Array, Array, Array, Array]:
        """For each channel of the codes: the weight's column, the factor that goes into it, and the mean and mean square
        of what it carries, in the units the folded weight sees."""
        columns: list[Array] = []
        factors, means, powers = [], [], []
        first, common = 0, self._plan.common(product)
        for part in product.parts:
            seen, scale = self._plan.seen(part.site), self._plan.scales[part.site]
            columns.append(np.arange(first, first + part.channels))
            factors.append(scale / common)
            codes = 2 if part.site in self._plan.side_by_side else 1
            means.append(seen.mean / factors[-1] / codes)
            powers.append(seen.mean_square / (factors[-1] * codes) ** 2)
            if codes == 2:
                for values in (columns, factors, means, powers):
                    values.append(values[-1])
            first += part.channels
        if product.groups > 1:
            columns = [np.arange(weight_of(self._graph, product).shape[product.in_axis])]
        return (np.concatenate(columns), *(np.concatenate(v) for v in (factors, means, powers)))  # type: ignore[return-value]

    def _rounded(self, product: Product, wide: Array, powers: Array) -> tuple[Array, Array]:
        """Codes of the weight and a scale for each output channel: the clipping whose error, weighed by what the input
        channels carry, is least."""
        dtype, largest = self._plan.codes.weight_dtype, self._plan.codes.largest
        axes = tuple(a for a in range(wide.ndim) if a != product.out_axis)
        top = np.abs(wide).max(axes)
        top = np.where(top > 0, top, 1.0)
        weigh = np.sqrt(_by_input(product, powers, len(top), wide.ndim))
        best, scale = np.full(len(top), np.inf), top / largest
        for clip in _CLIPS if dtype == "int8" else _CLIPS[:1]:
            trial = clip * top / largest
            along = _along(trial, product.out_axis, wide.ndim)
            error = (((_nearest(wide / along, dtype) * along - wide) * weigh) ** 2).sum(axes)
            scale = np.where(error < best, trial, scale)
            best = np.minimum(best, error)
        codes = from_float32(_nearest(wide / _along(scale, product.out_axis, wide.ndim), dtype), dtype)
        moments = self._plan.calibration.weights.get(product.weight) if self._learned else None
        if dtype == "int8" and moments is not None and product.groups == 1:
            rows = rows_of(product, wide)
            flat = rows.reshape(len(scale), -1)
            met = self._met(product, moments, rows.shape[2])
            try:
                together = round_rows(flat, scale, met, largest)
            except np.linalg.LinAlgError as error:
                raise _no_moments(product.weight, "no correlations: no data has them") from error
            codes = from_float32(_unrows(product, together, wide.shape), dtype)
        return codes, scale

    def _met(self, product: Product, moments: Array, taps: int) -> Array:
        """``moments`` of the codes the folded weight meets, in its own order and units."""
        columns, factors, _, _ = self._columns(product)
        size = taps * sum(part.channels for part in product.parts)
        if len(moments) != size:
            raise _no_moments(product.weight, f"{count_of(len(moments), 'input')}", str(size))
        share = np.bincount(columns)[columns]
        places = (columns[:, None] * taps + np.arange(taps)).ravel()
        units = np.repeat(1 / (factors * share * self._plan.common(product)), taps)
        met: Array = moments[np.ix_(places, places)] * units[:, None] * units
        return met


def _no_moments(weight: str, found: str, expected: str | None = None) -> EdgeLstmError:
    return EdgeLstmError(
        f"what weight {weight!r} meets, in the calibration",
        found=found,
        expected=expected,
        hint="Calibrate again",
    )


def _unrows(product: Product, rows: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of :func:`edgelstm.quantize.qdq.plan.rows_of`."""
    moved = np.moveaxis(np.empty(shape), (product.out_axis, product.in_axis), (0, 1)).shape
    return np.moveaxis(rows.reshape(moved), (0, 1), (product.out_axis, product.in_axis))


def _by_input(product: Product, values: Array, outputs: int, rank: int) -> Array:
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


def _nearest(values: Array, dtype: str) -> Array:
    """The nearest numbers ``dtype`` has, symmetric."""
    if dtype == "int8":
        return np.clip(np.rint(values), -127, 127)
    return to_float32(from_float32(values, dtype), dtype)
