"""precision: weights, activations and states in 16 bits; gate arithmetic and cell states in float32."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgelstm.dtypes import LARGEST, from_float32
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import is_fused_gates
from edgelstm.graph.signature import StateSpec
from edgelstm.graph.step import StepModel, onnx_dtype
from edgelstm.passes.graph import Graph, is_standard, renamed
from edgelstm.passes.placement import Target
from edgelstm.passes.products import find_products
from edgelstm.passes.shapes import element_types
from edgelstm.quantize.qdq import at_opset

Half = Literal["fp16", "bf16"]

_DTYPE = {"fp16": "float16", "bf16": "bfloat16"}
#: Opsets in which the operators take the type: Q/DQ with fp16 scales, convolutions in bf16.
_OPSET = {"fp16": 19, "bf16": 22}
#: Operators that lose nothing of note in 16 bits: products accumulate in float32, the others move or compare values.
HALF = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Add",
        "Sub",
        "Mul",
        "Neg",
        "Concat",
        "Split",
        "Slice",
        "Gather",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Expand",
        "Tile",
        "Pad",
        "DepthToSpace",
        "SpaceToDepth",
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Clip",
        "Min",
        "Max",
        "MaxPool",
        "AveragePool",
        "GlobalMaxPool",
        "Sigmoid",
        "HardSigmoid",
        "Tanh",
        "Identity",
        "DequantizeLinear",
    ]
)
#: Inputs that stay what they are: (operator, place).
_FIXED = {("Gather", 1), ("Slice", 1), ("Pad", 1), ("Reshape", 1), ("Expand", 1), ("Tile", 1)}
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def to_half(
    step: StepModel,
    precision: Half,
    target: Target = "tensorrt",
    *,
    cell_state: str = "fp32",
    keep: Collection[str] = (),
    float_states: Collection[str] = (),
) -> StepModel:
    """Guarantees: the same inputs, outputs and states by name; inputs and outputs in float32.

    target "tensorrt": products and what lies between them run in ``precision``; FusedGates, everything a cell state
    passes through, and operators not in :data:`HALF` run in float32, one Cast a value between the two. "onnxruntime",
    whose CPU has no 16-bit arithmetic: weights and states are stored in ``precision``, arithmetic is float32.
    The states that products read cross the graph's border in ``precision``; all others (cell states, and tensors that
    hold more than one state) stay float32 unless ``cell_state`` is ``precision`` too, which then is how they are stored.
    keep: names of weights whose products stay in float32. float_states: states that stay in float32 though products read
    them, with all they pass through but the products: such as grow, or move by less than 16 bits resolve.

    Raises EdgeLstmError for a weight that has no value in fp16, and for a cell state in another type.
    """
    if precision not in _DTYPE:
        raise EdgeLstmError("precision in 16 bits", found=precision, expected="fp16 or bf16")
    if cell_state not in ("fp32", precision):
        raise EdgeLstmError("type of the cell state", found=cell_state, expected=f"fp32 or {precision}")
    if target == "tensorrt":
        step = at_opset(step, _OPSET[precision])
    return _Halves(step, precision, target, cell_state == precision, keep, float_states).run()


class _Halves:
    """The graph while its float32 values are divided between two types."""

    def __init__(
        self,
        step: StepModel,
        precision: Half,
        target: Target,
        cells: bool,
        keep: Collection[str],
        float_states: Collection[str],
    ) -> None:
        self._dtype = _DTYPE[precision]
        self._elem = onnx_dtype(self._dtype)
        self._graph = graph = Graph(step)
        self._types = element_types(step)
        self._made: dict[tuple[str, int], str] = {}
        found = find_products(step)
        read = {state for site in found.sites.values() for state in site.states}
        floats = [s for s in step.signature.states if s.dtype == "float32"]
        self._halved = {s.name for s in floats if (s.name in read or cells) and s.name not in float_states}
        cell = [s for s in floats if s.name not in read or s.name in float_states]
        self._half: set[int] = set()
        self._stored: dict[str, None] = {}
        self._casts: list[onnx.NodeProto] = []
        if target == "tensorrt":
            barred = self._path_of(cell) | {
                id(n) for n in graph.nodes if n.op_type in _PRODUCTS and _weight(graph, n) in keep
            }
            self._half = {
                id(n)
                for n in graph.nodes
                if is_standard(n) and n.op_type in HALF and id(n) not in barred and self._is_float(n)
            }
            self._leave_out_detours()
            self._match_scales()
        else:
            weights = [w for p in found.products if p.weight not in keep for w in (p.weight, p.bias) if w]
            self._stored = dict.fromkeys(weights)

    def run(self) -> StepModel:
        graph, signature = self._graph, self._graph.signature
        typed = {s.input: s for s in signature.states if s.name in self._halved}
        #: Element type of each float value as the graph now has it.
        now: dict[str, int] = {v: TensorProto.FLOAT for v, t in self._types.items() if t == TensorProto.FLOAT}
        now |= dict.fromkeys(typed, self._elem)
        for node in graph.nodes:
            if id(node) in self._half:
                now |= dict.fromkeys((o for o in node.output if o in now), self._elem)
        if not self._half:
            now |= self._store_weights()
        nodes = []
        for node in list(graph.nodes):
            wanted = self._elem if id(node) in self._half else TensorProto.FLOAT
            inputs = [
                self._as(name, now, wanted)
                if name in now and node.op_type != "Cast" and (node.op_type, place) not in _FIXED
                else name
                for place, name in enumerate(node.input)
            ]
            new = renamed(node, lambda name: name, list(node.output))
            new.input[:] = inputs
            nodes.append(new)
        graph.nodes = [*nodes, *self._casts]
        states = tuple(self._state(s, now) for s in signature.states)
        outputs = [t.name for t in signature.outputs if now.get(t.name) == self._elem]
        for name in outputs:
            inner = graph.fresh(f"{name}/{self._dtype}")
            graph.rename(name, inner)
            states = tuple(
                replace(s, output=inner) if s.output == name and s.name in self._halved else s for s in states
            )
            graph.node("Cast", [inner], [name], to=TensorProto.FLOAT)
        graph.declare(replace(signature, states=states))
        return graph.finish()

    def _as(self, name: str, now: Mapping[str, int], wanted: int) -> str:
        """``name`` in the type ``wanted``: weights anew, everything else through one Cast."""
        if now[name] == wanted:
            return name
        key = (name, wanted)
        if key not in self._made:
            tensor = self._graph.initializers.get(name)
            label = self._dtype if wanted == self._elem else "float32"
            made = self._graph.fresh(f"{name}/{label}")
            if tensor is not None and wanted == self._elem:
                self._graph.initializers[made] = self._converted(tensor, made)
            else:
                self._casts.append(helper.make_node("Cast", [name], [made], to=wanted))
            self._made[key] = made
        return self._made[key]

    def _converted(self, tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
        value = numpy_helper.to_array(tensor)
        largest = float(np.abs(value).max(initial=0))
        if largest > LARGEST[self._dtype]:
            raise EdgeLstmError(
                f"weight {tensor.name!r} has no value in {self._dtype}",
                found=f"{largest:g}",
                expected=f"at most {LARGEST[self._dtype]:g}",
                hint="Use bf16, or keep this weight in float32",
            )
        raw = from_float32(value, self._dtype)
        return helper.make_tensor(name, self._elem, value.shape, raw.tobytes(), raw=True)

    def _store_weights(self) -> dict[str, int]:
        """Weights in 16 bits under their own names; nodes that read them get them through a Cast."""
        for name in self._stored:
            tensor = self._graph.initializers[name]
            self._graph.initializers[name] = self._converted(tensor, name)
        return dict.fromkeys(self._stored, self._elem)

    def _state(self, state: StateSpec, now: Mapping[str, int]) -> StateSpec:
        if state.name not in self._halved:
            if now.get(state.output) == self._elem:
                output = self._graph.fresh(f"{state.output}/float32")
                self._graph.node("Cast", [state.output], [output], to=TensorProto.FLOAT)
                return replace(state, output=output)
            return state
        output = state.output
        if now.get(output) != self._elem:
            output = self._graph.fresh(f"{output}/{self._dtype}")
            self._graph.node("Cast", [state.output], [output], to=self._elem)
        initial = from_float32(state.initial_value(), self._dtype)
        return replace(
            state, output=output, dtype=self._dtype, initial=initial.tobytes() if initial.any() else None
        )

    def _leave_out_detours(self) -> None:
        """Nodes between float32 and float32 (such as the scaling before a QuantizeLinear) need not leave it."""
        graph, done = self._graph, False
        while not done:
            makers = [(n, [graph.producer(i) for i in n.input]) for n in graph.nodes]
            detours = {
                id(n)
                for n, before in makers
                if id(n) in self._half
                and n.op_type not in (*_PRODUCTS, "DequantizeLinear")
                and all(b is None or id(b) not in self._half for b in before)
                and all(id(c) not in self._half for o in n.output for c in graph.consumers(o))
            }
            self._half -= detours
            done = not detours

    def _match_scales(self) -> None:
        """What a quantised product reads is dequantised in the product's own type: TensorRT refuses a mixture."""
        for node in self._graph.nodes:
            if node.op_type in _PRODUCTS and is_standard(node):
                for name in node.input[:2]:
                    maker = self._graph.producer(name, "DequantizeLinear")
                    if maker is not None and id(node) in self._half:
                        self._half.add(id(maker))
                    elif maker is not None:
                        self._half.discard(id(maker))

    def _is_float(self, node: onnx.NodeProto) -> bool:
        return any(self._types.get(o) == TensorProto.FLOAT for o in node.output)

    def _path_of(self, cells: Iterable[StateSpec]) -> set[int]:
        """Nodes that a cell state passes through on its way to the next step, or to the next product, and back."""
        graph, found = self._graph, set()
        waiting = [n for s in cells for n in graph.consumers(s.input)]
        while waiting:
            node = waiting.pop()
            if id(node) not in found and node.op_type not in _PRODUCTS:
                found.add(id(node))
                waiting += (
                    [n for o in node.output for n in graph.consumers(o)] if not is_fused_gates(node) else []
                )
        behind = [graph.producer(s.output) for s in cells]
        seen: set[int] = set()
        while behind:
            maker = behind.pop()
            if maker is not None and id(maker) not in seen and maker.op_type not in _PRODUCTS:
                seen.add(id(maker))
                behind += [graph.producer(i) for i in maker.input] if not is_fused_gates(maker) else []
        return found | seen


def _weight(graph: Graph, node: onnx.NodeProto) -> Any:
    """The weight of a product, behind its DequantizeLinear if it has one."""
    name = node.input[1]
    maker = graph.producer(name, "DequantizeLinear")
    return name if maker is None else maker.input[0]
