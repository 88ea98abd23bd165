"""Codes in a graph: their zero points, their nodes, and arrays as tensors of their type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgelstm.dtypes import from_float32
from edgelstm.graph.step import onnx_dtype
from edgelstm.passes.graph import Graph
from edgelstm.passes.placement import Codes

Array = npt.NDArray[Any]


class CodeNodes:
    """Makes QuantizeLinear and DequantizeLinear nodes of one scale, and the constants they read, each once."""

    def __init__(self, graph: Graph, codes: Codes) -> None:
        self._graph = graph
        self._codes = codes
        self._zeros: dict[tuple[str, int], str] = {}

    def quantize(self, value: str, scale: float, base: str) -> str:
        """Codes of ``value``."""
        operands = [value, self.scalar(scale), self.own_zero()]
        return self._graph.value("QuantizeLinear", operands, base)

    def dequantize(self, codes: str, scale: float, base: str) -> str:
        """What ``codes`` are worth."""
        operands = [codes, self.scalar(scale), self.own_zero()]
        return self._graph.value("DequantizeLinear", operands, base)

    def scalar(self, value: float) -> str:
        """A float32 constant."""
        return self._graph.weight(np.array(value, np.float32), "scale")

    def own_zero(self) -> str:
        """The zero point of an activation."""
        return self.zero(self._codes.dtype, self._codes.zero_point)

    def zero(self, dtype: str, value: int) -> str:
        """A zero point of ``dtype``."""
        key = (dtype, value)
        if key not in self._zeros:
            one = from_float32(np.array(value, np.float32), dtype)
            name = self._zeros[key] = self._graph.fresh("zero_point")
            self._graph.initializers[name] = tensor(one, dtype, name)
        return self._zeros[key]


def tensor(codes: Array, dtype: str, name: str) -> onnx.TensorProto:
    """An initializer of codes."""
    if dtype == "float8e4m3fn":
        return helper.make_tensor(name, onnx_dtype(dtype), codes.shape, codes.tobytes(), raw=True)
    return numpy_helper.from_array(codes, name)


def all_one(factors: Array) -> bool:
    """Whether multiplying by ``factors`` changes nothing."""
    return bool((factors == 1).all())


def moves_only_ones(perm: Sequence[int] | None, shape: Sequence[int] | None) -> bool:
    """Whether a Transpose to ``shape`` keeps the stream axis first and moves only axes of size 1: a Reshape in all but name."""
    if perm is None or shape is None or perm[0] != 0:
        return False
    long = [axis for axis, size in zip(perm, shape, strict=True) if size != 1]
    return long == sorted(long)
