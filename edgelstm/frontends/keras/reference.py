"""A Keras model by NumPy, as Keras itself would compute it: what export compares the graph with where Keras is absent.

Each layer is its equation over a sequence, in Keras's own layout and in float64 (or float32, to see what that loses). Of a stream, every call takes the
elements that are new; what a layer can't use yet waits. There are no delays, rings or clocks here: those are the graph's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.frontends.keras.build import Built
from edgelstm.frontends.keras.layers.layer import Memory, Tensor
from edgelstm.frontends.keras.layers.weighted import Weighted
from edgelstm.frontends.keras.network import Network
from edgelstm.runtime.protocol import Array, Frame, Outputs

#: One stream: what its layers remember, and the last element of each output.
Row = dict[str, Any]


class KerasProgram:
    """A Program (``edgelstm.runtime.protocol``): one row a stream, each computed alone.

    Its Signature is the graph's without the states that only the graph has (rings of frames, the clock).
    """

    def __init__(
        self,
        network: Network,
        built: Built,
        streams: int = 1,
        dtype: type[np.floating[Any]] = np.float64,
        results: type[np.floating[Any]] = np.float32,
    ) -> None:
        signature = built.step.signature
        parts = tuple(s for s in signature.states if s.name.endswith((".h", ".c")))
        self.signature = replace(signature, states=parts)
        self.streams = streams
        self._network, self._built = network, built
        self._dtype, self._results = dtype, results
        self._weights = [
            (layer, {name: value.astype(dtype) for name, value in layer.weights.items()})
            for layer in _all(network)
        ]

    def exact(self) -> KerasProgram:
        """The same in float64, its results unrounded."""
        return KerasProgram(self._network, self._built, self.streams, np.float64, np.float64)

    def rounded(self) -> KerasProgram:
        """The same in float32, as Keras computes it."""
        return KerasProgram(self._network, self._built, self.streams, np.float32)

    def new_state(self) -> list[Row]:
        """All rows before their first frame."""
        return [{} for _ in range(self.streams)]

    def step(self, frames: Sequence[Frame], state: list[Row], active: Sequence[int]) -> Sequence[Outputs]:
        """Advance rows ``active`` in place; see ``Program.step``."""
        results = []
        for frame, row in zip(frames, active, strict=True):
            memory = dict(state[row])
            results.append(self._advance(frame, memory))
            state[row] = memory
        return results

    def read_state(self, state: list[Row], row: int) -> dict[str, Array]:
        """A copy of one row's h and c."""
        held = state[row]
        return {
            s.name: held[s.name][0].astype(self._results) if s.name in held else s.initial_value()
            for s in self.signature.states
        }

    def write_state(self, state: list[Row], row: int, values: Mapping[str, Array]) -> None:
        """Set one row's h and c."""
        state[row] = state[row] | {name: value.astype(self._dtype)[None] for name, value in values.items()}

    def close(self) -> None:
        """Nothing to free."""

    def _advance(self, frame: Frame, memory: Memory) -> Outputs:
        for layer, weights in self._weights:  # programs of several precisions share the layers
            layer.weights, layer.working = weights, self._dtype
        inputs = []
        for spec, streamed, length in zip(
            self.signature.inputs, self._built.streamed, self._built.lengths, strict=True
        ):
            wide = self._dtype if spec.dtype == "float32" else np.int64
            data = np.asarray(frame[spec.name], wide)[None]
            sequence = self._built.window is not None
            inputs.append(
                Tensor(
                    data[:, None] if streamed else data,
                    streamed,
                    None,
                    sequence,
                    length if streamed else None,
                )
            )
        made = self._network.compute(inputs, "", memory)
        names = [t.name for t in self.signature.outputs]
        shown = [
            t for t in self.signature.outputs if t.name.removesuffix("_ready") not in {*names} - {t.name}
        ]
        outputs: Outputs = {}
        for spec, tensor in zip(shown, made, strict=True):
            # A sequence shows the element that came with this frame, if one did.
            new = tensor.data.shape[1] > 0 if tensor.streamed else tensor.begun
            value = tensor.data[0, -1] if tensor.streamed and new else tensor.data[0]
            kind = self._results if spec.dtype == "float32" else np_dtype(spec.dtype)
            outputs[spec.name] = value.astype(kind) if new else np.zeros(spec.frame_shape, kind)
            outputs[spec.name].setflags(write=False)
            if f"{spec.name}_ready" in names:
                outputs[f"{spec.name}_ready"] = np.array(new)
        return outputs


def _all(layer: Weighted) -> Iterator[Weighted]:
    """The layer and all inside it."""
    yield layer
    for _, child in layer.children():
        yield from _all(child)
