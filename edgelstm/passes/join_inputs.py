"""join_inputs: a cell's products over its input and over its state as one product over both."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from edgelstm.graph.gates import is_fused_gates
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Array, Graph, attribute
from edgelstm.passes.shapes import infer_shapes


def join_inputs(step: StepModel) -> StepModel:
    """Guarantees: the same Signature, the same numbers up to rounding, and in the sum that makes a FusedGates node's z
    one Gemm and one convolution of each geometry.

    Conv(x, Wx, b) + Conv(h, Wh) of equal kernel, strides, pads and dilations become Conv(Concat(x, h), [Wx | Wh], b);
    Gemm and MatMul likewise a Gemm; constants in the sum become bias. A state's part comes last. Values that something
    else reads too, grouped convolutions and products whose shapes are not known stay as they are.
    """
    join = _Join(step)
    for node in join.graph.nodes:
        if is_fused_gates(node):
            join.sum(node.input[0])
    return join.graph.finish()


@dataclass(frozen=True)
class _Product:
    """weight [outputs, inputs, *kernel] over ``value``; ``node`` is a Conv, Gemm or MatMul."""

    value: str
    weight: Array
    node: onnx.NodeProto


@dataclass
class _Sum:
    """The terms of a sum whose channels are on ``axis``; products that may be joined are of one kind."""

    rank: int
    axis: int
    products: dict[object, list[_Product]] = field(default_factory=dict)
    bias: list[Array] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)


class _Join:
    def __init__(self, step: StepModel) -> None:
        self.graph = Graph(step)
        self.shapes = infer_shapes(step)
        self.states = {state.input for state in step.signature.states}

    def sum(self, z: str) -> None:
        """Write the sum ``z`` anew, with its products joined."""
        flatten = self._flatten(z)
        top = z if flatten is None else flatten.input[0]
        if top not in self.shapes:
            return
        rank = len(self.shapes[top])
        found = _Sum(rank, 1 if flatten is None else rank - 1)
        self._collect(top, found)
        done = [node.op_type for node in found.nodes] in (["Conv"], ["Gemm"])
        if not found.products or done or (flatten is not None and (found.others or len(found.products) > 1)):
            return
        self.graph.remove([*found.nodes, *([] if flatten is None else [flatten])])
        terms = found.others
        for products in found.products.values():
            last = not terms and len(found.products) == 1
            output = z if last else self.graph.fresh(f"{z}_product")
            self._write(products, found.bias, output, flatten is not None)
            terms, found.bias = [output, *terms], []
        for k, term in enumerate(terms[1:], 2):
            output = z if k == len(terms) else self.graph.fresh(f"{z}_sum")
            self.graph.node("Add", [terms[0], term], [output])
            terms[0] = output

    def _flatten(self, z: str) -> onnx.NodeProto | None:
        """The Reshape to [rows, channels] that makes ``z`` of a value with more axes."""
        node = self.graph.producer(z, "Reshape")
        if node is None or not self._is_ours(z):
            return None
        before, after = self.shapes.get(node.input[0], ()), self.shapes.get(z, ())
        return node if len(before) > 2 == len(after) and before[-1] == after[-1] else None

    def _is_ours(self, value: str) -> bool:
        """Whether only the sum reads ``value``."""
        return value not in self.graph.outputs and len(self.graph.consumers(value)) == 1

    def _collect(self, value: str, found: _Sum) -> None:
        """Sort the terms of ``value`` into ``found``."""
        constant = self.graph.constant(value)
        bias = None if constant is None else _per_channel(constant, found)
        if bias is not None:
            found.bias.append(bias)
            return
        node = self.graph.producer(value, "Add", "Conv", "Gemm", "MatMul")
        if node is None or not self._is_ours(value):
            found.others.append(value)
        elif node.op_type == "Add" and self._is_plain(node):
            found.nodes.append(node)
            for term in node.input:
                self._collect(term, found)
        else:
            self._collect_product(node, found)

    def _is_plain(self, node: onnx.NodeProto) -> bool:
        """No varying term of the Add broadcasts."""
        varying = [name for name in node.input if self.graph.constant(name) is None]
        return all(self.shapes.get(name) == self.shapes[node.output[0]] for name in varying)

    def _collect_product(self, node: onnx.NodeProto, found: _Sum) -> None:
        kind: object
        shape = self.shapes.get(node.input[0], ())
        weight = self.graph.constant(node.input[1])
        bias = self.graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        if node.op_type == "Conv":
            fits = attribute(node, "group", 1) == 1 and len(shape) == found.rank
            kind = (*_geometry(node), shape[:1], shape[2:], weight is not None and weight.shape[2:])
            vector = bias
        else:
            fits = weight is not None and weight.ndim == 2 and len(shape) == found.rank == found.axis + 1
            fits = fits and not attribute(node, "transA", 0)
            kind = ("Gemm", shape[:-1])
            if fits and weight is not None:
                if node.op_type == "MatMul" or not attribute(node, "transB", 0):
                    weight = weight.T
                weight = weight * weight.dtype.type(attribute(node, "alpha", 1.0))
            vector = None if bias is None else _per_channel(bias * attribute(node, "beta", 1.0), found)
        if not fits or weight is None or vector is None:
            found.others.append(node.output[0])
            return
        found.nodes.append(node)
        found.products.setdefault(kind, []).append(_Product(node.input[0], weight, node))
        if vector.any():
            found.bias.append(vector)

    def _write(self, products: list[_Product], bias: list[Array], output: str, flatten: bool) -> None:
        """One product of the concatenated values with the weights side by side."""
        graph = self.graph
        products = sorted(products, key=lambda product: product.value in self.states)
        node = products[0].node
        value = products[0].value
        conv = node.op_type == "Conv"
        if len(products) > 1:
            axis = 1 if conv else len(self.shapes[value]) - 1
            value = graph.value("Concat", [p.value for p in products], f"{output}_inputs", axis=axis)
        weight = np.concatenate([p.weight for p in products], 1)
        if flatten:
            target = graph.weight(np.array([-1, weight.shape[1]]), f"{value}_shape")
            value = graph.value("Reshape", [value, target], f"{value}_rows")
        inputs = [value, graph.weight(weight, f"{output}_weight")]
        if bias:
            total = sum(np.broadcast_to(b, weight.shape[:1]).astype(np.float64) for b in bias)
            inputs.append(graph.weight(np.asarray(total).astype(weight.dtype), f"{output}_bias"))
        if conv:
            new = graph.node("Conv", inputs, [output])
            new.attribute.extend(node.attribute)
        else:
            if len(inputs) == 2 and graph.opset < 11:  # C may be left out since
                inputs.append(graph.weight(np.zeros(1, weight.dtype), f"{output}_bias"))
            graph.node("Gemm", inputs, [output], transB=1)


def _per_channel(value: Array, found: _Sum) -> Array | None:
    """A constant of the sum as a vector over the channels, or of one element; None if it varies on other axes."""
    if value.size == 1:
        return value.reshape(-1)
    axis = found.axis - found.rank
    if value.ndim < -axis or value.shape[axis] != value.size:
        return None
    return value.reshape(-1)


def _geometry(node: onnx.NodeProto) -> tuple[object, ...]:
    kept = [a for a in node.attribute if a.name not in ("kernel_shape", "group")]
    return tuple(sorted((a.name, str(helper.get_attribute_value(a))) for a in kept))
