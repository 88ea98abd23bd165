"""expand_rnn: LSTM, GRU and RNN operators that are one step become Gemms and gates; others stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx.reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgelstm.frontends.onnx.file import declare
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step
from edgelstm.passes.expand_rnn import expand_rnn
from edgelstm.passes.fuse_gates import fuse_gates
from edgelstm.passes.simplify import simplify
from edgelstm.passes.unroll import unroll
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.verify.compare import compare
from stepping import Stepper
from tolerances import assert_close

N, X, H = "N", 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
#: Activations by the parameters they take.
PARAMETERS = {
    **dict.fromkeys(("Tanh", "Sigmoid", "Relu", "Softsign", "Softplus"), ""),
    **dict.fromkeys(("LeakyRelu", "ThresholdedRelu", "Elu"), "a"),
    **dict.fromkeys(("Affine", "ScaledTanh", "HardSigmoid"), "ab"),
}


def operator(
    kind: str = "LSTM",
    *,
    layout: int = 0,
    bias: bool = True,
    peephole: bool = False,
    outputs: tuple[str, ...] = ("Y", "h_next", "c_next"),
    frames: int = 1,
    opset: int = 18,
    lengths: bool = False,
    dtype: str = "float32",
    streams: str | int = N,
    scale: float = 0.6,
    **attributes: Any,
) -> StepModel:
    """One operator with its states as it has them; the streams on axis 0 of everything else."""
    rng = np.random.default_rng(0)
    d = 2 if attributes.get("direction") == "bidirectional" else 1
    gates = GATES[kind]
    states = ("h", "c") if kind == "LSTM" else ("h",)
    arrays = {"W": (d, gates * H, X), "R": (d, gates * H, H)}
    inputs = ["x_seq", "W", "R", "", "", *(f"{s}_seq" for s in states)]
    if bias:
        arrays["B"] = (d, 2 * gates * H)
        inputs[3] = "B"
    if lengths:
        inputs[4] = "lengths"
    if peephole:
        arrays["P"] = (d, 3 * H)
        inputs.append("P")
    weights = [numpy_helper.from_array(rng.normal(0, scale, s).astype(dtype), n) for n, s in arrays.items()]
    # Streams on axis 0 at the border; in front of the operator they go where it wants them.
    perm = [0, 1, 2] if layout else [1, 0, 2]
    nodes = [helper.make_node("Transpose", [name], [f"{name}_seq"], perm=perm) for name in ("x", *states)]
    if layout:
        attributes["layout"] = 1
    outputs = tuple(name for name in outputs if name in ("", "Y", *(f"{s}_next" for s in states)))
    names = [f"{name}_raw" if name else "" for name in outputs]
    nodes.append(helper.make_node(kind, inputs, names, hidden_size=H, **attributes))
    border = {"Y": [0, 1, 2, 3] if layout else [2, 0, 1, 3]}
    for name in outputs:
        if name:
            nodes.append(helper.make_node("Transpose", [f"{name}_raw"], [name], perm=border.get(name, perm)))
    frame = (TensorSpec("x", dtype, (streams, frames, X)),)
    signature = Signature(
        inputs=(*frame, TensorSpec("lengths", "int32", (streams,))) if lengths else frame,
        outputs=(TensorSpec("Y", dtype, (streams, frames, d, H)),) if "Y" in outputs else (),
        states=tuple(StateSpec(s, s, f"{s}_next", dtype, (streams, d, H)) for s in states),
    )
    return make_step(nodes, signature, weights, opset=opset)


def errors(
    before: StepModel, after: StepModel, steps: int = 12, *, rounding: str = "float32", k: float = 256
) -> None:
    """Stream two streams through both, each with its own state, and compare every output and state."""
    rng = np.random.default_rng(1)
    a, b = Stepper(before), Stepper(after)
    state_a, state_b = a.initial(2), b.initial(2)
    for t in range(steps):
        frames = {"x": rng.normal(size=(2, *before.signature.inputs[0].frame_shape))}
        frames["x"] = frames["x"].astype(before.signature.inputs[0].dtype)
        if len(before.signature.inputs) > 1:
            frames["lengths"] = np.array([1, int(t % 5 != 3)], np.int32)
        want, state_a = a(frames, state_a)
        got, state_b = b(frames, state_b)
        for name, value in {**want, **state_a}.items():
            assert_close({**got, **state_b}[name], value, rounding, k=k)


@st.composite
def operators(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(GATES)) -> dict[str, Any]:
    """Arguments of ``operator``: every attribute that ONNX Runtime knows."""
    kind = draw(st.sampled_from(kinds))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    found: dict[str, Any] = {
        "kind": kind,
        "direction": direction,
        "bias": draw(st.booleans()),
        "opset": draw(st.sampled_from([11, 13, 14, 17, 18, 21, 22, 25])),
        "lengths": draw(st.booleans()),
    }
    if draw(st.booleans()):
        found["clip"] = draw(st.sampled_from([0.3, 2.0]))
    if kind == "LSTM":
        found |= {"peephole": draw(st.booleans()), "input_forget": int(draw(st.booleans()))}
    if kind == "GRU":
        found["linear_before_reset"] = int(draw(st.booleans()))
    if draw(st.booleans()):
        # Gates that are no gates make the state grow, and errors with it: bounded ones stay comparable. So do small
        # weights: ONNX Runtime's Softplus overflows from 89 on.
        found["scale"] = 0.25
        gate = st.sampled_from(["Sigmoid", "HardSigmoid", "Softsign"])
        inner = st.sampled_from(sorted(PARAMETERS))
        each = {"LSTM": (gate, inner, st.sampled_from(["Tanh", "Softsign", "Relu", "ScaledTanh"]))}.get(
            kind, (gate, inner) if kind == "GRU" else (inner,)
        )
        names = [draw(s) for _ in range(2 if direction == "bidirectional" else 1) for s in each]
        found["activations"] = names
        number = st.sampled_from([0.2, 0.4, 0.6])
        found["activation_alpha"] = [draw(number) for name in names if "a" in PARAMETERS[name]]
        found["activation_beta"] = [draw(number) for name in names if "b" in PARAMETERS[name]]
        for which in ("alpha", "beta"):
            if not found[f"activation_{which}"]:
                del found[f"activation_{which}"]
    return found


@settings(max_examples=120, deadline=None)
@given(operators())
def test_one_step_of_any_operator_equals_onnx_runtime(options: dict[str, Any]) -> None:
    step = operator(**options)
    bytes_before = step.to_bytes()
    expanded = simplify(expand_rnn(step))
    assert step.to_bytes() == bytes_before
    expanded.check()
    assert not {"LSTM", "GRU", "RNN"} & set(expanded.op_types())
    errors(step, expanded)


@pytest.mark.parametrize(
    ("options", "op"),
    [
        ({}, "FusedGates_lstm"),
        ({"peephole": True}, "FusedGates_peephole"),
        ({"input_forget": 1}, "FusedGates_lstm_coupled"),
        ({"peephole": True, "input_forget": 1}, "FusedGates_peephole_coupled"),
        ({"clip": 2.0}, "FusedGates_lstm"),
        ({"activations": ["hardsigmoid", "tanh", "tanh"]}, "FusedGates_lstm_hard_0p2_0p5"),
        (
            {
                "activations": ["HardSigmoid", "Tanh", "Relu"],
                "activation_alpha": [0.25],
                "activation_beta": [0.4],
            },
            "FusedGates_lstm_hard_0p25_0p4_hrelu",
        ),
    ],
)
def test_an_lstm_becomes_one_gemm_and_fused_gates(options: dict[str, Any], op: str) -> None:
    step = operator(**options)
    expanded = simplify(expand_rnn(step))
    assert [t for t in expanded.op_types() if t == "Gemm" or t.startswith("Fused")] == ["Gemm", op]
    errors(step, expanded)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_layout_1_equals_layout_0_and_the_reference(kind: str, direction: str) -> None:
    """ONNX Runtime has none of layout 1: the same weights in layout 0 are what it must equal, and ONNX's reference."""
    expanded = expand_rnn(operator(kind, layout=1, direction=direction))
    errors(operator(kind, direction=direction), expanded)
    step = operator(kind, layout=1, direction=direction)
    reference, ours = onnx.reference.ReferenceEvaluator(step.model), Stepper(expanded)
    rng = np.random.default_rng(2)
    states = {s.name: rng.normal(size=(2, *s.frame_shape)).astype("f4") for s in step.signature.states}
    x = rng.normal(size=(2, 1, X)).astype("f4")
    want = dict(zip(reference.output_names, reference.run(None, {"x": x, **states}), strict=True))
    outputs, after = ours({"x": x}, states)
    for name, value in {**outputs, **{f"{k}_next": v for k, v in after.items()}}.items():
        assert_close(value, want[name], "float32")


