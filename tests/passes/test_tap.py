"""tap: inner values as they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.passes.tap import PREFIX, tap
from edgelstm.passes.unroll import unroll
from edgelstm.runtime.onnxruntime import OrtProgram
from stepping import Stepper, some_frames


def test_values_and_states_are_those_of_the_graph() -> None:
    step = zoo.lstm()
    before = step.to_bytes()
    shown = tap(step, ["g0", "z9_h_next", "x"])
    assert step.to_bytes() == before
    assert [t.name for t in shown.signature.outputs] == [PREFIX + n for n in ("g0", "z9_h_next", "x")]
    shown.check()
    plain, tapped = Stepper(step), Stepper(shown)
    frames = some_frames(step, 2, 3)["x"]
    a, b = plain.initial(2), tapped.initial(2)
    w, bias = (next(t for t in step.model.graph.initializer if t.name == n) for n in ("w0", "b0"))
    w, bias = numpy_helper.to_array(w), numpy_helper.to_array(bias)
    for t in range(3):
        old = b["z9_h"]
        _, a = plain({"x": frames[:, t]}, a)
        seen, b = tapped({"x": frames[:, t]}, b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
        np.testing.assert_allclose(
            seen["tap/g0"], np.concatenate([frames[:, t], old], 1) @ w.T + bias, rtol=1e-5, atol=1e-5
        )
        np.testing.assert_array_equal(seen["tap/z9_h_next"], b["z9_h"])
        np.testing.assert_array_equal(seen["tap/x"], frames[:, t])


def test_batched_values_of_a_window() -> None:
    window = unroll(zoo.lstm(), 4)
    inner = [n.output[0] for n in window.model.graph.node if n.op_type in ("Gemm", "MatMul")]
    shown = tap(window, inner)
    shown.check()
    assert shown.signature.window is None
    program = OrtProgram(shown.to_bytes())
    outputs = program.step([{"x": np.zeros((4, 3), np.float32)}], program.new_state(), [0])[0]
    assert all(np.isfinite(v).all() for v in outputs.values())
    assert shown.signature.stream_axis == 1


def test_values_of_a_window_are_those_of_its_steps() -> None:
    """What a window computes for all its frames at once, and what it computes one by one."""
    step = zoo.lstm()
    window = unroll(step, 4)
    rows = {n.input[0]: n.output[0] for n in window.model.graph.node if n.op_type == "MatMul"}
    (head,) = rows.values()
    shown = tap(window, [head, "z9_h_next", "y"])
    program = OrtProgram(shown.to_bytes(), threads=1)
    frames = some_frames(step, 1, 4)["x"]
    outputs = program.step([{"x": frames[0]}], program.new_state(), [0])[0]
    stepper = Stepper(step)
    states = stepper.initial(1)
    for t in range(4):
        made, states = stepper({"x": frames[:, t]}, states)
        np.testing.assert_allclose(
            outputs[PREFIX + head].reshape(4, 2)[t], made["y"][0], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(outputs[PREFIX + "y"][t], made["y"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs[PREFIX + "z9_h_next"], states["z9_h"][0], rtol=1e-5, atol=1e-6)


def test_any_type_and_any_opset() -> None:
    step = zoo.two_inputs()
    older = step.copy_model()
    older.opset_import[0].version = 11
    for model in (step.model, older):
        shown = tap(StepModel(model, step.signature), ["count_next", "kept", "count", "leak"])
        onnx.checker.check_model(shown.model, full_check=True)
        assert [t.dtype for t in shown.signature.outputs] == ["int64", "float32", "int64", "float32"]
        program = OrtProgram(shown.to_bytes())
        state = program.new_state()
        zeros = {name: np.zeros(2, np.float32) for name in "ab"}
        program.step([zeros], state, [0])
        outputs = program.step([zeros], state, [0])[0]
        assert (outputs["tap/count"], outputs["tap/count_next"]) == (8, 9)
        np.testing.assert_array_equal(outputs["tap/leak"], [0.5])


def test_a_fixed_number_of_streams() -> None:
    """Values that have the streams' axis keep it; for those that have not, the graph takes one stream."""
    assert tap(zoo.lstm(axis=4), ["g0"]).signature.stream_axis == 4
    window = unroll(zoo.lstm(axis=4), 3)
    (head,) = (n.output[0] for n in window.model.graph.node if n.op_type == "MatMul")
    shown = tap(window, [head])
    shown.check()
    assert shown.signature.outputs[0].shape[0] == 1


def test_a_name_twice_is_shown_once() -> None:
    assert len(tap(zoo.lstm(), ["g0", "g0"]).signature.outputs) == 1


@pytest.mark.parametrize("name", ["nothing", ""])
def test_no_such_value(name: str) -> None:
    with pytest.raises(EdgeLstmError, match=r"tap: value .*: found no such value; expected one of "):
        tap(zoo.lstm(), [name])
