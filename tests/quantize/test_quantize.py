"""quantize: Q/DQ where each target wants it, one scale a state, c untouched, little drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.described.architecture import EncoderForecaster
from edgelstm.frontends.described.graph import to_step
from edgelstm.graph.gates import is_fused_gates
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph
from edgelstm.passes.lower import lower
from edgelstm.passes.placement import check_target
from edgelstm.passes.unroll import unroll
from edgelstm.quantize.calibrate import Recording, calibrate
from edgelstm.quantize.qdq import quantize
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.runner import Runner
from exported import exported
from frontends.architectures import random_described
from recordings import all_weights, calibrated, compared, drift, smooth_frames
from stepping import from_text

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS: dict[str, Callable[[], StepModel]] = {
    "lstm": zoo.lstm,
    "conv_lstm": lambda: zoo.conv_lstm(size=8),
    "conv_lstm without peepholes": lambda: zoo.conv_lstm(size=8, peephole=False),
}
TARGETS = [("onnxruntime", "int8"), ("tensorrt", "int8"), ("tensorrt", "fp8")]
#: Drift of h after 300 frames, rounded up from what was measured.
INT8, FP8 = 0.08, 0.2


_made: dict[tuple[str, str], StepModel] = {}


def everything(step: StepModel, **options: Any) -> StepModel:
    """All its weights quantised; tests only read it, so that it is made once."""
    key = step.graph_hash() + step.signature.dumps(), repr(sorted(options.items()))
    if key not in _made:
        quantised = quantize(step, calibrated(step), weights=all_weights(step), **options)
        quantised.check()
        onnx.checker.check_model(lower(quantised, "tensorrt").model, full_check=True)
        _made[key] = quantised
    return _made[key]


def weights(step: StepModel) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in step.model.graph.initializer if t.data_type != 17}


def test_a_convolution_for_onnx_runtime() -> None:
    step = zoo.conv_lstm(size=8)
    before = step.to_bytes()
    quantised = everything(step, fine=False)
    assert step.to_bytes() == before
    assert Counter(quantised.op_types()) == {
        "QuantizeLinear": 3,  # x, z, the new h
        "Mul": 1,  # a scale for each channel of one of them
        "Concat": 1,
        "DequantizeLinear": 2,  # activation and weight: z is read as codes
        "Conv": 1,
        "FusedGates_peephole_coded": 1,
    }
    found = weights(quantised)
    assert found["w/q"].dtype == np.int8
    assert found["w/bias"].dtype == np.float32
    assert found["w/scale"].shape == (12,)
    h, c = quantised.signature.state("h"), quantised.signature.state("c")
    assert (h.dtype, c.dtype) == ("uint8", "float32")
    assert h.quantization is not None
    assert h.quantization.zero_point == 128


def test_an_activation_has_one_scale_in_its_nodes() -> None:
    """Along an axis they are slow where ONNX Runtime turns maps to channels last: a model of a camera took 15 times as long."""
    quantised = everything(zoo.conv_lstm(size=8))
    held = {i.name: i for i in quantised.model.graph.initializer}
    nodes = [n for n in quantised.model.graph.node if n.op_type.endswith("QuantizeLinear")]
    made = [n for n in nodes if n.input[0] not in held]
    assert made
    assert all(not held[n.input[1]].dims for n in made)


def test_a_vector_for_onnx_runtime() -> None:
    quantised = everything(zoo.lstm())
    assert [n.op_type for n in quantised.model.graph.node].count("Gemm") == 2
    gemms = [n for n in quantised.model.graph.node if n.op_type == "Gemm"]
    assert all(len(n.input) == 2 for n in gemms), "the bias is added apart, else it would not run in integers"
    assert quantised.signature.state("z9_h").dtype == "uint8"


@pytest.mark.parametrize(("precision", "dtype"), [("int8", "int8"), ("fp8", "float8e4m3fn")])
def test_for_tensorrt(precision: str, dtype: str) -> None:
    quantised = everything(zoo.conv_lstm(size=8), target="tensorrt", precision=precision)
    assert quantised.signature.state("h").dtype == dtype
    assert quantised.signature.state("h").quantization is not None
    assert quantised.signature.state("h").quantization.zero_point == 0
    conv = next(n for n in quantised.model.graph.node if n.op_type == "Conv")
    assert len(conv.input) == 3, "a float bias"
    assert "FusedGates_peephole" in quantised.op_types(), "what a product makes stays in float"
    # One scale for an activation, and codes without a zero point.
    graph = Graph(quantised)
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            assert graph.constant(node.input[1]).size == 1
        if node.op_type.endswith("QuantizeLinear") and precision == "int8":
            assert not graph.constant(node.input[2]).any()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("target", "precision"), TARGETS)
def test_drift_stays_small(model: str, target: str, precision: str) -> None:
    step = MODELS[model]()
    quantised = everything(step, target=target, precision=precision)
    limit = FP8 if precision == "fp8" else INT8
    assert max(drift(step, quantised).values()) < limit


@pytest.mark.parametrize(("target", "precision"), TARGETS)
def test_an_encoder_and_its_forecaster(target: Any, precision: str) -> None:
    """Cells that are carried, and copies of cells that start from them anew in every step."""
    network = EncoderForecaster(
        1, (16, 16), patch=2, stem=4, hidden=(6, 5), kernel=3, horizon=3, peephole=True, residual=True
    )
    step = to_step(random_described(network))
    quantised = everything(step, target=target, precision=precision)
    stored = {s.name: s.dtype for s in quantised.signature.states}
    assert [name for name, dtype in stored.items() if dtype == "float32"] == ["c0", "c1"]
    assert max(drift(step, quantised, 120).values()) < (FP8 if precision == "fp8" else INT8)
    # Each weight is stored once, in codes, for all three times it is used.
    codes = [t for t in quantised.model.graph.initializer if t.name.endswith("/q")]
    assert len(codes) == len(all_weights(step))


@pytest.mark.parametrize(("target", "precision"), TARGETS)
@pytest.mark.parametrize("model", MODELS)
def test_nothing_dequantised_reaches_the_cell_state_but_through_the_gates(
    model: str, target: Any, precision: str
) -> None:
    """A new c is made by gates of the old one as it is and of pre-activations: float, or codes that they read."""
    quantised = everything(MODELS[model](), target=target, precision=precision)
    graph = Graph(quantised)
    for state in quantised.signature.states:
        if state.quantization is not None:
            continue
        gates = graph.producer(state.output)
        assert gates is not None
        assert is_fused_gates(gates)
        assert gates.input[1] == state.input, "the old c goes in as it is"
        assert state == MODELS[model]().signature.state(state.name)
        coded = gates.op_type.endswith("_coded")
        source = graph.producer(gates.input[0])
        assert source is not None
        assert source.op_type in (("QuantizeLinear",) if coded else ("Conv", "Gemm", "Add"))


def test_biases_are_float_and_weights_int8_with_a_scale_for_each_output() -> None:
    for step, target in ((zoo.conv_lstm(size=8), "onnxruntime"), (zoo.lstm(), "tensorrt")):
        quantised = everything(step, target=target)
        graph = Graph(quantised)
        products = [n for n in graph.nodes if n.op_type in ("Conv", "Gemm", "MatMul")]
        assert len(products) == len(all_weights(step))
        for node in products:
            weight = graph.producer(node.input[1], "DequantizeLinear")
            assert weight is not None
            codes, scale, zero = (graph.constant(name) for name in weight.input)
            axis = next(a.i for a in weight.attribute if a.name == "axis")
            assert (codes.dtype, scale.dtype, zero.dtype) == (np.int8, np.float32, np.int8)
            assert scale.shape == zero.shape == (codes.shape[axis],)
            assert not zero.any()
            assert np.abs(codes.astype(int)).max() == 127
            if len(node.input) == 3:
                assert graph.constant(node.input[2]).dtype == np.float32


@pytest.mark.parametrize("opset", [11, 12, 15, 21])
def test_graphs_of_other_opsets(opset: int) -> None:
    """What Q/DQ needs a newer opset for, it gets; the bodies of the gates come along."""
    values = ", ".join(f"{v:.2f}" for v in np.random.default_rng(0).normal(0, 0.4, 28))
    step = from_text(
        f"""rnn (float[N, 3] x, float[N, 4] h) => (float[N, 4] y, float[N, 4] h_next) <float[7, 4] w = {{{values}}}>
        {{ xh = Concat <axis = 1> (x, h)  z = Gemm (xh, w)  h_next = Tanh (z)  y = Neg (h_next) }}""",
        h="h_next",
    )
    model = step.copy_model()
    model.opset_import[0].version = opset
    other = StepModel(model, step.signature)
    quantised = everything(other)
    assert quantised.opset == max(opset, 13)
    assert max(drift(other, quantised, 60, seed=0).values()) < INT8
    if opset >= 15:
        everything(other, target="tensorrt", precision="fp8")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(MODELS)), st.sampled_from(["onnxruntime", "tensorrt"]))
def test_a_state_is_one_tensor_in_time(seed: int, model: str, target: str) -> None:
    """What leaves a step is what the next one takes, bit for bit, and worth its h within half a step."""
    step = MODELS[model]()
    quantised = everything(step, target=target)
    program = OrtProgram(quantised.to_bytes(), threads=1)
    state = program.new_state()
    name = next(s.name for s in quantised.signature.states if s.quantization)
    spec = quantised.signature.state(name)
    graph = Graph(quantised)
    for node in graph.consumers(spec.input):
        assert node.op_type in ("Concat", "DequantizeLinear"), "codes go in as they are"
    for frame in smooth_frames(step, 5, seed):
        outputs = program.step([frame], state, [0])[0]
        stored = program.read_state(state, 0)[name]
        np.testing.assert_array_equal(spec.stored(spec.values(stored)), stored)
        if "h_next" in outputs:
            scale = np.asarray(spec.quantization.scale)
            half = (scale.reshape(-1, 1, 1) if len(scale) > 1 else scale) / 2
            inside = np.abs(outputs["h_next"]) <= 126 * 2 * half
            assert (np.abs(spec.values(stored) - outputs["h_next"]) <= half * 1.001)[inside].all()
    program.close()


def test_equalisation_loses_nothing() -> None:
    """With weights that are not rounded, and codes dequantised at once, only activations' rounding is left."""
    step = zoo.conv_lstm(size=8)
    calibration = calibrated(step)
    quantised = quantize(step, calibration, weights=["w"], fine=False, correct_bias=False, target="tensorrt")
    graph = Graph(quantised)
    conv = next(n for n in graph.nodes if n.op_type == "Conv")
    dq = graph.producer(conv.input[1])
    codes, scale = (graph.constant(name).astype(np.float64) for name in dq.input[:2])
    folded = codes * scale.reshape(-1, 1, 1, 1)
    whole = graph.constant(graph.producer(conv.input[0]).input[1])
    assert whole.size == 1
    original = weights(step)["w"]
    ratio = folded / original
    # Each input channel has one factor, the same in every row; rounding blurs it a little.
    factors = np.median(ratio, axis=(0, 2, 3), keepdims=True)
    assert np.abs(folded - original * factors).max() < 0.03 * np.abs(folded).max()
    assert len(np.unique(factors.round(3))) > 1


