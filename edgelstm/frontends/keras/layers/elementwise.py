"""Activations, Rescaling, PReLU, and the layers that merge several values: Add, Concatenate and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.activations import layer_activation
from edgelstm.frontends.keras.builder import Array, Builder, Shape, Time, Value, mixes_rows
from edgelstm.frontends.keras.layers.layer import FrameLayer, Layer, Memory, Tensor, same_time
from edgelstm.frontends.keras.options import Options


class ActivationLayer(FrameLayer):
    """Activation, ReLU, LeakyReLU, ELU, Softmax."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.activation = layer_activation(options)

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        return self.activation.apply(g, value, place)

    def apply(self, x: Array) -> Array:
        return self.activation.compute(x)


class PReLU(FrameLayer):
    """x where positive, alpha x elsewhere; one alpha for each place that ``shared_axes`` do not share."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        shared = options.get("shared_axes")
        self.shared = () if shared is None else options.axes("shared_axes")
        options.finish()

    def variables(self) -> tuple[list[str], list[str]]:
        return ["alpha"], []

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        shared = {axis + value.rank if axis < 0 else axis for axis in self.shared}
        if value.time is not None and 1 not in shared:
            value.axis(1, self.what)  # one alpha a frame
        axes = range(2, value.rank) if value.time else range(1, value.rank)
        sizes = [1 if axis in shared else n for axis, n in zip(axes, value.shape, strict=True)]
        alpha = self.weight("alpha", (1, *sizes) if value.time else tuple(sizes)).reshape(1, *sizes)
        slope = g.constant(alpha.transpose(value.perm), f"{place}/alpha")
        return replace(value, name=g.op("PRelu", [value.name, slope], place))

    def apply(self, x: Array) -> Array:
        y: Array = np.where(x > 0, x, self.weights["alpha"] * x)
        return y


class Rescaling(FrameLayer):
    """scale x + offset, each one number or one a feature."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.scale, self.offset = options.number("scale", 1.0), options.number("offset", 0.0)
        options.finish()

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        scaled = g.op("Mul", [value.name, g.number(self.scale)], f"{place}/scaled")
        return replace(value, name=g.op("Add", [scaled, g.number(self.offset)], place))

    def apply(self, x: Array) -> Array:
        return x * self.scale + self.offset


_MERGES = {
    "Add": ("Add", np.add),
    "Subtract": ("Sub", np.subtract),
    "Multiply": ("Mul", np.multiply),
    "Maximum": ("Max", np.maximum),
    "Minimum": ("Min", np.minimum),
    "Average": ("Add", np.add),
}


