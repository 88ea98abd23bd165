"""A described model computed with NumPy alone: what export and verify compare a step graph with where torch is absent.

Written from the papers' equations, not from the graph: it shares with ``described`` only the weights, the Signature
and the gate equations of ``GateVariant.reference``. Made for being right and readable; the loops over layers and
predictions are Python, the work in them is BLAS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from edgelstm.frontends.described.architecture import Cell, EncoderForecaster, Lstm
from edgelstm.frontends.described.graph import Described
from edgelstm.graph.gates import GateVariant
from edgelstm.runtime.protocol import Array, Frame, Outputs

State = dict[str, Array]
#: h and c of every layer of a stack.
Layers = list[tuple[Array, Array]]


class NumpyProgram:
    """A Program (``edgelstm.runtime.protocol``) that computes ``described`` in ``dtype``, float64 unless told.

    Frames, outputs and states pass in float32, as the Signature says, or in ``results``; between steps the state keeps
    ``dtype``.
    """

    def __init__(
        self,
        described: Described,
        streams: int = 1,
        dtype: type[np.float64] | type[np.float32] = np.float64,
        results: type[np.float64] | type[np.float32] = np.float32,
    ) -> None:
        self._described, self._results = described, results
        self.signature = described.signature
        self.streams = streams
        self._architecture = described.architecture
        self._gates = GateVariant(peephole=described.architecture.peephole)
        self._dtype = np.dtype(dtype)
        self._weights = {name: value.astype(dtype) for name, value in described.weights.items()}

    def exact(self) -> NumpyProgram:
        """The same in float64, its results unrounded."""
        return NumpyProgram(self._described, self.streams, np.float64, np.float64)

    def rounded(self) -> NumpyProgram:
        """The same in float32, as a framework computes it."""
        return NumpyProgram(self._described, self.streams, np.float32)

    def new_state(self) -> State:
        """All rows at zero: by state name [streams, *shape]."""
        return {s.name: np.zeros((self.streams, *s.frame_shape), self._dtype) for s in self.signature.states}

    def step(self, frames: Sequence[Frame], state: State, active: Sequence[int]) -> Sequence[Outputs]:
        """Advance rows ``active`` of ``state`` in place; see ``Program.step``."""
        rows = list(active)
        x = np.stack([frame["x"] for frame in frames]).astype(self._dtype)
        layers = [(state[f"h{n}"][rows], state[f"c{n}"][rows]) for n in range(len(self._architecture.cells))]
        output, layers = self._advance(x, layers)
        for n, (h, c) in enumerate(layers):
            state[f"h{n}"][rows], state[f"c{n}"][rows] = h, c
        result = output.astype(self._results)
        result.setflags(write=False)
        return [{self.signature.outputs[0].name: row} for row in result]

    def read_state(self, state: State, row: int) -> dict[str, Array]:
        """A copy of one row's state."""
        return {name: value[row].astype(self._results) for name, value in state.items()}

    def write_state(self, state: State, row: int, values: Mapping[str, Array]) -> None:
        """Set one row's state."""
        for name, value in values.items():
            state[name][row] = value

    def close(self) -> None:
        """Nothing to free."""

    def _advance(self, x: Array, layers: Layers) -> tuple[Array, Layers]:
        """Output and new states of frames ``x`` [n, *frame]."""
        a = self._architecture
        if isinstance(a, EncoderForecaster):
            layers = self._stack(a.cells, self._conv("stem", x, stride=a.patch), layers)
            return self._forecast(a, x, layers), layers
        layers = self._stack(a.cells, x, layers)
        top = layers[-1][0]
        if a.head is None:
            return top, layers
        if isinstance(a, Lstm):
            y = self._linear("head", top)
            return (y + np.tile(x, (1, a.head.outputs // a.inputs)) if a.residual else y), layers
        return self._conv("head", top), layers

    def _forecast(self, a: EncoderForecaster, x: Array, layers: Layers) -> Array:
        frames = []
        for _ in range(a.horizon):
            layers = self._stack(a.forecaster, None, layers)
            patches = self._conv("head", np.concatenate([h for h, _ in layers], axis=1))
            frame = pixel_shuffle(patches, a.patch)
            frames.append(frame + x if a.residual else frame)
        return np.stack(frames, axis=1)

    def _stack(self, cells: Sequence[Cell], below: Array | None, layers: Layers) -> Layers:
        following: Layers = []
        for cell, (h, c) in zip(cells, layers, strict=True):
            joined = h if below is None else np.concatenate([below, h], axis=1)
            z = self._conv(cell.name, joined) if cell.grid else self._linear(cell.name, joined)
            below, c = self._gates.reference(z, c, *(self._weights[p] for p in cell.peepholes))
            following.append((below, c))
        return following

    def _linear(self, layer: str, x: Array) -> Array:
        z: Array = x @ self._weights[f"{layer}.weight"].T + self._weights[f"{layer}.bias"]
        return z

    def _conv(self, layer: str, x: Array, stride: int = 1) -> Array:
        padding: Literal["same", "valid"] = "same" if stride == 1 else "valid"
        return conv2d(
            x,
            self._weights[f"{layer}.weight"],
            self._weights[f"{layer}.bias"],
            stride=stride,
            padding=padding,
        )


def conv2d(
    x: Array, weight: Array, bias: Array, *, stride: int = 1, padding: Literal["same", "valid"] = "same"
) -> Array:
    """2-D cross-correlation, as deep learning calls convolution (ONNX operator Conv).

    x [N, C, H, W], weight [O, C, k, k], bias [O]; ``same`` pads k//2 zeros on all sides. One matrix product over all
    k x k windows.
    """
    outputs, _, k, _ = weight.shape
    if padding == "same":
        pad = k // 2
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (2, 3))[:, :, ::stride, ::stride]
    n, c, height, width = windows.shape[:4]
    columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(n, c * k * k, height * width)
    result: Array = weight.reshape(outputs, -1) @ columns + bias[:, None]
    return result.reshape(n, outputs, height, width)


def pixel_shuffle(x: Array, patch: int) -> Array:
    """[N, C·patch², H, W] -> [N, C, H·patch, W·patch] (ONNX operator DepthToSpace, mode CRD)."""
    n, depth, height, width = x.shape
    channels = depth // patch**2
    blocks = x.reshape(n, channels, patch, patch, height, width).transpose(0, 1, 4, 2, 5, 3)
    frames: Array = blocks.reshape(n, channels, height * patch, width * patch)
    return frames