def test_it_runs_in_integers(tmp_path: Path) -> None:
    """ONNX Runtime's own optimised graph says which kernels it takes."""
    for step, kernel in (
        (zoo.conv_lstm(size=8), "QLinearConv"),
        (zoo.lstm(), "QGemm"),
        (_dense(), "MatMulIntegerToFloat"),
    ):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(everything(step).to_bytes(), options, providers=["CPUExecutionProvider"])
        operators = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
        assert kernel in operators, operators
        assert not {"Conv", "FusedConv", "Gemm", "MatMul"} & set(operators), operators


def _dense() -> StepModel:
    return from_text(
        """dense (float[N, 3] x, float[N, 3] s) => (float[N, 3] y, float[N, 3] t)
        <float[3, 3] w = {0.5, 0.2, -0.1, 0.3, -0.4, 0.2, 0.1, 0.1, 0.6}, float[3] b = {0.1, -0.2, 0.3}>
        { m = MatMul (s, w)  a = Add (m, b)  k = Add (a, x)  t = Tanh (k)  y = Neg (t) }""",
        s="t",
    )


def test_an_output_that_is_a_state_stays_float() -> None:
    step = zoo.conv_lstm(size=8)
    quantised = everything(step)
    assert quantised.signature.output("h_next").dtype == "float32"
    assert quantised.signature.state("h").output != "h_next"
    # The output is h before it is rounded for storage: nearer than the stored one.
    errors = {t.name: float(np.mean(t.norms)) for t in compared(step, quantised).tensors}
    assert errors["h_next"] < errors["h"]


