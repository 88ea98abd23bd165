"""lower: what a target gets computes the same and holds only what it can read."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.passes.lower import Target, lower
from edgelstm.passes.unroll import unroll
from stepping import Stepper, some_frames
from tolerances import assert_close

STEPS = {
    "lstm": zoo.lstm(),
    "peephole conv_lstm": zoo.conv_lstm(),
    "no gates": zoo.two_inputs(),
    "window": unroll(zoo.lstm(), 3),
}


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("name", STEPS)
def test_no_function_is_left_and_the_numbers_stay(name: str, target: Target) -> None:
    step = STEPS[name]
    before = step.to_bytes()
    low = StepModel.from_bytes(lower(step, target).to_bytes())
    assert step.to_bytes() == before
    assert low.signature == step.signature
    assert not low.model.functions
    assert {node.domain for node in low.model.graph.node} == {""}
    assert [o.domain for o in low.model.opset_import] == [""]
    a, b = Stepper(step), Stepper(low)
    states, low_states = a.initial(2), b.initial(2)
    for k in range(3):
        x = {n: v[:, 0] for n, v in some_frames(step, 2, 1, seed=k).items()}
        want, states = a(x, states)
        got, low_states = b(x, low_states)
        for n, value in {**want, **states}.items():
            np.testing.assert_array_equal({**got, **low_states}[n], value)


def test_onnxruntime_keeps_the_bodies() -> None:
    step = zoo.conv_lstm()
    low = lower(step, "onnxruntime")
    assert low.op_types() == step.op_types()
    assert low.to_bytes() == step.to_bytes()
    assert low.model is not step.model


def test_metadata_stays() -> None:
    step = zoo.lstm()
    step.model.metadata_props.add(key="author", value="someone")
    assert [(p.key, p.value) for p in lower(step, "tensorrt").model.metadata_props] == [("author", "someone")]


@pytest.mark.parametrize("name", STEPS)
def test_openvino_reads_it(name: str) -> None:
    ov = pytest.importorskip("openvino")
    step = STEPS[name]
    core = ov.Core()
    model = core.read_model(lower(step, "openvino").to_bytes())
    compiled = core.compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    )
    reference = Stepper(step)
    states = reference.initial(2)
    x = {n: v[:, 0] for n, v in some_frames(step, 2, 1).items()}
    outputs, after = reference(x, states)
    got = compiled(x | {s.input: states[s.name] for s in step.signature.states})
    for t in step.signature.outputs:
        assert_close(got[t.name], outputs[t.name], np.float32)
    for s in step.signature.states:
        assert_close(got[s.output], after[s.name], np.float32)


def test_openvino_refuses_the_bodies() -> None:
    """Why they are inlined: when this fails, OpenVINO has learnt to read them."""
    ov = pytest.importorskip("openvino")
    with pytest.raises(RuntimeError, match="FusedGates"):
        ov.Core().read_model(zoo.lstm().to_bytes())


def test_an_unknown_target() -> None:
    with pytest.raises(
        EdgeLstmError, match=r"unknown target: found 'tflite'; expected one of .*'onnxruntime'"
    ):
        lower(zoo.lstm(), "tflite")  # type: ignore[arg-type]
