"""unstack: values reached without the detour through a stack."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

ort = pytest.importorskip("onnxruntime")

from edgelstm.graph.signature import Signature, StateSpec, TensorSpec  # noqa: E402
from edgelstm.graph.step import StepModel  # noqa: E402
from edgelstm.passes.simplify import simplify  # noqa: E402
from edgelstm.passes.unstack import unstack  # noqa: E402

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "float32", ("N", 3)),),
    outputs=(TensorSpec("y", "float32", ("N", 3)),),
    states=tuple(StateSpec(n, n, f"{n}_next", "float32", ("N", 3)) for n in ("a", "b")),
)
HEAD = """<ir_version: 9, opset_import: ["" : 18]>
step (float[N,3] x, float[N,3] a, float[N,3] b) => (float[N,3] y, float[N,3] a_next, float[N,3] b_next)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64 first = {0}, int64 last = {-1},
 float[3,3] w = {1, 2, 0, 0, 1, 0, 3, 0, 1}, float[3] bias = {1, 2, 3}, float half = {0.5}>
{
  ua = Unsqueeze (a, zero)
  ub = Unsqueeze (b, zero)
  s = Concat <axis = 0> (ua, ub)
"""
CASES = {
    "Gather": ("ga = Gather <axis = 0> (s, first)  gb = Gather <axis = 0> (s, last)", ["Add", "Mul", "Sub"]),
    "Slice and Squeeze": (
        """sa = Slice (s, zero, one, zero)  sb = Slice (s, one, two, zero)
           ga = Squeeze (sa, zero)  gb = Squeeze (sb, zero)""",
        ["Add", "Mul", "Sub"],
    ),
    "Split": (
        "sa, sb = Split <axis = 0, num_outputs = 2> (s)  ga = Squeeze (sa, zero)  gb = Squeeze (sb, zero)",
        ["Add", "Mul", "Sub"],
    ),
    "a Slice with a step, which stays": (
        """sa = Slice (s, last, last_but, zero, minus)  ga = Gather <axis = 0> (s, first)
           gb = Squeeze (sa, zero)""",
        None,
    ),
    "an elementwise operator in between": (
        "t = Tanh (ua)  ga = Squeeze (t, zero)  gb = Gather <axis = 0> (s, last)",
        ["Tanh", "Add", "Mul", "Sub"],
    ),
    "weights in between": (
        """v = Unsqueeze (b, one)  m = MatMul (v, w)  n = Add (m, bias)  o = Mul (half, n)  p = Add (o, v)
           gb = Squeeze (p, one)  ga = Gather <axis = 0> (s, first)""",
        ["MatMul", "Add", "Mul", "Add", "Add", "Mul", "Sub"],
    ),
    "weights along the new axis, which stay": (
        """v = Unsqueeze (b, two)  n = Mul (v, half)  m = Add (n, bias)  r = ReduceSum <keepdims = 0> (m, two)
           gb = Identity (r)  ga = Gather <axis = 0> (s, first)""",
        None,
    ),
    "a stack that is read as a whole": (
        "gb = ReduceSum <keepdims = 0> (s, zero)  ga = Gather <axis = 0> (s, first)",
        ["Unsqueeze", "Unsqueeze", "Concat", "ReduceSum", "Add", "Mul", "Sub"],
    ),
}


def graph(body: str) -> StepModel:
    tail = "\n  y = Add (x, gb)\n  a_next = Mul (ga, x)\n  b_next = Sub (ga, gb)\n}"
    head = HEAD.replace("half = {0.5}", "half = {0.5}, int64[1] last_but = {-2}, int64[1] minus = {-1}")
    if "Slice (s, last" in body:
        head = head.replace("int64 last = {-1}", "int64[1] last = {-1}")
    step = StepModel(onnx.parser.parse_model(head + body + tail), SIGNATURE)
    step.check()
    return step


@pytest.mark.parametrize("name", CASES)
def test_parts_are_reached_directly(name: str) -> None:
    body, ops = CASES[name]
    step = graph(body)
    before = step.to_bytes()
    result = simplify(unstack(step))
    assert step.to_bytes() == before
    result.check()
    if ops is not None:
        assert sorted(result.op_types()) == sorted(ops)
    rng = np.random.default_rng(0)
    feed = {n: rng.normal(size=(4, 3)).astype(np.float32) for n in ("x", "a", "b")}
    expected, actual = (
        ort.InferenceSession(m.to_bytes(), providers=["CPUExecutionProvider"]).run(None, feed)
        for m in (step, result)
    )
    for e, a in zip(expected, actual, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6)
