"""fuse_gates: LSTM gate arithmetic, however it was written, as FusedGates nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import DOMAIN
from edgelstm.graph.step import StepModel
from edgelstm.passes.batching import Shape
from edgelstm.passes.cell_pattern import Cell, find_cells
from edgelstm.passes.graph import Array, Graph
from edgelstm.passes.shapes import infer_shapes
from edgelstm.passes.stack_channels import ChannelStack, cut_axis


def fuse_gates(step: StepModel) -> StepModel:
    """Guarantees: the same Signature, the same numbers up to rounding, and each LSTM cell found is one FusedGates node.

    ``passes.cell_pattern`` says what is found. The pre-activations z may be cut by Split or Slice out of one value in
    any gate order, or be four values; gates in another order than FusedGates's, or apart, are brought together
    by reordering and stacking the weights behind them, and where that is not possible (something else reads z) by a
    Concat. Cells whose channels are on the last axis are reshaped to [rows, channels] and back.

    A cell is left as it is where its shapes are not known or broadcast, where z_o depends on c' other than by a
    peephole, and where the opset lacks what its FusedGates needs. A gate that something else reads is still computed.
    """
    fusion = _Fusion(step)
    functions: dict[str, onnx.FunctionProto] = {}
    for node in fusion.graph.nodes:
        layouts = [found for cell in find_cells(fusion.graph, node) if (found := fusion.layout(cell))]
        if not layouts:
            continue
        layout = min(layouts, key=fusion.scattered)
        variant = layout.cell.variant
        try:
            functions.setdefault(variant.op_type, variant.function(step.opset))
        except EdgeLstmError:  # the opset is too old for this variant
            continue
        fusion.fuse(layout)
    return fusion.graph.finish(functions.values())


@dataclass(frozen=True)
class _Layout:
    """A cell that fits: the shape of its states, the axis of their channels, its peepholes by gate."""

    cell: Cell
    shape: Shape
    axis: int
    peepholes: dict[str, Array]


class _Fusion:
    def __init__(self, step: StepModel) -> None:
        self.graph = Graph(step)
        self.shapes = infer_shapes(step)

    def layout(self, cell: Cell) -> _Layout | None:
        """How FusedGates can compute ``cell``; None where something broadcasts or would go in a circle."""
        shape = self.shapes.get(cell.c)
        if shape is None or len(shape) < 2:
            return None
        values = (cell.h, cell.c_out, *cell.pre_activations)
        if any(self.shapes.get(value) != shape for value in values):
            return None
        if id(self.graph.producer(cell.total)) in self.graph.alive([*cell.terms["o"], cell.c]):
            return None
        axis = self._channel_axis(cell, len(shape))
        peepholes = {}
        for gate, name in cell.peepholes.items():
            value = _peephole(self.graph.constant(name), shape, axis)
            if value is None:
                return None
            peepholes[gate] = value
        return _Layout(cell, shape, axis, peepholes)

    def scattered(self, layout: _Layout) -> int:
        """Of how many nodes the pre-activations come: usually those of one cell come of one."""
        return len({id(self.graph.producer(value)) for value in layout.cell.pre_activations})

    def fuse(self, layout: _Layout) -> None:
        """Put a FusedGates node in place of the nodes that make ``h`` and ``c_out``."""
        graph, cell, shape, axis = self.graph, layout.cell, layout.shape, layout.axis
        needed = graph.alive([*graph.outputs, cell.c], stop=[cell.h, cell.c_out])
        parts = [self._sum(cell.terms[gate]) for gate in cell.variant.gates]
        stack = ChannelStack(graph, self.shapes, axis, len(shape), needed)
        z = stack.stack(parts, shape[axis], f"{cell.h}_gates")
        peepholes = [self._weight(layout, name) for name in cell.variant.inputs[2:]]
        graph.remove([node for node in graph.nodes if node.output[0] in (cell.h, cell.c_out)])
        op, channels = cell.variant.op_type, shape[axis]
        if axis == 1:
            graph.node(op, [z, cell.c, *peepholes], [cell.h, cell.c_out], domain=DOMAIN)
            return
        z = self._reshape(z, (-1, len(parts) * channels))
        c = self._reshape(cell.c, (-1, channels))
        h, c_out = (graph.fresh(f"{name}_rows") for name in (cell.h, cell.c_out))
        graph.node(op, [z, c, *peepholes], [h, c_out], domain=DOMAIN)
        self._reshape(h, shape, cell.h)
        self._reshape(c_out, shape, cell.c_out)

    def _channel_axis(self, cell: Cell, rank: int) -> int:
        """1, or the last axis where z is cut there or made by a MatMul."""
        waiting = list(cell.pre_activations)
        while waiting:
            node = self.graph.producer(waiting.pop(), "Add", "MatMul", "Split", "Slice")
            if node is None:
                continue
            if node.op_type == "Add":
                waiting += node.input
            elif node.op_type == "MatMul" or cut_axis(self.graph, node) in (-1, rank - 1):
                return rank - 1
        return 1

    def _sum(self, terms: tuple[str, ...]) -> str:
        """What is left of a pre-activation without its peephole."""
        total = terms[0]
        for term in terms[1:]:
            added = self.graph.value("Add", [total, term], f"{total}_sum")
            self.shapes[added] = self.shapes[total]
            total = added
        return total

    def _weight(self, layout: _Layout, name: str) -> str:
        """The initializer for formal input ``name``, zeros for a gate that has no peephole though others have."""
        gate = name.removeprefix("p_")
        value = layout.peepholes.get(gate)
        if value is None:
            others = next(iter(layout.peepholes.values()))
            channels = layout.shape[layout.axis]
            value = np.zeros(
                (channels, *[1] * (len(layout.shape) - 2 if layout.axis == 1 else 0)), others.dtype
            )
        return self.graph.weight(value, f"{layout.cell.h}_{name}")

    def _reshape(self, value: str, shape: Shape, output: str | None = None) -> str:
        target = self.graph.weight(np.array(shape, np.int64), f"{value}_shape")
        output = output or self.graph.fresh(f"{value}_rows")
        self.graph.node("Reshape", [value, target], [output])
        return output


def _peephole(value: Array | None, shape: Shape, axis: int) -> Array | None:
    """A peephole's constant without the stream axis, as FusedGates wants it; None if it does not fit ``shape``."""
    if value is None or value.ndim > len(shape):
        return None
    if value.ndim == len(shape):
        if value.shape[0] != 1:
            return None
        value = value[0]
    if axis != 1:  # all axes but the last become rows
        value = value.reshape(-1) if value.shape[-1:] == (value.size,) else np.empty((0,))
        return value if value.size in (1, shape[axis]) else None
    fits = all(p in (1, d) for p, d in zip(value.shape[::-1], shape[:0:-1], strict=False))
    return value if fits else None
