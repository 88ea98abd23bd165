"""Operators that make one number of many along axes: mean, sum, max, norm and their kin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from edgelstm.frontends.keras.builder import Array, Builder, Value, mixes_rows
from edgelstm.frontends.keras.operators.operator import OneOperator, without
from edgelstm.frontends.keras.options import Options


def _logsumexp(x: Array, axis: Any, keepdims: bool) -> Array:
    top = x.max(axis, keepdims=True)
    y: Array = np.log(np.exp(x - top).sum(axis, keepdims=True)) + top
    return y if keepdims else y.squeeze(axis)


def _l1(x: Array, axis: Any, keepdims: bool) -> Array:
    y: Array = np.abs(x).sum(axis, keepdims=keepdims)
    return y


def _l2(x: Array, axis: Any, keepdims: bool) -> Array:
    y: Array = np.sqrt(np.square(x).sum(axis, keepdims=keepdims))
    return y


#: The operator of ONNX, and NumPy's function.
_REDUCTIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "Mean": ("ReduceMean", np.mean),
    "Sum": ("ReduceSum", np.sum),
    "Max": ("ReduceMax", np.max),
    "Min": ("ReduceMin", np.min),
    "Prod": ("ReduceProd", np.prod),
    "Logsumexp": ("ReduceLogSumExp", _logsumexp),
    "Any": ("ReduceMax", np.any),
    "All": ("ReduceMin", np.all),
    "Var": ("Var", np.var),
    "Std": ("Std", np.std),
    "Norm": ("ReduceL2", _l2),
}


class Reduction(OneOperator):
    """One number along ``axis``."""

    parameters = ("x", "axis", "keepdims")

    def read(self, options: Options) -> None:
        if options.get("axis") is None:
            raise mixes_rows(self.what, "axis None: all axes")
        self.axes = options.axes("axis")
        self.keep = options.flag("keepdims")
        self.op, self.function = _REDUCTIONS[options.kind]
        if options.kind == "Norm":
            order = options.get("ord")
            if order not in (None, 1, 2, "euclidean", "l1", "l2") or len(self.axes) > 1:
                raise options.error("ord", "None, 1 or 2, along one axis")
            if order in (1, "l1"):
                self.op, self.function = "ReduceL1", _l1
        self.keeps_time = 1 not in self.axes

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        axes = sorted({value.axis(axis, self.what) for axis in self.axes})
        logic = self.options.kind in ("Any", "All")
        if not logic:
            # Sums of whole numbers stay whole, in float32 too up to 2^24.
            value = g.cast(value, "float32")
        elif value.dtype != "bool":
            value = g.cast(value, "bool")
        x = g.cast(value, "float32").name
        where = g.integers([value.physical(axis) for axis in axes])
        made = replace(value, dtype="float32")
        if self.op in ("Var", "Std"):
            mean = g.op("ReduceMean", [x, where], f"{place}/mean", keepdims=1)
            apart = g.op("Sub", [x, mean], f"{place}/apart")
            square = g.op("Mul", [apart, apart], f"{place}/square")
            name = g.op("ReduceMean", [square, where], place, keepdims=int(self.keep))
            if self.op == "Std":
                name = g.op("Sqrt", [name], f"{place}/root")
        else:
            name = g.op(self.op, [x, where], place, keepdims=int(self.keep))
        if self.keep:
            shape = tuple(1 if k in axes else n for k, n in enumerate(value.shape, 1))
            made = replace(made, name=name, shape=shape)
        else:
            made = without(made, name, axes)
        return [g.cast(made, "bool") if logic else made]

    def apply(self, x: Array) -> list[Array]:
        axes = tuple(sorted({axis % x.ndim for axis in self.axes}))
        wide = x.astype(bool if self.options.kind in ("Any", "All") else np.float64)
        return [self.function(wide, axis=axes, keepdims=self.keep)]


REDUCTIONS = tuple(_REDUCTIONS)
