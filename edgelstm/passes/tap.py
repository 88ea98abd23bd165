"""tap: shows inner values of a step graph as outputs, so that the ordinary Runner can be watched at work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.graph.step import StepModel, dtype_name
from edgelstm.passes.batching import ROWS
from edgelstm.passes.graph import Graph
from edgelstm.passes.shapes import element_types, infer_shapes, shapes_of_one

#: What the output that shows a value is called.
PREFIX = "tap/"


def tap(step: StepModel, values: Iterable[str]) -> StepModel:
    """Guarantees: the same states, computed alike, and as outputs only ``values``, each called ``tap/NAME``.

    A value that has no stream axis of its own (frames batched over a window) is shown with one of size 1 put before it;
    the whole graph then takes one stream. Values of a window keep whatever axes they have: the Signature of the result
    is that of a step which takes T frames at once.

    Raises EdgeLstmError for a name that is no value of the graph or whose shape is not known.
    """
    shapes, single = infer_shapes(step), shapes_of_one(step)
    names = list(dict.fromkeys(values))
    proto = step.model.graph
    known = {n for node in proto.node for n in node.output}
    known |= {v.name for v in (*proto.input, *proto.initializer)}
    for name in names:
        if name not in known or name not in single:
            raise EdgeLstmError(
                f"tap: value {name!r}",
                found="no such value" if name not in known else "a shape that is not known",
                expected=f"one of {', '.join(sorted(known & set(single)))}",
            )
    s = step.signature
    axis = s.stream_axis
    rows = ROWS if isinstance(axis, str) else axis
    apart = [n for n in names if not shapes.get(n) or shapes[n][0] != rows]
    if apart and axis != 1:
        step = one_stream(step)
        axis, single = 1, shapes_of_one(step)
    graph, types = Graph(step), element_types(step)
    outputs = []
    for name in names:
        shape, dtype = single[name], dtype_name(types[name])
        if name in apart:
            # Not Unsqueeze, whose axes moved from an attribute to an input.
            whole = graph.weight(np.array([axis, *shape], np.int64), f"{PREFIX}{name}/shape")
            graph.node("Reshape", [name, whole], [PREFIX + name])
            outputs.append(TensorSpec(PREFIX + name, dtype, (axis, *shape)))
        else:
            graph.node("Identity", [name], [PREFIX + name])
            outputs.append(TensorSpec(PREFIX + name, dtype, (axis, *shape[1:])))
    s = step.signature
    # Time is an axis like any other here: what is shown need not have it.
    graph.declare(Signature(s.inputs, tuple(outputs), s.states, None, s.preprocessing))
    return graph.finish()


def one_stream(step: StepModel) -> StepModel:
    """Guarantees: the same graph, made to take one stream; for a graph that does not count on how many it takes."""
    s = step.signature
    graph = Graph(step)

    def fixed(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=(1, *spec.shape[1:]))

    graph.declare(
        replace(
            s,
            inputs=tuple(fixed(t) for t in s.inputs),
            outputs=tuple(fixed(t) for t in s.outputs),
            states=tuple(replace(x, shape=(1, *x.shape[1:])) for x in s.states),
        )
    )
    return graph.finish()
