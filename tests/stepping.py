"""Step graphs from ONNX text, and a plain loop that runs any of them in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime as ort
from onnx import helper

from edgelstm.dtypes import np_dtype
from edgelstm.graph.gates import DOMAIN, GateVariant
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, dtype_name, value_shape

Values = dict[str, npt.NDArray[Any]]


def from_text(text: str, **states: str) -> StepModel:
    """A step from the text of an ONNX graph (opset 18); ``states`` maps state inputs to their outputs."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]>\n{text}')
    if cells := sorted({n.op_type for n in model.graph.node if n.domain == DOMAIN}):
        model.functions.extend(GateVariant.of(name).function(18) for name in cells)
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    inputs, outputs = (
        [
            TensorSpec(v.name, dtype_name(v.type.tensor_type.elem_type), tuple(value_shape(v) or ()))
            for v in side
        ]
        for side in (model.graph.input, model.graph.output)
    )
    fed_back = [
        StateSpec(t.name, t.name, states[t.name], t.dtype, t.shape) for t in inputs if t.name in states
    ]
    signature = Signature(
        inputs=tuple(t for t in inputs if t.name not in states),
        outputs=tuple(t for t in outputs if t.name not in states.values()),
        states=tuple(fed_back),
    )
    step = StepModel(model, signature)
    step.check()
    return step


class Stepper:
    """Calls a step or a window; the caller holds the states, by name."""

    def __init__(self, step: StepModel) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # no word about constants a test leaves unused
        self.session = ort.InferenceSession(step.to_bytes(), options, providers=["CPUExecutionProvider"])
        self.signature = step.signature

    def initial(self, streams: int) -> Values:
        return {s.name: np.stack([s.initial_value()] * streams) for s in self.signature.states}

    def __call__(self, frames: Values, states: Values) -> tuple[Values, Values]:
        """Outputs and next states."""
        s = self.signature
        names = list(dict.fromkeys([*(t.name for t in s.outputs), *(x.output for x in s.states)]))
        feeds = frames | {x.input: states[x.name] for x in s.states}
        got = dict(zip(names, self.session.run(names, feeds), strict=True))
        return {t.name: got[t.name] for t in s.outputs}, {x.name: got[x.output] for x in s.states}


def some_frames(step: StepModel, streams: int, count: int, seed: int = 0) -> Values:
    """Random inputs, [streams, count, ...]."""
    rng = np.random.default_rng(seed)
    return {
        t.name: rng.normal(0, 1, (streams, count, *t.frame_shape)).astype(np_dtype(t.dtype))
        for t in step.signature.inputs
    }
