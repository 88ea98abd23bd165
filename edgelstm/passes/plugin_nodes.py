"""plugin_nodes: FusedGates as the nodes that TensorRT's parser gives to the plugin of that name.

    before   z16 -> Cast -> z ; FusedGates_lstm(z, c) -> h, c' ; h -> Cast -> h16      (a body in the model's functions)
    after    FusedGates(z16, c) {h_type: half, peephole: 0, ...} -> h16, c'            (no body)

1. Whatever the variant, the operator is called FusedGates, as the plugin is; the variant is in the attributes.
2. A Cast of z from 16 bits, and one of h to 16 bits, become the kernel's own loads and stores, if nothing else reads
   the value. Likewise a QuantizeLinear of h with one scale: the kernel stores codes.
3. Peepholes that are constants get one value a channel, or one a place.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import DOMAIN, PREFIX, GateVariant, is_fused_gates
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph, attribute
from edgelstm.passes.shapes import element_types, shapes_of_one

PLUGIN = "FusedGates"
PLUGIN_VERSION = "1"
#: nvinfer1::DataType's number of each ONNX element type that h may have.
H_TYPES: dict[int, int] = {
    TensorProto.FLOAT: 0,
    TensorProto.FLOAT16: 1,
    TensorProto.INT8: 2,
    TensorProto.BFLOAT16: 7,
}
_SHORT = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def is_plugin(node: onnx.NodeProto) -> bool:
    """Whether ``node`` is one that only the plugin can run."""
    return node.domain == DOMAIN and node.op_type == PLUGIN


def overwrites_cells(step: StepModel) -> bool:
    """Whether any plugin node of a lowered graph writes its c_out over its c."""
    return any(attribute(node, "in_place", 0) for node in step.model.graph.node if is_plugin(node))


def plugin_nodes(step: StepModel, *, in_place: bool = False) -> StepModel:
    """Guarantees: the same Signature, and every FusedGates is a plugin node without a body: good for TensorRT only.

    in_place: cell states that begin and end inside the graph (those between the frames of a window) are overwritten.
    States that cross its border are not: the runner keeps those of idle streams on the other side.

    Raises EdgeLstmError for gates that read codes (a graph quantised for ONNX Runtime) and peepholes of odd shapes.
    """
    graph = Graph(step)
    shapes, types = shapes_of_one(step), element_types(step)
    for node in [n for n in graph.nodes if is_fused_gates(n)]:
        variant = GateVariant.of(node.op_type)
        if variant.coded:
            raise EdgeLstmError(
                f"{node.op_type} reads 8-bit codes as ONNX Runtime computes with them",
                expected="a graph quantised for TensorRT",
                hint="Quantise the float model again: edgelstm quantize --runtime tensorrt",
            )
        fields = variant.plugin_fields()
        del fields["coded"]
        inputs, outputs = list(node.input), list(node.output)
        cell = shapes.get(inputs[1])
        inputs[0] = _loaded(graph, types, inputs[0], _SHORT)
        outputs[0], h_type, scale = _stored(graph, outputs[0], types.get(outputs[0]))
        if not variant.peephole:
            inputs[1], outputs[1] = _half_cell(graph, types, inputs[1], outputs[1])
        inputs[2:] = [_peephole(graph, name, cell, node.op_type) for name in inputs[2:]]
        own = (
            graph.producer(inputs[1]) is not None
            and graph.consumers(inputs[1]) == [node]
            and not {inputs[1], outputs[1]} & set(graph.outputs)
        )
        attributes: dict[str, Any] = {
            **fields,
            "h_type": h_type,
            "h_scale": scale,
            "in_place": int(in_place and own),
            "masked": 0,
            "count_non_finite": 0,
            "plugin_version": PLUGIN_VERSION,
            "plugin_namespace": DOMAIN,
        }
        new = helper.make_node(PLUGIN, inputs, outputs, name=node.name, domain=DOMAIN, **attributes)
        graph.nodes = [new if n is node else n for n in graph.nodes]
    done = graph.finish()
    model = done.copy_model()
    kept = [f for f in model.functions if not (f.domain == DOMAIN and f.name.startswith(PREFIX))]
    del model.functions[:]
    model.functions.extend(kept)
    return StepModel(model, done.signature)


def _loaded(graph: Graph, types: Mapping[str, int], name: str, short: Collection[int]) -> str:
    """What the kernel loads instead of ``name``: the value before its Cast from one of the types ``short``."""
    cast = graph.producer(name, "Cast")
    if cast is None or types.get(cast.input[0]) not in short or len(graph.consumers(name)) > 1:
        return name
    return str(cast.input[0])


def _only_reader(graph: Graph, name: str) -> onnx.NodeProto | None:
    readers = graph.consumers(name)
    return readers[0] if len(readers) == 1 and name not in graph.outputs else None


def _stored(graph: Graph, h: str, elem_type: int | None) -> tuple[str, int, float]:
    """What the kernel stores instead of ``h``: its name, TensorRT's number of its type, its scale."""
    reader = _only_reader(graph, h)
    if reader is not None and reader.op_type == "Cast" and attribute(reader, "to") in _SHORT:
        graph.remove([reader])
        return reader.output[0], H_TYPES[attribute(reader, "to")], 0.0
    if reader is not None and reader.op_type == "QuantizeLinear" and len(reader.input) == 3:
        scale, zero = graph.scalar(reader.input[1]), graph.constant(reader.input[2])
        if scale is not None and zero is not None and zero.dtype == np.int8 and not zero.any():
            graph.remove([reader])
            return reader.output[0], H_TYPES[TensorProto.INT8], scale
    return h, H_TYPES.get(elem_type or 0, -1), 0.0


def _half_cell(graph: Graph, types: Mapping[str, int], c: str, c_out: str) -> tuple[str, str]:
    """A cell state stored in fp16 is read and written as such; it is computed with in float32 all the same."""
    before, reader = _loaded(graph, types, c, (TensorProto.FLOAT16,)), _only_reader(graph, c_out)
    if before == c or reader is None or reader.op_type != "Cast":
        return c, c_out
    if attribute(reader, "to") != TensorProto.FLOAT16:
        return c, c_out
    graph.remove([reader])
    return before, reader.output[0]


def _peephole(graph: Graph, name: str, cell: tuple[int, ...] | None, op: str) -> str:
    """A peephole with one value a channel or one a place of the cell state [N, C, *spatial]."""
    value = graph.constant(name)
    if value is None or cell is None:
        return name
    channels, places = cell[1], math.prod(cell[1:])
    if value.size in (channels, places):
        return name
    try:
        full = np.broadcast_to(value, cell[1:])
    except ValueError as error:
        raise EdgeLstmError(
            f"{op}: peephole {name!r}", found=list(value.shape), expected=f"broadcastable to {list(cell[1:])}"
        ) from error
    return graph.weight(np.ascontiguousarray(full), f"{name}/map")
