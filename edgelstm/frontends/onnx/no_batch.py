"""Files whose tensors have no axis for the streams, or a batch that is fixed above one: they get one, of size 1, in front."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx.shape_inference
from onnx import helper, numpy_helper

from edgelstm.frontends.onnx.borders import Fix, rename_dimensions
from edgelstm.graph.step import value_shape
from edgelstm.passes.graph import all_names, fresh, renamed


def with_stream_axis(
    model: onnx.ModelProto, fix: Fix, states: Collection[str]
) -> tuple[onnx.ModelProto, Fix, tuple[str, ...]]:
    """The same model in which every tensor at its borders has an axis of size 1, what is left to fix, and which got one.

    Only where no dimension is left open and there is no size that all inputs could have the streams in: x [4], h [8]; a
    running mean [8] beside frames [1, 8]; a batch of 4. states: inputs that are named as states; of the scalars only
    those get an axis, the others are numbers to be fixed.
    """
    weights = {t.name for t in model.graph.initializer}
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    inputs = [v for v in graph.input if v.name not in weights]
    rename_dimensions(inputs, fix)
    for value in inputs:
        for d in value.type.tensor_type.shape.dim:
            if d.dim_param in fix and isinstance(fix[d.dim_param], int) and fix[d.dim_param] >= 1:
                d.dim_value = int(fix[d.dim_param])
    frames = [v for v in inputs if v.name not in fix and (value_shape(v) or v.name in states)]
    shapes = {v.name: value_shape(v) for v in frames}
    if not all(s is not None and all(isinstance(d, int) for d in s) for s in shapes.values()):
        return model, fix, ()
    lacking = [name for name, shape in shapes.items() if 1 not in (shape or [])]
    if not lacking:
        return model, fix, ()
    outputs = _sizes_of_outputs(wide)
    taken = all_names(graph)
    inner = {name: fresh(f"{name}_in_file", taken) for name in lacking}
    made = {
        o: fresh(f"{o}_in_file", taken)
        for o, shape in outputs.items()
        if shape is not None and 1 not in shape
    }
    nodes = [
        renamed(n, lambda name: inner.get(name, made.get(name, name)), [made.get(o, o) for o in n.output])
        for n in graph.node
    ]
    before, after = [], []
    for value in (*frames, *graph.output):
        shape = shapes[value.name] if value.name in lacking else outputs.get(value.name)
        if value.name not in lacking and value.name not in made:
            continue
        target = fresh(f"{value.name}_shape", taken)
        full = list(shape or []) if value.name in lacking else [1, *(shape or [])]
        graph.initializer.append(numpy_helper.from_array(np.array(full, np.int64), target))
        if value.name in lacking:
            before.append(helper.make_node("Reshape", [value.name, target], [inner[value.name]]))
        else:
            after.append(helper.make_node("Reshape", [made[value.name], target], [value.name]))
        kind = value.type.tensor_type.elem_type
        value.type.CopyFrom(helper.make_tensor_type_proto(kind, [1, *(shape or [])]))
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*before, *nodes, *after])
    names = {v.name for v in inputs}
    return wide, {name: value for name, value in fix.items() if name in names}, tuple(lacking)


def _sizes_of_outputs(model: onnx.ModelProto) -> dict[str, list[int] | None]:
    """Sizes of the outputs; None where they are not known."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # of no stable class; the declared shapes may do
        bare = model
    found: dict[str, list[int] | None] = {}
    for value, declared in zip(bare.graph.output, model.graph.output, strict=True):
        for shape in (value_shape(value), value_shape(declared)):
            known = shape is not None and all(isinstance(d, int) for d in shape)
            if known and found.get(value.name) is None:
                found[value.name] = shape
        found.setdefault(value.name, None)
    return found
