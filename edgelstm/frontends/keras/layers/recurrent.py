"""A cell over a sequence: LSTM, GRU, SimpleRNN, ConvLSTM. On a stream its states are the graph's; else it is unrolled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras.builder import Array, Builder, NeedsWindow, Shape, Value
from edgelstm.frontends.keras.layers.cells import CELLS, Cell, frame_shape
from edgelstm.frontends.keras.layers.layer import Layer, Memory, Tensor
from edgelstm.frontends.keras.layers.stacked import read_cell
from edgelstm.frontends.keras.layers.weighted import Weighted
from edgelstm.frontends.keras.options import Options

#: Steps of a recurrence inside one call of the graph.
MAX_STEPS = 1000


class Recurrent(Layer):
    """Inputs: a sequence, and initial states where the model gives them. Outputs: the sequence or its last element, and the
    last states where ``return_state`` asks for them."""

    is_temporal = True

    def __init__(self, options: Options, *, backwards: bool = False) -> None:
        super().__init__(options)
        self.cell: Cell = read_cell(options) if options.kind == "RNN" else CELLS[options.kind](options)
        self.sequences = options.flag("return_sequences")
        self.states = options.flag("return_state")
        self.stateful = options.flag("stateful")
        self.zero_masked = options.flag("zero_output_for_mask")
        self.backwards = options.flag("go_backwards")
        if options.flag("time_major"):
            raise options.error(
                "time_major",
                "sequences [N, T, ...]",
                hint="Build the model with time_major=False: the weights are the same",
            )
        if self.backwards and not backwards:
            raise options.error(
                "go_backwards",
                "False",
                hint="A stream has no end to begin at; inside Bidirectional the backward layer is read as a window",
            )
        options.finish("data_format", "input_dim", "input_length", "num_constants")
        if options.get("num_constants"):
            raise options.error("num_constants", "no constants")

    def children(self) -> list[tuple[str, Weighted]]:
        return [("cell", self.cell)]

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        x, given = inputs[0], list(inputs[1:])
        if given and len(given) != len(self.cell.parts):
            raise EdgeLstmError(
                f"{self.what}: initial states", found=len(given), expected=len(self.cell.parts)
            )
        if x.time is None and len(x.shape) < 2:
            raise EdgeLstmError(
                f"{self.what}: what comes in", found=f"shape {list(x.shape)}", expected="a sequence"
            )
        perm, shapes = self.cell.taken(frame_shape(x))[0], self.cell.states(frame_shape(x))
        if x.mask is not None and len(frame_shape(x)) != 1:
            raise EdgeLstmError(f"{self.what} is masked", expected="Masking of sequences of features")
        if x.time is not None:
            if given:
                raise NeedsWindow(f"{self.what} begins from states that another layer makes")
            return self._stream(g, x, perm, shapes, place)
        return self._unrolled(g, x, given, perm, shapes, place)

    def _stream(
        self, g: Builder, x: Value, perm: tuple[int, ...], shapes: Sequence[Shape], place: str
    ) -> list[Value]:
        assert x.time is not None
        if x.time.open_end and (self.states or not self.sequences):
            raise NeedsWindow(
                f"{self.what} gives its last state, and a layer below looks behind the last frame"
            )
        names = [f"{place}.{part}" for part in self.cell.parts]
        held = [g.state(name, shape) for name, shape in zip(names, shapes, strict=True)]
        after = self.cell.step(g, g.layout(x, perm), held, x.shape, place)
        gate = g.gate(x.time, x.mask, len(shapes[0]) + 1)
        after = [g.carry(name, value, gate) for name, value in zip(names, after, strict=True)]
        shape, layout = self.cell.made(shapes[self.cell.shown])
        shown = self._zeroed(g, after[self.cell.shown], x.mask, place)
        last = Value(shown, shape, perm=layout, ready=x.time.delay)
        ends = self._ends(last, after, shapes)
        return [last if not self.sequences else Value(shown, shape, x.time, layout, x.mask), *ends]

    def _ends(self, like: Value, states: Sequence[str], shapes: Sequence[Shape]) -> list[Value]:
        """The last states, where ``return_state`` asks for them."""
        if not self.states:
            return []
        made = [self.cell.made(shape) for shape in shapes]
        return [
            replace(like, name=name, shape=shape, perm=layout)
            for name, (shape, layout) in zip(states, made, strict=True)
        ]

    def _zeroed(self, g: Builder, y: str, mask: str | None, place: str) -> str:
        if mask is None or not self.zero_masked:
            return y
        return g.op("Where", [mask, y, g.number(0.0)], f"{place}/unmasked")

    def _unrolled(
        self,
        g: Builder,
        x: Value,
        given: Sequence[Value],
        perm: tuple[int, ...],
        shapes: Sequence[Shape],
        place: str,
    ) -> list[Value]:
        steps, frame = x.shape[0], x.shape[1:]
        if steps > MAX_STEPS:
            raise EdgeLstmError(
                f"{self.what}: steps inside one call of the graph",
                found=steps,
                expected=f"at most {MAX_STEPS}",
            )
        # Keras's axes are streams, time, frame; the cell's layout is of streams and frame.
        whole = g.layout(x, (0, 1, *(axis + 1 for axis in perm[1:])))
        physical = [frame[axis - 1] for axis in perm[1:]]
        frames = self._frames(g, whole, steps, physical, place)
        masks = [None] * steps if x.mask is None else self._masks(g, x.mask, steps, place)
        shown, state_shape = self.cell.shown, shapes[self.cell.shown]
        shape, layout = self.cell.made(state_shape)
        names = [f"{place}.{part}" for part in self.cell.parts]
        carried = self.stateful and x.sequence and not given
        if given:
            states = [g.layout(v, self.cell.made(s)[1]) for v, s in zip(given, shapes, strict=True)]
        elif carried:
            states = [g.state(name, s) for name, s in zip(names, shapes, strict=True)]
        else:
            zeros = {s: self._zeros(g, frames[0], s, place) for s in dict.fromkeys(shapes)}
            states = [zeros[s] for s in shapes]
        outputs: list[str] = []
        for t in reversed(range(steps)) if self.backwards else range(steps):
            after = self.cell.step(g, frames[t], states, frame, f"{place}/{t}")
            gate = g.gate(None, masks[t], len(state_shape) + 1)
            if gate is not None:
                after = [
                    g.op("Where", [gate, new, old], f"{place}/{t}/kept")
                    for new, old in zip(after, states, strict=True)
                ]
            states = after
            outputs.append(self._zeroed(g, states[shown], masks[t], place))
        if carried:
            for name, value in zip(names, states, strict=True):
                g.carry(name, value)
        last = Value(states[shown], shape, perm=layout, ready=x.ready)
        ends = self._ends(last, states, shapes)
        if not self.sequences:
            return [replace(last, name=outputs[-1]), *ends]
        y = stacked(g, outputs, state_shape, place)
        perm_y = (0, 1, *(axis + 1 for axis in layout[1:]))
        return [Value(y, (steps, *shape), None, perm_y, x.mask, x.sequence, x.ready), *ends]

    def _frames(self, g: Builder, x: str, steps: int, physical: Sequence[int], place: str) -> list[str]:
        """[N, T, ...] as T tensors."""
        if steps == 1:
            parts = [x]
        else:
            bases = [f"{place}/x{t}" for t in range(steps)]
            parts = g.ops("Split", [x], bases, axis=1, num_outputs=steps)
        axis = g.integers([1])
        return [
            g.noted(g.op("Squeeze", [part, axis], f"{place}/frame{t}"), tuple(physical))
            for t, part in enumerate(parts)
        ]

    def _masks(self, g: Builder, mask: str, steps: int, place: str) -> list[str | None]:
        bases = [f"{place}/mask{t}" for t in range(steps)]
        return [*(g.ops("Split", [mask], bases, axis=1, num_outputs=steps) if steps > 1 else [mask])]

    def _zeros(self, g: Builder, like: str, shape: Shape, place: str) -> str:
        """Zeros [N, *shape] for as many streams as ``like`` has."""
        streams = g.op("Shape", [like], f"{place}/streams", start=0, end=1)
        size = g.op("Concat", [streams, g.integers(shape)], f"{place}/state_shape", axis=0)
        return g.noted(g.op("Expand", [g.number(0.0), size], f"{place}/zeros"), shape)

    # -- the reference --------------------------------------------------------------------------------------------

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        x, given = inputs[0], inputs[1:]
        names = [f"{place}.{part}" for part in self.cell.parts]
        data = x.data
        remembers = x.streamed or (self.stateful and x.sequence)
        made = [self.cell.made(shape) for shape in self.cell.states(data.shape[2:])]
        shown = self.cell.shown
        if given:
            states = [v.data for v in given]
        else:
            # What is remembered lies as in the graph, so that the two can be compared.
            states = [
                memory[n].transpose(np.argsort(perm))
                if remembers and n in memory
                else np.zeros((len(data), *shape), self.working)
                for n, (shape, perm) in zip(names, made, strict=True)
            ]
        outputs: list[Array] = []
        times = range(data.shape[1])
        projected = self.cell.project(data)
        y = states[shown]
        for t in reversed(times) if self.backwards else times:
            after = self.cell.advance(projected[:, t], states)
            y = after[shown]
            if x.mask is not None:
                on = x.mask[:, t].reshape(-1, *[1] * (y.ndim - 1))
                after = [np.where(on, new, old) for new, old in zip(after, states, strict=True)]
                y = np.where(on, y, 0.0 if self.zero_masked else states[shown])
            states = after
            outputs.append(y)
        begun = x.begun
        if remembers:
            memory.update((n, v.transpose(perm)) for n, v, (_, perm) in zip(names, states, made, strict=True))
        if x.streamed:
            begun = memory[f"{place}.begun"] = bool(outputs) or memory.get(f"{place}.begun", False)
        ends = [Tensor(v, begun=begun) for v in states] if self.states else []
        if not self.sequences:
            return [Tensor(y, begun=begun), *ends]
        empty = np.zeros((len(data), 0, *made[shown][0]), self.working)
        return [replace(x, data=np.stack(outputs, 1) if outputs else empty), *ends]


def stacked(g: Builder, frames: Sequence[str], physical: Shape, place: str) -> str:
    """T tensors [N, ...] as one [N, T, ...]: side by side on axis 1 is end to end in memory."""
    name = frames[0] if len(frames) == 1 else g.op("Concat", frames, f"{place}/side_by_side", axis=1)
    shape = (len(frames), *physical)
    return g.noted(g.reshape(name, shape, f"{place}/sequence"), shape)
