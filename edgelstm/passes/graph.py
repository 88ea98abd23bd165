"""A step's graph while a pass edits it: who makes a value, who reads it, is it constant; and what keeps it valid.

ONNX protos all the way: nodes are ``onnx.NodeProto``, values are names. Subgraphs (If, Loop) stay closed boxes that
read the names they capture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, onnx_dtype

Array = npt.NDArray[Any]


class Graph:
    """An editable copy of ``step``'s graph; ``step`` itself is never touched.

    Edit by :meth:`node`, :meth:`value`, :meth:`weight`, :meth:`remove` or by assigning ``nodes``; then :meth:`finish`.
    Constants are the initializers and the outputs of Constant nodes, whatever form the exporter chose.
    """

    def __init__(self, step: StepModel) -> None:
        self.signature = step.signature
        self.opset = step.opset
        self.model = step.copy_model()
        graph = self.model.graph
        self._nodes = list(graph.node)
        self.initializers = {t.name: t for t in graph.initializer}
        self.inputs = [v.name for v in graph.input if v.name not in self.initializers]
        self.outputs = [v.name for v in graph.output]
        self._taken = all_names(graph)
        self._values: dict[str, Array] = {}
        self._added: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._producers: dict[str, onnx.NodeProto] | None = None
        self._consumers: dict[str, list[onnx.NodeProto]] | None = None

    # -- asking ---------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes. Assign a new list to change it; only :meth:`finish` puts them in order."""
        return self._nodes

    @nodes.setter
    def nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        self._nodes = list(nodes)
        self._producers = self._consumers = None

    def producer(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """The node whose output ``name`` is; None for inputs and weights, or when it is not one of ``op_types``."""
        if self._producers is None:
            self._producers = {name: node for node in self._nodes for name in node.output if name}
        node = self._producers.get(name)
        if node is None or not op_types:
            return node
        return node if node.op_type in op_types and is_standard(node) else None

    def consumers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read ``name``, each once, those included whose subgraphs capture it."""
        if self._consumers is None:
            self._consumers = {}
            for node in self._nodes:
                for used in dict.fromkeys(node_inputs(node)):
                    self._consumers.setdefault(used, []).append(node)
        return self._consumers.get(name, [])

    def constant(self, name: str) -> Array | None:
        """The value of a weight or Constant node, read-only; None when ``name`` varies from step to step."""
        if name not in self._values:
            tensor = self.initializers.get(name)
            if tensor is None and (node := self.producer(name, "Constant")) is not None:
                tensor = constant_tensor(node)
            if tensor is None:
                return None
            self._values[name] = numpy_helper.to_array(tensor)
        return self._values[name]

    def scalar(self, name: str) -> float | None:
        """The value of a constant with one element."""
        value = self.constant(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    # -- editing --------------------------------------------------------------------------------------------------

    def fresh(self, base: str) -> str:
        """A name nothing in the graph has yet, ``base`` if possible."""
        return fresh(base, self._taken)

    def node(
        self,
        op_type: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> onnx.NodeProto:
        """Append a node and return it."""
        node = helper.make_node(op_type, inputs, outputs, domain=domain, **attributes)
        self.nodes = [*self._nodes, node]
        return node

    def value(self, op_type: str, inputs: Sequence[str], base: str, **attributes: Any) -> str:
        """Append a standard node with one output; returns that output's name, ``base`` if it is free."""
        return str(self.node(op_type, inputs, [self.fresh(base)], **attributes).output[0])

    def weight(self, array: Array, base: str) -> str:
        """Add an initializer; returns its name: ``base`` if it is free, or that of an equal one added before.

        Cells that are copies of each other thus go on sharing their weights when a pass writes them anew.
        """
        value = np.ascontiguousarray(array).reshape(array.shape)
        key = (value.dtype.str, value.shape, hashlib.sha256(value.data).digest())
        if key not in self._added:
            name = self._added[key] = self.fresh(base)
            self.initializers[name] = numpy_helper.from_array(value, name)
        return self._added[key]

    def rename(self, old: str, new: str) -> None:
        """Let the value called ``old`` be called ``new`` wherever it is made or read."""
        self.nodes = [
            renamed(n, lambda name: new if name == old else name, [new if o == old else o for o in n.output])
            for n in self._nodes
        ]

    def remove(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Take nodes out; their outputs must then come from elsewhere or be unused."""
        gone = {id(node) for node in nodes}
        self.nodes = [node for node in self._nodes if id(node) not in gone]

    def alive(self, ends: Iterable[str], stop: Iterable[str] = ()) -> set[int]:
        """``id`` of every node that ``ends`` need, not looking behind the values in ``stop``."""
        waiting, seen, found = list(ends), set(stop), set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self.producer(name)
            if node is not None and id(node) not in found:
                found.add(id(node))
                waiting += node_inputs(node)
        return found

    # -- finishing ------------------------------------------------------------------------------------------------

    def declare(self, signature: Signature) -> None:
        """Give the graph the inputs and outputs ``signature`` asks for in place of its own."""
        graph = self.model.graph
        self.signature = signature
        _refill(graph.input, graph_values(signature.inputs, [(s.input, s) for s in signature.states]))
        _refill(graph.output, graph_values(signature.outputs, [(s.output, s) for s in signature.states]))
        self.inputs = [v.name for v in graph.input]
        self.outputs = [v.name for v in graph.output]

    def finish(self, functions: Iterable[onnx.FunctionProto] = ()) -> StepModel:
        """The edited step: nodes in an order that runs, without those no output needs; unused weights gone.

        functions: bodies to add where the model has none of that name; the opset import comes with them.
        """
        graph = self.model.graph
        alive = self.alive(self.outputs)
        nodes = in_order([node for node in self._nodes if id(node) in alive])
        used = {name for node in nodes for name in node_inputs(node)} | set(self.outputs)
        weights = [t for name, t in self.initializers.items() if name in used]
        _refill(graph.node, nodes)
        _refill(graph.initializer, weights)
        _refill(graph.input, [v for v in graph.input if v.name in self.inputs])
        # Before IR 4 every weight had to be a graph input as well; function bodies came with IR 8.
        self.model.ir_version = max(self.model.ir_version, 4)
        # Shapes noted inside the graph belong to the values there were.
        del graph.value_info[:]
        for function in functions:
            self._add_function(function)
        return StepModel(self.model, self.signature)

    def _add_function(self, function: onnx.FunctionProto) -> None:
        model = self.model
        if all((f.domain, f.name) != (function.domain, function.name) for f in model.functions):
            model.functions.append(function)
        if all(o.domain != function.domain for o in model.opset_import):
            model.opset_import.append(helper.make_opsetid(function.domain, 1))
        model.ir_version = max(model.ir_version, 8)


def graph_values(
    tensors: Iterable[TensorSpec], states: Iterable[tuple[str, StateSpec]]
) -> list[onnx.ValueInfoProto]:
    """Declarations of one side of a graph: its tensors, then the states under their names on that side."""
    specs = {t.name: (t.dtype, t.shape) for t in tensors}
    for name, state in states:
        specs.setdefault(name, (state.dtype, state.shape))
    return [
        helper.make_tensor_value_info(name, onnx_dtype(dtype), list(shape))
        for name, (dtype, shape) in specs.items()
    ]


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether the node is one of ONNX's own operators."""
    return node.domain in ("", "ai.onnx")


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Value of an attribute, ``default`` where it is not set."""
    for a in node.attribute:
        if a.name == name:
            return helper.get_attribute_value(a)
    return default


def integers(graph: Graph, node: onnx.NodeProto, name: str, index: int) -> list[int] | None:
    """Integers that older opsets hold in an attribute, newer ones in an input; None where not constant or left out."""
    held = attribute(node, name)
    if held is None and len(node.input) > index and node.input[index]:
        held = graph.constant(node.input[index])
    return None if held is None else [int(v) for v in held]


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """A copy of what a Constant node holds; None for strings and sparse tensors."""
    for a in node.attribute:
        value = helper.get_attribute_value(a)
        if a.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
            return tensor
        if a.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.array(value, np.int64))
        if a.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.array(value, np.float32))
    return None


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs a node holds: branches of an If, the body of a Loop."""
    return [g for a in node.attribute for g in (*((a.g,) if a.HasField("g") else ()), *a.graphs)]


def all_names(graph: onnx.GraphProto) -> set[str]:
    """Every name in a graph and its subgraphs."""
    names = {v.name for v in (*graph.input, *graph.output)} | {t.name for t in graph.initializer}
    names |= {t.values.name for t in graph.sparse_initializer}
    for node in graph.node:
        names.update(node.input, node.output, *(all_names(inner) for inner in subgraphs(node)))
    return names


def captured(graph: onnx.GraphProto) -> list[str]:
    """Names a subgraph takes from the graph around it."""
    own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    used = [name for node in graph.node for name in node_inputs(node)]
    used += [v.name for v in graph.output]
    return [name for name in dict.fromkeys(used) if name and name not in own]


def node_inputs(node: onnx.NodeProto) -> list[str]:
    """Every name a node reads, those its subgraphs capture included."""
    names = [name for name in node.input if name]
    for graph in subgraphs(node):
        names += captured(graph)
    return names


def renamed(node: onnx.NodeProto, name_of: Callable[[str], str], outputs: Iterable[str]) -> onnx.NodeProto:
    """A copy of ``node`` that reads and writes other names, in its subgraphs too."""
    new = onnx.NodeProto()
    new.CopyFrom(node)
    new.input[:] = [name and name_of(name) for name in node.input]
    new.output[:] = outputs
    for graph in subgraphs(new):
        _rename_captured(graph, {name: name_of(name) for name in captured(graph)})
    return new


def _rename_captured(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for inner in subgraphs(node):
            _rename_captured(inner, names)
    for value in graph.output:
        value.name = names.get(value.name, value.name)


def in_order(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes so that each follows those it reads, otherwise in the order given.

    Raises EdgeLstmError for nodes that read each other in a circle.
    """
    producers = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    placed: set[int] = set()
    expanded: set[int] = set()
    ordered: list[onnx.NodeProto] = []
    for first in range(len(nodes)):
        waiting = [first]
        while waiting:
            k = waiting[-1]
            needs = {producers[name] for name in node_inputs(nodes[k]) if name in producers}
            missing = sorted(needs - placed, reverse=True)
            if missing and k not in placed:
                # What it needs was asked for and is still not placed: it waits for this very node.
                if k in expanded:
                    raise EdgeLstmError(
                        "the graph runs in a circle",
                        found=f"{nodes[k].op_type} {nodes[k].name or nodes[k].output[0]!r} needs its own result",
                        expected="states that go in and come out as graph inputs and outputs",
                    )
                expanded.add(k)
                waiting += missing
                continue
            waiting.pop()
            if k not in placed:
                placed.add(k)
                ordered.append(nodes[k])
    return ordered


def fresh(base: str, taken: set[str]) -> str:
    """``base``, or ``base`` with a number where that is taken; the name is taken from then on."""
    name, k = base, 0
    while name in taken:
        k += 1
        name = f"{base}_{k}"
    taken.add(name)
    return name


def _refill(field: Any, items: Sequence[Any]) -> None:
    # The items may be references into the field itself, so they are copied before it is emptied.
    copies = []
    for item in items:
        copies.append(type(item)())
        copies[-1].CopyFrom(item)
    del field[:]
    field.extend(copies)
