"""One stream alone: the value for it of what depends on nothing but the number of streams, and the graph that takes no more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.reference
from onnx import helper

from edgelstm.graph.signature import Signature
from edgelstm.graph.step import StepModel
from edgelstm.passes.batching import Shape
from edgelstm.passes.graph import Array, Graph, is_standard, node_inputs
from edgelstm.passes.shapes import shapes_of

#: Elements of a value, at most: nothing larger is an initial state's part.
MAX_SIZE = 1 << 26


def value_of_one(step: StepModel, graph: Graph, name: str) -> Array | None:
    """The value of ``name`` in ``step`` with a single stream, None where a frame or a state has part in it.

    graph: the step while it is edited; ``name`` and what it is made of must be as they were.
    """
    return _value(shapes_of(step, 1), graph, name)


def _value(shapes: Mapping[str, Shape], graph: Graph, name: str) -> Array | None:
    known = graph.constant(name)
    if known is not None:
        return known
    node, shape = graph.producer(name), shapes.get(name)
    if node is None or not is_standard(node) or node.op_type.startswith("Random"):
        return None
    if shape is None or math.prod(shape) > MAX_SIZE:
        return None
    inputs: dict[str, Array] = {}
    if node.op_type == "Shape":
        given = shapes.get(node.input[0])
        if given is None:
            return None
        inputs[node.input[0]] = np.broadcast_to(np.float32(0), given)
    else:
        for used in node_inputs(node):
            value = _value(shapes, graph, used)
            if value is None:
                return None
            inputs[used] = value
        if not inputs:
            return None
    return evaluated(node, inputs, name, graph.model)


def evaluated(
    node: onnx.NodeProto, inputs: Mapping[str, Array], output: str, model: onnx.ModelProto
) -> Array | None:
    ins = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in inputs.items()
    ]
    graph = helper.make_graph([node], "value", ins, [onnx.ValueInfoProto(name=output)])
    try:
        alone = helper.make_model(graph, opset_imports=model.opset_import)
        results: Any = onnx.reference.ReferenceEvaluator(alone).run([output], dict(inputs))
        return np.asarray(results[0])
    except Exception:  # of no stable class, and not an error: the value is not known
        return None


def signature_of_one(s: Signature) -> Signature:
    """The same for one stream in a call."""
    return replace(
        s,
        inputs=tuple(replace(t, shape=(1, *t.shape[1:])) for t in s.inputs),
        outputs=tuple(replace(t, shape=(1, *t.shape[1:])) for t in s.outputs),
        states=tuple(replace(x, shape=(1, *x.shape[1:])) for x in s.states),
    )


def for_one_stream(step: StepModel) -> StepModel:
    """Guarantees: the same graph, which takes one stream in a call; a runner with several calls it once for each."""
    graph = Graph(step)
    graph.declare(signature_of_one(step.signature))
    return graph.finish()
