"""Shapes of every value of a step graph, with the stream axis told apart from all others."""

from __future__ import annotations

import math

import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import helper

from edgelstm.passes.batching import ROWS, Shape
from edgelstm.step import StepModel, onnx_dtype, value_shape

#: Two stream counts no real dimension is likely to follow; a dimension that takes both is the stream axis.
_COUNTS = (7919, 6007)
#: Weights larger than this are shapes only during inference (a Reshape's target or an axis is smaller).
_LARGE = 1024


def infer_shapes(step: StepModel) -> dict[str, Shape]:
    """Shapes of the values whose every dimension is known; values that nothing is known of are absent.

    Dimension 0 is :data:`ROWS` where it is as large as a stream axis that has a name. Inference runs with two
    actual stream counts and compares: names get lost in a Reshape, numbers do not.
    """
    s = step.signature
    axis = s.stream_axis
    declared = {t.name: t.frame_shape for t in (*s.inputs, *s.outputs)}
    declared |= {name: x.frame_shape for x in s.states for name in (x.input, x.output)}
    if isinstance(axis, int):
        return _infer(step, axis) | {name: (axis, *shape) for name, shape in declared.items()}
    first, second = (_infer(step, count) for count in _COUNTS)
    found: dict[str, Shape] = {}
    for name, shape in first.items():
        other = second.get(name)
        if shape == other:
            found[name] = shape
        elif other and (shape[0], other[0]) == _COUNTS and shape[1:] == other[1:]:
            found[name] = (ROWS, *shape[1:])
    return found | {name: (ROWS, *shape) for name, shape in declared.items()}


def _infer(step: StepModel, streams: int) -> dict[str, Shape]:
    model = step.copy_model()
    graph, s = model.graph, step.signature
    del graph.input[:], graph.value_info[:]
    for name, dtype, shape in (
        *((t.name, t.dtype, t.frame_shape) for t in s.inputs),
        *((t.input, t.dtype, t.frame_shape) for t in s.states),
    ):
        graph.input.add().CopyFrom(helper.make_tensor_value_info(name, onnx_dtype(dtype), [streams, *shape]))
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    small = []
    found: dict[str, Shape] = {}
    for weight in graph.initializer:
        found[weight.name] = tuple(weight.dims)
        if math.prod(weight.dims) <= _LARGE:
            small.append(weight)
        else:
            info = helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
            graph.input.add().CopyFrom(info)
    kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in small]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    model = onnx.inliner.inline_local_functions(model)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        dims = value_shape(value)
        if dims is not None and all(isinstance(d, int) for d in dims):
            found[value.name] = tuple(dims)
    return found
