"""Weights alone in fewer bits: what a step of one stream waits for is its weights, not its arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgelstm.dtypes import from_float32
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph, renamed
from edgelstm.passes.products import Product, Products, find_products
from edgelstm.quantize.qdq import at_opset
from edgelstm.quantize.qdq.rounding import round_rows

Array = npt.NDArray[Any]
WeightsOnly = Literal["int8-weights", "bf16-weights"]

LARGEST = 127
#: Shares of a row's largest weight at which its scale may end.
_CLIPS = np.linspace(1.0, 0.8, 9)


def matrices(found: Products) -> dict[str, Product]:
    """By name, the weights of Gemm and MatMul, with a product that has each; those of convolutions wait for arithmetic."""
    return {name: products[0] for name, products in found.by_weight().items() if products[0].kind != "Conv"}


def weights_only(
    step: StepModel,
    precision: WeightsOnly,
    *,
    keep: Collection[str] = (),
    moments: Mapping[str, Array] | None = None,
) -> StepModel:
    """Guarantees: the same inputs, outputs and states, all in float32; weights of matrix products stored in ``precision``.

    int8-weights: int8 and a scale for each output, behind DequantizeLinear. The scale is the one of least square error, at most
    the row's largest weight worth 127. bf16-weights: bfloat16 behind Cast. Any runtime runs either; needs no calibration. keep:
    names of weights that stay. moments: how what each weight meets goes together (``Calibration.weights``): then int8 codes are
    rounded together (``edgelstm.quantize.qdq.rounding``).

    Raises EdgeLstmError where there is no such weight.
    """
    found = find_products(step)
    chosen = {name: product for name, product in matrices(found).items() if name not in keep}
    if not chosen:
        raise EdgeLstmError(
            f"precision {precision} has nothing to store",
            found="no weights of matrix products" if not keep else f"keep {sorted(keep)}",
            expected="a model with LSTM or GRU cells, or dense layers",
        )
    graph = Graph(at_opset(step, 13))
    made: dict[str, str] = {}
    before: list[onnx.NodeProto] = []
    for name, product in chosen.items():
        value = graph.constant(name)
        assert value is not None
        if precision == "bf16-weights":
            made[name], node = _as_bfloat16(graph, name, value)
        else:
            made[name], node = _as_int8(graph, name, value, product.out_axis, (moments or {}).get(name))
        before.append(node)
    nodes = [renamed(n, lambda name: made.get(name, name), list(n.output)) for n in graph.nodes]
    graph.nodes = [*before, *nodes]
    return graph.finish()


def _as_int8(
    graph: Graph, name: str, value: Array, axis: int, moments: Array | None
) -> tuple[str, onnx.NodeProto]:
    codes, scale = rounded(value if axis == 0 else value.T, moments)
    stored = graph.fresh(f"{name}/q")
    layout = np.ascontiguousarray(codes if axis == 0 else codes.T)
    graph.initializers[stored] = numpy_helper.from_array(layout, stored)
    worth, made = graph.weight(scale, f"{name}/scale"), graph.fresh(f"{name}/dq")
    return made, helper.make_node("DequantizeLinear", [stored, worth], [made], axis=axis)


def _as_bfloat16(graph: Graph, name: str, value: Array) -> tuple[str, onnx.NodeProto]:
    stored, made = graph.fresh(f"{name}/bf16"), graph.fresh(f"{name}/float32")
    raw = from_float32(value, "bfloat16").tobytes()
    graph.initializers[stored] = helper.make_tensor(stored, TensorProto.BFLOAT16, value.shape, raw, raw=True)
    return made, helper.make_node("Cast", [stored], [made], to=TensorProto.FLOAT)


def rounded(rows: Array, moments: Array | None = None) -> tuple[Array, Array]:
    """Codes (int8) and scale (float32) of every row [outputs, inputs]: the clipping of least square error."""
    wide = np.asarray(rows, np.float64)
    top = np.abs(wide).max(axis=1, initial=0)
    top = np.where(top > 0, top, 1.0)
    best, scale = np.full(len(top), np.inf), np.empty(len(top), np.float32)
    for clip in _CLIPS:
        trial = np.maximum(clip * top / LARGEST, np.finfo(np.float32).tiny).astype(np.float32)
        error = ((_nearest(wide, trial) * trial[:, None] - wide) ** 2).sum(axis=1)
        scale = np.where(error < best, trial, scale)
        best = np.minimum(best, error)
    if moments is not None and len(moments) == wide.shape[1]:
        try:
            return round_rows(wide, scale.astype(np.float64), moments, LARGEST).astype(np.int8), scale
        except np.linalg.LinAlgError:  # what it saw does not tell inputs apart
            pass
    return _nearest(wide, scale).astype(np.int8), scale


def _nearest(wide: Array, scale: Array) -> Array:
    codes: Array = np.clip(np.rint(wide / scale[:, None]), -LARGEST, LARGEST)
    return codes
