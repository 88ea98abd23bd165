"""The graph under reconstruction: products on codes, states stored as codes, gates that read codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from edgelstm.graph.gates import DOMAIN, GateVariant, is_fused_gates
from edgelstm.graph.signature import Quantization, StateSpec
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph, attribute, renamed
from edgelstm.passes.placement import REST
from edgelstm.passes.products import Product
from edgelstm.quantize.qdq.activations import Activations
from edgelstm.quantize.qdq.codes import CodeNodes, all_one, moves_only_ones
from edgelstm.quantize.qdq.plan import OutputCodes, Plan
from edgelstm.quantize.qdq.weights import Weights


class Rewriter:
    """Rewrites ``graph`` as ``plan`` says; :meth:`run` once."""

    def __init__(self, graph: Graph, plan: Plan, correct_bias: bool, learned: bool) -> None:
        self._graph = graph
        self._plan = plan
        self._stored = {s.input: s for s in graph.signature.states if self._is_stored(s)}
        self._nodes = CodeNodes(graph, plan.codes)
        self._activations = Activations(graph, plan, self._nodes, self._stored)
        self._weights = Weights(graph, plan, correct_bias, learned)
        self._functions: dict[str, onnx.FunctionProto] = {}

    def run(self) -> StepModel:
        """The quantised step."""
        graph = self._graph
        made = {p.output: p for p in self._plan.products}
        for node in list(graph.nodes):
            product = made.get(node.output[0]) if node.output else None
            if product is not None:
                self._rewrite(product, node)
        states = tuple(self._state(s) for s in graph.signature.states)
        graph.declare(replace(graph.signature, states=states))
        return graph.finish(self._functions.values())

    # -- products -------------------------------------------------------------------------------------------------

    def _rewrite(self, product: Product, node: onnx.NodeProto) -> None:
        graph, placement = self._graph, self._plan.placement[product.kind]
        if placement.output and self._plan.at_one_place(product):
            self._as_gemm(product, node)
            return
        two_rows = product.output in self._plan.two_rows
        activation = self._activations.read(product)
        readers = self._gates_reading(product.output)
        gates = len(GateVariant.of(readers[0].op_type).gates) if readers else 1
        output = self._plan.output(product, gates) if placement.output else None
        weight, bias = self._weights.folded(product, output)
        kept = bias if not placement.bias_apart else None
        raw = product.output
        if output is not None or two_rows or (placement.bias_apart and bias is not None):
            raw = graph.fresh(f"{product.output}/product")
        new = renamed(node, lambda name: name, [raw])
        del new.input[:]
        new.input.extend([activation, weight, *([kept] if kept is not None else [])])
        graph.nodes = [n for n in graph.nodes if n is not node] + [new]
        if output is not None:
            self._output(product.output, raw, output, readers)
        elif two_rows:
            self._sum_rows(raw, bias, product.output)
        elif raw != product.output:
            assert bias is not None
            graph.node("Add", [raw, bias], [product.output])
        if placement.bias_subtracted:
            self._subtract_bias(product.output)

    def _output(self, value: str, raw: str, output: OutputCodes, readers: list[onnx.NodeProto]) -> None:
        """A product's output as codes: gates read them as they are, all else what they are worth."""
        graph = self._graph
        codes = graph.fresh(f"{value}/q")
        one, zero = self._nodes.scalar(1.0), self._nodes.zero("uint8", 128)
        graph.node("QuantizeLinear", [raw, one, zero], [codes])
        if readers:
            self._read_coded(value, readers, codes, output)
        else:
            one = self._nodes.scalar(float(output.scale[0]))
            zero = self._nodes.zero("uint8", int(output.zero_point[0]))
            graph.node("DequantizeLinear", [codes, one, zero], [value])

    def _as_gemm(self, product: Product, node: onnx.NodeProto) -> None:
        """A convolution at one place as a Gemm, which needs no quantised output."""
        graph = self._graph
        weight, bias = self._weights.folded(product, None, flat=True)
        graph.nodes = [n for n in graph.nodes if n is not node]
        activation = self._activations.read(product, flat=True)
        made = graph.value("Gemm", [activation, weight], f"{product.output}/product", transB=1)
        if product.output in self._plan.two_rows:
            made = self._sum_rows(made, bias, graph.fresh(f"{product.output}/sum"))
        elif bias is not None:
            made = graph.value("Add", [made, bias], f"{product.output}/sum")
        output, ones = product.output, list(range(2, 2 + len(product.kernel)))
        readers = graph.consumers(output)
        if len(readers) == 1 and readers[0].op_type == "Transpose" and output not in graph.outputs:
            # Where the channels are moved to another axis at once, they are put there in the first place.
            shape = self._plan.found.shapes.get(readers[0].output[0])
            perm = attribute(readers[0], "perm")
            if moves_only_ones(perm, shape):
                ones = [place for place, axis in enumerate(perm) if axis > 1]
                output = readers[0].output[0]
                graph.remove(readers)
        axes = graph.weight(np.array(ones, np.int64), f"{product.output}/axes")
        graph.node("Unsqueeze", [made, axes], [output])

    def _sum_rows(self, raw: str, bias: str | None, output: str) -> str:
        """What a product made of two rows, as one: the first and :data:`REST` of the second, and the bias.

        A matrix of 1 x 2 times these rows is a single operator, the sum with the bias included.
        """
        worth = self._graph.weight(np.array([[1, REST]], np.float32), "worth_of_rows")
        operands = [worth, raw] if bias is None else [worth, raw, bias]
        self._graph.node("Gemm", operands, [output])
        return output

    def _subtract_bias(self, value: str) -> None:
        """Each Add of a constant to ``value`` becomes a Sub of what is as large the other way."""
        graph = self._graph
        for node in graph.consumers(value):
            other = [name for name in node.input if name != value]
            if node.op_type != "Add" or len(other) != 1 or (constant := graph.constant(other[0])) is None:
                continue
            graph.nodes = [n for n in graph.nodes if n is not node]
            graph.node("Sub", [value, graph.weight(-constant, f"{other[0]}/negative")], list(node.output))

    def _gates_reading(self, value: str) -> list[onnx.NodeProto]:
        """The FusedGates nodes that read ``value`` as pre-activations; none if anything else reads it."""
        readers = self._graph.consumers(value)
        plain = all(
            is_fused_gates(n) and list(n.input).count(value) == 1 and n.input[0] == value for n in readers
        )
        return readers if plain and value not in self._graph.outputs else []

    def _read_coded(self, value: str, readers: list[onnx.NodeProto], codes: str, output: OutputCodes) -> None:
        """Let the gates read ``value`` as codes, with scales and zero points."""
        graph = self._graph
        scale = graph.weight(output.scale.astype(np.float32), f"{value}/scale")
        zeros = graph.weight(output.zero_point.astype(np.uint8), f"{value}/zero_point")
        for node in readers:
            variant = replace(GateVariant.of(node.op_type), coded=True)
            graph.nodes = [n for n in graph.nodes if n is not node]
            inputs = [codes, *node.input[1:], scale, zeros]
            graph.node(variant.op_type, inputs, list(node.output), domain=DOMAIN)
            self._functions[variant.op_type] = variant.function(graph.opset)

    # -- states ---------------------------------------------------------------------------------------------------

    def _is_stored(self, state: StateSpec) -> bool:
        """Whether a state is kept as codes: a quantised product reads it, it is no cell state, and codes follow it."""
        if state.name in self._plan.unrounded:
            return False
        cells = [n for n in self._graph.nodes if is_fused_gates(n)]
        if any(state.input == n.input[1] or state.output == n.output[1] for n in cells):
            return False
        return self._plan.site(state.input) is not None

    def _state(self, state: StateSpec) -> StateSpec:
        """The state stored as codes, if a quantised product reads it; float readers get it dequantised."""
        site = self._plan.site(state.input)
        if state.input not in self._stored or site is None:
            return state
        graph, activations = self._graph, self._activations
        scale = self._plan.scales[site.name]
        output = activations.quantized(state.output, scale, site)
        readers = [n for n in graph.consumers(state.input) if not activations.is_ours(n)]
        if readers:
            value = activations.worth(state.input, scale, site)
            gone = {id(n) for n in readers}
            kept = [n for n in graph.nodes if id(n) not in gone]
            swap = [
                renamed(n, lambda name: value if name == state.input else name, list(n.output))
                for n in readers
            ]
            graph.nodes = [*kept, *swap]
        codes = self._plan.codes
        worth = Quantization(
            tuple(np.float32(s).item() for s in (scale[:1] if all_one(scale / scale[0]) else scale)),
            codes.zero_point,
        )
        stored = replace(state, output=output, dtype=codes.dtype, initial=None, quantization=worth)
        start = stored.stored(state.initial_value())
        return replace(stored, initial=start.tobytes() if start.any() else None)
