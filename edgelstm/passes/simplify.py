"""simplify: what an exporter left behind goes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.reference
import onnx.shape_inference
from onnx import helper, numpy_helper

from edgelstm.graph.step import StepModel
from edgelstm.passes.batching import ROWS, Shape
from edgelstm.passes.drawn import RANDOM
from edgelstm.passes.graph import Array, Graph, attribute, constant_tensor, is_standard, renamed, subgraphs
from edgelstm.passes.no_ops import Facts, same_as
from edgelstm.passes.shapes import infer_shapes, shapes_of

#: A folded result may have this many elements, or as many as went in: a Transpose of weights folds, a number spread
#: over a picture does not.
MAX_GROWTH = 1 << 16
#: Shape arithmetic is worked out for each of these stream counts; what comes out the same each time is constant.
_COUNTS = (1, 6007, 7919)
#: Their result is not fixed by their inputs, or they say where a target shall compute in few bits.
_NEVER_FOLDED = {
    *RANDOM,
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
}
#: What exporters compute shapes with; the result is never much larger than what went in.
_SHAPE_ARITHMETIC = {
    *("Abs", "Add", "Ceil", "Div", "Floor", "Max", "Min", "Mod", "Mul", "Neg", "Sub"),
    *("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Where"),
    *("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Cast", "CastLike", "Identity"),
    *("Concat", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"),
}


def simplify(step: StepModel) -> StepModel:
    """Guarantees: the same Signature, the same numbers, and no node whose result is constant or one of its inputs.

    Constants are folded and each is stored once, as an initializer. Shape arithmetic on fixed dimensions goes;
    where only the number of streams is open, Reshape and Expand get a constant target with -1 or 1 in its place.
    Identity, Dropout, Cast, Reshape, Transpose, Slice, Pad and the like that change nothing go, dead code goes, and
    so do the exporter's notes on nodes (which hold paths of source files). Q/DQ and random operators are left alone.
    """
    while True:
        simpler = _Round(step).run()
        if _nodes(simpler) == _nodes(step):
            return simpler
        step = simpler


def _nodes(step: StepModel) -> list[bytes]:
    return [node.SerializeToString(deterministic=True) for node in step.model.graph.node]


class _Round:
    """One walk through the nodes, in order, with what is known of the values so far."""

    def __init__(self, step: StepModel) -> None:
        self.step = step
        self.graph = Graph(step)
        self.facts = Facts(self.graph, infer_shapes(step), _element_types(step))
        axis = step.signature.stream_axis
        self.counts = (axis,) if isinstance(axis, int) else _COUNTS
        #: Results of shape arithmetic, one for each count.
        self.by_count: dict[str, tuple[Array, ...]] = {}
        self._exact: list[dict[str, Shape]] = []

    def run(self) -> StepModel:
        graph = self.graph
        alias: dict[str, str] = {}
        kept = []
        for original in graph.nodes:
            node = renamed(original, lambda name: alias.get(name, name), original.output)
            node.doc_string = ""
            del node.metadata_props[:]
            if self._fold(node):
                continue
            same = same_as(node, self.facts)
            if same is None:
                kept.append(self._with_fixed_target(node))
            elif node.output[0] in graph.outputs:
                kept.append(helper.make_node("Identity", [same], [node.output[0]], node.name))
            else:
                alias[node.output[0]] = alias.get(same, same)
        graph.nodes = kept
        _share_equal_weights(graph)
        _write_outputs_directly(graph)
        return graph.finish()

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Turn the node's outputs into initializers if they are constant."""
        if not is_standard(node) or not set(self.graph.outputs).isdisjoint(node.output):
            return False
        if node.op_type == "Constant":
            tensors = [constant_tensor(node)]
        else:
            values = self._of_constants(node) or self._of_shapes(node) or []
            tensors = [numpy_helper.from_array(np.asarray(value)) for value in values]
        for name, tensor in zip(node.output, tensors, strict=False):
            if name and tensor is not None:
                tensor.name = name
                self.graph.initializers[name] = tensor
        return tensors not in ([], [None])

    def _of_constants(self, node: onnx.NodeProto) -> list[Array] | None:
        if node.op_type in _NEVER_FOLDED or subgraphs(node):
            return None
        inputs = {}
        for name in filter(None, node.input):
            value = self.graph.constant(name)
            if value is None:
                return None
            inputs[name] = value
        limit = max(MAX_GROWTH, sum(value.size for value in inputs.values()))
        shapes = [self.facts.shapes.get(name) for name in node.output if name]
        if any(shape is None or math.prod(shape) > limit for shape in shapes):
            return None
        return self._evaluate(node, inputs)

    def _of_shapes(self, node: onnx.NodeProto) -> list[Array] | None:
        """The result of shape arithmetic if it does not depend on the number of streams."""
        results = self._for_each_count(node)
        if results is None:
            return None
        for k, name in enumerate(node.output):
            self.by_count[name] = tuple(result[k] for result in results)
        first = results[0]
        same = all(np.array_equal(a, b) for other in results for a, b in zip(first, other, strict=True))
        return first if same else None

    def _for_each_count(self, node: onnx.NodeProto) -> list[list[Array]] | None:
        if node.op_type in ("Shape", "Size"):
            shapes = self._shapes_for_each_count(node.input[0])
            if shapes is None:
                return None
            sizes = [np.array(shape, np.int64) for shape in shapes]
            if node.op_type == "Size":
                return [[np.array(s.prod())] for s in sizes]
            return [[s[attribute(node, "start", 0) : attribute(node, "end")]] for s in sizes]
        names = [name for name in node.input if name]
        if node.op_type not in _SHAPE_ARITHMETIC or self.by_count.keys().isdisjoint(names):
            return None
        results = []
        for k in range(len(self.counts)):
            inputs = {}
            for name in names:
                value = self.by_count[name][k] if name in self.by_count else self.graph.constant(name)
                if value is None or value.size > MAX_GROWTH:
                    return None
                inputs[name] = value
            result = self._evaluate(node, inputs)
            if result is None:
                return None
            results.append(result)
        return results

    def _shapes_for_each_count(self, value: str) -> list[Shape] | None:
        shape = self.facts.shapes.get(value)
        if shape is not None:
            return [tuple(count if d == ROWS else d for d in shape) for count in self.counts]
        # The streams may lie on another axis, or be folded into one.
        if not self._exact:
            self._exact = [shapes_of(self.step, count) for count in self.counts]
        found = [shapes[value] for shapes in self._exact if value in shapes]
        return found if len(found) == len(self.counts) else None

    def _evaluate(self, node: onnx.NodeProto, inputs: Mapping[str, Array]) -> list[Array] | None:
        """Run one node in NumPy; None where ONNX's reference does not know it."""
        ins = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
        ]
        outs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "fold", ins, outs)
        model = helper.make_model(graph, opset_imports=self.graph.model.opset_import)
        try:
            values = iter(onnx.reference.ReferenceEvaluator(model).run(None, dict(inputs)))
        except Exception:  # of no stable class, and not an error: the node stays
            return None
        return [np.asarray(next(values)) if name else np.empty(0) for name in node.output]

    def _with_fixed_target(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """Reshape and Expand to a shape of which only the number of streams is open: a constant target."""
        if node.op_type not in ("Reshape", "Expand") or not is_standard(node) or len(node.input) < 2:
            return node
        shapes = self.facts.shapes
        shape, source = shapes.get(node.output[0]), shapes.get(node.input[0])
        if self.graph.constant(node.input[1]) is not None or not shape or 0 in shape:
            return node
        open_size = -1
        if node.op_type == "Expand":
            if shape[0] == ROWS and (source is None or len(source) < len(shape) or source[0] != ROWS):
                return node  # spread over as many streams as there are: the count must be asked for
            open_size = 1
        target = [open_size if size == ROWS else size for size in shape]
        name = self.graph.weight(np.array(target, np.int64), f"{node.output[0]}_shape")
        return helper.make_node(node.op_type, [node.input[0], name], list(node.output), node.name)


def _element_types(step: StepModel) -> dict[str, int]:
    """ONNX element types, asked for only where a Cast may turn out to do nothing."""
    if "Cast" not in step.op_types():
        return {}
    graph = onnx.shape_inference.infer_shapes(step.model).graph
    types = {t.name: t.data_type for t in graph.initializer}
    return types | {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)}


def _share_equal_weights(graph: Graph) -> None:
    """Let equal weights be one, of the first one's name."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same = {}
    for name, tensor in graph.initializers.items():
        if name not in graph.outputs and tensor.data_type != onnx.TensorProto.STRING:
            key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
            same[name] = first.setdefault(key, name)
    graph.nodes = [renamed(node, lambda name: same.get(name, name), node.output) for node in graph.nodes]


def _write_outputs_directly(graph: Graph) -> None:
    """Let nodes write graph outputs themselves where an Identity stood between."""
    # Asked for one by one: a rename makes every node anew.
    for output in graph.outputs:
        node = graph.producer(output, "Identity")
        if node is None:
            continue
        source = node.input[0]
        if graph.producer(source) is None or source in graph.outputs:
            continue
        graph.remove([node])
        graph.rename(source, output)
