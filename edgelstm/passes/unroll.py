"""unroll: T steps of a step graph in one graph, for sources that hand over several frames at once.

Only recurrences are copied. Everything else runs once on the frames of all T steps, laid end to end on the stream
axis: [N, T, ...] and [N*T, ...] are the same bytes, so folding time away and back is a Reshape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import onnx
from onnx import helper

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.signature import TensorSpec
from edgelstm.graph.step import StepModel
from edgelstm.passes.batching import ROWS, Call, Operand, Shape, batches, is_reshape
from edgelstm.passes.drawn import RANDOM
from edgelstm.passes.graph import Graph, node_inputs, renamed
from edgelstm.passes.recurrence import recurrences
from edgelstm.passes.shapes import infer_shapes, note_shapes
from edgelstm.passes.split_joined import Hoist, split_joined

#: ONNX Runtime takes 10 s to open a window of this many copied nodes, and four times that for twice as many.
MAX_COPIES = 10_000
#: A Reshape inside the graph only renames; one that reads a graph input or writes a graph output copies. Frames of
#: this many elements or more are therefore reshaped one by one, inside.
_LARGE_FRAME = 4096
#: Without shapes noted, the time ONNX Runtime takes to open a window grows with the cube of its length: 400 frames of
#: a two-layer LSTM in 87 s, with them in 1 s. Short windows do better without: 6.3 against 7.7 us a frame (2 x 32).
_FEW_NODES = 200

Placement = Literal["once", "batched", "copied"]


def unroll(step: StepModel, frames: int, *, hoist: Hoist = "auto") -> StepModel:
    """Guarantees: one run gives what ``frames`` runs of ``step`` give, up to rounding, with every weight stored once.

    Inputs and outputs become [N, frames, ...]; states stay [N, ...], so windows chain with the state carried. A
    state whose output is also an output of the model gets a state output of its own name.

    Work that depends on no state runs once, on [N*frames, ...]: input layers, output heads, and the input half
    of a joined cell product W·[x ; h], which ``hoist`` splits off: "auto" where it pays (Gemm and MatMul, whose
    weights are then read once a window), "all" for Conv too, "none" nowhere. Nodes that mix streams, or that no
    rule of ``passes.batching`` knows, are copied, which is always right.

    What it brings for T = 10 in ONNX Runtime 1.31 (one stream, 2 threads, each contestant in its own process, against
    bare single steps): an LSTM of two layers runs 1.3 times as fast at 32 units, 1.6 at 256, 2.8 at 1024. ConvLSTMs stay
    where they were (0.98 to 1.1), since a convolution reads its weights once for a whole map anyway; splitting it
    ("all") makes them 10 to 25% slower, for the Add and the copies. Only with far more weights than pixels (256 to
    256 channels on 4 x 4, one thread) "all" pays: 1.34 against 1.10.

    Raises EdgeLstmError when ``frames`` < 1, ``step`` is a window already, an output is one of the graph's own
    inputs, or the window would hold more than :data:`MAX_COPIES` copied nodes.
    """
    _check(step, frames, hoist)
    return _Window(split_joined(step, hoist), frames).build()


def _check(step: StepModel, frames: int, hoist: Hoist) -> None:
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise EdgeLstmError(
            "unroll: frames of a window", found=frames, expected="a whole number of at least 1"
        )
    if hoist not in get_args(Hoist):
        raise EdgeLstmError("unroll: hoist", found=repr(hoist), expected=f"one of {get_args(Hoist)}")
    s = step.signature
    if s.window is not None:
        raise EdgeLstmError(
            "unroll: the model is a window already",
            found=f"{count_of(s.window, 'frame')}",
            expected="a step",
            hint="Unroll the step it was made from",
        )
    weights = {t.name for t in step.model.graph.initializer}
    passed = sorted(weights & ({t.name for t in s.outputs} | {x.output for x in s.states}))
    if passed:
        raise EdgeLstmError(
            "unroll: a weight is also a graph output",
            found=", ".join(passed),
            expected="outputs with names of their own",
            hint="Put an Identity between",
        )


class _Window:
    """The window under construction: where each value of the step lives in it.

    A varying value exists in up to three forms, made when first asked for: one tensor a frame, [N, ...]; all
    frames' rows, [N*T, ...]; and those bytes in whatever shape they were first laid out.
    """

    def __init__(self, step: StepModel, frames: int) -> None:
        self.graph = Graph(step)
        self.signature, self.frames = step.signature, frames
        self.shapes = infer_shapes(step)
        axis = self.signature.stream_axis
        self.rows_axis = axis if isinstance(axis, int) else ROWS
        self.constants = set(self.graph.initializers)
        self.constants |= {t.values.name for t in step.model.graph.sparse_initializer}
        self.fed_back = {s.input: s.output for s in self.signature.states}
        outputs = {t.name for t in self.signature.outputs}
        #: Names under which the last frame's state outputs leave the graph.
        self.last = {
            s.output: self.graph.fresh(f"{s.output}_last") if s.output in outputs else s.output
            for s in self.signature.states
        }
        self.reserved = outputs | set(self.last.values())
        self.nodes: list[onnx.NodeProto] = []
        self.targets: dict[Shape, str] = {}
        self._frame: dict[tuple[str, int], str] = {}
        self._rows: dict[str, str] = {}
        self.inputs = {t.name for t in self.signature.inputs}
        self._laid = {name: name for name in self.inputs}

    def build(self) -> StepModel:
        """Place every node, then connect the outputs."""
        for placement, group in self._plan():
            if placement == "once":
                self.nodes += group
            elif placement == "batched":
                for node in group:
                    self._batch(node)
            else:
                for t in range(self.frames):
                    for node in group:
                        self._copy(node, t)
        for spec in self.signature.outputs:
            self._output(spec)
        for value, name in self.last.items():
            if self.frame(value, self.frames - 1) != name:
                self._add("Identity", [self.frame(value, self.frames - 1)], [name])
        return self._assemble()

    # -- where the step's values are ------------------------------------------------------------------------------

    def frame(self, value: str, t: int) -> str:
        """The tensor [N, ...] of step ``t``."""
        if value in self.constants:
            return value
        if value in self.fed_back:
            return value if t == 0 else self.frame(self.fed_back[value], t - 1)
        if (value, t) not in self._frame:
            self._cut(value)
        return self._frame[value, t]

    def rows(self, value: str) -> str:
        """The rows of all steps, [N*T, ...]."""
        if value in self.constants:
            return value
        if value not in self._rows:
            self._rows[value] = self._reshape(self.laid(value), (-1, *self._rest(value)))
        return self._rows[value]

    def laid(self, value: str) -> str:
        """The elements of all steps, stream by stream and frame by frame, in some shape."""
        if value not in self._laid:
            parts = [self.frame(value, t) for t in range(self.frames)]
            if not self._rest(value):
                parts = [self._reshape(part, (-1, 1)) for part in parts]
            self._laid[value] = parts[0]
            if len(parts) > 1:
                # Side by side on axis 1 is end to end in memory: no axis to insert first.
                self._laid[value] = self.graph.fresh(f"{value}_frames")
                self._add("Concat", parts, [self._laid[value]], axis=1)
        return self._laid[value]

    def _cut(self, value: str) -> None:
        if self.frames == 1:
            self._frame[value, 0] = self.rows(value)
            return
        rest, laid = self._rest(value), self.laid(value)
        at_edge = laid in self.inputs and math.prod(rest) >= _LARGE_FRAME
        # Frames side by side on the axis after the streams split into frames of the right rank, with no axis to drop.
        side_by_side = bool(rest) and not at_edge
        if side_by_side:
            laid = self._reshape(laid, (-1, self.frames * rest[0], *rest[1:]))
        elif not at_edge:
            laid = self._reshape(laid, (-1, self.frames, *rest))
        parts = [self.graph.fresh(f"{value}_t{t}") for t in range(self.frames)]
        count = {"num_outputs": self.frames} if self.graph.opset >= 18 else {}
        self._add("Split", [laid], parts, axis=1, **count)
        for t, part in enumerate(parts):
            self._frame[value, t] = part if side_by_side else self._reshape(part, (-1, *rest))

    def _rest(self, value: str) -> Shape:
        return self.shapes[value][1:]

    # -- placing nodes --------------------------------------------------------------------------------------------

    def _plan(self) -> list[tuple[Placement, list[onnx.NodeProto]]]:
        nodes = self.graph.nodes
        groups, loops = recurrences(nodes, self.signature)
        plan: list[tuple[Placement, list[onnx.NodeProto]]] = []
        for k, group in enumerate(groups):
            members = [nodes[i] for i in group]
            plan.append(("copied" if k in loops else self._placement(members[0]), members))
            if plan[-1][0] == "once":
                self.constants.update(members[0].output)
        copied = sum(len(group) for placement, group in plan if placement == "copied")
        if copied * self.frames > MAX_COPIES:
            raise EdgeLstmError(
                f"unroll: a window of {count_of(self.frames, 'frame')} is too large",
                found=f"{count_of(copied, 'node')} to copy for each frame, {copied * self.frames} in all",
                expected=f"at most {MAX_COPIES}",
                hint=f"Use a window of at most {count_of(MAX_COPIES // copied, 'frame')} and chain windows",
            )
        return plan

    def _placement(self, node: onnx.NodeProto) -> Placement:
        steady = node.op_type not in RANDOM and self.reserved.isdisjoint(node.output)
        if steady and all(name in self.constants for name in node_inputs(node)):
            return "once"
        call = Call(node, self._operands(node.input), self._operands(node.output, varying=True))
        return "batched" if batches(call) else "copied"

    def _operands(self, names: Iterable[str], *, varying: bool = False) -> tuple[Operand | None, ...]:
        return tuple(
            self._operand(name, varying or name not in self.constants) if name else None for name in names
        )

    def _operand(self, name: str, varying: bool) -> Operand:
        shape = self.shapes.get(name)
        if not varying:
            return Operand(False, shape, self.graph.constant(name))
        if not shape or shape[0] != self.rows_axis:
            return Operand(True, None)
        return Operand(True, (ROWS, *shape[1:]))

    def _batch(self, node: onnx.NodeProto) -> None:
        outputs = [self.graph.fresh(name) if name in self.reserved else name for name in node.output]
        if is_reshape(node):
            self._reshape(self.rows(node.input[0]), (-1, *self._rest(node.output[0])), outputs[0])
        else:
            self.nodes.append(renamed(node, self.rows, outputs))
        for value, name in zip(node.output, outputs, strict=True):
            self._rows[value] = self._laid[value] = name

    def _copy(self, node: onnx.NodeProto, t: int) -> None:
        outputs = []
        for value in node.output:
            is_last = t == self.frames - 1 and value in self.last
            name = self.last[value] if is_last else value and self.graph.fresh(f"{value}_t{t}")
            self._frame[value, t] = name
            outputs.append(name)
        new = renamed(node, lambda value: self.frame(value, t), outputs)
        new.name = f"{node.name}_t{t}" if node.name else ""
        self.nodes.append(new)

    # -- writing nodes --------------------------------------------------------------------------------------------

    def _add(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))

    def _reshape(self, value: str, shape: Shape, output: str | None = None) -> str:
        if shape not in self.targets:
            name = "shape_" + "x".join(map(str, shape[1:]))
            self.targets[shape] = self.graph.weight(np.array(shape, np.int64), name)
        output = output or self.graph.fresh(f"{value}_reshaped")
        self._add("Reshape", [value, self.targets[shape]], [output])
        return output

    def _output(self, spec: TensorSpec) -> None:
        if spec.name in self._laid or math.prod(spec.frame_shape) < _LARGE_FRAME:
            self._reshape(self.laid(spec.name), (-1, self.frames, *spec.frame_shape), spec.name)
            return
        parts = [self.frame(spec.name, t) for t in range(self.frames)]
        parts = [self._reshape(part, (-1, 1, *spec.frame_shape)) for part in parts]
        self._add("Concat", parts, [spec.name], axis=1)

    def _assemble(self) -> StepModel:
        s, frames = self.signature, self.frames
        signature = replace(
            s,
            inputs=tuple(_with_time(t, frames) for t in s.inputs),
            outputs=tuple(_with_time(t, frames) for t in s.outputs),
            states=tuple(replace(x, output=self.last[x.output]) for x in s.states),
            window=frames,
        )
        self.graph.declare(signature)
        self.graph.nodes = self.nodes
        window = self.graph.finish()
        return window if len(window.model.graph.node) <= _FEW_NODES else note_shapes(window)


def _with_time(spec: TensorSpec, frames: int) -> TensorSpec:
    return replace(spec, shape=(spec.shape[0], frames, *spec.shape[1:]))
