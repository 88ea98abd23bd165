"""What stands around cells becomes fewer nodes, and gives the same, stream by stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import native_library
from edgelstm import export
from edgelstm.graph.step import StepModel
from edgelstm.quantize.calibrate import Recording, calibrate
from edgelstm.quantize.qdq import quantize
from edgelstm.runtime import Runner
from edgelstm.runtime.native.cells import rewrite
from edgelstm.runtime.onnxruntime import OrtProgram
from recordings import smooth_frames
from stepping import from_text
from tolerances import assert_close


def compare(step: bytes, expected: dict[str, int], steps: int = 6, k: float = 500) -> None:
    """The operators that a graph gets, and its numbers beside those it has without them."""
    made = rewrite(step, 1)
    assert made is not None
    assert made.counts == expected
    program = native_library.opened(step, native_library.built(), threads=1)
    assert program.native is not None
    rng = np.random.default_rng(0)
    with Runner(program) as a, Runner(OrtProgram(step, threads=1)) as b:
        ours, theirs = a.stream("s"), b.stream("s")
        for _ in range(steps):
            frame = rng.normal(size=a.signature.inputs[0].frame_shape).astype(np.float32)
            found, wanted = ours.step(frame), theirs.step(frame)
            for name, value in wanted.items():
                assert_close(found[name], value, np.float32, k=k)
        for name, value in theirs.snapshot().items():
            assert_close(ours.snapshot()[name], value, np.float32, k=k)


@pytest.mark.parametrize(
    ("number", "states", "expected"),
    [
        (1, {"input_3": "tf_op_layer_stack_2"}, {"FusedLSTMCell": 2, "FusedMove": 2, "FusedDense": 1}),
        (
            2,
            {"input_5": "tf_op_layer_stack_5"},
            {"FusedLSTMCell": 2, "FusedMove": 2, "FusedDense": 3, "FusedNorm": 1},
        ),
    ],
)
def test_a_published_denoiser_becomes_a_handful_of_nodes(
    shared_dir: Path, tmp_path: Path, number: int, states: dict[str, str], expected: dict[str, int]
) -> None:
    source = shared_dir / "models" / "dtln" / f"model_{number}.onnx"
    if not source.is_file():
        pytest.skip(f"the published model is not here: {source}")
    path = tmp_path / "step.onnx"
    export(source, path, states=states, limit=3)
    compare(path.read_bytes(), expected)


@pytest.mark.thorough
def test_what_stands_around_quantised_products_is_found_too(shared_dir: Path, tmp_path: Path) -> None:
    """Shapes are followed through codes, and constants that a converter wrote as nodes are read."""
    source = shared_dir / "models" / "dtln" / "model_2.onnx"
    if not source.is_file():
        pytest.skip(f"the published model is not here: {source}")
    step = export(source, tmp_path / "step.onnx", states={"input_5": "tf_op_layer_stack_5"}, limit=3).step
    quantised = quantize(step, calibrate(step, [Recording("s", smooth_frames(step, 30))], threads=1))
    expected = {"FusedGates": 1, "FusedGatesQuantizeLinearU8": 1, "FusedMove": 4, "FusedNorm": 1}
    expected |= {"FusedQuantizeLinearTwiceU8": 4}
    compare(quantised.to_bytes(), expected, k=20_000)  # a code of the second row may be another


#: A cell whose states lie in one tensor, interleaved; a dense layer after it. Weights and its end are filled in.
GRAPH = """g (float[1,5] x, float[1,2,7] s) => (float[1,3] y, float[1,2,7] s_next)
<%s int64[2] sizes = {1, 1}, int64[1] one = {1}>
{
  h_part, c_part = Split<axis = 1>(s, sizes)
  h = Squeeze(h_part, one)
  c = Squeeze(c_part, one)
  joined = Concat<axis = 1>(x, h)
  z = Gemm<transB = 1>(joined, w, b)
  h_next, c_next = edgelstm.FusedGates_lstm(z, c)
  m = MatMul(h_next, v)
  %s
  h_up = Unsqueeze(h_next, one)
  c_up = Unsqueeze(c_next, one)
  s_next = Concat<axis = 1>(h_up, c_up)
}"""
ENDS = {
    "sigmoid": "a = Add(m, d) y = Sigmoid(a)",
    "tanh, the bias first": "a = Add(d, m) y = Tanh(a)",
    "relu without bias": "y = Relu(m)",
    "a factor of the frame": "a = Add(m, d) t = Sigmoid(a) p = MatMul(x, u) y = Mul(p, t)",
    "the bias after the activation": "t = Sigmoid(m) y = Add(t, d)",
    "read twice": "a = Add(m, d) t = Sigmoid(a) y = Mul(a, t)",
    "times itself": "y = Mul(m, m)",
    "a scale of each": "y = Mul(m, d)",
    "two activations": "t = Tanh(m) y = Sigmoid(t)",
}


def step(end: str, graph: str = GRAPH) -> StepModel:
    """The graph with that end; its weights are random."""
    rng = np.random.default_rng(3)
    weights = {"w": (28, 12), "b": (28,), "v": (7, 3), "d": (3,), "u": (5, 3)}
    values = "".join(
        f"float[{','.join(map(str, shape))}] {name} = {{{', '.join(map(str, rng.normal(size=np.prod(shape)).round(3)))}}}, "
        for name, shape in weights.items()
    )
    return from_text(graph % (values, end), s="s_next")


@pytest.mark.parametrize("end", ENDS)
def test_a_dense_layer_is_found_and_what_is_none_keeps_its_numbers(end: str) -> None:
    found: Any = rewrite(step(ENDS[end]).to_bytes(), 1)
    assert found.counts["FusedMove"] == 2
    assert found.counts.get("FusedDense", 0) >= 1
    compare(step(ENDS[end]).to_bytes(), found.counts)


def test_a_normalisation_is_found_whose_axes_are_an_input() -> None:
    """As they are from opset 18 on."""
    end = (
        "m1 = ReduceMean(m, last) d1 = Sub(m, m1) q = Mul(d1, d1) r = ReduceMean(q, last) a = Add(r, little) t = Sqrt(a) "
        "p = Div(d1, t) k = Mul(p, d) y = Add(k, d)"
    )
    text = GRAPH.replace(
        "int64[1] one = {1}>", "int64[1] one = {1}, int64[1] last = {-1}, float little = {0.00001}>"
    )
    data = step(end, text).to_bytes()
    found: Any = rewrite(data, 1)
    assert found.counts["FusedNorm"] == 1
    compare(data, found.counts)


def test_shapes_are_followed_through_codes_and_constants_that_are_nodes() -> None:
    end = """q = QuantizeLinear(h_next, small, zero) q1 = Concat<axis = 0>(q)
    h_again = DequantizeLinear(q1, small, zero) m = MatMul(h_again, v) y = Sigmoid(m)"""
    graph = (
        GRAPH.replace("m = MatMul(h_next, v)", "axis = Constant<value = int64[1] {1}>()")
        .replace("(h_next, one)", "(h_next, axis)")
        .replace("int64[1] one", "float small = {0.01}, uint8 zero = {128}, int64[1] one")
    )
    expected = {"FusedLSTMCell": 1, "FusedDense": 1, "FusedMove": 2}
    compare(step(end, graph).to_bytes(), expected, k=20_000)
