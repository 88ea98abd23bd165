"""What the products of a graph multiply in, as TensorRT will: read from the graph, since it is strongly typed."""

from __future__ import annotations

from onnx import TensorProto

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph, is_standard
from edgelstm.passes.shapes import element_types

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_NAMES: dict[int | None, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}
_SCALED = ("QuantizeLinear", "DequantizeLinear")


def product_precisions(step: StepModel) -> tuple[str, ...]:
    """Precisions of the convolutions and matrix products, sorted: of fp32, fp16, bf16, int8, fp8."""
    graph, types = Graph(step), element_types(step)
    found = set()
    for node in graph.nodes:
        if node.op_type not in _PRODUCTS or not is_standard(node):
            continue
        codes = []
        for name in node.input[:2]:
            maker = graph.producer(name, "DequantizeLinear")
            codes.append(types.get(maker.input[0]) if maker is not None else None)
        # A product computes in codes only if both sides are codes.
        kind = codes[0] if codes[0] == codes[1] and codes[0] is not None else types.get(node.input[0])
        if kind in _NAMES:
            found.add(_NAMES[kind])
    return tuple(sorted(found))


def check_made_for_tensorrt(step: StepModel, where: str) -> None:
    """Raise EdgeLstmError for a graph that must not reach the builder.

    One quantised for ONNX Runtime has codes with zero points, which TensorRT refuses. A node of an unknown domain makes
    TensorRT for RTX abort.
    """
    graph, types = Graph(step), element_types(step)
    bodies = {(f.domain, f.name) for f in step.model.functions}
    for node in graph.nodes:
        if not is_standard(node) and (node.domain, node.op_type) not in bodies:
            raise EdgeLstmError(
                f"{where}: node {node.name or node.output[0]!r} has no body",
                found=f"{node.domain}.{node.op_type}, which only a plugin runs",
                expected="a step graph as edgelstm export writes it",
                hint="Build from that one; --gates plugin is how to ask for the plugin",
            )
        if node.op_type in _SCALED and is_standard(node):
            codes = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
            zero = graph.constant(node.input[2]) if len(node.input) > 2 else None
            if types.get(codes) == TensorProto.UINT8 or (
                zero is not None and zero.dtype.kind in "iu" and zero.any()
            ):
                raise EdgeLstmError(
                    f"{where} is quantised for ONNX Runtime",
                    found=f"{node.op_type} {node.name or node.output[0]!r} with a zero point",
                    expected="codes without zero points",
                    hint="Quantise the float model for TensorRT: edgelstm quantize --runtime tensorrt",
                )
