"""inline_control_flow: If, Loop and Scan whose course is known before the first frame become the nodes they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgelstm.graph.step import StepModel
from edgelstm.passes.batching import ROWS, Shape
from edgelstm.passes.graph import Graph, attribute, constant_tensor, is_standard, renamed
from edgelstm.passes.shapes import infer_shapes
from edgelstm.passes.simplify import simplify

CONTROL_FLOW = ("If", "Loop", "Scan")
#: Loops that run more often stay: their body would be written out as often.
MAX_TRIPS = 64
_FOREVER = np.iinfo(np.int64).max
#: The identity that stands before what a loop carries, and its domain.
BEFORE, DOMAIN = "Before", "edgelstm.frontend"
_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.BFLOAT16,
)


def inline_control_flow(step: StepModel, *, witness: str | None = None) -> StepModel:
    """Guarantees: the same Signature, the same numbers, simplified, and no control flow whose course is constant.

    1. An If whose condition is constant becomes its branch.
    2. A Loop that runs a constant number of times (at most 64), or whose condition turns out constant each time, becomes
       its iterations one after the other; its scan outputs are what they gave, stacked.
    3. A Scan over an axis of known length, at most 64, likewise.

    witness: type of one node of the graph that only collects values. What a loop of a single iteration takes in and
        hands on to its next one, in floating point, becomes two more inputs of it: the value before, which is the
        result of an operator ``Before`` (an identity that nothing folds), and the value after.

    What was inlined may make further conditions constant, so it is simplified and looked at again until nothing moves.
    """
    while True:
        step = simplify(step)
        inlined = _round(step, witness)
        if inlined is None:
            return step
        step = inlined


def is_control_flow(node: onnx.NodeProto) -> bool:
    """Whether the node runs subgraphs."""
    return is_standard(node) and node.op_type in CONTROL_FLOW


def _round(step: StepModel, witness: str | None) -> StepModel | None:
    """Everything that is constant now, inlined once; None when there is nothing."""
    graph = Graph(step)
    found = [node for node in graph.nodes if is_control_flow(node)]
    if not found:
        return None
    inliner = _Inliner(graph, infer_shapes(step), witness)
    done = [node for node in found if inliner.inline(node)]
    if not done:
        return None
    graph.remove(done)
    return graph.finish([_before_function(graph.opset)] if witness else [])


class _Inliner:
    def __init__(self, graph: Graph, shapes: Mapping[str, Shape], witness: str | None) -> None:
        self.graph, self.shapes = graph, shapes
        self.witness = next((node for node in graph.nodes if node.op_type == witness), None)

    def inline(self, node: onnx.NodeProto) -> bool:
        """Write out what ``node`` does if that is known; the node itself has to be removed then."""
        match node.op_type:
            case "If":
                return self._if(node)
            case "Loop":
                return self._loop(node)
            case _:
                return self._scan(node)

    def _if(self, node: onnx.NodeProto) -> bool:
        condition = self.graph.scalar(node.input[0])
        if condition is None:
            return False
        branch = attribute(node, "then_branch" if condition else "else_branch")
        self._name(self._body(branch, []), node.output)
        return True

    def _loop(self, node: onnx.NodeProto) -> bool:
        """All iterations, or the first and a Loop of one less behind it where its condition is computed."""
        trips = self._constant(node.input[0], _FOREVER)
        condition = self._constant(node.input[1] if len(node.input) > 1 else "", 1)
        body = attribute(node, "body")
        state = list(node.input[2:])
        if condition == 0 or trips == 0:
            if not self._leave_out(node.output[len(state) :]):
                return False
            self._name(state, node.output)
            return True
        if trips is None or condition is None or MAX_TRIPS < trips <= _FOREVER - MAX_TRIPS:
            return False
        goes_on = trips <= MAX_TRIPS and _passes_on(body, self.graph)
        before = state = self._before(state, body.input[2:]) if trips == 1 else state
        scanned: list[list[str]] = [[] for _ in node.output[len(state) :]]
        for t in range(trips if goes_on else 1):
            number = self.graph.weight(np.array(t, np.int64), f"{node.output[0]}_iteration")
            true = self.graph.weight(np.array(True), f"{node.output[0]}_true")
            condition_out, *results = self._body(body, [number, true, *state])
            state = results[: len(state)]
            for values, value in zip(scanned, results[len(state) :], strict=True):
                values.append(self._unsqueeze(value, 0))
        if not goes_on and trips > 1:
            rest = self._rest(node, body, [condition_out, *state], trips - 1)
            state = rest[: len(state)]
            for values, value in zip(scanned, rest[len(state) :], strict=True):
                values.append(value)
        self._witnessed(before, state)
        stacks = [self.graph.value("Concat", values, "scanned", axis=0) for values in scanned]
        self._name([*state, *stacks], node.output)
        return True

    def _rest(self, node: onnx.NodeProto, body: onnx.GraphProto, inputs: list[str], trips: int) -> list[str]:
        """A Loop over the iterations after the first: its body counts on from one."""
        graph = self.graph
        following = onnx.GraphProto()
        following.CopyFrom(body)
        number, counted, one = (graph.fresh(f"{body.input[0].name}_{k}") for k in ("", "here", "one"))
        following.input[0].name = counted
        del following.node[:]
        following.initializer.append(numpy_helper.from_array(np.array(1, np.int64), one))
        following.node.append(helper.make_node("Add", [counted, one], [number]))
        here = {body.input[0].name: number}
        following.node.extend(renamed(n, lambda name: here.get(name, name), n.output) for n in body.node)
        left = graph.weight(np.array(trips, np.int64), f"{node.output[0]}_trips")
        outputs = [graph.fresh(name or "unused") for name in node.output]
        graph.node("Loop", [left, *inputs], outputs, body=following)
        return outputs

    def _scan(self, node: onnx.NodeProto) -> bool:
        body, count = attribute(node, "body"), attribute(node, "num_scan_inputs", 0)
        sequences = list(node.input[len(node.input) - count :])
        state = list(node.input[: len(node.input) - count])
        axes = attribute(node, "scan_input_axes", [0] * count)
        backwards = attribute(node, "scan_input_directions", [0] * count)
        lengths = {
            self.shapes[name][axis] if name in self.shapes else None
            for name, axis in zip(sequences, axes, strict=True)
        }
        length = lengths.pop() if len(lengths) == 1 else None
        if length is None or length == ROWS or not 0 < length <= MAX_TRIPS:
            return False
        outputs = len(body.output) - len(state)
        before = state = self._before(state, body.input) if length == 1 else state
        scanned: list[list[str]] = [[] for _ in range(outputs)]
        for t in range(length):
            slices = [
                self._at(name, length - 1 - t if back else t, axis)
                for name, axis, back in zip(sequences, axes, backwards, strict=True)
            ]
            results = self._body(body, [*state, *slices])
            state = results[: len(state)]
            for values, value in zip(scanned, results[len(state) :], strict=True):
                values.append(value)
        self._witnessed(before, state)
        out_axes = attribute(node, "scan_output_axes", [0] * outputs)
        reversed_ = attribute(node, "scan_output_directions", [0] * outputs)
        stacks = []
        for values, axis, back in zip(scanned, out_axes, reversed_, strict=True):
            parts = [self._unsqueeze(value, axis) for value in (values[::-1] if back else values)]
            stacks.append(self.graph.value("Concat", parts, "scanned", axis=axis))
        self._name([*state, *stacks], node.output)
        return True

    def _before(self, state: list[str], formals: Sequence[onnx.ValueInfoProto]) -> list[str]:
        """What goes into the only iteration, each value under a name that no other value has."""
        if self.witness is None:
            return state
        return [
            str(
                self.graph.node(BEFORE, [name], [self.graph.fresh(f"{v.name}_before")], domain=DOMAIN).output[
                    0
                ]
            )
            if v.type.tensor_type.elem_type in _FLOATS
            else name
            for name, v in zip(state, formals, strict=False)
        ]

    def _witnessed(self, before: list[str], after: list[str]) -> None:
        if self.witness is None:
            return
        for first, last in zip(before, after, strict=True):
            node = self.graph.producer(first)
            if node is not None and node.op_type == BEFORE:
                self.witness.input.extend([first, last])
        self.graph.nodes = self.graph.nodes  # who reads what has changed

    def _leave_out(self, empty: Sequence[str]) -> bool:
        """Take scan outputs of no iteration out of the stacks they go into; False where something else reads them.

        They are empty, and nothing says of which shape.
        """
        stacks = [node for name in empty for node in self.graph.consumers(name)]
        alone = set(self.graph.outputs) & set(empty)
        if alone or any(n.op_type != "Concat" or attribute(n, "axis") or len(n.input) < 2 for n in stacks):
            return False
        for node in stacks:
            node.input[:] = [name for name in node.input if name not in empty]
        self.graph.nodes = self.graph.nodes  # who reads what has changed
        return True

    # -- parts --------------------------------------------------------------------------------------------------------

    def _body(self, body: onnx.GraphProto, inputs: Sequence[str]) -> list[str]:
        """Write a copy of a subgraph's nodes, its inputs being ``inputs``; returns the names of its outputs."""
        graph = self.graph
        names = dict(zip((v.name for v in body.input), inputs, strict=False))
        for tensor in body.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = names[tensor.name] = graph.fresh(tensor.name)
            graph.initializers[copy.name] = copy
        for node in body.node:
            names.update((name, graph.fresh(name)) for name in node.output if name)
        new = [
            renamed(node, lambda name: names.get(name, name), [names.get(name, "") for name in node.output])
            for node in body.node
        ]
        graph.nodes = [*graph.nodes, *new]
        return [names.get(v.name, v.name) for v in body.output]

    def _name(self, values: Sequence[str], outputs: Sequence[str]) -> None:
        """Let the values be what the node's outputs were."""
        for value, output in zip(values, outputs, strict=False):
            if output:
                self.graph.node("Identity", [value], [output])

    def _constant(self, name: str, absent: int) -> int | None:
        if not name:
            return absent
        value = self.graph.scalar(name)
        constant = self.graph.constant(name)
        return None if value is None or constant is None else int(constant.reshape(-1)[0])

    def _unsqueeze(self, value: str, axis: int) -> str:
        if self.graph.opset < 13:
            return self.graph.value("Unsqueeze", [value], f"{value}_stacked", axes=[axis])
        axes = self.graph.weight(np.array([axis], np.int64), f"{value}_axis")
        return self.graph.value("Unsqueeze", [value, axes], f"{value}_stacked")

    def _at(self, value: str, place: int, axis: int) -> str:
        index = self.graph.weight(np.array(place, np.int64), f"{value}_place")
        return self.graph.value("Gather", [value, index], f"{value}_{place}", axis=axis)


def _passes_on(body: onnx.GraphProto, graph: Graph) -> bool:
    """Whether a Loop's body never ends it: its condition comes out as it went in, or as a constant that is true."""
    name, given = body.output[0].name, body.input[1].name
    producers = {output: node for node in body.node for output in node.output}
    constants = {t.name: t for t in body.initializer}
    while name in producers and producers[name].op_type in ("Identity", "Cast") and name != given:
        name = producers[name].input[0]
    if name == given:
        return True
    tensor = constants.get(name)
    if tensor is None and name in producers and producers[name].op_type == "Constant":
        tensor = constant_tensor(producers[name])
    value = graph.scalar(name) if tensor is None else numpy_helper.to_array(tensor).reshape(-1)[0]
    return bool(value)


def _before_function(opset: int) -> onnx.FunctionProto:
    body = [helper.make_node("Identity", ["before_x"], ["before_y"])]
    return helper.make_function(
        DOMAIN, BEFORE, ["before_x"], ["before_y"], body, [helper.make_opsetid("", opset)]
    )
