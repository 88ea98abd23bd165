"""to_half: 16 bits for products and their states, float32 for gates and cell states."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph
from edgelstm.passes.lower import lower
from edgelstm.passes.unroll import unroll
from edgelstm.quantize.precision import to_half
from edgelstm.quantize.qdq import quantize
from recordings import all_weights, calibrated, drift
from stepping import from_text

MODELS = {"lstm": zoo.lstm, "conv_lstm": lambda: zoo.conv_lstm(size=8)}
#: Drift over 300 frames, a few roundings of the type.
LIMIT = {"fp16": 2e-3, "bf16": 2e-2}
DTYPE = {"fp16": "float16", "bf16": "bfloat16"}


def dtypes(step: StepModel) -> dict[str, str]:
    return {s.name: s.dtype for s in step.signature.states}


def halved(step: StepModel, precision: Any, target: Any = "tensorrt", **options: Any) -> StepModel:
    made = to_half(step, precision, target, **options)
    made.check()
    onnx.checker.check_model(lower(made, "tensorrt").model, full_check=True)
    return made


def test_where_the_casts_stand() -> None:
    step = zoo.conv_lstm(size=8, peephole=False)
    before = step.to_bytes()
    made = halved(step, "fp16")
    assert step.to_bytes() == before
    # In: the frame. Out of the product: z. Out of the cell: the new h for storage; the output is float32 already.
    assert Counter(made.op_types()) == {"Cast": 3, "Concat": 1, "Conv": 1, "FusedGates_lstm": 1}
    assert dtypes(made) == {"h": "float16", "c": "float32"}
    assert {t.dtype for t in (*made.signature.inputs, *made.signature.outputs)} == {"float32"}
    graph = Graph(made)
    cell = next(n for n in graph.nodes if n.op_type == "FusedGates_lstm")
    assert graph.producer(cell.input[0]).op_type == "Cast"
    assert cell.input[1] == "c", "the cell state is read as it is"
    assert all(t.data_type == onnx.TensorProto.FLOAT16 for t in made.model.graph.initializer)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("precision", "target"), [("fp16", "tensorrt"), ("fp16", "onnxruntime"), ("bf16", "onnxruntime")]
)
def test_drift(model: str, precision: str, target: str) -> None:
    step = MODELS[model]()
    made = halved(step, precision, target)
    assert max(drift(step, made).values()) < LIMIT[precision]
    h, c = ("z9_h", "a0_c") if model == "lstm" else ("h", "c")
    assert (dtypes(made)[h], dtypes(made)[c]) == (DTYPE[precision], "float32")


def test_storage_halves_the_file() -> None:
    step = zoo.lstm(64, (128,))
    assert len(halved(step, "bf16", "onnxruntime").to_bytes()) < 0.55 * len(step.to_bytes())


def test_cell_states_in_16_bits_when_asked() -> None:
    step = zoo.lstm()
    made = halved(step, "fp16", cell_state="fp16")
    assert set(dtypes(made).values()) == {"float16"}
    assert max(drift(step, made).values()) < LIMIT["fp16"]
    start = made.signature.state("a0_c").initial_value()
    np.testing.assert_allclose(start, step.signature.state("a0_c").initial_value(), rtol=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_gates_written_out_stay_in_float32(precision: str) -> None:
    """A graph whose cells no pass has fused: whatever c passes through is float32, with or without FusedGates."""
    step = lower(zoo.conv_lstm(size=8), "tensorrt")
    made = halved(step, precision)
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(made.model).graph.value_info
    }
    for node in made.model.graph.node:
        if node.op_type in ("Sigmoid", "Tanh"):
            assert types.get(node.output[0], onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT
    assert dtypes(made)["c"] == "float32"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_is_quantised_keeps_its_codes(precision: str) -> None:
    step = zoo.conv_lstm(size=8)
    quantised = quantize(step, calibrated(step), "tensorrt", weights=all_weights(step))
    made = halved(quantised, precision)
    assert dtypes(made) == {"h": "int8", "c": "float32"}
    if precision == "fp16":
        assert max(drift(step, made).values()) < 0.1


def test_windows() -> None:
    step = zoo.lstm()
    made = halved(unroll(step, 4), "fp16")
    assert dtypes(made)["z9_h"] == "float16"
    assert max(drift(step, made, 120).values()) < LIMIT["fp16"]


def test_kept_weights_stay() -> None:
    made = halved(zoo.lstm(), "fp16", keep=["w0"])
    types = {t.name: t.data_type for t in made.model.graph.initializer}
    assert types["w0"] == onnx.TensorProto.FLOAT
    assert types["w1/float16"] == onnx.TensorProto.FLOAT16


def test_a_state_of_several_things_stays_float32() -> None:
    step = from_text(
        """packed (float[N, 2] x, float[N, 4] s) => (float[N, 2] y, float[N, 4] t)
        <float[2, 2] w = {0.5, 0.2, -0.3, 0.4}, int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] one = {1}>
        { h = Slice (s, zero, two, one)  c = Slice (s, two, four, one)  m = MatMul (h, w)  a = Add (m, x)
          d = Add (c, a)  y = Tanh (d)  t = Concat <axis = 1> (y, d) }""",
        s="t",
    )
    for target in ("tensorrt", "onnxruntime"):
        made = halved(step, "fp16", target)
        assert dtypes(made) == {"s": "float32"}
        assert max(drift(step, made, 60).values()) < LIMIT["fp16"]


def test_a_weight_fp16_has_no_value_for() -> None:
    step = from_text(
        "big (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1e6, 0, 0, 1}> { y = MatMul (x, w) }"
    )
    with pytest.raises(
        EdgeLstmError,
        match=r"weight 'w' has no value in float16: found 1e\+06; expected at most 65504.* Use bf16",
    ):
        to_half(step, "fp16")
    halved(step, "bf16", "onnxruntime")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp32"}, r"precision in 16 bits: found fp32; expected fp16 or bf16"),
        (
            {"precision": "fp16", "cell_state": "bf16"},
            r"type of the cell state: found bf16; expected fp32 or fp16",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeLstmError, match=message):
        to_half(zoo.lstm(), **options)
