"""CURRENNT networks: a .jsn file read and checked, and written as a step graph, or as a window where it runs backwards.

The file (Weninger, Bergmann & Schuller 2015, JMLR 16; the layout is that of CURRENNT's own layers) lists ``layers``, each
with name, type, size and ``bias``, a number its bias weights are multiplied with, and for each layer's name ``weights``:

- feedforward_*, softmax: ``input`` [size, below], ``bias`` [size], ``internal`` empty.
- lstm: ``input`` [4, size, below] and ``bias`` [4, size] in the order cell input, input, forget, output gate; ``internal`` is
  the recurrent weights [4, size, size] and then the peepholes of input, forget and output gate [3, size].
- blstm: the same for a half of ``size`` in each direction. In every axis of ``size`` the first half runs forwards, the
  second backwards; the recurrent weights are [4, 2, half, half].

Gates are logistic, cell input and cell output tanh; input and forget gate see the old cell state, the output gate the new.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, read_bytes
from edgelstm.gates import DOMAIN, GateVariant
from edgelstm.signature import Signature, StateSpec, TensorSpec
from edgelstm.step import OPSET, StepModel, make_step

Float32 = npt.NDArray[np.float32]

#: CURRENNT writes about 28 bytes a number. Parsed, a number or text of few bytes takes up to 60, an empty list 64: so what
#: parsing takes, 2 GiB at most, is settled by counting before.
MAX_BYTES = 256 * 1024**2
MAX_NUMBERS = 2**24
MAX_LISTS = 10_000
MAX_KEYS = 100_000
MAX_SIZE = 2**20
MAX_LAYERS = 1000
MAX_NODES = 20_000
STREAM_AXIS = "N"
GATES = GateVariant(peephole=True)

RECURRENT = ("lstm", "blstm")
#: ONNX operator of an activation. feedforward_relu is of the fork by the National Institute of Informatics.
FEEDFORWARD: Mapping[str, str | None] = {
    "feedforward_tanh": "Tanh",
    "feedforward_logistic": "Sigmoid",
    "feedforward_identity": None,
    "feedforward_relu": "Relu",
    "softmax": "Softmax",
}
#: What compares outputs with targets in training; a network that runs has no use for it.
POST_OUTPUT = (
    *("sse", "weightedsse", "rmse", "ce", "wf", "sse_mask"),
    *("binary_classification", "multiclass_classification"),
)


@dataclass(frozen=True, eq=False)
class CurrenntLayer:
    """One layer that computes. input, bias and internal are flat, in the file's order; ``scale`` multiplies the bias weights."""

    name: str
    kind: str
    size: int
    below: int
    scale: float
    input: Float32
    bias: Float32
    internal: Float32

    @property
    def directions(self) -> int:
        """2 where the layer also runs backwards."""
        return 2 if self.kind == "blstm" else 1


@dataclass(frozen=True, eq=False)
class CurrenntNetwork:
    """A network as its file tells it: numbers of one frame, and the layers from the input to the output."""

    where: str
    inputs: int
    layers: tuple[CurrenntLayer, ...]

    @property
    def backwards(self) -> str | None:
        """The first layer that needs whole sequences."""
        return next((layer.name for layer in self.layers if layer.kind == "blstm"), None)


def load_currennt(path: PathLike) -> CurrenntNetwork:
    """Read a .jsn file.

    Raises EdgeLstmError for a file that is missing, too large or no JSON; for layers that are unknown, nameless, of a size
    that is no number or does not fit the next; for weights that are missing, too few, too many, or no finite float32.
    """
    where = str(path)
    raw = read_bytes(path, MAX_BYTES)
    for what, count, most in (
        ("numbers", raw.count(b","), MAX_NUMBERS),
        ("lists and objects", raw.count(b"[") + raw.count(b"{"), MAX_LISTS),
        ("keys", raw.count(b":"), MAX_KEYS),
    ):
        if count > most:
            raise EdgeLstmError(f"{where} is too large", found=f"{count} {what}", expected=f"at most {most}")
    try:
        data = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise EdgeLstmError(
            f"{where} is not JSON", found=str(error)[:120], expected="a .jsn file CURRENNT wrote"
        ) from error
    listed = data.get("layers") if isinstance(data, dict) else None
    if not isinstance(listed, list) or not 2 <= len(listed) <= MAX_LAYERS:
        found = f"{len(listed)} layers" if isinstance(listed, list) else "no list 'layers'"
        raise EdgeLstmError(
            f"{where} is no CURRENNT network", found=found, expected="an object with 2 layers or more"
        )
    weights = data.get("weights")
    if not isinstance(weights, dict):
        raise EdgeLstmError(
            f"{where} has no weights",
            found=type(weights).__name__ if weights is not None else None,
            expected="an object 'weights'",
            hint="This is the network before training: give the file CURRENNT saved (--save_network)",
        )
    return _network(where, listed, weights)


