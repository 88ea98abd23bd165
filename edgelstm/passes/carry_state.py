"""carry_state: what a recurrent operator starts from anew in each call becomes a state that is carried on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import StateSpec
from edgelstm.graph.step import StepModel, dtype_name, value_shape
from edgelstm.passes.graph import Array, Graph
from edgelstm.passes.one_stream import value_of_one
from edgelstm.passes.rnn_operator import Inputs, is_forward, is_rnn, name_at
from edgelstm.passes.shapes import element_types, note_shapes


def carry_state(step: StepModel, where: str = "model", loops: Sequence[tuple[str, str]] = ()) -> StepModel:
    """Guarantees: the same numbers from the initial state, and no one-step LSTM, GRU or RNN that starts anew each call.

    An operator over a sequence of one whose initial_h (initial_c) is left out, or does not depend on the frame, gets
    it as a state h0, c0, h1, ... [N, H] of the Signature, from the value it started at. Operators over longer sequences
    are windows and stay as they are.

    loops: what a loop over the frames hands on, as the values before and after its only iteration, the one before made by
        an identity. It becomes a state likewise where it starts from a value that does not depend on the frame and has an
        axis for the streams; otherwise it is left.

    Raises EdgeLstmError where such an operator is not ``forward`` (its other half needs frames that are yet to come) or
    works on other rows than one a stream.
    """
    noted = note_shapes(step).model.graph
    shapes = {v.name: value_shape(v) for v in (*noted.input, *noted.value_info)}
    carry = _Carry(step, where)
    for node in [n for n in carry.graph.nodes if is_rnn(n)]:
        x = shapes.get(node.input[Inputs.X])
        time = 1 if any(a.name == "layout" and a.i for a in node.attribute) else 0
        if x is not None and len(x) == 3 and x[time] == 1:
            carry.operator(node, time, x[1 - time])
    for before, after in loops:
        carry.loop(before, after, shapes.get(before))
    return carry.finish()


class _Carry:
    def __init__(self, step: StepModel, where: str) -> None:
        self.step, self.where = step, where
        self.graph = Graph(step)
        self.types = element_types(step)
        self.states: list[StateSpec] = []
        self.count = 0

    def operator(self, node: onnx.NodeProto, time: int, rows: object) -> None:
        """Give the operator the states it lacks."""
        places = {"h": (Inputs.INITIAL_H, 1), "c": (Inputs.INITIAL_C, 2)}
        if node.op_type != "LSTM":
            del places["c"]
        initial: dict[str, Array | None] = {}
        for letter, (place, _) in places.items():
            name = name_at(node.input, place)
            value = value_of_one(self.step, self.graph, name) if name else None
            if not name or value is not None:
                initial[letter] = value
        if not initial:
            return
        self._check(node, rows)
        recurrent = self.graph.constant(node.input[Inputs.R])
        if recurrent is None:
            return
        hidden = recurrent.shape[-1]
        while len(node.input) <= max(place for place, _ in places.values()):
            node.input.append("")
        while len(node.output) <= max(place for _, place in places.values()):
            node.output.append("")
        for letter, value in initial.items():
            place, result = places[letter]
            name = self.graph.fresh(f"{letter}{self.count}")
            after = self.graph.fresh(f"{name}_next")
            node.output[result] = node.output[result] or self.graph.fresh(f"{name}_last")
            node.input[place] = self._axis("Unsqueeze", name, time, f"{name}_directions")
            self._axis("Squeeze", node.output[result], time, after, exact=True)
            dtype = dtype_name(self.types[node.input[Inputs.X]])
            first = None if value is None or not value.any() else _bytes(value, hidden)
            spec = StateSpec(name, name, after, dtype, (self.step.signature.stream_axis, hidden), first)
            self.states.append(spec)
        self.count += 1
        self.graph.nodes = self.graph.nodes  # it has to look anew at who makes and reads what

    def loop(self, before: str, after: str, shape: list[Any] | None) -> None:
        """Give a loop's carried value as a state, its streams in front."""
        node = self.graph.producer(before)
        if node is None:
            return
        value = value_of_one(self.step, self.graph, node.input[0])
        stream = self.step.signature.stream_axis
        if value is None or shape is None or stream not in shape or not shape:
            return
        axis = shape.index(stream)
        frame = [d for k, d in enumerate(shape) if k != axis]
        if not all(isinstance(d, int) for d in frame):
            return
        name = self.graph.fresh(f"s{len(self.states)}")
        last = self.graph.fresh(f"{name}_next")
        self.graph.remove([node])
        back = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
        front = [axis, *(k for k in range(len(shape)) if k != axis)]
        self.graph.node("Transpose", [name], [before], perm=back)
        self.graph.node("Transpose", [after], [last], perm=front)
        one = (
            np.broadcast_to(np.moveaxis(value, axis, 0)[:1], (1, *frame))[0]
            if value.ndim == len(shape)
            else value
        )
        first = None if not value.any() else np.ascontiguousarray(one).tobytes()
        dtype = dtype_name(helper.np_dtype_to_tensor_dtype(value.dtype))
        self.states.append(StateSpec(name, name, last, dtype, (stream, *frame), first))

    def finish(self) -> StepModel:
        signature = self.step.signature
        self.graph.declare(replace(signature, states=(*signature.states, *self.states)))
        return self.graph.finish()

    def _check(self, node: onnx.NodeProto, rows: object) -> None:
        name = f"{self.where}: {node.op_type} {node.name or node.output[0]!r}"
        if not is_forward(node):
            direction = next(a.s.decode() for a in node.attribute if a.name == "direction")
            raise EdgeLstmError(
                f"{name} is {direction}, and starts anew in each call",
                expected="a forward operator: what looks back in time needs frames that are yet to come",
                hint="A bidirectional model runs on windows of frames, not frame by frame",
            )
        if rows != self.step.signature.stream_axis:
            raise EdgeLstmError(
                f"{name} works on other rows than the streams",
                found=f"{rows} rows",
                expected=f"{self.step.signature.stream_axis}, one a stream",
                hint="Give its state explicitly: export the model with initial states as inputs",
            )

    def _axis(self, op_type: str, value: str, axis: int, name: str, *, exact: bool = False) -> str:
        output = name if exact else self.graph.fresh(name)
        if self.graph.opset < 13:
            self.graph.node(op_type, [value], [output], axes=[axis])
        else:
            axes = self.graph.weight(np.array([axis], np.int64), f"{output}_axis")
            self.graph.node(op_type, [value, axes], [output])
        return output


def _bytes(value: Array, hidden: int) -> bytes:
    """One stream's initial value."""
    return np.ascontiguousarray(value.reshape(-1)[:hidden]).astype(value.dtype.newbyteorder("<")).tobytes()
