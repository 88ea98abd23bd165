"""Shapes of every value of a step graph, with the stream axis told apart from all others."""

from __future__ import annotations

import math
from typing import NamedTuple

import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import helper

from edgelstm.graph.signature import Dim
from edgelstm.graph.step import StepModel, onnx_dtype, value_shape
from edgelstm.passes.batching import ROWS, Shape

#: Two stream counts no real dimension is likely to follow; a dimension that takes both is the stream axis.
_COUNTS = (7919, 6007)
#: Weights larger than this are shapes only during inference (a Reshape's target or an axis is smaller).
_LARGE = 1024


class _Value(NamedTuple):
    elem_type: int
    shape: Shape


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
        found = {name: value.shape for name, value in _infer(step, axis).items()}
        return found | {name: (axis, *shape) for name, shape in declared.items()}
    first, second = (_infer(step, count) for count in _COUNTS)
    found = {}
    for name in first.keys() & second.keys():
        shape, other = first[name].shape, second[name].shape
        if shape == other:
            found[name] = shape
        elif (shape[:1], other[:1]) == (_COUNTS[:1], _COUNTS[1:]) and shape[1:] == other[1:]:
            found[name] = (ROWS, *shape[1:])
    return found | {name: (ROWS, *shape) for name, shape in declared.items()}


def shapes_of_one(step: StepModel) -> dict[str, Shape]:
    """Shapes of all values for a single stream, those included in which the streams are folded into another axis."""
    return shapes_of(step, 1)


def shapes_of(step: StepModel, streams: int) -> dict[str, Shape]:
    """Shapes of all values for so many streams (where the graph fixes their number, for that), wherever their axis is."""
    s = step.signature
    axis = s.stream_axis
    streams = axis if isinstance(axis, int) else streams
    declared = {t.name: t.frame_shape for t in (*s.inputs, *s.outputs)}
    declared |= {name: x.frame_shape for x in s.states for name in (x.input, x.output)}
    found = {name: value.shape for name, value in _infer(step, streams).items()}
    return found | {name: (streams, *shape) for name, shape in declared.items()}


def element_types(step: StepModel) -> dict[str, int]:
    """ONNX element type of every value and weight whose type is known."""
    axis = step.signature.stream_axis
    found = {t.name: t.data_type for t in step.model.graph.initializer}
    found |= {
        name: value.elem_type for name, value in _infer(step, axis if isinstance(axis, int) else 1).items()
    }
    s = step.signature
    declared = [(t.name, t.dtype) for t in (*s.inputs, *s.outputs)]
    declared += [(name, x.dtype) for x in s.states for name in (x.input, x.output)]
    return found | {name: onnx_dtype(dtype) for name, dtype in declared}


def note_shapes(step: StepModel) -> StepModel:
    """Guarantees: the same graph and Signature, with the shapes of inner values written into it in terms of the
    stream axis, such as [N, 64] or [10*N, 64].

    A Reshape to [-1, ...] leaves a runtime with an axis of unknown size. ONNX Runtime then can't tell that two
    buffers are of one size, and looks in vain among ever more of them for one to share.
    """
    axis = step.signature.stream_axis
    counts = (axis, axis) if isinstance(axis, int) else _COUNTS
    first, second = (_infer(step, count) for count in counts)
    model = step.copy_model()
    graph = model.graph
    del graph.value_info[:]
    declared = {v.name for v in graph.output}
    for name in (name for node in graph.node for name in node.output):
        if name in declared or name not in first or name not in second:
            continue
        pairs = zip(first[name].shape, second[name].shape, strict=False)
        dims = [_in_terms_of(axis, *pair) for pair in pairs]
        if None not in dims:
            graph.value_info.append(helper.make_tensor_value_info(name, first[name].elem_type, dims))
    return StepModel(model, step.signature)


def _in_terms_of(axis: Dim, size: int, other: int) -> Dim | None:
    """A dimension that was ``size`` with the first stream count and ``other`` with the second."""
    if size == other:
        return size
    times, rest = divmod(size, _COUNTS[0])
    if rest or other != times * _COUNTS[1]:
        return None
    return axis if times == 1 else f"{times}*{axis}"


def _infer(step: StepModel, streams: int) -> dict[str, _Value]:
    model = _without_large_weights(step)
    graph, s = model.graph, step.signature
    graph.input.extend(
        helper.make_tensor_value_info(name, onnx_dtype(dtype), [streams, *shape])
        for name, dtype, shape in (
            *((t.name, t.dtype, t.shape[1:]) for t in s.inputs),
            *((x.input, x.dtype, x.shape[1:]) for x in s.states),
        )
    )
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    model = onnx.inliner.inline_local_functions(model)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = {t.name: _Value(t.data_type, tuple(t.dims)) for t in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        dims = value_shape(value)
        if dims is not None and all(isinstance(d, int) for d in dims):
            found[value.name] = _Value(value.type.tensor_type.elem_type, tuple(dims))
    return found


def _without_large_weights(step: StepModel) -> onnx.ModelProto:
    """A copy whose only graph inputs are the large weights: inference copies what it is given several times."""
    model = onnx.ModelProto()
    model.CopyFrom(step.model)
    graph = model.graph
    weights = list(step.model.graph.initializer)
    del graph.input[:], graph.value_info[:], graph.initializer[:]
    graph.initializer.extend(t for t in weights if math.prod(t.dims) <= _LARGE)
    graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
        for t in weights
        if math.prod(t.dims) > _LARGE
    )
    return model
