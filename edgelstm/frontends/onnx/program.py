"""Somebody else's ONNX file as it is, run by ONNX Runtime: what an export of it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.onnx.borders import Borders, fixed_value
from edgelstm.frontends.onnx.double import Evaluator, StepEvaluator
from edgelstm.frontends.onnx.source import all_graphs, all_tensors
from edgelstm.graph.signature import Signature
from edgelstm.graph.step import StepModel, dtype_name
from edgelstm.passes.control_flow import is_control_flow
from edgelstm.passes.graph import all_names, attribute, fresh
from edgelstm.passes.rnn_operator import Inputs, is_rnn
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Array, Frame, Outputs
from edgelstm.runtime.session import open_session


@dataclass
class _State:
    """States by name; ``past``: all frames so far by input, where the whole sequence is run."""

    values: dict[str, Array]
    past: dict[str, list[Array]] = field(default_factory=dict)


class OnnxProgram:
    """The unchanged file with its own axes, fed one stream. See :class:`edgelstm.runtime.protocol.Program`.

    signature: the export's, without the states that the file keeps inside. ``whole``: the file takes sequences of any
    length and starts anew in each call; then a step runs all frames so far and gives what belongs to the last one,
    which is what carrying the state has to equal.

    Two things that ONNX Runtime (1.31) can't take are written otherwise: the attribute ``layout`` 1 as transposes around
    layout 0, and results of a Loop that are left out, at which it crashes, under a name.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        borders: Borders,
        signature: Signature,
        *,
        whole: bool,
        double: bool = False,
    ) -> None:
        self.signature = signature
        self.streams = 1
        self._model = model
        self._borders, self._whole = borders, whole
        # The result computes between two steps of the source: threads that spin meanwhile would slow it down.
        plain = _with_named_results(_without_layout(model))
        half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in all_tensors(model))
        self._session: Any = (
            Evaluator(plain) if double else open_session(plain.SerializeToString(), 1, spin=False, half=half)
        )
        self._fixed = _fixed_feeds(model, borders)
        #: Axis of the streams of each output, as far as its state's input tells.
        self._axes = {s.output: borders.input(s.input).axis for s in signature.states}

    def exact(self) -> OnnxProgram:
        """The same file in float64. Raises whatever onnx does for operators that its reference evaluator lacks."""
        return OnnxProgram(self._model, self._borders, self.signature, whole=self._whole, double=True)

    def rounded(self) -> OnnxProgram:
        """Itself: it computes as the file says."""
        return self

    def new_state(self) -> _State:
        """The states' initial values, and no frames so far."""
        return _State({s.name: s.initial_value() for s in self.signature.states})

    def step(self, frames: Sequence[Frame], state: _State, active: Sequence[int]) -> Sequence[Outputs]:
        """Run the file on the frame, or on all frames so far."""
        feeds = dict(self._fixed)
        length = 1
        for given in self._borders.inputs:
            if given.name in frames[0]:
                value = np.moveaxis(np.asarray(frames[0][given.name])[None], 0, given.axis)
                if self._whole and given.freed:
                    past = state.past.setdefault(given.name, [])
                    past.append(value.copy())
                    length = len(past)
                    value = np.concatenate(past, axis=given.freed[0])
                feeds[given.name] = value
        for s in self.signature.states:
            first = s.initial_value() if self._whole else state.values[s.name]
            feeds[s.input] = np.moveaxis(first[None], 0, self._axes[s.output])
        names = list(self._borders.outputs)
        try:
            results = dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:  # ONNX Runtime raises several unrelated classes
            text = (str(error).splitlines() or [type(error).__name__])[0]
            who = "onnx's reference evaluator" if isinstance(self._session, Evaluator) else "ONNX Runtime"
            raise EdgeLstmError(f"{who} failed to run the source", found=text) from error
        for s in self.signature.states:
            state.values[s.name] = np.moveaxis(results[s.output], self._axes[s.output], 0)[0].copy()
        return [
            {
                t.name: self._one(results[t.name], t.frame_shape, self._axes.get(t.name), length)
                for t in self.signature.outputs
            }
        ]

    def read_state(self, state: _State, row: int) -> dict[str, Array]:
        """A copy of the states."""
        return {name: value.copy() for name, value in state.values.items()}

    def write_state(self, state: _State, row: int, values: Mapping[str, Array]) -> None:
        """Set the states."""
        state.values = {s.name: np.array(values[s.name]) for s in self.signature.states}

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _one(self, value: Array, shape: tuple[int, ...], axis: int | None, length: int) -> Array:
        """The stream's part of an output, of its last frame where it has one for each: [1, ...] in the file's axes."""
        if length > 1 and value.size == length * int(np.prod(shape)):
            # The axis of time is the one that grew with the frames.
            candidates = [k for k, d in enumerate(value.shape) if d % length == 0 and d >= length]
            for k in candidates:
                last = np.take(
                    value, range(value.shape[k] - value.shape[k] // length, value.shape[k]), axis=k
                )
                if last.size == int(np.prod(shape)) and (value.shape[k] == length or len(candidates) == 1):
                    value = last
                    break
        value = value if axis is None else np.moveaxis(value, axis, 0)
        return np.array(value).reshape(shape)


class DeclaredProgram(OrtProgram):
    """A step graph as it was declared, before any pass, by ONNX Runtime."""

    def __init__(self, step: StepModel) -> None:
        super().__init__(step.to_bytes(), streams=step.signature.rows, threads=1, spin=False)
        self._step = step

    def exact(self) -> StepEvaluator:
        """The same graph in float64. Raises whatever onnx does for operators that its reference evaluator lacks."""
        return StepEvaluator(self._step)

    def rounded(self) -> DeclaredProgram:
        """Itself."""
        return self


def _fixed_feeds(model: onnx.ModelProto, borders: Borders) -> dict[str, Array]:
    """Values of the inputs that were fixed, for one stream."""
    feeds = {}
    for value in model.graph.input:
        if value.name not in borders.fixed:
            continue
        tensor = value.type.tensor_type
        sizes = [
            d.dim_value
            if d.HasField("dim_value")
            else borders.freed.get(f"{value.name}.{k}", borders.freed.get(d.dim_param, 1))
            for k, d in enumerate(tensor.shape.dim)
        ]
        one = fixed_value("source", value.name, dtype_name(tensor.elem_type), borders.fixed[value.name])
        feeds[value.name] = np.full(sizes, one)
    return feeds


def _without_layout(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its recurrent operators in layout 0; only those of the main graph."""
    nodes = [n for n in model.graph.node if is_rnn(n) and attribute(n, "layout", 0)]
    if not nodes:
        return model
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    taken = all_names(plain.graph)
    new: list[onnx.NodeProto] = []
    for node in plain.graph.node:
        if not (is_rnn(node) and attribute(node, "layout", 0)):
            new.append(node)
            continue
        kept = [a for a in node.attribute if a.name != "layout"]
        del node.attribute[:]
        node.attribute.extend(kept)
        for place in (Inputs.X, Inputs.INITIAL_H, Inputs.INITIAL_C):
            if len(node.input) > place and node.input[place]:
                moved = fresh(f"{node.input[place]}_layout_0", taken)
                new.append(helper.make_node("Transpose", [node.input[place]], [moved], perm=[1, 0, 2]))
                node.input[place] = moved
        # Y [T, D, N, H] -> [N, T, D, H]; states [D, N, H] -> [N, D, H].
        after = []
        for place, name in enumerate(node.output):
            if name:
                node.output[place] = fresh(f"{name}_layout_0", taken)
                perm = [1, 0, 2] if place else [2, 0, 1, 3]
                after.append(helper.make_node("Transpose", [node.output[place]], [name], perm=perm))
        new += [node, *after]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in new]
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain


def _with_named_results(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in which every result of control flow has a name."""
    if not any(is_control_flow(n) and "" in n.output for g in all_graphs(model.graph) for n in g.node):
        return model
    named = onnx.ModelProto()
    named.CopyFrom(model)
    taken = all_names(named.graph)
    for graph in all_graphs(named.graph):
        for node in filter(is_control_flow, graph.node):
            node.output[:] = [name or fresh("left_out", taken) for name in node.output]
    return named
