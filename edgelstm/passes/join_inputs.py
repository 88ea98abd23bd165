"""join_inputs: the input's and the hidden state's product of a cell become one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from edgelstm.gates import is_fused_gates
from edgelstm.passes.graph import Array, Graph, attribute
from edgelstm.passes.shapes import infer_shapes
from edgelstm.step import StepModel


@dataclass(frozen=True)
class Product:
    """One term of a pre-activation: weights times a value.

    weight: [outputs, inputs] of a Gemm or MatMul, [outputs, inputs, *kernel] of a Conv. settings: what a Conv's
    terms must have in common (pads, strides, dilations); None for Gemm and MatMul.
    """

    value: str
    weight: Array
    settings: tuple[object, ...] | None


def join_inputs(step: StepModel) -> StepModel:
    """Guarantees: the same numbers up to rounding, and one product for each cell where several were added.

    W_x·x + W_h·h + b in front of a FusedGates becomes [W_x | W_h]·[x ; h] + b: one convolution, or one Gemm, whose
    weights are read in one go. Terms are

    1. Conv without groups, added to other Conv of the same kernel, pads, strides and dilations;
    2. Gemm (alpha = beta = 1) and MatMul with constant weights on the right, on values [N, features];
    3. constants that are the same for all positions: they go into the bias.

    A sum with any other term stays as it is, and so does one that something else reads. Two terms of the same value
    share one slot: their weights are added.
    """
    graph = Graph(step)
    ranks = {name: len(shape) for name, shape in infer_shapes(step).items()}
    for node in [n for n in graph.nodes if is_fused_gates(n)]:
        _join(graph, node.input[0], ranks)
    return graph.finish()


def _join(graph: Graph, z: str, ranks: dict[str, int]) -> None:
    if graph.producer(z, "Add", "Gemm") is None:
        return
    products: list[Product] = []
    biases: list[Array] = []
    for term in _terms(graph, z):
        if isinstance(term, Product):
            products.append(term)
        elif term is None:
            return
        else:
            biases.append(term)
    if len(products) < 2 or any(p.settings != products[0].settings for p in products):
        return
    convolution = products[0].settings is not None
    if len({p.weight.shape[0] for p in products}) > 1 or len({p.weight.shape[2:] for p in products}) > 1:
        return
    if not convolution and any(ranks.get(p.value) != 2 for p in products):
        return
    outputs = products[0].weight.shape[0]
    flat = [_flat(b, outputs, products[0].weight.ndim if convolution else 2) for b in biases]
    if any(b is None for b in flat):
        return
    slots: dict[str, Array] = {}
    for product in products:
        before = slots.get(product.value)
        slots[product.value] = product.weight if before is None else before + product.weight
    weight = np.concatenate(list(slots.values()), axis=1)
    inputs = [next(iter(slots)), graph.weight(weight, f"{z}_weight")]
    if len(slots) > 1:
        inputs[0] = graph.value("Concat", list(slots), f"{z}_inputs", axis=1)
    bias = sum((b for b in flat if b is not None), np.zeros(outputs, weight.dtype))
    inputs.append(graph.weight(bias.astype(weight.dtype), f"{z}_bias"))
    last = graph.producer(z)
    assert last is not None
    graph.remove([last])
    if convolution:
        pads, strides, dilations = products[0].settings or ()
        graph.node(
            "Conv",
            inputs,
            [z],
            kernel_shape=weight.shape[2:],
            pads=pads,
            strides=strides,
            dilations=dilations,
        )
    else:
        graph.node("Gemm", inputs, [z], transB=1)


def _terms(graph: Graph, name: str) -> Iterator[Product | Array | None]:
    """The terms whose sum ``name`` is: products, constants, and None for anything else."""
    constant = graph.constant(name)
    if constant is not None:
        yield constant
        return
    node = graph.producer(name, "Add", "Conv", "Gemm", "MatMul")
    if node is None or len(graph.consumers(name)) > 1 or name in graph.outputs:
        yield None
    elif node.op_type == "Add":
        yield from _terms(graph, node.input[0])
        yield from _terms(graph, node.input[1])
    else:
        product = _product(graph, node)
        yield product
        if product is not None and len(node.input) > 2 and node.input[2]:
            if node.op_type == "Conv":
                bias = graph.constant(node.input[2])
                yield None if bias is None else bias.reshape(-1, *(1,) * (product.weight.ndim - 2))
            else:
                # The third input of a Gemm is a term like any other; exporters put a second product there.
                yield from _terms(graph, node.input[2])


def _product(graph: Graph, node: onnx.NodeProto) -> Product | None:
    weight = graph.constant(node.input[1])
    if weight is None:
        return None
    if node.op_type == "Conv":
        rank = weight.ndim - 2
        if attribute(node, "group", 1) != 1 or attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
            return None
        settings = (
            tuple(attribute(node, "pads", [0] * 2 * rank)),
            tuple(attribute(node, "strides", [1] * rank)),
            tuple(attribute(node, "dilations", [1] * rank)),
        )
        return Product(node.input[0], weight, settings)
    if weight.ndim != 2:
        return None
    if node.op_type == "MatMul":
        return Product(node.input[0], weight.T, None)
    if attribute(node, "transA", 0) or (attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)) != (
        1.0,
        1.0,
    ):
        return None
    return Product(node.input[0], weight if attribute(node, "transB", 0) else weight.T, None)


def _flat(bias: Array, outputs: int, rank: int) -> Array | None:
    """A constant term [outputs]; None unless it is the same for all streams and positions."""
    shape = (1,) * (rank - bias.ndim) + bias.shape
    if len(shape) != rank or shape[1] not in (1, outputs) or any(d != 1 for d in (shape[0], *shape[2:])):
        return None
    return np.broadcast_to(bias.reshape(shape[1]), (outputs,))
