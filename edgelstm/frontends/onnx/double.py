"""An ONNX graph in float64, by onnx's reference evaluator: not the runtime under test, and twice as many bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edgelstm.dtypes import CODED, to_float32
from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.onnx.source import all_graphs
from edgelstm.graph.step import StepModel
from edgelstm.runtime.protocol import Array, Frame, Outputs

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
#: Attributes that name a type.
_TYPES = ("to", "dtype", "output_dtype", "stash_type")


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which all floats of 16 and 32 bits are of 64; types, not numbers, change."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    _widen_graph(wide.graph)
    for function in wide.functions:
        for node in function.node:
            _widen_node(node)
        for attribute in function.attribute_proto:
            _widen_attribute(attribute)
        del function.value_info[:]
    return wide


def _widen_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        tensor.CopyFrom(_wide(tensor))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    for node in graph.node:
        _widen_node(node)


def _widen_node(node: onnx.NodeProto) -> None:
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
    for attribute in node.attribute:
        _widen_attribute(attribute)
    if node.op_type == "Constant" and node.attribute[0].name in ("value_float", "value_floats"):
        given = node.attribute[0]
        numbers = given.f if given.name == "value_float" else list(given.floats)
        # A float attribute is of 32 bits: so is the number, in whatever type it is kept.
        value = numpy_helper.from_array(np.asarray(numbers, np.float32).astype(np.float64))
        node.attribute[0].CopyFrom(helper.make_attribute("value", value))


def _widen_attribute(attribute: onnx.AttributeProto) -> None:
    if attribute.type == AttributeProto.TENSOR:
        attribute.t.CopyFrom(_wide(attribute.t))
    elif attribute.type == AttributeProto.GRAPH:
        _widen_graph(attribute.g)
    for graph in attribute.graphs:
        _widen_graph(graph)
    for tensor in attribute.tensors:
        tensor.CopyFrom(_wide(tensor))
    if attribute.name in _TYPES and attribute.i in _FLOATS:
        attribute.i = TensorProto.DOUBLE


def _wide(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type not in _FLOATS:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


class Evaluator:
    """A model in float64 with a session's ``run``. Raises whatever onnx does for operators that it lacks."""

    def __init__(self, model: onnx.ModelProto) -> None:
        if passed_over := _passed_over(model):
            raise EdgeLstmError(
                "no float64 of this graph", found=f"onnx's evaluator passes over {passed_over}"
            )
        self._evaluator = ReferenceEvaluator(in_double(model), new_ops=[Conv, Sigmoid])

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs called ``names``."""
        with np.errstate(all="ignore"):  # the judge looks at what is not finite
            wide = {name: widened(value) for name, value in feeds.items()}
            results: Any = self._evaluator.run(list(names), wide)
        return [np.asarray(value) for value in results]


#: Gates of recurrent operators as the evaluator computes them, whatever the node says.
_GATES = {"LSTM": [b"Sigmoid", b"Tanh", b"Tanh"], "GRU": [b"Sigmoid", b"Tanh"]}


def _passed_over(model: onnx.ModelProto) -> str | None:
    """What a recurrent operator says and onnx's evaluator does not do; it computes another function without a word."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for graph in all_graphs(model.graph):
        for node in graph.node:
            if node.op_type not in ("LSTM", "GRU", "RNN"):
                continue
            for a in node.attribute:
                gates = _GATES.get(node.op_type)
                usual = (
                    a.name != "activations"
                    or gates is None
                    or list(a.strings) == gates * (len(a.strings) // len(gates))
                )
                bent = a.name in ("activation_alpha", "activation_beta") and bool(a.floats)
                if not usual or bent or (a.name == "clip" and a.f) or (a.name == "input_forget" and a.i):
                    return f"{a.name} of {node.op_type}"
            if len(node.input) > 4 and node.input[4] and node.input[4] not in constants:
                return f"sequence_lens of {node.op_type}"
    return None


def widened(value: Array, dtype: str = "") -> Array:
    """``value`` in float64 where it is a float."""
    if dtype in CODED:
        value = to_float32(value, dtype)
    return value.astype(np.float64) if value.dtype.kind == "f" else value


class StepEvaluator:
    """A StepModel in float64, one stream; in every row of a call where its graph fixes their number. See :class:`edgelstm.runtime.protocol.Program`."""

    def __init__(self, step: StepModel) -> None:
        self.signature, self.streams = step.signature, 1
        self._evaluator = Evaluator(step.model)

    def new_state(self) -> dict[str, Array]:
        """The states' initial values."""
        return {s.name: widened(s.initial_value(), s.dtype) for s in self.signature.states}

    def step(self, frames: Sequence[Frame], state: dict[str, Array], active: Sequence[int]) -> list[Outputs]:
        """Advance the stream."""
        s = self.signature
        feeds = {t.name: widened(np.asarray(frames[0][t.name]), t.dtype) for t in s.inputs}
        feeds |= {x.input: state[x.name] for x in s.states}
        feeds = {name: np.repeat(value[None], s.rows, axis=0) for name, value in feeds.items()}
        names = [t.name for t in s.outputs] + [x.output for x in s.states]
        results = dict(zip(names, self._evaluator.run(names, feeds), strict=True))
        state |= {x.name: results[x.output][0] for x in s.states}
        return [{t.name: results[t.name][0] for t in s.outputs}]

    def read_state(self, state: dict[str, Array], row: int) -> dict[str, Array]:
        """A copy of the states."""
        return {name: value.copy() for name, value in state.items()}

    def write_state(self, state: dict[str, Array], row: int, values: Mapping[str, Array]) -> None:
        """Set the states."""
        state |= {name: widened(np.array(value)) for name, value in values.items()}

    def close(self) -> None:
        """Nothing to free."""


class Sigmoid(OpRun):
    """onnx's own goes element by element."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        small = np.exp(-np.abs(x))
        return (np.where(x >= 0, 1.0, small) / (1.0 + small),)


class Conv(OpRun):
    """onnx's own goes place by place; here one product per place of the kernel."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        rank = x.ndim - 2
        steps, apart = strides or [1] * rank, dilations or [1] * rank
        kernel = w.shape[2:]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, apart, strict=True)]
        around = _pads(auto_pad or "NOTSET", pads, x.shape[2:], reach, steps)
        x = np.pad(x, [(0, 0), (0, 0), *around])
        sizes = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, steps, strict=True)]
        groups = group or 1
        n, channels, outputs = len(x), x.shape[1], len(w)
        result = np.zeros((n, groups, outputs // groups, int(np.prod(sizes))))
        for spot, place in enumerate(product(*map(range, kernel))):
            cut: list[Any] = [
                slice(k * d, k * d + (size - 1) * s + 1, s)
                for k, d, size, s in zip(place, apart, sizes, steps, strict=True)
            ]
            seen = x[tuple([slice(None)] * 2 + cut)].reshape(n, groups, channels // groups, -1)
            result += w.reshape(*w.shape[:2], -1)[:, :, spot].reshape(groups, outputs // groups, -1) @ seen
        result = result.reshape(n, outputs, *sizes)
        if b is not None:
            result += b.reshape(-1, *[1] * rank)
        return (result.astype(x.dtype),)


def _pads(
    auto: str, pads: Sequence[int] | None, sizes: Sequence[int], reach: Sequence[int], steps: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Zeros before and after each axis of space."""
    rank = len(sizes)
    for k in range(rank):
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = max((-(-sizes[k] // steps[k]) - 1) * steps[k] + reach[k] - sizes[k], 0)
            less, more = total // 2, total - total // 2
            yield (less, more) if auto == "SAME_UPPER" else (more, less)
        elif auto == "VALID" or pads is None:
            yield 0, 0
        else:
            yield pads[k], pads[rank + k]
