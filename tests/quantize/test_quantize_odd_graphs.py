"""quantize on graphs that no cell of ours looks like: what is joined how, along which axis, by whom it is read."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import is_fused_gates
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph
from edgelstm.passes.lower import lower
from edgelstm.quantize.qdq import plan, quantize
from recordings import all_weights, calibrated, drift
from stepping import from_text

TARGETS = [("onnxruntime", "int8"), ("tensorrt", "int8"), ("tensorrt", "fp8")]
#: Drift after 90 frames, rounded up from what was measured.
LIMIT = {"int8": 0.03, "fp8": 0.11}
#: Three products one after the other, each with its output in codes.
LIMIT_GROUPED = 0.06


def filled(*shape: int) -> str:
    """Type, and values drawn from the shape's own seed, as ONNX text: ``float[2, 3] NAME = {...}``."""
    values = np.random.default_rng(math.prod(shape)).normal(0, 0.4, math.prod(shape))
    return "{" + ", ".join(f"{v:.3f}" for v in values) + "}"


#: Text of each graph, all with one state s whose new value is t.
GRAPHS = {
    "tied weights, once transposed": f"""(float[N, 4] x, float[N, 4] s) => (float[N, 4] y, float[N, 4] t)
        <float[4, 4] w = {filled(4, 4)}>
        {{ a = MatMul (s, w)  k = Add (a, x)  t = Tanh (k)  y = Gemm <transB = 1> (t, w) }}""",
    "channels along two axes": f"""(float[N, 4, 4] x, float[N, 4, 4] s) => (float[N, 4, 4] y, float[N, 4, 4] t)
        <float[4, 4] w = {filled(4, 4)}, float[4, 4, 1] u = {filled(4, 4, 1)}>
        {{ a = MatMul (x, w)  b = Conv (x, u)  k = Add (a, b)  t = Tanh (k)  y = Add (t, s) }}""",
    "a state with its channels last": f"""(float[N, 5, 5] x, float[N, 5, 5] s) => (float[N, 5, 5] y, float[N, 5, 5] t)
        <float[5, 5] w = {filled(5, 5)}, float[5] f = {{10, 1, 0.1, 0.3, 3}}>
        {{ a = MatMul (s, w)  j = Add (a, x)  i = Tanh (j)  t = Mul (i, f)  y = Neg (t) }}""",
    "one weight for a sequence and for a vector": f"""(float[N, 3, 4] x, float[N, 4] s) => (float[N, 4] y, float[N, 4] t)
        <float[4, 4] w = {filled(4, 4)}, int64[1] one = {{1}}>
        {{ a = MatMul (x, w)  r = ReduceMean <keepdims = 0> (a, one)  b = MatMul (s, w)  j = Add (r, b)
           t = Tanh (j)  y = Neg (t) }}""",
    "a ring buffer of frames": f"""(float[N, 3, 2] x, float[N, 3, 4] s) => (float[N, 5, 2] y, float[N, 3, 4] t)
        <float[5, 3, 5] w = {filled(5, 3, 5)}, int64[1] two = {{2}}, int64[1] six = {{6}}>
        {{ b = Concat <axis = 2> (s, x)  y = Conv (b, w)  t = Slice (b, two, six, two) }}""",
    "a constant among the channels": f"""(float[1, 2, 6, 6] x, float[1, 2, 6, 6] s) => (float[1, 2, 6, 6] y, float[1, 2, 6, 6] t)
        <float[2, 3, 3, 3] w = {filled(2, 3, 3, 3)}, float[1, 1, 6, 6] where = {filled(1, 1, 6, 6)}>
        {{ xs = Concat <axis = 1> (x, where)  a = Conv <pads = [1, 1, 1, 1]> (xs, w)  k = Add (a, s)  t = Tanh (k)
           y = Neg (t) }}""",
    "a state of two things that is read whole": f"""(float[N, 2] x, float[N, 4] s) => (float[N, 3] y, float[N, 4] t)
        <float[6, 2] w = {filled(6, 2)}, float[4, 3] u = {filled(4, 3)}, float[2, 2] k = {filled(2, 2)}, float[2] f = {{5, 7}}>
        {{ xs = Concat <axis = 1> (x, s)  m = MatMul (xs, w)  a = Tanh (m)  l = MatMul (x, k)  r = Tanh (l)
           b = Mul (r, f)  t = Concat <axis = 1> (a, b)  y = MatMul (t, u) }}""",
    "rows of which one is made of parts": f"""(float[N, 1, 3, 4] x, float[N, 2, 3, 4] s) => (float[N, 2, 6, 4] y, float[N, 2, 3, 4] t)
        <float[2, 2, 1, 1] w = {filled(2, 2, 1, 1)}>
        {{ a = Sigmoid (x)  b = Concat <axis = 1> (x, a)  r = Concat <axis = 2> (b, s)  y = Conv (r, w)  t = Tanh (b) }}""",
    "grouped": f"""(float[N, 4, 6, 6] x, float[N, 4, 6, 6] s) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] t)
        <float[4, 1, 3, 3] w = {filled(4, 1, 3, 3)}, float[4, 4, 1, 1] u = {filled(4, 4, 1, 1)}>
        {{ a = Conv <pads = [1, 1, 1, 1], group = 4> (x, w)  b = Conv (a, u)  c = Conv <pads = [1, 1, 1, 1], group = 4> (s, w)
           k = Add (b, c)  t = Tanh (k)  y = Neg (t) }}""",
    "a product that is the state": f"""(float[N, 2, 6, 6] x, float[N, 2, 6, 6] s) => (float[N, 2, 6, 6] y, float[N, 2, 6, 6] t)
        <float[2, 4, 1, 1] w = {filled(2, 4, 1, 1)}>
        {{ r = Concat <axis = 1> (x, s)  t = Conv (r, w)  y = Neg (t) }}""",
    "one place, padded": f"""(float[N, 3, 1, 1] x, float[N, 2, 3, 3] s) => (float[N, 2, 3, 3] y, float[N, 2, 3, 3] t)
        <float[2, 3, 1, 1] w = {filled(2, 3, 1, 1)}, float half = {{0.5}}>
        {{ a = Conv <pads = [1, 1, 1, 1]> (x, w)  m = Mul (s, half)  k = Add (a, m)  t = Tanh (k)  y = Neg (t) }}""",
    "one place and many, the weight the same": f"""(float[N, 2, 1, 1] x, float[N, 2, 4, 4] s)
        => (float[N, 2, 1, 1] y, float[N, 2, 4, 4] t)
        <float[2, 2, 1, 1] w = {filled(2, 2, 1, 1)}, float[2] b = {{0.5, -0.3}}>
        {{ y = Conv (x, w, b)  a = Conv (s, w, b)  k = Add (a, x)  t = Tanh (k) }}""",
}