def test_initial_values() -> None:
    plain = zoo.lstm()
    start = np.array([0.5, -0.25, 0.125, 0.0], np.float32)
    states = tuple(
        replace(s, initial=start.tobytes()) if s.name == "z9_h" else s for s in plain.signature.states
    )
    step = StepModel(plain.copy_model(), replace(plain.signature, states=states))
    quantised = everything(step)
    found = quantised.signature.state("z9_h")
    np.testing.assert_allclose(found.values(found.initial_value()), start, atol=0.01)
    other = quantised.signature.state("z8_h")
    assert (other.initial_value() == 128).all(), "stored zero is worth zero"
    assert len(quantised.signature.dumps()) < len(step.signature.dumps()) + 700


def test_float_readers_of_a_state_get_what_it_is_worth() -> None:
    step = from_text(
        """residual (float[N, 2] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] t)
        <float[2, 2] w = {0.5, 0.2, -0.3, 0.4}>
        { m = MatMul (s, w)  a = Add (m, x)  t = Tanh (a)  y = Add (s, a) }""",
        s="t",
    )
    for target in ("onnxruntime", "tensorrt"):
        assert max(drift(step, everything(step, target=target)).values()) < 0.03


def test_windows_and_windows_of_quantised_steps() -> None:
    step = zoo.lstm()
    calibration = calibrated(step)
    quantised = quantize(step, calibration, weights=all_weights(step))
    unrolled = unroll(quantised, 4)
    assert unrolled.signature.state("z9_h").dtype == "uint8"
    for t in compared(quantised, unrolled, 40).tensors:
        assert t.worst < 0.02, t.name
    window = unroll(step, 4)
    frames = smooth_frames(step, 80)
    blocks = [{"x": np.stack([f["x"] for f in frames[k : k + 4]])} for k in range(0, 80, 4)]
    found = calibrate(window, [Recording("a", blocks)], threads=1)
    direct = quantize(window, found, weights=all_weights(window))
    assert max(drift(step, direct, 120).values()) < INT8


