"""The described door: a .safetensors file that states its architecture becomes a StepModel without torch.

``load_described`` reads and checks the file, ``to_step`` writes its graph: for every cell one Concat, one Conv or
Gemm over the input and the hidden state together, and one FusedGates; every weight stored once. The stream axis is
``N``, the frame ``x``, the states h0, c0, h1, c1, ..., their outputs h0_next, c0_next, ...
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import MAX_FILE_BYTES, PathLike
from edgelstm.frontends.described.architecture import (
    ARCHITECTURE_KEY,
    PREPROCESSING_KEY,
    Architecture,
    Cell,
    ConvLstm,
    EncoderForecaster,
    Lstm,
    Shape,
    loads,
)
from edgelstm.graph.gates import DOMAIN, GateVariant
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import OPSET, StepModel, make_step

Float32 = npt.NDArray[np.float32]
STREAM_AXIS = "N"
#: Names listed in one message; a file of another model has hundreds.
LISTED = 8


@dataclass(frozen=True, eq=False)
class Described:
    """A trained model as data: its architecture, its float32 weights by name, and how frames are prepared."""

    architecture: Architecture
    weights: Mapping[str, Float32]
    preprocessing: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)

    @property
    def signature(self) -> Signature:
        """Frame ``x``; the output; one pair of states for each cell that is carried from frame to frame.

        Without a head the output ``y`` is the last layer's new h: the two are one tensor.
        """
        a = self.architecture
        headless = isinstance(a, Lstm | ConvLstm) and a.head is None
        states = []
        for layer, cell in enumerate(a.cells):
            for part in ("h", "c"):
                name = f"{part}{layer}"
                is_output = headless and part == "h" and layer == len(a.cells) - 1
                output = a.output_name if is_output else f"{name}_next"
                states.append(StateSpec(name, name, output, "float32", (STREAM_AXIS, *cell.state_shape)))
        return Signature(
            inputs=(TensorSpec("x", "float32", (STREAM_AXIS, *a.frame_shape)),),
            outputs=(TensorSpec(a.output_name, "float32", (STREAM_AXIS, *a.output_shape)),),
            states=tuple(states),
            preprocessing=self.preprocessing,
        )


def load_described(path: PathLike) -> Described:
    """Read a .safetensors file whose header states its architecture.

    Raises EdgeLstmError for a file that is missing, no .safetensors or truncated; whose header states no
    architecture or one we don't know; whose tensors are missing, unexpected, of another shape or dtype (each is
    named), or not finite. Nothing is read before the header and the file's size agree.
    """
    from safetensors import SafetensorError, safe_open

    source = Path(path)
    _check_file(source)
    try:
        with safe_open(source, framework="numpy") as file:
            metadata = file.metadata() or {}
            if ARCHITECTURE_KEY not in metadata:
                raise EdgeLstmError(
                    f"{source} is plain weights: its header states no architecture",
                    expected=f"the key {ARCHITECTURE_KEY}, as edgelstm.nn.save writes it",
                    hint=f"Give the module they belong to: edgelstm export package.module:factory --weights {source}",
                )
            architecture = loads(metadata[ARCHITECTURE_KEY], str(source))
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            found = {name: (str(s.get_dtype()), tuple(s.get_shape())) for name, s in slices.items()}
            _check_tensors(str(source), found, architecture.tensors())
            weights = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise EdgeLstmError(
            f"{source} is not a .safetensors file, or is truncated", found=str(error)
        ) from error
    _check_finite(str(source), weights)
    described = Described(architecture, weights, _preprocessing(metadata.get(PREPROCESSING_KEY), str(source)))
    try:
        described.signature  # noqa: B018  (its own checks: sizes, preprocessing of inputs that exist)
    except EdgeLstmError as error:
        raise EdgeLstmError(
            f"{source}: {error.what}", found=error.found, expected=error.expected, hint=error.hint
        ) from error
    return described


def to_step(described: Described) -> StepModel:
    """The ONNX step graph of ``described``, with the function bodies of its FusedGates."""
    a = described.architecture
    graph = _Graph(GateVariant(peephole=a.peephole))
    signature = described.signature
    states = [(s.input, s.output) for s in signature.states]
    if isinstance(a, Lstm):
        top = graph.stack(a.cells, "x", states)[-1]
        graph.lstm_head(a, top)
    elif isinstance(a, ConvLstm):
        top = graph.stack(a.cells, "x", states)[-1]
        if a.head is not None:
            graph.conv("head", top, a.output_name, a.head.kernel)
    else:
        graph.forecast(a, states)
    weights = [numpy_helper.from_array(value, name) for name, value in described.weights.items()]
    return make_step(
        graph.nodes, signature, [*weights, *graph.constants], [graph.variant.function(OPSET)], name=a.name
    )


class _Graph:
    """The nodes of a graph under construction. Values are named after the layer that makes them."""

    def __init__(self, variant: GateVariant) -> None:
        self.variant = variant
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], output, **attributes))
        return output

    def concat(self, values: Sequence[str], output: str, axis: int) -> str:
        return values[0] if len(values) == 1 else self.add("Concat", values, output, axis=axis)

    def constant(self, name: str, values: Sequence[int]) -> str:
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def gemm(self, layer: str, x: str, output: str) -> str:
        return self.add("Gemm", [x, f"{layer}.weight", f"{layer}.bias"], output, transB=1)

    def conv(self, layer: str, x: str, output: str, kernel: int, *, stride: int = 1) -> str:
        """A strided convolution covers the map with patches; an unstrided one pads to keep its size."""
        pad = kernel // 2 if stride == 1 else 0
        return self.add(
            "Conv",
            [x, f"{layer}.weight", f"{layer}.bias"],
            output,
            kernel_shape=[kernel] * 2,
            pads=[pad] * 4,
            strides=[stride] * 2,
        )

    def cell(self, cell: Cell, below: str | None, state: tuple[str, str], following: tuple[str, str]) -> str:
        """One step of a cell from ``state`` (h, c), into the values ``following``; gives the new h."""
        h, c = state
        joined = self.concat([h] if below is None else [below, h], f"{following[0]}/joined", axis=1)
        z = f"{following[0]}/z"
        if cell.grid:
            self.conv(cell.name, joined, z, cell.kernel)
        else:
            self.gemm(cell.name, joined, z)
        gates = [z, c, *cell.peepholes]
        self.nodes.append(
            helper.make_node(self.variant.op_type, gates, following, f"{following[0]}/gates", domain=DOMAIN)
        )
        return following[0]

    def stack(self, cells: Sequence[Cell], x: str | None, states: Sequence[tuple[str, str]]) -> list[str]:
        """One step of a stack; ``states`` are pairs (value before, value after) of h0, c0, h1, c1, ...

        Gives the new h of every layer.
        """
        below, tops = x, []
        for layer, cell in enumerate(cells):
            (h, h_next), (c, c_next) = states[2 * layer : 2 * layer + 2]
            below = self.cell(cell, below, (h, c), (h_next, c_next))
            tops.append(below)
        return tops

    def lstm_head(self, a: Lstm, top: str) -> None:
        if a.head is None:
            return
        if not a.residual:
            self.gemm("head", top, a.output_name)
            return
        change = self.gemm("head", top, "head/out")
        repeated = self.concat(["x"] * (a.head.outputs // a.inputs), "head/x", axis=1)
        self.add("Add", [change, repeated], a.output_name)

    def forecast(self, a: EncoderForecaster, states: Sequence[tuple[str, str]]) -> None:
        """Encoder, ``horizon`` steps of the forecaster, and the head once over all of them.

        The predictions' maps are laid below one another, [N, C, horizon x H, W]. The head and the pixel shuffle look
        at one place of the grid at a time, so this is exact, and takes one convolution instead of ``horizon``.
        """
        stem = self.conv("stem", "x", "stem/out", a.patch, stride=a.patch)
        self.stack(a.cells, stem, states)
        before = [after for _, after in states]
        hidden: list[list[str]] = []
        for k in range(a.horizon):
            after = [f"ahead{k + 1}/{part}{layer}" for layer in range(len(a.hidden)) for part in ("h", "c")]
            hidden.append(self.stack(a.forecaster, None, list(zip(before, after, strict=True))))
            before = after
        columns = [
            self.concat(steps, f"ahead/h{layer}", axis=2)
            for layer, steps in enumerate(zip(*hidden, strict=True))
        ]
        value = self.conv("head", self.concat(columns, "ahead/h", axis=1), "head/out", 1)
        value = self.add("DepthToSpace", [value], "head/frames", blocksize=a.patch, mode="CRD")
        output = "head/ahead" if a.residual else a.output_name
        # 0 in a Reshape keeps the dimension: the stream axis stays free.
        if a.channels == 1:
            shape = self.constant("head/shape", [0, a.horizon, 1, *a.size])
            value = self.add("Reshape", [value, shape], output)
        else:
            shape = self.constant("head/shape", [0, a.channels, a.horizon, *a.size])
            value = self.add("Reshape", [value, shape], "head/channels_first")
            value = self.add("Transpose", [value], output, perm=[0, 2, 1, 3, 4])
        if a.residual:
            now = self.add("Unsqueeze", ["x", self.constant("head/axis", [1])], "head/x")
            self.add("Add", [value, now], a.output_name)


def _check_file(source: Path) -> None:
    try:
        size = source.stat().st_size
    except FileNotFoundError as error:
        raise EdgeLstmError(f"{source} does not exist", hint="Check the path") from error
    except OSError as error:
        raise EdgeLstmError(f"can't read {source}", found=error.strerror or str(error)) from error
    if source.is_dir():
        raise EdgeLstmError(f"can't read {source}", found="a folder", expected="a .safetensors file")
    if size > MAX_FILE_BYTES:
        raise EdgeLstmError(
            f"{source} is too large", found=f"{count_of(size, 'byte')}", expected=f"at most {MAX_FILE_BYTES}"
        )


def _check_tensors(where: str, found: Mapping[str, tuple[str, Shape]], expected: Mapping[str, Shape]) -> None:
    """Compare names, dtypes and shapes with what the architecture asks for."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    if missing or unexpected:
        raise EdgeLstmError(
            f"{where}: tensors don't fit the architecture",
            found="; ".join(
                f"{label} {_listed(names)}"
                for label, names in (("missing", missing), ("unexpected", unexpected))
                if names
            ),
            expected=_listed(list(expected)),
            hint="Save the module again with edgelstm.nn.save",
        )
    wrong = [name for name, shape in expected.items() if found[name] != ("F32", shape)]
    if wrong:
        raise EdgeLstmError(
            f"{where}: tensors of another shape or dtype than the architecture's",
            found=_listed([f"{name} {found[name][0]}{list(found[name][1])}" for name in wrong]),
            expected=_listed([f"{name} F32{list(expected[name])}" for name in wrong]),
            hint="Save the module again with edgelstm.nn.save",
        )


def _check_finite(where: str, weights: Mapping[str, Float32]) -> None:
    bad = [name for name, value in weights.items() if not np.isfinite(value).all()]
    if bad:
        raise EdgeLstmError(
            f"{where}: weights that are NaN or infinite",
            found=_listed(bad),
            expected="finite numbers",
            hint="The training diverged: take an earlier checkpoint",
        )


def _preprocessing(text: str | None, where: str) -> dict[str, tuple[Mapping[str, Any], ...]]:
    if text is None:
        return {}
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EdgeLstmError(f"{where}: preprocessing is not JSON", found=str(error)) from error
    good = isinstance(data, dict) and all(
        isinstance(ops, list) and all(isinstance(op, dict) for op in ops) for ops in data.values()
    )
    if not good:
        raise EdgeLstmError(
            f"{where}: preprocessing",
            found=text[:80],
            expected="a JSON object: for an input's name, a list of operations",
        )
    return {name: tuple(ops) for name, ops in data.items()}


def _listed(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
