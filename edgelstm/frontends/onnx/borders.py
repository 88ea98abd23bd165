"""The edges of somebody else's ONNX graph: which axis is the streams', which sizes and values are fixed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgelstm.dtypes import CODED, DTYPES, np_dtype
from edgelstm.errors import EdgeLstmError, some
from edgelstm.frontends.onnx.file import STREAM_AXIS
from edgelstm.graph.signature import Dim, Signature, TensorSpec
from edgelstm.graph.step import StepModel, dtype_name, onnx_dtype, value_shape
from edgelstm.passes.control_flow import DOMAIN, inline_control_flow, is_control_flow
from edgelstm.passes.graph import Array, Graph, all_names, fresh, node_inputs, renamed

#: Stands behind all outputs until their shapes are known, so that no pass takes what the file declares for true.
HOLD = "Hold"

Fix = Mapping[str, "int | float | bool"]


@dataclass(frozen=True)
class Input:
    """A graph input in its file: the axis of the streams, and which other axes were free and are now of a fixed size."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    axis: int
    freed: tuple[int, ...] = ()

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape without the streams."""
        return tuple(int(d) for k, d in enumerate(self.shape) if k != self.axis)


@dataclass(frozen=True)
class Borders:
    """What goes into a file's graph, and what its outputs are.

    fixed: inputs that became constants, with their value as a number. streams: a fixed count, or None where it is free.
    freed: dynamic dimensions that were fixed to a size.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    fixed: dict[str, int | float | bool]
    streams: int | None
    freed: dict[str, int]

    @property
    def stream_axis(self) -> Dim:
        """As a Signature has it."""
        return STREAM_AXIS if self.streams is None else self.streams

    def input(self, name: str) -> Input:
        """The input called ``name``."""
        return next(i for i in self.inputs if i.name == name)