def test_copies_of_a_cell_store_their_weights_once() -> None:
    step = StepModel.load(exported("moving_digits"))
    frames = np.load(EXAMPLES / "moving_digits" / "test_stream.npz")["frames"][:24, None] / np.float32(255)
    calibration = calibrate(step, [Recording("a", [{"x": f.astype(np.float32)} for f in frames])], threads=1)
    quantised = quantize(step, calibration)
    assert len(quantised.to_bytes()) < 0.3 * len(step.to_bytes())


def test_streams_side_by_side() -> None:
    step = zoo.conv_lstm(size=8)
    quantised = everything(step)
    frames = [f["x"] for f in smooth_frames(step, 6)]
    with Runner(OrtProgram(quantised.to_bytes(), streams=2, threads=1)) as runner:
        a, b = runner.stream("a"), runner.stream("b")
        for frame in frames:
            a.step(frame)
        kept = a.snapshot()
        b.restore(a.values())  # what it is worth goes back into codes
        for name, value in b.snapshot().items():
            np.testing.assert_array_equal(value, kept[name])


@pytest.mark.parametrize("options", [{"learned": False}, {"correct_bias": False}, {"fine": False}])
def test_each_part_can_be_left_out(options: dict[str, bool]) -> None:
    step = zoo.conv_lstm(size=8)
    assert max(drift(step, everything(step, **options), 100).values()) < 2 * INT8


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_calibration_of_another_model() -> None:
    with pytest.raises(
        EdgeLstmError, match=r"made for another model: found graph \w{12}; expected graph \w{12}\. Calibrate"
    ):
        quantize(zoo.lstm(seed=1), calibrated(zoo.lstm()))