@pytest.mark.parametrize("outputs", [("Y", "h_next", "c_next"), ("", "h_next", "c_next")])
def test_outputs_nobody_reads_may_be_left_out(outputs: tuple[str, ...]) -> None:
    step = operator(outputs=outputs)
    errors(step, expand_rnn(step))


@pytest.mark.parametrize("kind", GATES)
def test_weights_in_half_precision(kind: str) -> None:
    """ONNX Runtime computes the operator in float32 between casts, so states differ by roundings of float16."""
    step = operator(kind, dtype="float16")
    expanded = simplify(expand_rnn(step))
    assert kind not in expanded.op_types()
    assert all(t.data_type != onnx.TensorProto.FLOAT for t in expanded.model.graph.initializer)
    errors(step, expanded, rounding="float16", k=16)


@pytest.mark.parametrize("kind", GATES)
def test_operators_in_an_unrolled_window(kind: str) -> None:
    step = simplify(expand_rnn(operator(kind, streams=1)))
    window = unroll(step, 5)
    rng = np.random.default_rng(3)
    frames = [{"x": rng.normal(size=(1, X)).astype("f4")} for _ in range(20)]
    result = compare(OrtProgram(step.to_bytes(), threads=1), OrtProgram(window.to_bytes(), threads=1), frames)
    assert result.worst.worst <= 1e-5


@pytest.mark.parametrize(
    "attributes",
    [
        {"frames": 2},
        {"activations": ["Sigmoid", "Affine", "Tanh"]},
        {"activations": ["Sigmoid", "ThresholdedRelu", "Tanh"]},
        {"activations": ["Sigmoid", "ScaledTanh", "Tanh"], "activation_alpha": [1.0]},
        {"activations": ["Sigmoid", "Swish", "Tanh"]},
        {"activations": ["Sigmoid", "Tanh"]},
        {"clip": -1.0},
    ],
)
def test_what_is_no_step_or_not_defined_stays(attributes: dict[str, Any]) -> None:
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
