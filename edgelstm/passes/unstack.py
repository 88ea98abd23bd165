"""unstack: what a model keeps in one tensor with an axis for layers or for time is reached one by one."""

from __future__ import annotations

import onnx

from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph, attribute, is_standard, renamed
from edgelstm.passes.shapes import infer_shapes

#: Tensors of equal shape laid along a new axis: the axis, and the tensors. One Unsqueeze is a stack of one.
Stack = tuple[int, list[str]]

#: Operators that do the same to every element, or to every row, whatever axes stand before the last.
_ELEMENTWISE = frozenset(
    [
        "Abs",
        "Add",
        "Div",
        "Elu",
        "Exp",
        "HardSigmoid",
        "LeakyRelu",
        "Mul",
        "Neg",
        "Relu",
        "Sigmoid",
        "Sub",
        "Tanh",
    ]
)


def unstack(step: StepModel) -> StepModel:
    """Guarantees: the same Signature, the same numbers up to rounding, and no detour through a stack made in the step.

    1. What Gather, Slice, Split and Squeeze take out of a Concat of Unsqueezed values is that value itself: states
       stacked as [layers, N, ...] and taken apart again.
    2. Elementwise operators and a MatMul with weights work on a value itself instead of on the Unsqueezed one: a
       head that runs over a sequence of one frame.

    Stacks that anything else reads stay.
    """
    return _Unstack(step).run()


class _Unstack:
    """One walk through the nodes, in order, with the stacks known so far."""

    def __init__(self, step: StepModel) -> None:
        self.graph = Graph(step)
        self.ranks = {name: len(shape) for name, shape in infer_shapes(step).items()}
        self.stacks: dict[str, Stack] = {}

    def run(self) -> StepModel:
        graph = self.graph
        same: dict[str, str] = {}
        nodes: list[onnx.NodeProto] = []
        for node in graph.nodes:
            node = renamed(node, lambda name: same.get(name, name), node.output)
            part = self._part(node) if is_standard(node) else None
            if part is not None and node.output[0] in graph.outputs:
                node = onnx.helper.make_node("Identity", [part], [node.output[0]], node.name)
            elif part is not None:
                same[node.output[0]] = part
                continue
            nodes.append(node)
            if is_standard(node) and (inner := self._on_the_part(node)) is not None:
                nodes.append(inner)
        graph.nodes = nodes
        return graph.finish()

    def _part(self, node: onnx.NodeProto) -> str | None:
        """The value that ``node`` takes out of a stack; if it gives a stack itself, that is noted."""
        source = node.input[0] if node.input else ""
        result = node.output[0]
        if node.op_type == "Unsqueeze":
            axes = self._integers(node, 1, "axes")
            if axes is not None and len(axes) == 1:
                self.stacks[result] = (axes[0], [source])
            return None
        if node.op_type == "Concat":
            parts = [self.stacks[name] for name in node.input if name in self.stacks]
            axis = attribute(node, "axis")
            if len(parts) == len(node.input) and all(along == axis for along, _ in parts):
                self.stacks[result] = (axis, [value for _, values in parts for value in values])
            return None
        if source not in self.stacks:
            return None
        axis, values = self.stacks[source]
        match node.op_type:
            case "Identity":
                self.stacks[result] = (axis, values)
            case "Slice" if self._integers(node, 3, "axes") == [axis]:
                starts, ends = self._integers(node, 1, "starts"), self._integers(node, 2, "ends")
                steps = self._integers(node, 4, "steps") or [1]
                if starts and ends and steps == [1]:
                    self.stacks[result] = (axis, values[starts[0] : ends[0]])
            case "Split" if attribute(node, "axis", 0) == axis and len(node.output) == len(values):
                for name, value in zip(node.output, values, strict=True):
                    self.stacks[name] = (axis, [value])
            case "Squeeze" if self._integers(node, 1, "axes") == [axis] and len(values) == 1:
                return values[0]
            case "Gather" if attribute(node, "axis", 0) == axis:
                index = self.graph.constant(node.input[1])
                if index is not None and index.ndim == 0:
                    return values[int(index)]
        return None

    def _on_the_part(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The same operator on the only part of a stack, or on those of two stacks, instead of on the stack."""
        if node.op_type not in _ELEMENTWISE and node.op_type != "MatMul":
            return None
        inputs, axes, ranks = [], set(), set()
        for k, name in enumerate(node.input):
            axis, values = self.stacks.get(name, (-1, []))
            constant = self.graph.constant(name)
            if len(values) == 1:
                inputs.append(values[0])
                axes.add(axis)
                ranks.add(self.ranks.get(values[0], 0))
            elif constant is not None and constant.ndim <= (2 if node.op_type == "MatMul" and k == 1 else 1):
                inputs.append(name)
            else:
                return None
        # The axis must not be the last one, along which constants and products lie.
        if len(axes) != 1 or len(ranks) != 1 or not 0 <= min(axes) < min(ranks):
            return None
        inner = renamed(node, str, [self.graph.fresh(f"{node.output[0]}_part")])
        inner.input[:] = inputs
        self.ranks[inner.output[0]] = min(ranks)
        self.stacks[node.output[0]] = (min(axes), [inner.output[0]])
        return inner

    def _integers(self, node: onnx.NodeProto, position: int, name: str) -> list[int] | None:
        """Integers that older opsets hold in an attribute and newer ones in an input; None when not constant."""
        held = attribute(node, name)
        if held is None and len(node.input) > position and node.input[position]:
            value = self.graph.constant(node.input[position])
            held = None if value is None else value.reshape(-1)
        return None if held is None else [int(v) for v in held]
