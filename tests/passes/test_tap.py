"""tap: inner values as they are."""

from __future__ import annotations

import numpy as np
import pytest

import zoo
from edgelstm.errors import EdgeLstmError
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
    from onnx import numpy_helper

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


@pytest.mark.parametrize("name", ["nothing", ""])
def test_no_such_value(name: str) -> None:
    with pytest.raises(EdgeLstmError, match=r"tap: value .*: found no such value; expected one of "):
        tap(zoo.lstm(), [name])