def open_borders(model: onnx.ModelProto, where: str, fix: Fix) -> tuple[Borders, StepModel]:
    """Find the axes and fix what is to be fixed; the graph then has its streams on axis 0 of every input.

    fix: name of an input -> its value for good; name of a dynamic dimension -> its size. Dimensions without a name are
        called INPUT.AXIS; so may one with a name be, where a file gives one name to dimensions of several sizes.

    The step that comes back is not done: its frames are all inputs, and its one output stands for all of the file's.

    Raises EdgeLstmError for names in ``fix`` that the file does not have, and where an axis other than the streams'
    stays dynamic or it is not clear which axis is the streams'.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = bare.graph
    weights = {t.name for t in graph.initializer}
    values = [v for v in graph.input if v.name not in weights]
    rename_dimensions(values, fix)
    by_name = {v.name: v for v in values}
    sizes = {d.dim_param for v in values for d in v.type.tensor_type.shape.dim if d.dim_param}
    unknown = [name for name in fix if name not in by_name and name not in sizes]
    if unknown:
        raise EdgeLstmError(
            f"{where}: nothing to fix is called {some(unknown)}",
            expected=f"an input ({some(by_name)}) or a dynamic dimension ({some(sorted(sizes)) or 'none'})",
        )
    fixed = {name: value for name, value in fix.items() if name in by_name}
    freed = {name: _size(where, name, value) for name, value in fix.items() if name not in by_name}
    shapes = {
        name: [freed.get(d, d) for d in _shape(where, value)]
        for name, value in by_name.items()
        if name not in fixed
    }
    if not shapes:
        raise EdgeLstmError(f"{where}: no input is left for frames", found=f"fixed: {', '.join(fixed)}")
    axes = _stream_axes(where, shapes)
    inputs = tuple(
        Input(
            name,
            dtype_name(by_name[name].type.tensor_type.elem_type),
            tuple(shape),
            axes[name],
            tuple(
                k
                for k, d in enumerate(by_name[name].type.tensor_type.shape.dim)
                if d.dim_param in freed and k != axes[name]
            ),
        )
        for name, shape in shapes.items()
    )
    axis = inputs[0].shape[inputs[0].axis]
    borders = Borders(
        inputs, tuple(v.name for v in graph.output), fixed, axis if isinstance(axis, int) else None, freed
    )
    _move_inputs(graph, borders)
    _fix_values(graph, borders, by_name, where)
    return borders, _held(bare, borders)


def resolve(borders: Borders, held: StepModel, where: str) -> StepModel:
    """Simplify and inline control flow; the inputs of the node that holds the outputs are then what they are.

    Behind them follow, two by two, the values before and after of loops that run once.
    Raises EdgeLstmError where control flow is left, naming what its course depends on.
    """
    step = inline_control_flow(held, witness=HOLD)
    _check_control_flow(step, borders, where)
    return step


def rename_dimensions(values: Iterable[onnx.ValueInfoProto], fix: Fix) -> None:
    """Call dimensions without a name INPUT.AXIS, and those with one that ``fix`` calls so."""
    for value in values:
        for k, d in enumerate(value.type.tensor_type.shape.dim):
            name = f"{value.name}.{k}"
            if not d.HasField("dim_value") and (not d.dim_param or name in fix):
                d.dim_param = name


def _size(where: str, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EdgeLstmError(
            f"{where}: size of dimension {name!r}", found=value, expected="a whole number of at least 1"
        )
    return value


def _shape(where: str, value: onnx.ValueInfoProto) -> list[Any]:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise EdgeLstmError(f"{where}: {value.name!r}", found=kind, expected="a tensor")
    dtype = dtype_name(value.type.tensor_type.elem_type)
    if dtype not in DTYPES:
        raise EdgeLstmError(
            f"{where}: dtype of {value.name!r}", found=dtype, expected=f"one of {', '.join(DTYPES)}"
        )
    shape = value_shape(value)
    if not shape:
        raise EdgeLstmError(
            f"{where}: {value.name!r} has no stream axis",
            found="a scalar" if shape == [] else "no shape",
            expected="a tensor with an axis for the streams",
            hint=f"If it never changes, fix its value: --fix {value.name}=VALUE" if shape == [] else None,
        )
    return shape


def _stream_axes(where: str, shapes: Mapping[str, list[Any]]) -> dict[str, int]:
    """The axis of the streams of each input: what is free, or else what all have of one size."""
    dynamic = {
        name: {k: d for k, d in enumerate(shape) if not isinstance(d, int)} for name, shape in shapes.items()
    }
    if any(dynamic.values()):
        shared = set.intersection(*(set(d.values()) for d in dynamic.values() if d))
        if all(len(d) <= 1 for d in dynamic.values()):
            stream = {name: next(iter(d), None) for name, d in dynamic.items()}
        elif len(shared) == 1:
            stream = {
                name: next((k for k, d in axes.items() if d in shared), None)
                for name, axes in dynamic.items()
            }
        else:
            stream = {name: 0 if 0 in axes else None for name, axes in dynamic.items()}
        for name, axes in dynamic.items():
            others = [k for k in axes if k != stream[name]]
            if others:
                raise EdgeLstmError(
                    f"{where}: {name!r} is dynamic on axis {', '.join(map(str, others))}",
                    found=str(shapes[name]),
                    expected="fixed sizes on all axes but the streams': a stream's buffers are allocated once",
                    hint=f"Fix it: --fix {axes[others[0]]}=SIZE (1 if it is time: a step takes one frame)",
                )
        fixed = [name for name, axis in stream.items() if axis is None]
        if fixed:
            free = next(next(iter(d.values())) for d in dynamic.values() if d)
            raise EdgeLstmError(
                f"{where}: some inputs take any number of streams, others a fixed one",
                found=some(f"{name}{shapes[name]}" for name in shapes),
                expected="the streams free in all inputs, or in none",
                hint=f"Fix it: --fix {free}=1",
            )
        return {name: axis for name, axis in stream.items() if axis is not None}
    if len({shape[0] for shape in shapes.values()}) == 1:
        return dict.fromkeys(shapes, 0)
    if all(1 in shape for shape in shapes.values()):
        return {name: shape.index(1) for name, shape in shapes.items()}
    counts = {c for c in next(iter(shapes.values())) if all(s.count(c) == 1 for s in shapes.values())}
    if len(counts) == 1:
        count = counts.pop()
        return {name: shape.index(count) for name, shape in shapes.items()}
    raise EdgeLstmError(
        f"{where}: tensors of one Signature differ in their stream axis (axis 0)",
        found=some(f"{name}{shape}" for name, shape in shapes.items()),
        expected="an axis for the streams in each, of one size",
        hint="Export the model with a batch axis",
    )


def to_front(rank: int, axis: int) -> list[int]:
    """The permutation that brings ``axis`` to the front."""
    return [axis, *(k for k in range(rank) if k != axis)]


def to_place(rank: int, axis: int) -> list[int]:
    """The permutation that brings the front to ``axis``."""
    return [*range(1, axis + 1), 0, *range(axis + 1, rank)]


def _move_inputs(graph: onnx.GraphProto, borders: Borders) -> None:
    """Declare the inputs with their streams in front, and bring them to where the file has them."""
    taken = all_names(graph)
    inner = {i.name: fresh(f"{i.name}_in_file", taken) for i in borders.inputs if i.axis}
    moves = [
        helper.make_node("Transpose", [i.name], [inner[i.name]], perm=to_place(len(i.shape), i.axis))
        for i in borders.inputs
        if i.axis
    ]
    nodes = [renamed(n, lambda name: inner.get(name, name), n.output) for n in graph.node]
    for value in graph.output:
        value.name = inner.get(value.name, value.name)
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend([*moves, *nodes])
    stream = borders.stream_axis
    graph.input.extend(
        helper.make_tensor_value_info(i.name, onnx_dtype(i.dtype), [stream, *i.frame_shape])
        for i in borders.inputs
    )


def _fix_values(
    graph: onnx.GraphProto, borders: Borders, values: Mapping[str, onnx.ValueInfoProto], where: str
) -> None:
    """Inputs with a value for good become weights, or where they have an axis for the streams, that value spread."""
    for name, number in borders.fixed.items():
        value = values[name]
        dtype, shape = dtype_name(value.type.tensor_type.elem_type), value_shape(value)
        if dtype not in DTYPES or shape is None:
            raise EdgeLstmError(f"{where}: input {name!r} can't be fixed", found=f"{dtype}{shape}")
        one = fixed_value(where, name, dtype, number)
        sizes = [borders.freed.get(d, d) for d in shape]
        if all(isinstance(d, int) for d in sizes):
            graph.initializer.append(numpy_helper.from_array(np.full(sizes, one), name))
            continue
        taken = all_names(graph)
        like, at, shape_of, count, target, source = (
            fresh(f"{name}_{k}", taken) for k in ("start", "end", "streams_of", "streams", "shape", "value")
        )
        parts = [count if not isinstance(d, int) else fresh(f"{name}_size", taken) for d in sizes]
        constants = {like: np.array([0]), at: np.array([1]), source: one}
        constants |= {p: np.array([d]) for p, d in zip(parts, sizes, strict=True) if isinstance(d, int)}
        graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
        nodes = [
            helper.make_node("Shape", [borders.inputs[0].name], [shape_of]),
            helper.make_node("Slice", [shape_of, like, at], [count]),
            helper.make_node("Concat", parts, [target], axis=0),
            helper.make_node("Expand", [source, target], [name]),
            *graph.node,
        ]
        nodes = [renamed(n, str, n.output) for n in nodes]
        del graph.node[:]
        graph.node.extend(nodes)


def fixed_value(where: str, name: str, dtype: str, number: int | float | bool) -> Array:
    """``number`` as a scalar of ``dtype``; EdgeLstmError where it does not fit."""
    kind = np_dtype(dtype)
    good = dtype not in CODED
    if good and kind.kind in "iu":
        limits = np.iinfo(kind)
        good = (isinstance(number, int) or number.is_integer()) and limits.min <= number <= limits.max
    elif good and kind.kind == "b":
        good = number in (0, 1)
    if not good:
        raise EdgeLstmError(f"{where}: value of input {name!r}", found=number, expected=f"a {dtype}")
    return np.array(number, kind)


def _held(model: onnx.ModelProto, borders: Borders) -> StepModel:
    """The model with one output that reads all of the file's."""
    graph = model.graph
    hold = fresh("hold", all_names(graph))
    graph.node.append(helper.make_node(HOLD, [v.name for v in graph.output], [hold], domain=DOMAIN))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    del graph.output[:]
    stream = borders.stream_axis
    graph.output.append(helper.make_tensor_value_info(hold, onnx.TensorProto.FLOAT, [stream]))
    signature = Signature(
        inputs=tuple(TensorSpec(i.name, i.dtype, (stream, *i.frame_shape)) for i in borders.inputs),
        outputs=(TensorSpec(hold, "float32", (stream,)),),
        states=(),
    )
    return StepModel(model, signature)


def _check_control_flow(step: StepModel, borders: Borders, where: str) -> None:
    """Refuse what is left of If, Loop and Scan, naming the inputs that decide its course."""
    graph = Graph(step)
    left = [node for node in graph.nodes if is_control_flow(node)]
    if not left:
        return
    node = left[0]
    deciding = node.input[:1] if node.op_type == "If" else node.input[:2]
    if node.op_type == "Scan":
        deciding = node.input[-1:]
    alive = graph.alive(deciding)
    read = {name for n in graph.nodes if id(n) in alive for name in node_inputs(n)} | set(deciding)
    inputs = [i.name for i in borders.inputs if i.name in read]
    raise EdgeLstmError(
        f"{where}: {node.op_type} {node.name or node.output[0]!r} can't be resolved",
        found=f"a course that depends on {', '.join(inputs)}" if inputs else "a course that is not constant",
        expected="a condition or count that is constant before the first frame, loops of at most 64 rounds",
        hint=f"If it never changes, fix it: --fix {inputs[0]}=VALUE" if inputs else None,
    )
