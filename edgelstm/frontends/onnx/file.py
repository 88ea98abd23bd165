"""Somebody else's ONNX file of one time step, with its state pairs named by the user, becomes a StepModel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import helper

from edgelstm.dtypes import DTYPES
from edgelstm.errors import EdgeLstmError, some
from edgelstm.graph.signature import Dim, Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, dtype_name, onnx_dtype, parse_onnx, value_shape

STREAM_AXIS = "N"


def declare(
    data: bytes,
    where: str,
    pairs: Mapping[str, str],
    *,
    names: Mapping[str, str] | None = None,
    fix: Mapping[str, int] | None = None,
) -> StepModel:
    """The step graph in ``data``, the bytes of an ONNX file that messages call ``where``, with a Signature.

    pairs: graph input -> the graph output that is fed back into it, from zeros at first. Every other input is a
        frame, every other output an output; when no output is left, the state outputs are the outputs too.
    names: graph input -> the name of its state, where that should not be the input's own.
    fix: name of a dynamic dimension -> its size.

    Axis 0 is the stream axis and stays what it is: a fixed size, or free (then it is called ``N``). Nodes and weights
    are not touched.

    Raises EdgeLstmError for bytes that are no ONNX, for names that are not in the graph (listing those that are),
    for a pair that differs in shape or dtype, and for a dimension other than axis 0 that stays dynamic.
    """
    names, fix = names or {}, fix or {}
    model = parse_onnx(data, where)
    weights = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in weights]
    outputs = list(model.graph.output)
    _check_pairs(where, pairs, [v.name for v in inputs], [v.name for v in outputs])
    _known(where, "input of a state", names, pairs)
    _fix_dimensions(model.graph, fix, where)

    ins = {v.name: _spec(where, v, value_shape(v)) for v in inputs}
    axis = next(iter(ins.values())).shape[0]
    feeds = {target: ins[source] for source, target in pairs.items()}
    inferred = _inferred_shapes(model)
    outs = {v.name: _output(where, v, inferred.get(v.name), feeds.get(v.name), axis) for v in outputs}
    try:
        signature = Signature(
            inputs=tuple(spec for name, spec in ins.items() if name not in pairs),
            outputs=tuple(spec for name, spec in outs.items() if name not in feeds) or tuple(outs.values()),
            states=tuple(
                StateSpec(names.get(source, source), source, target, ins[source].dtype, ins[source].shape)
                for source, target in pairs.items()
            ),
        )
    except EdgeLstmError as error:
        raise EdgeLstmError(
            f"{where}: {error.what}", found=error.found, expected=error.expected, hint=error.hint
        ) from error
    for value, spec in zip((*inputs, *outputs), (*ins.values(), *outs.values()), strict=True):
        value.type.CopyFrom(helper.make_tensor_type_proto(onnx_dtype(spec.dtype), list(spec.shape)))
    # Shapes noted inside the graph may still carry the dimensions' old names.
    del model.graph.value_info[:]
    step = StepModel(model, signature)
    step.check(where)
    return step


def _check_pairs(where: str, pairs: Mapping[str, str], inputs: list[str], outputs: list[str]) -> None:
    if not pairs:
        raise EdgeLstmError(
            f"{where}: no state declared",
            expected=f"pairs INPUT=OUTPUT of inputs {some(inputs)} and outputs {some(outputs)}",
        )
    _known(where, "input", pairs, inputs)
    _known(where, "output", pairs.values(), outputs)


def _known(where: str, kind: str, named: Iterable[str], existing: Iterable[str]) -> None:
    candidates = list(existing)
    unknown = [name for name in named if name not in candidates]
    if unknown:
        raise EdgeLstmError(
            f"{where}: no such {kind}", found=some(unknown), expected=f"one of {some(candidates)}"
        )


def _fix_dimensions(graph: onnx.GraphProto, fix: Mapping[str, int], where: str) -> None:
    dims = [
        d
        for value in (*graph.input, *graph.output, *graph.value_info)
        for d in value.type.tensor_type.shape.dim
        if d.dim_param
    ]
    _known(where, "dynamic dimension", fix, dict.fromkeys(d.dim_param for d in dims))
    for name, size in fix.items():
        if size < 1:
            raise EdgeLstmError(f"{where}: dimension {name!r}", found=size, expected="at least 1")
    for d in dims:
        if d.dim_param in fix:
            d.dim_value = fix[d.dim_param]  # one of a oneof: this clears the name


def _inferred_shapes(model: onnx.ModelProto) -> dict[str, list[Any] | None]:
    """Shapes of the outputs as the nodes give them: exporters often declare them wider than they are."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        bare = onnx.shape_inference.infer_shapes(bare)
    except Exception:  # of no stable class; the declared shapes may do
        return {}
    return {value.name: value_shape(value) for value in bare.graph.output}


def _output(
    where: str, value: onnx.ValueInfoProto, inferred: list[Any] | None, feeds: TensorSpec | None, axis: Dim
) -> TensorSpec:
    """Spec of a graph output; what graph and inference leave open comes from the input it ``feeds``."""
    shape = value_shape(value)
    if shape is None:
        shape = inferred
    elif inferred is not None and len(inferred) == len(shape):
        shape = [b if isinstance(b, int) else a for a, b in zip(shape, inferred, strict=True)]
    if feeds is not None:
        if shape is None:
            shape = list(feeds.shape)
        dtype = dtype_name(value.type.tensor_type.elem_type)
        agree = len(shape) == len(feeds.shape) and all(
            a == b or not (isinstance(a, int) and isinstance(b, int))
            for a, b in zip(shape, feeds.shape, strict=True)
        )
        if dtype != feeds.dtype or not agree:
            raise EdgeLstmError(
                f"{where}: output {value.name!r} can't feed state input {feeds.name!r}",
                found=f"{dtype}{shape}",
                expected=f"{feeds.dtype}{list(feeds.shape)}, as the input",
            )
        shape = list(feeds.shape)
    elif shape and not isinstance(shape[0], int):
        shape = [axis, *shape[1:]]
    return _spec(where, value, shape)


def _spec(where: str, value: onnx.ValueInfoProto, shape: list[Any] | None) -> TensorSpec:
    if value.type.WhichOneof("value") != "tensor_type":
        raise EdgeLstmError(
            f"{where}: {value.name!r}", found=value.type.WhichOneof("value"), expected="a tensor"
        )
    dtype = dtype_name(value.type.tensor_type.elem_type)
    if dtype not in DTYPES:
        raise EdgeLstmError(
            f"{where}: dtype of {value.name!r}", found=dtype, expected=f"one of {', '.join(DTYPES)}"
        )
    if not shape:
        raise EdgeLstmError(
            f"{where}: {value.name!r} has no stream axis",
            found="a scalar" if shape == [] else "no shape",
            expected="a tensor whose axis 0 is the stream",
        )
    dynamic = [(n, d) for n, d in enumerate(shape) if n and not isinstance(d, int)]
    if dynamic:
        known = next((str(d) for _, d in dynamic if d is not None), None)
        raise EdgeLstmError(
            f"{where}: {value.name!r} is dynamic on axis {', '.join(str(n) for n, _ in dynamic)}",
            found=f"{dtype}{['?' if d is None else d for d in shape]}",
            expected="fixed sizes on all axes but 0: a stream's buffers are allocated once",
            hint=f"Fix it: {known}=SIZE" if known else "Export the model with fixed sizes",
        )
    stream: Dim = shape[0] if isinstance(shape[0], int) else STREAM_AXIS
    return TensorSpec(value.name, dtype, (stream, *shape[1:]))