def _network(where: str, listed: Sequence[Any], weights: Mapping[str, Any]) -> CurrenntNetwork:
    heads = [_head(where, k, entry) for k, entry in enumerate(listed)]
    names = [name for name, _, _ in heads]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise EdgeLstmError(f"{where}: two layers of one name", found=twice[0], expected="names of their own")
    if heads[0][1] != "input":
        raise EdgeLstmError(f"{where}: the first layer", found=heads[0][1], expected="a layer of type input")
    inputs = below = heads[0][2]
    layers: list[CurrenntLayer] = []
    for k, (name, kind, size) in enumerate(heads[1:], 1):
        what = f"{where}: layer {name!r}"
        if kind in POST_OUTPUT:
            if k + 1 < len(heads):
                raise EdgeLstmError(
                    f"{what}, type {kind}, is not the last", expected="a single one, at the end"
                )
            if size != below:
                raise EdgeLstmError(f"{what}: size", found=size, expected=f"{below}, the output layer's")
            break
        if kind not in RECURRENT and kind not in FEEDFORWARD:
            raise EdgeLstmError(
                f"{what}: unknown type",
                found=kind[:40],
                expected=f"one of {', '.join([*RECURRENT, *FEEDFORWARD])}, and at the end a post-output layer",
            )
        layers.append(_layer(what, name, kind, size, below, listed[k], weights))
        below = size
    if not layers:
        raise EdgeLstmError(
            f"{where}: no layer between input and post-output layer", expected="at least one that computes"
        )
    return CurrenntNetwork(where, inputs, tuple(layers))


def _head(where: str, k: int, entry: Any) -> tuple[str, str, int]:
    """Name, type and size of layer ``k``."""
    if not isinstance(entry, dict):
        raise EdgeLstmError(f"{where}: layer {k}", found=type(entry).__name__, expected="an object")
    name, kind, size = (entry.get(key) for key in ("name", "type", "size"))
    for key, value in (("name", name), ("type", kind)):
        # What can't be printed can't be the name of a tensor.
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 200:
            raise EdgeLstmError(
                f"{where}: {key} of layer {k}", found=ascii(value)[:80], expected="a text of 1 to 200 letters"
            )
    if type(size) is not int or not 1 <= size <= MAX_SIZE:
        raise EdgeLstmError(
            f"{where}: size of layer {name!r}",
            found=ascii(size)[:40],
            expected=f"a whole number, 1 to {MAX_SIZE}",
        )
    return str(name), str(kind), size


def _layer(
    what: str,
    name: str,
    kind: str,
    size: int,
    below: int,
    entry: Mapping[str, Any],
    weights: Mapping[str, Any],
) -> CurrenntLayer:
    if kind == "blstm" and size % 2:
        raise EdgeLstmError(f"{what}: size of a blstm", found=size, expected="an even number: half each way")
    scale = entry.get("bias")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) < 1e30:
        raise EdgeLstmError(
            f"{what}: bias",
            found=ascii(scale)[:40],
            expected="a finite number: what its bias weights are multiplied with",
        )
    found = weights.get(name)
    if not isinstance(found, dict):
        raise EdgeLstmError(
            f"{what} has no weights",
            found=f"weights of {', '.join(list(weights)[:8])}"[:200] if weights else "none",
            expected=f"an object weights/{name}",
        )
    blocks = 4 if kind in RECURRENT else 1
    inner = size // 2 if kind == "blstm" else size
    counts = {
        "input": (
            blocks * size * below,
            f"{blocks} x {size} x {below}" if blocks > 1 else f"{size} x {below}",
        ),
        "bias": (blocks * size, f"{blocks} x {size}" if blocks > 1 else f"{size}"),
        "internal": (
            size * (4 * inner + 3) if kind in RECURRENT else 0,
            f"4 x {size} x {inner} recurrent and 3 x {size} peephole" if kind in RECURRENT else "none",
        ),
    }
    arrays = {
        part: _numbers(f"{what}: weights/{part}", found.get(part), count, told)
        for part, (count, told) in counts.items()
    }
    # Half of float32's range: the sum of the bias and anything sensible stays in it.
    largest = float(np.abs(arrays["bias"]).max()) * abs(float(scale))
    if largest > float(np.finfo(np.float32).max) / 2:
        raise EdgeLstmError(
            f"{what}: bias times its bias weights",
            found=f"{largest:g} at the largest",
            expected="finite float32",
        )
    return CurrenntLayer(name, kind, size, below, float(scale), **arrays)


def _numbers(what: str, found: Any, count: int, told: str) -> Float32:
    """``count`` numbers as float32; counted before anything is allocated."""
    expected = f"{count} numbers ({told})"
    if not isinstance(found, list):
        raise EdgeLstmError(
            f"{what} missing" if found is None else what,
            found=None if found is None else type(found).__name__,
            expected=expected,
        )
    if len(found) != count:
        raise EdgeLstmError(what, found=f"{len(found)} numbers", expected=expected)
    bad = next((k for k, v in enumerate(found) if type(v) not in (int, float) or not _fits(v)), None)
    if bad is not None:
        raise EdgeLstmError(f"{what}[{bad}]", found=ascii(found[bad])[:40], expected="a finite float32")
    return np.array(found, np.float32)


def _fits(value: float) -> bool:
    # Comparing an int of any length with a float is exact, and False for NaN.
    return abs(value) <= float(np.finfo(np.float32).max)


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
            found=f"{window} frames",
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
        w = self.constant(f"{layer.name}.weight", layer.input.reshape(layer.size, layer.below))
        b = self.constant(f"{layer.name}.bias", _scaled(layer))
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
        label = layer.name if layer.directions == 1 else f"{layer.name}.{('forward', 'backward')[way]}"
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
        b = self.constant(f"{label}.bias", _scaled(layer).reshape(4, layer.size)[order, half].reshape(-1))
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


def _scaled(layer: CurrenntLayer) -> Float32:
    """The biases as they are added."""
    return (layer.bias.astype(np.float64) * layer.scale).astype(np.float32)