@pytest.mark.parametrize(("target", "precision"), TARGETS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_numbers_stay_near(graph: str, target: Any, precision: str) -> None:
    step = from_text(f"odd {GRAPHS[graph]}", s="t")
    quantised = quantize(step, calibrated(step), target, precision, weights=all_weights(step))
    quantised.check()
    onnx.checker.check_model(lower(quantised, "tensorrt").model, full_check=True)
    assert "DequantizeLinear" in quantised.op_types()
    limit = LIMIT_GROUPED if graph == "grouped" and precision == "int8" else LIMIT[precision]
    assert max(drift(step, quantised, 90).values()) < limit


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_numbers_stay_near_in_graphs_of_one_stream(graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all that may be is read in two rows, however little work it is."""
    monkeypatch.setattr(plan, "TWO_ROWS", 0)
    step = from_text(f"odd {GRAPHS[graph].replace('[N,', '[1,')}", s="t")
    quantised = quantize(step, calibrated(step), weights=all_weights(step))
    quantised.check()
    assert max(drift(step, quantised, 90).values()) < (LIMIT_GROUPED if graph == "grouped" else LIMIT["int8"])


@pytest.mark.parametrize(("target", "precision"), TARGETS)
def test_a_product_that_reads_the_cell_state_reads_codes_of_its_own(target: Any, precision: str) -> None:
    """The cell state itself is stored, and goes into the gates, as it is."""
    step = from_text(
        f"""odd (float[N, 4] x, float[N, 4] h, float[N, 4] c) => (float[N, 4] y, float[N, 4] h_next, float[N, 4] c_next)
        <float[16, 8] w = {filled(16, 8)}, float[4, 4] u = {filled(4, 4)}>
        {{ xh = Concat <axis = 1> (x, h)  z = Gemm <transB = 1> (xh, w)  y = MatMul (c, u)
           h_next, c_next = edgelstm.FusedGates_lstm (z, c) }}""",
        h="h_next",
        c="c_next",
    )
    quantised = quantize(step, calibrated(step), target, precision, weights=all_weights(step))
    quantised.check()
    assert quantised.signature.state("h").quantization is not None
    assert quantised.signature.state("c") == step.signature.state("c")
    graph = Graph(quantised)
    gates = next(n for n in graph.nodes if is_fused_gates(n))
    assert gates.input[1] == "c"
    assert graph.producer("c_next") is gates
    assert max(drift(step, quantised).values()) < LIMIT["fp8"]


def test_initial_values_of_a_state_with_its_channels_last() -> None:
    step = from_text(f"odd {GRAPHS['a state with its channels last']}", s="t")
    start = np.linspace(-1, 1, 25, dtype=np.float32).reshape(5, 5)
    state = replace(step.signature.state("s"), initial=start.tobytes())
    begun = StepModel(step.copy_model(), replace(step.signature, states=(state,)))
    stored = quantize(begun, calibrated(begun), weights=["w"]).signature.state("s")
    assert stored.quantization is not None
    assert len(stored.quantization.scale) == 1, "the Signature's scales lie along axis 1"
    worth = stored.values(stored.initial_value())
    np.testing.assert_allclose(worth, start, atol=0.5 * stored.quantization.scale[0])


def test_precisions_that_need_no_calibration_are_another_passs() -> None:
    step = zoo.lstm()
    with pytest.raises(EdgeLstmError, match=r"precision in codes: found fp16; expected int8 or fp8"):
        quantize(step, calibrated(step), precision="fp16")
