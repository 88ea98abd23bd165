"""Files of opsets 7 to 10 in the operators of opset 11: what was an attribute is an input now, Upsample is a Resize."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.onnx.source import CONVERTED, all_graphs
from edgelstm.passes.graph import Array, all_names, attribute, fresh, is_standard

#: The version that is written.
TARGET = 11


def upgraded(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The same model at opset 11; ``model`` itself where it is not older.

    Between 7 and 11 few operators changed in more than what they accept: Slice, TopK (10), Clip, Pad (11) take their
    limits as inputs; Upsample and Resize (10, 11) map coordinates as Resize's ``asymmetric`` with ``floor``; Scatter is
    ScatterElements. Everything is compared with the file as it is later on.

    Raises EdgeLstmError for what opset 11 can't say: a BatchNormalization over more than channels, a Scan of opset 8.
    """
    version = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if version not in CONVERTED:
        return model
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    convert = _Convert(newer, where, version)
    for graph in list(all_graphs(newer.graph)):
        convert.graph(graph)
    for opset in newer.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = TARGET
    newer.ir_version = max(newer.ir_version, 6)
    # What the graph notes of shapes was said of the old nodes.
    return newer


class _Convert:
    def __init__(self, model: onnx.ModelProto, where: str, version: int) -> None:
        self.where, self.version = where, version
        self.types: dict[str, int] = {}
        inferred = onnx.shape_inference.infer_shapes(model)
        for graph in all_graphs(inferred.graph):
            self.types |= {t.name: t.data_type for t in graph.initializer}
            for value in (*graph.input, *graph.value_info, *graph.output):
                self.types[value.name] = value.type.tensor_type.elem_type
        self.taken = all_names(model.graph)

    def graph(self, graph: onnx.GraphProto) -> None:
        """Convert the nodes of one graph; those inside its nodes are converted by themselves."""
        for node in graph.node:
            convert = getattr(self, f"_{node.op_type.lower()}", None) if is_standard(node) else None
            if convert is not None:
                convert(graph, node)

    def _slice(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        if len(node.input) > 1:  # opset 10
            return
        for name in ("starts", "ends", "axes"):
            value = self._take(node, name)
            if value is not None:
                node.input.append(self._weight(graph, np.array(value, np.int64), f"{node.output[0]}_{name}"))

    def _topk(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        if len(node.input) == 1:
            k = np.array([self._take(node, "k")], np.int64)
            node.input.append(self._weight(graph, k, f"{node.output[0]}_k"))

    def _clip(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        if len(node.input) > 1:
            return
        limits = [self._take(node, name) for name in ("min", "max")]
        for name, limit in zip(("min", "max"), limits, strict=True):
            if limit is None:
                node.input.append("")
            else:
                node.input.append(self._scalar(graph, node, limit, name))
        while node.input[-1] == "":
            node.input.pop()

    def _pad(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        if len(node.input) > 1:
            return
        pads, value = self._take(node, "pads"), self._take(node, "value")
        node.input.append(self._weight(graph, np.array(pads, np.int64), f"{node.output[0]}_pads"))
        if value:
            node.input.append(self._scalar(graph, node, value, "value"))

    def _upsample(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        scales = self._take(node, "scales")
        if scales is not None:
            node.input.append(self._weight(graph, np.array(scales, np.float32), f"{node.output[0]}_scales"))
        node.op_type = "Resize"
        self._resize(graph, node)

    def _resize(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        mode = (self._take(node, "mode") or b"nearest").decode()
        mode = "linear" if mode in ("bilinear", "linear") else mode
        nothing = self._weight(graph, np.array([], np.float32), f"{node.output[0]}_roi")
        x, scales = node.input
        node.input[:] = [x, nothing, scales]
        said = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        node.attribute.extend(helper.make_attribute(name, value) for name, value in said.items())

    def _scatter(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        node.op_type = "ScatterElements"

    def _batchnormalization(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        if self._take(node, "spatial") == 0:
            raise self._refused(node, "spatial=0")

    def _scan(self, graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
        if self.version < 9:
            raise self._refused(node, f"as opset {self.version} has it, over a batch")

    def _refused(self, node: onnx.NodeProto, what: str) -> EdgeLstmError:
        return EdgeLstmError(
            f"{self.where}: {node.op_type} {node.name or node.output[0]!r} has no form in opset {TARGET}",
            found=what,
            hint="Export the model with a newer opset",
        )

    def _take(self, node: onnx.NodeProto, name: str) -> Any:
        """The value of an attribute, which is taken away."""
        value = attribute(node, name)
        kept = [
            onnx.AttributeProto.FromString(a.SerializeToString()) for a in node.attribute if a.name != name
        ]
        del node.attribute[:]
        node.attribute.extend(kept)
        return value

    def _scalar(self, graph: onnx.GraphProto, node: onnx.NodeProto, value: float, name: str) -> str:
        kind = helper.tensor_dtype_to_np_dtype(self.types.get(node.input[0]) or TensorProto.FLOAT)
        if np.dtype(kind).kind == "f":
            value = float(np.clip(value, np.finfo(kind).min, np.finfo(kind).max))
        return self._weight(graph, np.array(value, kind), f"{node.output[0]}_{name}")

    def _weight(self, graph: onnx.GraphProto, value: Array, base: str) -> str:
        name = fresh(base, self.taken)
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name
