"""Which operator, if any, lets the streams of a step graph see each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import helper

from edgelstm.graph.gates import is_fused_gates
from edgelstm.graph.step import StepModel, value_shape
from edgelstm.passes.batching import Shape
from edgelstm.passes.graph import Array, Graph, node_inputs
from edgelstm.passes.marks import Marked, Visit
from edgelstm.passes.one_stream import evaluated
from edgelstm.passes.shapes import element_types, shapes_of
from edgelstm.passes.stream_marks import rule_of

#: Streams that are followed where the graph takes any number.
STREAMS = 3
#: Elements up to which a constant's value is known: targets of a Reshape, limits of a Slice, indices.
MAX_VALUE = 1 << 16


@dataclass(frozen=True)
class Mixing:
    """An operator behind which the rows of an output are not those of the streams."""

    node: onnx.NodeProto
    tensor: str

    def __str__(self) -> str:
        name = f" {self.node.name!r}" if self.node.name else ""
        return f"{self.node.op_type}{name} (which makes {self.node.output[0]!r})"


def find_mixing(step: StepModel) -> Mixing | None:
    """The first operator that mixes streams, with the output or state output that shows it; None where none does.

    Every output of the Signature is to have in row n of axis 0 what depends on stream n alone. Each element of each value
    is followed from the graph's inputs on (``stream_marks``), for the graph's number of streams, or for three where it
    takes any. In doubt an operator counts as one that mixes.
    """
    axis = step.signature.stream_axis
    streams = axis if isinstance(axis, int) else STREAMS
    if streams == 1:
        return None
    return _Follow(_inlined(step), streams).found()


def _inlined(step: StepModel) -> StepModel:
    """All functions written out but FusedGates, which has a rule."""
    others = [
        (f.domain, f.name)
        for f in step.model.functions
        if not is_fused_gates(helper.make_node(f.name, [], [], domain=f.domain))
    ]
    if not others:
        return step
    return StepModel(onnx.inliner.inline_selected_functions(step.model, others), step.signature)


class _Follow:
    def __init__(self, step: StepModel, streams: int) -> None:
        self.step, self.streams = step, streams
        self.graph = Graph(step)
        self.shapes = shapes_of(step, streams)
        self.types = element_types(step)
        # More streams than bits: some share one, and what mixes all of them still shows.
        self.kind = np.uint8 if streams <= 8 else np.uint64
        self.bits = (np.uint64(1) << (np.arange(streams, dtype=np.uint64) % np.uint64(64))).astype(self.kind)
        self.known: dict[str, Marked] = {}

    def found(self) -> Mixing | None:
        s = self.step.signature
        for name, frame in ((t.name, t.frame_shape) for t in s.inputs):
            self._give(name, frame)
        for x in s.states:
            self._give(x.input, x.frame_shape)
        first: dict[int, bool] = {}
        nodes = list(self.step.model.graph.node)
        for node in nodes:
            self._visit(node)
            if any(not self._apart(n) for n in node.output if n):
                inputs = [n for n in node_inputs(node) if n]
                first[id(node)] = all(self._apart(n) for n in inputs)
        outputs = dict.fromkeys([*(t.name for t in s.outputs), *(x.output for x in s.states)])
        wrong = [name for name in outputs if not self._in_order(name)]
        if not wrong:
            return None
        # The graph's own nodes are copies of the model's: compare them by what they make.
        makers = {node.output[0]: node for node in self.graph.nodes}
        alive = self.graph.alive(wrong[:1])
        for node in nodes:
            if first.get(id(node)) and id(makers[node.output[0]]) in alive:
                return Mixing(node, wrong[0])
        maker = self.graph.producer(wrong[0])
        return Mixing(nodes[-1] if maker is None else maker, wrong[0])

    def _give(self, name: str, frame: tuple[int, ...]) -> None:
        shape = (self.streams, *frame)
        self.known[name] = Marked(shape, self.bits.reshape(-1, *[1] * len(frame)))

    def _item(self, name: str) -> Marked:
        item = self.known.get(name)
        if item is None:  # a weight
            tensor = self.graph.initializers.get(name)
            shape = None if tensor is None else tuple(tensor.dims)
            small = shape is not None and math.prod(shape) <= MAX_VALUE
            item = Marked(shape, self._none(shape), self.graph.constant(name) if small else None)
            self.known[name] = item
        return item

    def _none(self, shape: Shape | None) -> Array:
        return np.zeros([1] * len(shape or ()), self.kind)

    def _visit(self, node: onnx.NodeProto) -> None:
        inputs = tuple(self._item(name) if name else None for name in node.input)
        values = [None if i is None else i.value for i in inputs]
        if node.op_type == "Shape" and inputs[0] is not None and inputs[0].shape is not None:
            value = self._evaluated(node, {node.input[0]: np.broadcast_to(np.float32(0), inputs[0].shape)})
            self._keep(node, [value])
            return
        captured = [self._item(name) for name in node_inputs(node)[len([n for n in node.input if n]) :]]
        everything = [i for i in (*inputs, *captured) if i is not None]
        constant = not any(i.streams for i in everything)
        if constant and not captured and len(node.output) == 1:
            known = self.graph.constant(node.output[0])
            if known is None and all((v is None) == (i is None) for v, i in zip(values, inputs, strict=True)):
                known = self._evaluated(node, dict(zip(node.input, values, strict=True)))
            if known is not None and known.size <= MAX_VALUE:
                self._keep(node, [known])
                return
        shapes = [self.shapes.get(name) for name in node.output]
        if any(s is None for s, name in zip(shapes, node.output, strict=True) if name):
            shapes = self._inferred(node, inputs, shapes)
        if is_fused_gates(node) and inputs[1] is not None:
            shapes = [inputs[1].shape] * len(node.output)
        rule = None if captured or constant else rule_of(node)
        made: Any = None
        if rule is not None:
            try:
                made = rule(Visit(node, inputs, tuple(shapes), self.step.opset))
            except (ValueError, IndexError, AssertionError):  # shapes the operator can't have: it mixes
                made = None
        if made is None:
            bits = np.bitwise_or.reduce([i.streams for i in everything]) if everything else 0
            made = np.array(bits, self.kind)
        each = made if isinstance(made, list) else [made] * len(node.output)
        for name, shape, marks in zip(node.output, shapes, each, strict=False):
            if not name:
                continue
            if marks.ndim == 0 and shape:
                marks = marks.reshape([1] * len(shape))
            good = shape is not None and len(shape) == marks.ndim
            if good and shape is not None:
                good = all(m in (1, d) for m, d in zip(marks.shape, shape, strict=True))
            if not good:  # not what the rule took it for
                marks = np.bitwise_or.reduce(marks, axis=None).reshape([1] * len(shape or ()))
            self.known[name] = Marked(shape, marks)

    def _keep(self, node: onnx.NodeProto, values: list[Array | None]) -> None:
        for name, value in zip(node.output, values, strict=True):
            shape = self.shapes.get(name) if value is None else value.shape
            self.known[name] = Marked(shape, self._none(shape), value)

    def _evaluated(self, node: onnx.NodeProto, values: dict[str, Any]) -> Array | None:
        values.pop("", None)
        if node.op_type.startswith(("Random", "Bernoulli", "Multinomial")):
            return None
        if not values and node.op_type not in ("Range",):
            return None
        if (
            node.op_type == "ConstantOfShape"
            and math.prod(int(v) for v in next(iter(values.values()))) > MAX_VALUE
        ):
            return None
        if node.op_type == "Expand" and math.prod(int(v) for v in values[node.input[1]]) > MAX_VALUE:
            return None
        return evaluated(node, values, node.output[0], self.step.model)

    def _inferred(
        self, node: onnx.NodeProto, inputs: tuple[Marked | None, ...], shapes: list[Shape | None]
    ) -> list[Shape | None]:
        """Shapes of what a node makes, from those of what goes into it."""
        if any(i is not None and i.shape is None for i in inputs):
            return shapes
        given = {n: i for n, i in zip(node.input, inputs, strict=True) if i is not None}
        values = [
            helper.make_tensor_value_info(n, self.types.get(n, onnx.TensorProto.FLOAT), i.shape)
            for n, i in given.items()
        ]
        constants = [
            onnx.numpy_helper.from_array(i.value, n) for n, i in given.items() if i.value is not None
        ]
        outs = [onnx.ValueInfoProto(name=n) for n in node.output if n]
        graph = helper.make_graph([node], "one", values, outs, constants)
        model = helper.make_model(graph, opset_imports=self.step.model.opset_import)
        try:
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception:  # of no stable class: the shape is not known
            return shapes
        found = {v.name: value_shape(v) for v in (*model.graph.output, *model.graph.value_info)}
        return [
            s if s is not None else _sizes(found.get(n)) for s, n in zip(shapes, node.output, strict=True)
        ]

    # -- judging ------------------------------------------------------------------------------------------------------

    def _in_order(self, name: str) -> bool:
        """Whether row n of a graph output depends on stream n alone."""
        item = self._item(name)
        if not item.streams:
            return True
        if not item.shape or item.shape[0] != self.streams:
            return False
        rows = np.bitwise_or.reduce(item.marks, axis=tuple(range(1, item.marks.ndim)))
        return bool((rows & ~self.bits == 0).all())

    def _apart(self, name: str) -> bool:
        """Whether the streams lie one behind the other along some part of some axis, each by itself."""
        item = self._item(name)
        if not item.streams:
            return True
        return any(
            self._along(_rows_of(item.marks, axis)) for axis, size in enumerate(item.marks.shape) if size > 1
        )

    def _along(self, rows: Array) -> bool:
        """Whether marks [outer * streams * inner] hold the streams in order for one such split."""
        times, rest = divmod(rows.size, self.streams)
        if rest:
            return False
        for inner in (d for d in range(1, times + 1) if times % d == 0):
            blocks = rows.reshape(times // inner, self.streams, inner)
            if (blocks & ~self.bits[None, :, None] == 0).all():
                return True
        return False


def _rows_of(marks: Array, axis: int) -> Array:
    rows: Array = np.bitwise_or.reduce(marks, axis=tuple(k for k in range(marks.ndim) if k != axis))
    return rows


def _sizes(dims: list[Any] | None) -> Shape | None:
    if dims is None or not all(isinstance(d, int) for d in dims):
        return None
    return tuple(dims)
