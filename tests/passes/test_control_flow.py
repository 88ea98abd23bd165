"""inline_control_flow: If, Loop and Scan whose course is constant become nodes; the numbers stay, others stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step
from edgelstm.passes.control_flow import CONTROL_FLOW, MAX_TRIPS, inline_control_flow
from stepping import Stepper, from_text, some_frames


def assert_inlined(step: StepModel) -> StepModel:
    """No control flow is left, the input is as it was, and the numbers are the same bit for bit."""
    before = step.to_bytes()
    inlined = inline_control_flow(step)
    assert step.to_bytes() == before
    inlined.check()
    assert not set(CONTROL_FLOW) & set(inlined.op_types()), inlined.op_types()
    a, b = Stepper(step), Stepper(inlined)
    frames = some_frames(step, 2, 3)
    state_a, state_b = a.initial(2), b.initial(2)
    for t in range(3):
        now = {name: value[:, t] for name, value in frames.items()}
        want, state_a = a(now, state_a)
        got, state_b = b(now, state_b)
        for name, value in {**want, **state_a}.items():
            np.testing.assert_array_equal({**got, **state_b}[name], value)
    return inlined


NESTED = """g (float[N, 4] x, float[N, 4] s) => (float[N, 4] y, float[N, 4] n)
<int64 rate = {RATE}, int64[1] zero = {0}, int64[1] one = {1}, float two = {2}>
{
  wanted = Constant <value_int = 16000> ()
  fast = Equal (rate, wanted)
  shape = Shape (x)
  width = Gather <axis = 0> (shape, one)
  four = Constant <value_ints = [4]> ()
  is_four = Equal (width, four)
  n = If (fast) <
    then_branch = a () => (float[N, 4] o) { t = Add (x, s) o = If (is_four) <
      then_branch = b () => (float[N, 4] p) { t2 = Mul (t, two) p = Tanh (t2) },
      else_branch = c () => (float[N, 4] p) { p = Neg (t) }> },
    else_branch = d () => (float[N, 4] o) { o = Sub (x, s) }>
  y = Neg (n)
}"""


@pytest.mark.parametrize(("rate", "ops"), [(16000, ["Add", "Mul", "Tanh", "Neg"]), (8000, ["Sub", "Neg"])])
def test_nested_ifs_become_the_branch_that_runs(rate: int, ops: list[str]) -> None:
    inlined = assert_inlined(from_text(NESTED.replace("RATE", str(rate)), s="n"))
    assert inlined.op_types() == ops


def test_both_branches_may_use_the_same_names() -> None:
    """Two Ifs whose branches call their values alike: what comes of them must not meet."""
    text = """g (float[N, 2] x) => (float[N, 2] y) <bool yes = {1}, float two = {2}>
    { a = If (yes) <then_branch = t () => (float[N, 2] o) { i = Add (x, two) o = Neg (i) },
                    else_branch = e () => (float[N, 2] o) { o = Abs (x) }>
      y = If (yes) <then_branch = t () => (float[N, 2] o) { i = Mul (a, two) o = Exp (i) },
                    else_branch = e () => (float[N, 2] o) { o = Abs (a) }> }"""
    assert assert_inlined(from_text(text)).op_types() == ["Add", "Neg", "Mul", "Exp"]


def test_a_condition_that_varies_stays() -> None:
    text = """g (float[N, 2] x) => (float[N, 2] y) <int64[2] axes = {0, 1}, float none = {0}>
    { sum = ReduceSum <keepdims = 0> (x, axes) some = Greater (sum, none)
      y = If (some) <then_branch = t () => (float[N, 2] o) { o = Neg (x) },
                     else_branch = e () => (float[N, 2] o) { o = Abs (x) }> }"""
    assert "If" in inline_control_flow(from_text(text)).op_types()


def loop(trips: int | None, *, computed: int | None, scans: bool, opset: int = 17) -> StepModel:
    """s' = tanh(s + k x) for k = 0, 1, ...; the condition passed on, or k + 1 < ``computed``."""
    v = helper.make_tensor_value_info
    body_nodes = [
        helper.make_node("Cast", ["k"], ["kf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "kf"], ["kx"]),
        helper.make_node("Add", ["s_in", "kx"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["s_out"]),
        helper.make_node("Neg", ["s_out"], ["shown"]),
    ]
    if computed is None:
        body_nodes.append(helper.make_node("Identity", ["c_in"], ["c_out"]))
    else:
        body_nodes += [
            helper.make_node("Add", ["k", "one"], ["next"]),
            helper.make_node("Less", ["next", "limit"], ["c_out"]),
        ]
    body = helper.make_graph(
        body_nodes,
        "body",
        [
            v("k", TensorProto.INT64, []),
            v("c_in", TensorProto.BOOL, []),
            v("s_in", TensorProto.FLOAT, ["N", 2]),
        ],
        [
            v("c_out", TensorProto.BOOL, []),
            v("s_out", TensorProto.FLOAT, ["N", 2]),
            *([v("shown", TensorProto.FLOAT, ["N", 2])] if scans else []),
        ],
    )
    outputs = ["n", "all"] if scans else ["n"]
    nodes = [helper.make_node("Loop", ["m" if trips is not None else "", "yes", "s"], outputs, body=body)]
    if scans:
        nodes.append(helper.make_node("ReduceSum", ["all", "axis"], ["y"], keepdims=0))
    weights = {
        "yes": np.array(True),
        "one": np.array(1),
        "limit": np.array(computed or 0),
        "axis": np.array([0]),
    }
    if trips is not None:
        weights["m"] = np.array(trips)
    signature = Signature(
        (TensorSpec("x", "float32", ("N", 2)),),
        (TensorSpec("y" if scans else "n", "float32", ("N", 2)),),
        (StateSpec("s", "s", "n", "float32", ("N", 2)),),
    )
    return make_step(
        nodes, signature, [numpy_helper.from_array(a, n) for n, a in weights.items()], opset=opset
    )


@settings(max_examples=20, deadline=None)
@given(
    trips=st.integers(1, 5),
    computed=st.none() | st.integers(1, 7),
    scans=st.booleans(),
    opset=st.sampled_from([13, 17, 21]),
)
def test_loops_of_a_constant_count(trips: int, computed: int | None, scans: bool, opset: int) -> None:
    assert_inlined(loop(trips, computed=computed, scans=scans, opset=opset))


def test_a_while_loop_whose_condition_counts() -> None:
    inlined = assert_inlined(loop(None, computed=3, scans=False))
    assert inlined.op_types().count("Tanh") == 3
    assert_inlined(loop(np.iinfo(np.int64).max, computed=3, scans=True))


def test_long_loops_stay() -> None:
    assert inline_control_flow(loop(MAX_TRIPS + 1, computed=None, scans=False)).op_types() == ["Loop"]


@settings(max_examples=20, deadline=None)
@given(
    length=st.integers(1, 4),
    axis=st.sampled_from([1, 2]),
    backwards=st.booleans(),
    out_axis=st.sampled_from([0, 1]),
    out_backwards=st.booleans(),
)
def test_scans(length: int, axis: int, backwards: bool, out_axis: int, out_backwards: bool) -> None:
    """A cell over the frames of a window: s' = tanh(s + x_t), each shown."""
    v = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Add", ["s_in", "x_t"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["s_out"]),
            helper.make_node("Neg", ["s_out"], ["shown"]),
        ],
        "body",
        [v("s_in", TensorProto.FLOAT, ["N", 2]), v("x_t", TensorProto.FLOAT, ["N", 2])],
        [v("s_out", TensorProto.FLOAT, ["N", 2]), v("shown", TensorProto.FLOAT, ["N", 2])],
    )
    node = helper.make_node(
        "Scan",
        ["s", "x"],
        ["n", "all"],
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[axis],
        scan_input_directions=[int(backwards)],
        scan_output_axes=[out_axis],
        scan_output_directions=[int(out_backwards)],
    )
    shape = ("N", length, 2) if axis == 1 else ("N", 2, length)
    shown = ("N", length, 2) if out_axis == 1 else ("N", 2, length)
    move = helper.make_node("Transpose", ["all"], ["y"], perm=[0, 1, 2] if out_axis == 1 else [1, 2, 0])
    signature = Signature(
        (TensorSpec("x", "float32", shape),),
        (TensorSpec("y", "float32", shown),),
        (StateSpec("s", "s", "n", "float32", ("N", 2)),),
    )
    assert_inlined(make_step([node, move], signature, [], opset=17))
