"""expand_rnn: LSTM operators that are one step become a Gemm and FusedGates; others stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgelstm.frontends.onnx_file import declare
from edgelstm.passes.expand_rnn import expand_rnn
from edgelstm.passes.fuse_gates import fuse_gates
from edgelstm.passes.simplify import simplify
from edgelstm.passes.unroll import unroll
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.signature import Signature, StateSpec, TensorSpec
from edgelstm.step import StepModel, make_step
from edgelstm.verify import compare
from tolerances import assert_close

N, X, H = "N", 3, 4


def operator(
    *,
    layout: int = 0,
    bias: bool = True,
    peephole: bool = False,
    outputs: tuple[str, ...] = ("Y", "h_next", "c_next"),
    frames: int = 1,
    opset: int = 18,
    **attributes: Any,
) -> StepModel:
    """One LSTM operator with its states as the operator has them; the streams on axis 0 of everything else."""
    rng = np.random.default_rng(0)
    arrays = {"W": (1, 4 * H, X), "R": (1, 4 * H, H)}
    inputs = ["x_seq", "W", "R", "", "", "h_seq", "c_seq"]
    if bias:
        arrays["B"] = (1, 8 * H)
        inputs[3] = "B"
    if peephole:
        arrays["P"] = (1, 3 * H)
        inputs.append("P")
    weights = [numpy_helper.from_array(rng.normal(0, 0.7, s).astype("f4"), n) for n, s in arrays.items()]
    # Streams on axis 0 at the border; in front of the operator they go where it wants them.
    perm = [0, 1, 2] if layout else [1, 0, 2]
    nodes = [helper.make_node("Transpose", [name], [f"{name}_seq"], perm=perm) for name in ("x", "h", "c")]
    if layout:
        attributes["layout"] = 1
    names = [f"{name}_raw" if name else "" for name in outputs]
    nodes.append(helper.make_node("LSTM", inputs, names, hidden_size=H, **attributes))
    border = {"Y": [0, 1, 2, 3] if layout else [2, 0, 1, 3]}
    for name in outputs:
        if name:
            nodes.append(helper.make_node("Transpose", [f"{name}_raw"], [name], perm=border.get(name, perm)))
    signature = Signature(
        inputs=(TensorSpec("x", "float32", (N, frames, X)),),
        outputs=(TensorSpec("Y", "float32", (N, frames, 1, H)),) if "Y" in outputs else (),
        states=tuple(StateSpec(s, s, f"{s}_next", "float32", (N, 1, H)) for s in ("h", "c")),
    )
    return make_step(nodes, signature, weights, opset=opset)


def errors(before: StepModel, after: StepModel, steps: int = 20) -> None:
    rng = np.random.default_rng(1)
    a, b = (OrtProgram(s.to_bytes(), threads=1, streams=2) for s in (before, after))
    state_a, state_b = a.new_state(), b.new_state()
    shape = before.signature.inputs[0].frame_shape
    for _ in range(steps):
        frames = [{"x": rng.normal(size=shape).astype("f4")} for _ in range(2)]
        for want, got in zip(a.step(frames, state_a, [0, 1]), b.step(frames, state_b, [0, 1]), strict=True):
            for name in want:
                assert_close(got[name], want[name], "float32", k=64)
    for name, value in a.read_state(state_a, 1).items():
        assert_close(b.read_state(state_b, 1)[name], value, "float32", k=64)


@settings(max_examples=40, deadline=None)
@given(
    # ONNX Runtime's own LSTM knows layout 0 only.
    bias=st.booleans(),
    peephole=st.booleans(),
    opset=st.sampled_from([11, 14, 18, 22]),
    activations=st.sampled_from(
        [None, ["Sigmoid", "Tanh", "Tanh"], ["HardSigmoid", "Tanh", "Tanh"], ["Sigmoid", "Relu", "Relu"]]
    ),
)
def test_one_step_is_expanded(bias: bool, peephole: bool, opset: int, activations: list[str] | None) -> None:
    extra: dict[str, Any] = {} if activations is None else {"activations": activations}
    if activations and activations[0] == "HardSigmoid":
        extra |= {"activation_alpha": [0.25], "activation_beta": [0.4]}
    step = operator(bias=bias, peephole=peephole, opset=opset, **extra)
    bytes_before = step.to_bytes()
    expanded = simplify(expand_rnn(step))
    assert step.to_bytes() == bytes_before
    expanded.check()
    assert "LSTM" not in expanded.op_types()
    assert expanded.op_types().count("Gemm") == 1
    errors(step, expanded)


def test_layout_1_equals_layout_0() -> None:
    """ONNX Runtime has no LSTM of layout 1, so the same weights in layout 0 are what it must equal."""
    errors(operator(), expand_rnn(operator(layout=1)))


@pytest.mark.parametrize("outputs", [("Y", "h_next", "c_next"), ("", "h_next", "c_next")])
def test_outputs_nobody_reads_may_be_left_out(outputs: tuple[str, ...]) -> None:
    step = operator(outputs=outputs)
    errors(step, expand_rnn(step))


@pytest.mark.parametrize(
    "attributes",
    [
        {"frames": 2},
        {"clip": 3.0},
        {"input_forget": 1},
        {"direction": "reverse"},
        {"activations": ["Sigmoid", "Softsign", "Tanh"]},
        {"activations": ["Tanh", "Tanh", "Tanh"]},
    ],
)
def test_what_is_no_plain_step_stays(attributes: dict[str, Any]) -> None:
    step = operator(**attributes)
    assert expand_rnn(step).op_types() == step.op_types()


def test_a_denoiser_with_lstm_operators(shared_dir: Path) -> None:
    """DTLN's first half: two LSTM operators that share one packed state."""
    path = shared_dir / "models" / "dtln" / "model_1.onnx"
    declared = declare(path.read_bytes(), "model_1.onnx", {"input_3": "tf_op_layer_stack_2"})
    expanded = fuse_gates(simplify(expand_rnn(declared)))
    assert expanded.op_types().count("FusedGates_lstm") == 2
    assert "LSTM" not in expanded.op_types()
    rng = np.random.default_rng(0)
    spec = declared.signature.inputs[0]
    frames = [{spec.name: np.abs(rng.normal(size=spec.frame_shape)).astype("f4")} for _ in range(300)]
    for candidate in (expanded, unroll(expanded, 10)):
        result = compare(OrtProgram(declared.to_bytes()), OrtProgram(candidate.to_bytes()), frames)
        assert result.worst.worst <= 1e-5
