"""A CURRENNT network as a step graph, or as a window where it also runs backwards.

Weights are named layer<k>.<name of the layer>.<what>: the number keeps them apart whatever the layers are called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.currennt.file import FEEDFORWARD, RECURRENT, CurrenntLayer, CurrenntNetwork
from edgelstm.graph.gates import DOMAIN, GateVariant
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import OPSET, StepModel, make_step

MAX_NODES = 20_000
STREAM_AXIS = "N"
GATES = GateVariant(peephole=True)


def to_step(network: CurrenntNetwork, window: int | None = None) -> StepModel:
    """The network's graph: one frame ``x`` [N, inputs] and the states h0, c0, h1, ... of its lstm layers; ``y`` comes out.

    With ``window``, which a network with a blstm layer needs, T frames [N, T, inputs], every state zero at the start.
    Either way each layer's weights are stored once and every cell is one Gemm and one FusedGates.
    """
    outputs = network.layers[-1].size
    if window is None:
        if network.backwards is not None:
            raise EdgeLstmError(
                f"{network.where} can't be streamed frame by frame",
                found=f"layer {network.backwards!r} is a blstm: it also runs backwards from the last frame",
                expected="the number of frames of a window",
                hint="Give it: --window 30 for sequences of 30 frames",
            )
        signature = _signature(network)
        graph = _Graph({s.name: (s.input, s.output) for s in signature.states})
        (top,) = graph.stack(network, ["x"])
        if top != "y":
            graph.add("Identity", [top], "y")
    else:
        _check_window(network, window)
        signature = Signature(
            (TensorSpec("x", "float32", (STREAM_AXIS, window, network.inputs)),),
            (TensorSpec("y", "float32", (STREAM_AXIS, window, outputs)),),
            (),
            window,
        )
        graph = _Graph(None)
        graph.join(graph.stack(network, graph.split("x", window)), "y")
    gates = [GATES.function(OPSET)] if any(n.domain == DOMAIN for n in graph.nodes) else []
    return make_step(graph.nodes, signature, graph.weights, gates, name="currennt")


def _signature(network: CurrenntNetwork) -> Signature:
    """Of a step. Where the last layer is an lstm the output is its new h: the two are one tensor."""
    cells = [layer for layer in network.layers if layer.kind == "lstm"]
    states = []
    for k, cell in enumerate(cells):
        for part in ("h", "c"):
            shown = part == "h" and cell is network.layers[-1]
            output = "y" if shown else f"{part}{k}_next"
            states.append(StateSpec(f"{part}{k}", f"{part}{k}", output, "float32", (STREAM_AXIS, cell.size)))
    return Signature(
        (TensorSpec("x", "float32", (STREAM_AXIS, network.inputs)),),
        (TensorSpec("y", "float32", (STREAM_AXIS, network.layers[-1].size)),),
        tuple(states),
    )


def _check_window(network: CurrenntNetwork, window: int) -> None:
    cells = sum(3 * layer.directions + 1 for layer in network.layers)
    if not 1 <= window <= MAX_NODES // (cells + 2):
        raise EdgeLstmError(
            f"{network.where}: window",
            found=f"{count_of(window, 'frame')}",
            expected=f"1 to {MAX_NODES // (cells + 2)}: a graph of at most {MAX_NODES} nodes",
        )


class _Graph:
    """Nodes and weights under construction. ``states``: by name the values before and after a step; None in a window."""

    def __init__(self, states: Mapping[str, tuple[str, str]] | None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._states = states
        self._cells = 0

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], output, **attributes))
        return output

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def split(self, x: str, window: int) -> list[str]:
        """[N, T, F] as T frames [N, F]."""
        axis = self.constant("time.axis", np.array([1], np.int64))
        parts = [f"{x}/{t}/of_time" for t in range(window)]
        self.nodes.append(helper.make_node("Split", [x], parts, f"{x}/split", axis=1, num_outputs=window))
        return [self.add("Squeeze", [part, axis], f"{x}/{t}") for t, part in enumerate(parts)]

    def join(self, frames: Sequence[str], y: str) -> None:
        """T frames [N, F] as [N, T, F]."""
        parts = [self.add("Unsqueeze", [f, "time.axis"], f"{y}/{t}") for t, f in enumerate(frames)]
        self.add("Concat", parts, y, axis=1)

    def stack(self, network: CurrenntNetwork, frames: Sequence[str]) -> list[str]:
        """All layers over ``frames``, one in a step, T in a window."""
        for k, layer in enumerate(network.layers):
            last = k + 1 == len(network.layers)
            if layer.kind not in RECURRENT:
                frames = self.feedforward(
                    layer, k, frames, "y" if last and self._states is not None else None
                )
                continue
            ways = [self.cell(layer, k, way, frames) for way in range(layer.directions)]
            frames = ways[0]
            if len(ways) == 2:
                pairs = enumerate(zip(*ways, strict=True))
                frames = [self.add("Concat", pair, f"layer{k}/{t}/both", axis=1) for t, pair in pairs]
        return list(frames)

    def feedforward(
        self, layer: CurrenntLayer, k: int, frames: Sequence[str], output: str | None
    ) -> list[str]:
        w = self.constant(f"layer{k}.{layer.name}.weight", layer.input.reshape(layer.size, layer.below))
        b = self.constant(f"layer{k}.{layer.name}.bias", layer.scaled_bias)
        op = FEEDFORWARD[layer.kind]
        made = []
        for t, frame in enumerate(frames):
            name = output or f"layer{k}/{t}/out"
            z = self.add("Gemm", [frame, w, b], f"layer{k}/{t}/z" if op else name, transB=1)
            axis = {"axis": 1} if op == "Softmax" else {}
            made.append(self.add(op, [z], name, **axis) if op else z)
        return made

    def cell(self, layer: CurrenntLayer, k: int, way: int, frames: Sequence[str]) -> list[str]:
        """One direction of an LSTM layer over ``frames``; gives its h, in the order of ``frames``."""
        size = layer.size // layer.directions
        label = f"layer{k}.{layer.name}"
        if layer.directions == 2:
            label += (".forward", ".backward")[way]
        half = slice(way * size, (way + 1) * size)
        recurrent, peepholes = np.split(layer.internal, [4 * layer.size * size])
        joined = np.concatenate(
            [
                layer.input.reshape(4, layer.size, layer.below)[:, half],
                recurrent.reshape(4, layer.size, size)[:, half],
            ],
            axis=2,
        )
        order = [1, 2, 0, 3]  # from g, i, f, o to FusedGates's i, f, g, o
        w = self.constant(f"{label}.weight", joined[order].reshape(4 * size, -1))
        b = self.constant(f"{label}.bias", layer.scaled_bias.reshape(4, layer.size)[order, half].reshape(-1))
        peeps = [
            self.constant(f"{label}.p_{gate}", values)
            for gate, values in zip("ifo", peepholes.reshape(3, layer.size)[:, half], strict=True)
        ]
        if self._states is not None:
            (h, h_next), (c, c_next) = (self._states[f"{part}{self._cells}"] for part in "hc")
            self._cells += 1
        else:
            h = c = self.zeros(size, frames[0])
        made: dict[int, str] = {}
        for t in range(len(frames))[:: -1 if way else 1]:
            at = f"layer{k}/{t}/{way}"
            if self._states is None:
                h_next, c_next = f"{at}/h", f"{at}/c"
            z = self.add(
                "Gemm", [self.add("Concat", [frames[t], h], f"{at}/xh", axis=1), w, b], f"{at}/z", transB=1
            )
            self.nodes.append(
                helper.make_node(
                    GATES.op_type, [z, c, *peeps], [h_next, c_next], f"{at}/gates", domain=DOMAIN
                )
            )
            made[t], h, c = h_next, h_next, c_next
        return [made[t] for t in range(len(frames))]

    def zeros(self, size: int, like: str) -> str:
        """[N, size] zeros for as many streams as ``like`` has."""
        name = f"zeros.{size}"
        if all(name not in node.output for node in self.nodes):
            streams = self.add("Shape", [like], f"{name}/streams", start=0, end=1)
            length = self.constant(f"{name}/size", np.array([size], np.int64))
            shape = self.add("Concat", [streams, length], f"{name}/shape", axis=0)
            self.add("ConstantOfShape", [shape], name)
        return name
