"""What part the inputs and outputs of somebody else's graph play in its cells: c, h, or the state of an operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx

from edgelstm.graph.gates import is_fused_gates
from edgelstm.passes.cell_pattern import find_cells
from edgelstm.passes.control_flow import BEFORE
from edgelstm.passes.graph import Graph, is_standard
from edgelstm.passes.rnn_operator import Inputs, is_rnn, name_at

#: Operators that hand elements on as they are.
_MOVE_NAMES = """
    Cast Concat Dropout Expand Flatten Gather Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze
    """
_MOVES = frozenset(_MOVE_NAMES.split())
#: Operators between h and the gates it goes into.
_LINEAR_NAMES = "Add BatchNormalization Conv Gemm LayerNormalization MatMul Pad Sub"
_LINEAR = _MOVES | frozenset(_LINEAR_NAMES.split())
_GATES = ("Sigmoid", "HardSigmoid", "Clip")
_ACTIVATIONS = ("Tanh", "Relu", "Softsign", "LeakyRelu", "Elu", "Identity")


class Role(NamedTuple):
    """A part in a cell. sure: the arithmetic leaves no other reading; whatever goes into the gates *may* be h."""

    cell: str
    part: str
    sure: bool = True


@dataclass
class _Cell:
    """c, c' and h of a cell, and the values that go into its gates. operator: its states are plain ports."""

    c: str
    c_out: str
    h: str | None
    gates: tuple[str, ...]
    complete: bool = True


@dataclass
class Roles:
    """The cells of a graph."""

    graph: Graph
    cells: dict[str, _Cell] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> Roles:
        """Find FusedGates, LSTM arithmetic, and other sums of a gated state: c' = f * c + ..., h' = n + z * (h - n)."""
        roles = cls(graph)
        for node in graph.nodes:
            if is_fused_gates(node):
                h, c_out = node.output[0], node.output[1]
                roles.cells[c_out] = _Cell(node.input[1], c_out, h, (node.input[0],))
            for found in find_cells(graph, node):
                cell = _Cell(found.c, found.c_out, found.h, found.pre_activations)
                roles.cells[found.total] = cell
        for node in graph.nodes:
            if node.op_type in ("Add", "Sum") and is_standard(node) and node.output[0] not in roles.cells:
                roles._add_sum(node)
        return roles

    def of_input(self, name: str) -> set[Role]:
        """The parts that a graph input plays."""
        found: set[Role] = set()
        moved = self._forward([name], _moves)
        for value in moved:
            for node in self.graph.consumers(value):
                if is_rnn(node):
                    for part, place in (("h", Inputs.INITIAL_H), ("c", Inputs.INITIAL_C)):
                        if name_at(node.input, place) == value:
                            found.add(Role(_key(node), part))
        linear = self._forward(moved, lambda node: _moves(node) or _of(node, _LINEAR))
        for key, cell in self.cells.items():
            if cell.c in moved:
                found.add(Role(key, "c"))
            elif any(value in linear for value in cell.gates):
                found.add(Role(key, "h", sure=False))
        return found

    def of_output(self, value: str) -> set[Role]:
        """The parts of what goes out as it is."""
        found: set[Role] = set()
        seen = self._back(value)
        for name in seen:
            node = self.graph.producer(name)
            if node is not None and is_rnn(node):
                found.add(Role(_key(node), "c" if name_at(node.output, 2) == name else "h"))
        for key, cell in self.cells.items():
            if cell.c_out in seen:
                found.add(Role(key, "c"))
            if cell.h in seen:
                found.add(Role(key, "h", sure=False))
        return found

    def _add_sum(self, node: onnx.NodeProto) -> None:
        """A sum with gate * state in it, as a cell of its own."""
        graph = self.graph
        for name in node.input:
            product = graph.producer(name, "Mul")
            others = [other for other in node.input if other != name]
            if product is None or not others:
                continue
            for gate, kept in (product.input, reversed(list(product.input))):
                inside = self._gate(gate)
                if inside is None:
                    continue
                c: str | None = kept
                difference = graph.producer(kept, "Sub")
                if difference is not None:
                    # n + z * (h - n), or h + z * (n - h).
                    first, second = difference.input
                    c = first if second in others else second if second in others or first in others else None
                    if second not in others and first in others:
                        c = second
                    if c is not None and self._comes_from_outside(others[0]):
                        c = others[0]
                if c is not None and self._comes_from_outside(c):
                    out = node.output[0]
                    self.cells[out] = _Cell(c, out, self._shown(out), (inside,), complete=False)
                    return

    def added_to(self, value: str) -> set[str]:
        """The graph inputs that ``value`` is a plain sum of: s' = s + ..."""
        found: set[str] = set()
        for name in self._back(value):
            node = self.graph.producer(name, "Add", "Sum")
            for operand in node.input if node is not None else ():
                found |= self._back(operand) & set(self.graph.inputs)
        return found

    def _comes_from_outside(self, value: str) -> bool:
        """Whether a graph input is handed on as ``value``."""
        return bool(self._back(value) & set(self.graph.inputs))

    def _back(self, value: str) -> set[str]:
        """``value`` and all that is handed on as it."""
        waiting, seen = [value], {value}
        while waiting:
            node = self.graph.producer(waiting.pop())
            if node is not None and _moves(node):
                new = [source for source in node.input if source and source not in seen]
                seen.update(new)
                waiting += new
        return seen

    def _gate(self, value: str) -> str | None:
        """What goes into the gate that ``value`` is: activated, a part cut out of several, or one minus that."""
        graph = self.graph
        node = graph.producer(value, "Sub")
        if node is not None and graph.scalar(node.input[0]) == 1:
            value = node.input[1]
        cut = graph.producer(value, "Split", "Slice")
        node = graph.producer(cut.input[0] if cut is not None else value, *_GATES)
        return None if node is None else str(node.input[0])

    def _shown(self, c_out: str) -> str | None:
        """gate * activation(c')."""
        for node in self.graph.consumers(c_out):
            if _of(node, frozenset(_ACTIVATIONS)):
                for product in self.graph.consumers(node.output[0]):
                    others = [n for n in product.input if n != node.output[0]]
                    if product.op_type == "Mul" and others and self._gate(others[0]) is not None:
                        return str(product.output[0])
        return None

    def _forward(self, values: Iterable[str], through: Callable[[onnx.NodeProto], bool]) -> set[str]:
        seen = set(values)
        waiting = list(seen)
        while waiting:
            for node in self.graph.consumers(waiting.pop()):
                if through(node):
                    new = [output for output in node.output if output and output not in seen]
                    seen.update(new)
                    waiting += new
        return seen


def _key(node: onnx.NodeProto) -> str:
    return str(next(name for name in node.output if name))


def _of(node: onnx.NodeProto, names: frozenset[str]) -> bool:
    return node.op_type in names and is_standard(node)


def _moves(node: onnx.NodeProto) -> bool:
    """Whether the node hands elements on as they are."""
    return node.op_type == BEFORE or _of(node, _MOVES)