class Merge(Layer):
    """Add, Subtract, Multiply, Maximum, Minimum, Average and Concatenate.

    Sequences that come with different delays are aligned: the earlier one waits in a state.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.concat_axis = None
        if options.kind == "Concatenate":
            axes = options.axes("axis", -1)
            if len(axes) != 1:
                raise options.error("axis", "one axis")
            self.concat_axis = axes[0]
        options.finish()

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        if any(v.mask is not None for v in inputs):
            raise EdgeLstmError(f"{self.what} merges masked sequences", expected="no Masking before a merge")
        if len(inputs) < 2 and self.options.kind != "Concatenate":
            raise EdgeLstmError(f"{self.what}: inputs", found=len(inputs), expected="at least 2")
        same_time(self, inputs)
        if inputs[0].time is not None:
            inputs = aligned(self, g, inputs, place)
        first = inputs[0]
        if len({len(v.shape) for v in inputs}) > 1:
            raise EdgeLstmError(
                f"{self.what}: shapes that come in",
                found=[list(v.shape) for v in inputs],
                expected="one number of axes",
            )
        names = [g.layout(v, first.perm) for v in inputs]
        ready, sequence = max(v.ready for v in inputs), all(v.sequence for v in inputs)
        if self.concat_axis is not None:
            axis = first.axis(self.concat_axis, self.what)
            others = {tuple(n for k, n in enumerate(v.shape, 1) if k != axis) for v in inputs}
            sizes = list(first.shape)
            sizes[axis - 1] = sum(v.shape[axis - 1] for v in inputs)
            if len(others) > 1:
                raise EdgeLstmError(
                    f"{self.what}: shapes that come in",
                    found=[list(v.shape) for v in inputs],
                    expected="alike but for the joined axis",
                )
            name = g.op("Concat", names, place, axis=first.physical(axis))
            return [replace(first, name=name, shape=tuple(sizes), ready=ready, sequence=sequence)]
        op, _ = _MERGES[self.options.kind]
        shape = broadcast(self, [v.shape for v in inputs])
        name = reduce(lambda a, b: g.op(op, [a, b], place), names[1:], names[0])
        if self.options.kind == "Average":
            name = g.op("Mul", [name, g.number(1 / len(inputs))], f"{place}/mean")
        return [replace(first, name=name, shape=shape, ready=ready, sequence=sequence)]

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        arrays = waited(inputs, place, memory)
        if self.concat_axis is not None:
            y: Array = np.concatenate(arrays, self.concat_axis)
        else:
            y = reduce(_MERGES[self.options.kind][1], arrays)
            if self.options.kind == "Average":
                y = y / len(arrays)
        begun = all(x.begun for x in inputs)
        return [replace(inputs[0], data=y, sequence=all(x.sequence for x in inputs), begun=begun)]


def broadcast(layer: Layer, shapes: Sequence[Shape]) -> Shape:
    """The shape of what is computed from ``shapes`` of rows. Rows of unequal rank would take streams for places."""
    if len({len(shape) for shape in shapes}) > 1:
        raise mixes_rows(layer.what, f"rows of shapes {' and '.join(str(list(s)) for s in shapes)}")
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError as error:
        raise EdgeLstmError(
            f"{layer.what}: shapes that come in",
            found=[list(shape) for shape in shapes],
            expected="shapes that fit each other",
        ) from error


def waited(inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Array]:
    """What the reference joins: of sequences, as many elements as all have; what one is ahead of the others waits."""
    arrays = [x.data for x in inputs]
    if not inputs[0].streamed or len(arrays) == 1:
        return arrays
    waiting = memory.get(f"{place}.waiting", [a[:, :0] for a in arrays])
    arrays = [np.concatenate(pair, axis=1) for pair in zip(waiting, arrays, strict=True)]
    count = min(a.shape[1] for a in arrays)
    memory[f"{place}.waiting"] = [a[:, count:] for a in arrays]
    return [a[:, :count] for a in arrays]


def aligned(layer: Layer, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
    """Sequences that come with different delays, the earlier ones held back in states."""
    times = [v.time for v in inputs if v.time is not None]
    if len({t.every for t in times}) > 1 or len({t.length for t in times if t.length}) > 1:
        raise EdgeLstmError(
            f"{layer.what}: sequences of different length come in",
            found=[f"{t.length or 'any'} elements, one every {count_of(t.every, 'frame')}" for t in times],
            expected="one length",
        )
    latest = max(t.delay for t in times)
    time = Time(latest, times[0].every, times[0].length, any(t.open_end for t in times))
    return [
        replace(v, name=_delayed(g, v, latest, f"{place}.wait{k}"), time=time) for k, v in enumerate(inputs)
    ]


def _delayed(g: Builder, value: Value, until: int, state: str) -> str:
    """The value as it was ``until - delay`` frames ago: the frames between lie side by side in one state."""
    assert value.time is not None
    wait = until - value.time.delay
    if not wait:
        return value.name
    physical = tuple(value.shape[axis - 1] for axis in value.perm[1:])
    held = g.state(state, (wait, *physical), value.dtype)
    now = g.op("Unsqueeze", [value.name, g.integers([1])], f"{state}/now")
    line = g.op("Concat", [held, now], f"{state}/line", axis=1)
    g.carry(
        state,
        g.op(
            "Slice",
            [line, g.integers([1]), g.integers([wait + 1]), g.integers([1])],
            f"{state}/kept",
        ),
    )
    oldest = g.op("Slice", [line, g.integers([0]), g.integers([1]), g.integers([1])], f"{state}/oldest")
    return g.op("Squeeze", [oldest, g.integers([1])], f"{state}/then")