def test_other_preprocessing() -> None:
    step = zoo.lstm()
    calibration = calibrate(
        step, [Recording("a", smooth_frames(step, 30))], preprocessing={"x": [{"op": "scale", "factor": 2.0}]}
    )
    with pytest.raises(
        EdgeLstmError, match=r"with other preprocessing: found .*scale.*; expected \{\} as the model's"
    ):
        quantize(step, calibration)


def test_quantised_twice() -> None:
    step = zoo.lstm()
    quantised = everything(step)
    with pytest.raises(EdgeLstmError, match=r"quantised already: found DequantizeLinear, QuantizeLinear"):
        quantize(quantised, calibrated(step))


def test_unknown_weights() -> None:
    step = zoo.lstm()
    with pytest.raises(
        EdgeLstmError, match=r"weights to quantise: found nope; expected some of w0, w1, head\.w"
    ):
        quantize(step, calibrated(step), weights=["nope"])


@pytest.mark.parametrize(
    ("target", "precision", "gpu", "message"),
    [
        ("tpu", "int8", None, r"runtime: found tpu; expected one of onnxruntime, tensorrt"),
        (
            "tensorrt",
            "int4",
            None,
            r"precision: found int4; expected one of int8, fp8, fp16, bf16, int8-weights, bf16-weights, fp32 or auto",
        ),
        (
            "onnxruntime",
            "fp8",
            None,
            r"precision fp8 for ONNX Runtime on the CPU: found no 8-bit floating point",
        ),
        ("tensorrt", "int8-weights", None, r"precision int8-weights for TensorRT: found weights alone"),
        ("tensorrt", "fp8", "orin", r"precision fp8 on orin: found an architecture without fp8.*hopper"),
        ("tensorrt", "bf16", "turing", r"precision bf16 on turing"),
        ("tensorrt", "int8", "voodoo", r"GPU: found voodoo; expected one of xavier"),
        ("onnxruntime", "int8", "orin", r"a GPU given for ONNX Runtime on the CPU: found orin"),
    ],
)
def test_what_a_device_lacks(target: str, precision: str, gpu: str | None, message: str) -> None:
    with pytest.raises(EdgeLstmError, match=message):
        check_target(target, precision, gpu)


def test_a_convolution_at_one_place_runs_as_a_matrix_product() -> None:
    step = from_text(
        """pointwise (float[N, 3, 1] x, float[N, 3, 1] s) => (float[N, 2, 1] y, float[N, 3, 1] t)
        <float[3, 3, 1] w = {0.5, 0.2, -0.1, 0.3, -0.4, 0.2, 0.1, 0.1, 0.6}, float[3] b = {0.1, -0.2, 0.3},
         float[2, 3, 1] v = {0.5, 0.2, -0.1, 0.3, -0.4, 0.2}>
        { m = Conv (s, w, b)  a = Add (m, x)  t = Tanh (a)  y = Conv (t, v) }""",
        s="t",
    )
    quantised = everything(step)
    assert "Conv" not in quantised.op_types()
    assert quantised.op_types().count("Gemm") == 2
    assert quantised.op_types().count("QuantizeLinear") == 1, "what it makes stays in float"
    assert max(drift(step, quantised).values()) < 0.03
