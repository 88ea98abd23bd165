"""A CURRENNT network by NumPy, as CURRENNT itself would compute it: what export compares the graph with.

Each layer is its equation over a sequence, in float64 (or float32, to see what that loses), from the file's own layout of weights. With ``currennt.to_step`` it
shares the reading of the file and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.frontends.currennt.file import CurrenntLayer, CurrenntNetwork
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Array, Frame, Outputs

Numbers = npt.NDArray[Any]
#: One stream: h and c of every layer that carries them, by state name.
Row = dict[str, Numbers]


class CurrenntProgram:
    """A Program (``edgelstm.runtime.protocol``): one row a stream, each computed alone.

    A step is a sequence of one frame that goes on from where the last ended; a window starts from zero. dtype: what it
    computes in; results: what it gives.
    """

    def __init__(
        self,
        network: CurrenntNetwork,
        signature: Signature,
        streams: int = 1,
        dtype: type[np.floating[Any]] = np.float64,
        results: type[np.floating[Any]] = np.float32,
    ) -> None:
        self.signature, self.streams = signature, streams
        self._network, self._dtype, self._results = network, dtype, results

    def exact(self) -> CurrenntProgram:
        """The same in float64, its results unrounded."""
        return CurrenntProgram(self._network, self.signature, self.streams, np.float64, np.float64)

    def rounded(self) -> CurrenntProgram:
        """The same in float32."""
        return CurrenntProgram(self._network, self.signature, self.streams, np.float32)

    def new_state(self) -> list[Row]:
        """All rows at zero."""
        zero = {s.name: np.zeros(s.frame_shape, self._dtype) for s in self.signature.states}
        return [dict(zero) for _ in range(self.streams)]

    def step(self, frames: Sequence[Frame], state: list[Row], active: Sequence[int]) -> Sequence[Outputs]:
        """Advance rows ``active`` in place; see ``Program.step``."""
        results: list[Outputs] = []
        for frame, row in zip(frames, active, strict=True):
            x = np.asarray(frame["x"], self._dtype)
            held = dict(state[row])
            y = run(self._network, np.atleast_2d(x), held).astype(self._results)
            y = y if self.signature.window else y[0]
            y.setflags(write=False)
            if not self.signature.window:
                state[row] = held
            results.append({"y": y})
        return results

    def read_state(self, state: list[Row], row: int) -> dict[str, Array]:
        """A copy of one row's state."""
        return {name: value.astype(self._results) for name, value in state[row].items()}

    def write_state(self, state: list[Row], row: int, values: Mapping[str, Array]) -> None:
        """Set one row's state."""
        state[row] = {name: np.asarray(value, self._dtype) for name, value in values.items()}

    def close(self) -> None:
        """Nothing to free."""


def run(network: CurrenntNetwork, x: Numbers, held: dict[str, Any]) -> Numbers:
    """Outputs [T, outputs] of the sequence ``x`` [T, inputs]; ``held`` is the state before it, and then the one after."""
    cells = 0
    for layer in network.layers:
        if layer.kind == "lstm":
            x, (h, c) = _lstm(layer, x, 0, held.get(f"h{cells}"), held.get(f"c{cells}"))
            held[f"h{cells}"], held[f"c{cells}"] = h, c
            cells += 1
        elif layer.kind == "blstm":
            forwards, _ = _lstm(layer, x, 0)
            backwards, _ = _lstm(layer, x[::-1], 1)
            x = np.hstack([forwards, backwards[::-1]])
        else:
            w = layer.input.astype(x.dtype).reshape(layer.size, layer.below)
            x = _activate(layer.kind, x @ w.T + layer.bias.astype(x.dtype) * x.dtype.type(layer.scale))
    return x


def _lstm(
    layer: CurrenntLayer, x: Numbers, way: int, h: Numbers | None = None, c: Numbers | None = None
) -> tuple[Numbers, tuple[Numbers, Numbers]]:
    """One direction over ``x`` [T, below]: h of every frame, and the last h and c. ``way`` 1 takes the second half."""
    size, units = layer.size, layer.size // layer.directions
    numbers = [a.astype(x.dtype) for a in (layer.input, layer.bias, layer.internal)]
    first = way * units

    def gate(k: int) -> tuple[Numbers, Numbers, Numbers]:
        """Weights of the input, bias and recurrent weights of block ``k``, by their places in the file."""
        start = k * size + first
        inputs = numbers[0][start * layer.below : (start + units) * layer.below].reshape(units, -1)
        inner = numbers[2][start * units : (start + units) * units].reshape(units, units)
        return inputs, numbers[1][start : start + units], inner

    blocks = [gate(k) for k in range(4)]
    tail = numbers[2][4 * size * units :]
    see_i, see_f, see_o = (tail[k * size + first : k * size + first + units] for k in range(3))
    h = np.zeros(units, x.dtype) if h is None else h
    c = np.zeros(units, x.dtype) if c is None else c
    made = []
    for frame in x:
        g, i, f, o = (w @ frame + layer.scale * b + r @ h for w, b, r in blocks)
        c = _logistic(f + see_f * c) * c + _logistic(i + see_i * c) * _tanh(g)
        h = _logistic(o + see_o * c) * _tanh(c)
        made.append(h)
    return np.stack(made), (h, c)


def _activate(kind: str, z: Numbers) -> Numbers:
    if kind == "feedforward_tanh":
        return _tanh(z)
    if kind == "feedforward_logistic":
        return _logistic(z)
    if kind == "feedforward_relu":
        return np.maximum(z, 0.0)
    if kind == "softmax":
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))
    return z


def _logistic(x: Numbers) -> Numbers:
    # exp of the limit is no overflow, and of its negative 0 to the type's precision beside 1.
    limit = 500.0 if x.dtype == np.float64 else 80.0
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -limit, limit))))


def _tanh(x: Numbers) -> Numbers:
    """CURRENNT's: the logistic function stretched."""
    return 2.0 * _logistic(2.0 * x) - 1.0
