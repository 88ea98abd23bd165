"""The cells: one step of LSTM, GRU, SimpleRNN and ConvLSTM.

Sources: Hochreiter & Schmidhuber 1997 and Gers et al. 1999 (LSTM), Cho et al. 2014 (GRU), Shi et al. 2015 (ConvLSTM), each
as the documentation of keras.layers has it: gates i, f, c, o; z, r, h; weights [inputs, gates x units].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from edgelstm.errors import count_of
from edgelstm.frontends.keras import arithmetic
from edgelstm.frontends.keras.activations import Activation, read_activation
from edgelstm.frontends.keras.arithmetic import same_padding
from edgelstm.frontends.keras.builder import Array, Builder, Shape, Value, channels_first
from edgelstm.frontends.keras.layers.weighted import Weighted
from edgelstm.frontends.keras.options import Options
from edgelstm.graph.gates import GateVariant


class Cell(Weighted, ABC):
    """One step: ``(x, states) -> next states``; one of them is the output.

    Physically a frame and the states are [N, features] or [N, channels, *grid].
    """

    #: What the states are called.
    parts: tuple[str, ...] = ("h",)
    #: Which of the states is the output.
    shown: int = 0

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.activation = elementwise(options, "activation", read_activation(options, "activation", "tanh"))
        self.bias = options.flag("use_bias", True)

    def variables(self) -> tuple[list[str], list[str]]:
        return ["kernel", "recurrent_kernel", *(["bias"] if self.bias else [])], []

    @abstractmethod
    def taken(self, shape: Shape) -> tuple[tuple[int, ...], Shape]:
        """For frames of ``shape`` (Keras's order): the layout the cell wants, and the physical shape of a state."""

    def states(self, shape: Shape) -> list[Shape]:
        """The physical shape of every state, for frames of ``shape``."""
        return [self.taken(shape)[1]] * len(self.parts)

    def made(self, state: Shape) -> tuple[Shape, tuple[int, ...]]:
        """Keras's shape of an output, and the layout it has."""
        return state, tuple(range(len(state) + 1))

    @abstractmethod
    def step(self, g: Builder, x: str, states: Sequence[str], shape: Shape, place: str) -> list[str]:
        """Emit one step on frames of Keras's ``shape``."""

    def project(self, x: Array) -> Array:
        """What ``advance`` takes, of the frames [N, T, ...] of a whole sequence: all that does not need the states."""
        return x

    @abstractmethod
    def advance(self, x: Array, states: Sequence[Array]) -> list[Array]:
        """One step by NumPy, all in Keras's layout. x: one frame of what ``project`` gave."""


def elementwise(options: Options, key: str, found: Activation) -> Activation:
    """The activation, which a cell applies number by number. Raises EdgeLstmError for softmax."""
    if found.name in ("softmax", "log_softmax"):
        raise options.error(key, "an activation of single numbers")
    return found


class DenseCell(Cell):
    """What LSTM, GRU and SimpleRNN share."""

    gates: ClassVar[int] = 1

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.units = options.whole("units")
        self.finish(options)

    def finish(self, options: Options) -> None:
        """Options of the kind, and no others."""

    def taken(self, shape: Shape) -> tuple[tuple[int, ...], Shape]:
        if len(shape) != 1:
            raise self.options.error("units", "sequences [N, T, features]", found=f"frames {list(shape)}")
        return (0, 1), (self.units,)

    def matrices(self, inputs: int) -> tuple[Array, Array]:
        """Kernel and recurrent kernel."""
        wide = self.gates * self.units
        return self.weight("kernel", (inputs, wide)), self.weight("recurrent_kernel", (self.units, wide))

    def joined(self, g: Builder, x: str, h: str, inputs: int, place: str) -> str:
        """[x ; h] W + b in one product."""
        weight = np.concatenate(self.matrices(inputs)).T
        return self.product(
            g, g.op("Concat", [x, h], f"{place}/joined", axis=1), weight, self.one_bias(), place
        )

    def project(self, x: Array) -> Array:
        return x @ self.weights["kernel"] + self.weights.get("bias", 0.0)

    def one_bias(self) -> Array | None:
        """The bias of all gates."""
        return self.weight("bias", (self.gates * self.units,)) if self.bias else None

    def product(self, g: Builder, x: str, weight: Array, bias: Array | None, place: str) -> str:
        """Gemm: x [N, F], weight [units, F]."""
        inputs = [x, g.constant(np.ascontiguousarray(weight), f"{place}/weight")]
        if bias is not None:
            inputs.append(g.constant(bias, f"{place}/bias"))
        return g.op("Gemm", inputs, f"{place}/z", transB=1)


def emit_gates(
    g: Builder, z: str, c: str, activation: Activation, gate: Activation, place: str
) -> tuple[str, str]:
    """From the gates' sums and the old c to h and c: FusedGates where it has the variant, operators elsewhere."""
    known = gate.name in ("sigmoid", "hard_sigmoid") and (
        activation.name == "tanh" or activation == Activation("relu")
    )
    if known:
        inner = "tanh" if activation.name == "tanh" else "relu"
        hard = {"gate": gate.name, "alpha": gate.alpha, "beta": gate.beta}
        variant = GateVariant(
            candidate=inner,  # type: ignore[arg-type]
            output=inner,  # type: ignore[arg-type]
            **(hard if gate.name == "hard_sigmoid" else {}),  # type: ignore[arg-type]
        )
        return g.gates(variant, z, c, place)
    parts = g.ops("Split", [z], [f"{place}/z_{n}" for n in "ifco"], axis=1, num_outputs=4)
    i, f, o = (gate.emit(g, parts[k], f"{place}/{n}") for k, n in ((0, "i"), (1, "f"), (3, "o")))
    fresh = g.op("Mul", [i, activation.emit(g, parts[2], f"{place}/candidate")], f"{place}/new")
    c_next = g.op("Add", [g.op("Mul", [f, c], f"{place}/old"), fresh], f"{place}/c")
    h = g.op("Mul", [o, activation.emit(g, c_next, f"{place}/bent")], f"{place}/h")
    return h, c_next


class LSTMCell(DenseCell):
    """i, f, o = gate(...), c' = f c + i act(...), h = o act(c')."""

    gates = 4
    parts = ("h", "c")

    def finish(self, options: Options) -> None:
        self.gate = elementwise(
            options, "recurrent_activation", read_activation(options, "recurrent_activation", "sigmoid")
        )

    def step(self, g: Builder, x: str, states: Sequence[str], shape: Shape, place: str) -> list[str]:
        z = self.joined(g, x, states[0], shape[0], place)
        return list(emit_gates(g, z, states[1], self.activation, self.gate, place))

    def advance(self, x: Array, states: Sequence[Array]) -> list[Array]:
        h, c = states
        return lstm_equations(x + h @ self.weights["recurrent_kernel"], c, self.activation, self.gate)


def lstm_equations(z: Array, c: Array, activation: Activation, gate: Activation) -> list[Array]:
    """h and c from the sums [..., 4 units] in the order i, f, c, o."""
    n = z.shape[-1] // 4
    i, f, candidate, o = (z[..., k * n : (k + 1) * n] for k in range(4))
    c = gate.compute(f) * c + gate.compute(i) * activation.compute(candidate)
    return [gate.compute(o) * activation.compute(c), c]


class GRUCell(DenseCell):
    """h' = z h + (1 - z) act(...), where the reset gate works before or after the recurrent product."""

    gates = 3

    def finish(self, options: Options) -> None:
        default = "sigmoid"
        self.gate = elementwise(
            options, "recurrent_activation", read_activation(options, "recurrent_activation", default)
        )
        # Standalone Keras 2 wrote files that do not say, and meant False.
        self.reset_after = options.flag("reset_after", options.source.keras >= 3)

    def biases(self) -> tuple[Array | None, Array | None]:
        """Of the inputs' product and of the recurrent one."""
        wide = self.gates * self.units
        if not self.bias:
            return None, None
        if not self.reset_after:
            return self.weight("bias", (wide,)), None
        both = self.weight("bias", (2, wide))
        return both[0], both[1]

    def step(self, g: Builder, x: str, states: Sequence[str], shape: Shape, place: str) -> list[str]:
        (h,) = states
        n = self.units
        kernel, recurrent = self.matrices(shape[0])
        b_x, b_h = self.biases()
        both = 2 * n
        # The gates z and r join their products; the candidate can't, since r stands between.
        added = b_x if b_h is None or b_x is None else b_x + b_h
        joined = g.op("Concat", [x, h], f"{place}/joined", axis=1)
        weight = np.concatenate([kernel[:, :both], recurrent[:, :both]]).T
        sums = self.product(g, joined, weight, None if added is None else added[:both], f"{place}/gates")
        gates = self.gate.emit(g, sums, f"{place}/gates")
        z, r = g.ops("Split", [gates], [f"{place}/update", f"{place}/reset"], axis=1, num_outputs=2)
        if self.reset_after:
            old = self.product(
                g, h, recurrent[:, both:].T, None if b_h is None else b_h[both:], f"{place}/old"
            )
            new = self.product(g, x, kernel[:, both:].T, None if b_x is None else b_x[both:], f"{place}/new")
            total = g.op("Add", [new, g.op("Mul", [r, old], f"{place}/reset_old")], f"{place}/sum")
        else:
            reset = g.op("Mul", [r, h], f"{place}/reset_h")
            mixed = g.op("Concat", [x, reset], f"{place}/mixed", axis=1)
            weight = np.concatenate([kernel[:, both:], recurrent[:, both:]]).T
            total = self.product(g, mixed, weight, None if b_x is None else b_x[both:], f"{place}/sum")
        candidate = self.activation.emit(g, total, f"{place}/candidate")
        # z h + (1 - z) c = c + z (h - c)
        apart = g.op("Sub", [h, candidate], f"{place}/apart")
        return [g.op("Add", [candidate, g.op("Mul", [z, apart], f"{place}/kept")], f"{place}/h")]

    def project(self, x: Array) -> Array:
        b_x, _ = self.biases()
        return x @ self.weights["kernel"] + (0.0 if b_x is None else b_x)

    def advance(self, x: Array, states: Sequence[Array]) -> list[Array]:
        (h,) = states
        n = self.units
        recurrent = self.weights["recurrent_kernel"]
        _, b_h = self.biases()
        bias = np.zeros(3 * n) if b_h is None else b_h
        gates = self.gate.compute(x[..., : 2 * n] + h @ recurrent[:, : 2 * n] + bias[: 2 * n])
        z, r = gates[..., :n], gates[..., n:]
        if self.reset_after:
            old = r * (h @ recurrent[:, 2 * n :] + bias[2 * n :])
        else:
            old = (r * h) @ recurrent[:, 2 * n :]
        candidate = self.activation.compute(x[..., 2 * n :] + old)
        return [z * h + (1 - z) * candidate]


class SimpleCell(DenseCell):
    """h' = act(x W + h U + b)."""

    def step(self, g: Builder, x: str, states: Sequence[str], shape: Shape, place: str) -> list[str]:
        return [self.activation.emit(g, self.joined(g, x, states[0], shape[0], place), f"{place}/h")]

    def advance(self, x: Array, states: Sequence[Array]) -> list[Array]:
        return [self.activation.compute(x + states[0] @ self.weights["recurrent_kernel"])]


class ConvCell(Cell):
    """An LSTM whose products are convolutions. Padding, strides and dilation are of the input's alone."""

    parts = ("h", "c")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.rank = rank = int(options.kind[-2])
        self.filters = options.whole("filters")
        self.sizes = options.sizes("kernel_size", rank)
        self.strides = options.sizes("strides", rank, 1)
        self.dilation = options.sizes("dilation_rate", rank, 1)
        self.padding = options.choice("padding", ("valid", "same"), "valid")
        formats = ("channels_last", "channels_first")
        self.first = options.choice("data_format", formats, "channels_last") == "channels_first"
        default = "hard_sigmoid" if options.source.keras < 3 else "sigmoid"
        self.gate = elementwise(
            options, "recurrent_activation", read_activation(options, "recurrent_activation", default)
        )

    def pads(self, spatial: Shape) -> list[tuple[int, int]]:
        """Of the input's convolution."""
        if self.padding == "valid":
            return [(0, 0)] * self.rank
        return [
            same_padding(n, k, s, d)
            for n, k, s, d in zip(spatial, self.sizes, self.strides, self.dilation, strict=True)
        ]

    def taken(self, shape: Shape) -> tuple[tuple[int, ...], Shape]:
        if len(shape) != self.rank + 1:
            raise self.options.error(
                "kernel_size",
                f"frames with {count_of(self.rank + 1, 'axis', 'axes')}",
                found=f"frames {list(shape)}",
            )
        perm = tuple(range(len(shape) + 1)) if self.first else channels_first(shape)
        spatial = shape[1:] if self.first else shape[:-1]
        places = []
        for n, k, s, d, pad in zip(
            spatial, self.sizes, self.strides, self.dilation, self.pads(spatial), strict=True
        ):
            places.append((n + sum(pad) - (k - 1) * d - 1) // s + 1)
        if min(places) < 1:
            raise self.options.error("kernel_size", f"a kernel that fits frames {list(shape)}")
        return perm, (self.filters, *places)

    def states(self, shape: Shape) -> list[Shape]:
        """The physical shape of every state, for frames of ``shape``."""
        return [self.taken(shape)[1]] * len(self.parts)

    def made(self, state: Shape) -> tuple[Shape, tuple[int, ...]]:
        if self.first:
            return state, tuple(range(len(state) + 1))
        shape = (*state[1:], state[0])
        return shape, channels_first(shape)

    def step(self, g: Builder, x: str, states: Sequence[str], shape: Shape, place: str) -> list[str]:
        h, c = states
        channels = shape[0] if self.first else shape[-1]
        spatial = shape[1:] if self.first else shape[:-1]
        order = (self.rank + 1, self.rank, *range(self.rank))
        kernel = self.weight("kernel", (*self.sizes, channels, 4 * self.filters)).transpose(order)
        recurrent = self.weight("recurrent_kernel", (*self.sizes, self.filters, 4 * self.filters)).transpose(
            order
        )
        bias = [g.constant(self.weight("bias", (4 * self.filters,)), f"{place}/bias")] if self.bias else []
        grid = self.taken(shape)[1][1:]
        own = [same_padding(n, k, 1) for n, k in zip(grid, self.sizes, strict=True)]
        pads = self.pads(spatial)
        once = (1,) * self.rank
        if (self.strides, self.dilation, tuple(pads)) == (once, once, tuple(own)):
            joined = g.op("Concat", [x, h], f"{place}/joined", axis=1)
            weight = np.concatenate([kernel, recurrent], axis=1)
            z = self._conv(g, joined, weight, bias, own, once, once, f"{place}/z", place)
        else:
            z_x = self._conv(
                g, x, kernel, bias, pads, self.strides, self.dilation, f"{place}/z_x", f"{place}/x"
            )
            z_h = self._conv(g, h, recurrent, [], own, once, once, f"{place}/z_h", f"{place}/h")
            z = g.op("Add", [z_x, z_h], f"{place}/z")
        return list(emit_gates(g, z, c, self.activation, self.gate, place))

    def _conv(
        self,
        g: Builder,
        x: str,
        weight: Array,
        bias: list[str],
        pads: Sequence[tuple[int, int]],
        strides: Shape,
        dilation: Shape,
        base: str,
        owner: str,
    ) -> str:
        return g.op(
            "Conv",
            [x, g.constant(np.ascontiguousarray(weight), f"{owner}/weight"), *bias],
            base,
            kernel_shape=list(self.sizes),
            strides=list(strides),
            dilations=list(dilation),
            pads=[p[0] for p in pads] + [p[1] for p in pads],
        )

    def advance(self, x: Array, states: Sequence[Array]) -> list[Array]:
        h, c = states
        if self.first:
            x, h, c = (np.moveaxis(v, 1, -1) for v in (x, h, c))
        once = (1,) * self.rank
        z = arithmetic.conv(
            x,
            self.weights["kernel"],
            strides=self.strides,
            dilation=self.dilation,
            padding=self.pads(x.shape[1:-1]),
        )
        own = [same_padding(n, k, 1) for n, k in zip(h.shape[1:-1], self.sizes, strict=True)]
        z += arithmetic.conv(h, self.weights["recurrent_kernel"], strides=once, dilation=once, padding=own)
        z += self.weights.get("bias", 0.0)
        after = lstm_equations(z, c, self.activation, self.gate)
        return [np.moveaxis(v, -1, 1) for v in after] if self.first else after


CELLS: dict[str, type[Cell]] = {
    "LSTM": LSTMCell,
    "GRU": GRUCell,
    "SimpleRNN": SimpleCell,
    "ConvLSTM1D": ConvCell,
    "ConvLSTM2D": ConvCell,
    "ConvLSTM3D": ConvCell,
}


def frame_shape(value: Value) -> Shape:
    """Keras's shape of one frame of a sequence."""
    return value.shape if value.time is not None else value.shape[1:]
