"""simplify: exporters' debris goes, numbers and names stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import zoo
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.graph.step import StepModel, make_step
from edgelstm.passes.simplify import MAX_GROWTH, simplify
from stepping import Stepper, from_text


def step_of(body: str, x: str = "N, 4, 6", y: str = "N, 4, 6", weights: str = "") -> StepModel:
    return from_text(f"step (float[{x}] x) => (float[{y}] y) {weights} {{ {body} }}")


def check(step: StepModel, expected: list[str], streams: tuple[int, ...] = (1, 2, 5)) -> StepModel:
    """Simplify; the op list is ``expected`` and the numbers are exactly the same for each number of streams."""
    before = step.to_bytes()
    simple = simplify(step)
    assert step.to_bytes() == before
    assert simple.op_types() == expected
    assert simple.signature == step.signature
    StepModel.from_bytes(simple.to_bytes())
    a, b = Stepper(step), Stepper(simple)
    for n in streams:
        rng = np.random.default_rng(n)
        x = {t.name: rng.normal(size=(n, *t.frame_shape)).astype(t.dtype) for t in step.signature.inputs}
        for name, value in a(x, {})[0].items():
            np.testing.assert_array_equal(b(x, {})[0][name], value)
    assert simplify(simple).to_bytes() == simple.to_bytes()
    return simple


@pytest.mark.parametrize(
    "nothing",
    [
        "a = Identity (x)",
        "a = Dropout (x)",
        "a = Cast <to = 1> (x)",
        "a = Concat <axis = 1> (x)",
        "a = Split <axis = 1, num_outputs = 1> (x)",
        "a = Transpose <perm = [0, 1, 2]> (x)",
        "t = Transpose <perm = [2, 0, 1]> (x)  a = Transpose <perm = [1, 2, 0]> (t)",
        "s = Constant <value_ints = [0, 4, 6]> ()  a = Reshape (x, s)",
        "s = Shape (x)  a = Reshape (x, s)",
        "s = Constant <value_ints = [0, 24]> ()  t = Shape (x)  r = Reshape (x, s)  a = Reshape (r, t)",
        "k = Constant <value_ints = [3]> ()  u = Unsqueeze (x, k)  a = Squeeze (u, k)",
        "s = Shape (x)  a = Expand (x, s)",
        "k = Constant <value_ints = [1, 1, 1]> ()  a = Tile (x, k)",
        "k = Constant <value_ints = [0, 0, 0, 0, 0, 0]> ()  a = Pad (x, k)",
        "z = Constant <value_ints = [0]> ()  e = Constant <value_ints = [99]> ()  k = Constant <value_ints = [1]> () "
        "a = Slice (x, z, e, k)",
        "a = Max (x)",
    ],
)
def test_what_changes_nothing_goes(nothing: str) -> None:
    check(step_of(f"{nothing}  y = Abs (a)"), ["Abs"])


@pytest.mark.parametrize(
    ("something", "ops"),
    [
        ("a = Cast <to = 10> (x)  b = Cast <to = 1> (a)  y = Abs (b)", ["Cast", "Cast", "Abs"]),
        ("m = Constant <value_ints = [-1]> ()  e = Constant <value_ints = [-99]> ()  k = Constant <value_ints = [1]> () "
         "a = Slice (x, m, e, k, m)  y = Abs (a)", ["Slice", "Abs"]),
        ("k = Constant <value_ints = [0, 1, 0, 0, -1, 0]> ()  a = Pad (x, k)  y = Abs (a)", ["Pad", "Abs"]),
    ],
    ids=["rounding to float16", "backwards", "shifting"],
)  # fmt: skip
def test_what_keeps_shape_but_not_values_stays(something: str, ops: list[str]) -> None:
    check(step_of(something), ops)


def test_a_transpose_that_moves_data_stays_though_shapes_agree() -> None:
    check(step_of("y = Transpose <perm = [0, 2, 1]> (x)", "N, 4, 4", "N, 4, 4"), ["Transpose"])


def test_shape_arithmetic_on_fixed_dimensions_goes() -> None:
    """How torch's older exporter writes x.chunk(2, dim=1)."""
    step = step_of(
        """
        s = Shape (x)  one = Constant <value_int = 1> ()  n = Gather <axis = 0> (s, one)
        zero = Constant <value_ints = [0]> ()  axis = Constant <value_ints = [1]> ()
        two = Constant <value_int = 2> ()  up = Add (n, one)  half = Div (up, two)
        first = Mul (half, one)  end = Unsqueeze (first, zero)
        a = Slice (x, zero, end, axis)
        last = Mul (half, two)  stop = Unsqueeze (last, zero)
        b = Slice (x, end, stop, axis)
        y = Sub (a, b)""",
        y="N, 2, 6",
    )
    check(step, ["Slice", "Slice", "Sub"])


def test_where_only_the_number_of_streams_is_open_a_reshape_gets_a_constant_target() -> None:
    step = step_of(
        """
        s = Shape (x)  k = Constant <value_ints = [0]> ()  n = Gather <axis = 0> (s, k)
        rest = Constant <value_ints = [-1]> ()  target = Concat <axis = 0> (n, rest)
        a = Reshape (x, target)  b = Abs (a)  y = Reshape (b, s)"""
    )
    simple = check(step, ["Reshape", "Abs", "Reshape"])
    targets = [numpy_helper.to_array(t).tolist() for t in simple.model.graph.initializer]
    assert targets == [[-1, 24], [-1, 4, 6]]


def test_a_count_that_decides_more_than_sizes_is_kept() -> None:
    """min(N, 3) is 3 for every large N, yet not constant."""
    step = step_of(
        """
        s = Shape <start = 0, end = 1> (x)  three = Constant <value_ints = [3]> ()  k = Min (s, three)
        f = Cast <to = 1> (k)  y = Mul (x, f)"""
    )
    check(step, ["Shape", "Min", "Cast", "Mul"])


def test_constants_fold_and_equal_ones_are_one() -> None:
    weights = "<float[2, 2] p = {1, 2, 3, 4}, float[2, 2] q = {1, 2, 3, 4}>"
    step = step_of(
        "t = Transpose <perm = [1, 0]> (p)  u = Transpose <perm = [1, 0]> (q)  a = MatMul (x, t)  y = MatMul (a, u)",
        "N, 2",
        "N, 2",
        weights,
    )
    simple = check(step, ["MatMul", "MatMul"])
    assert [t.name for t in simple.model.graph.initializer] == ["t"]


def test_a_number_spread_over_a_picture_is_not_stored_as_one() -> None:
    side = int(MAX_GROWTH**0.5) + 1
    step = step_of(
        f"s = Constant <value_ints = [{side}, {side}]> ()  big = ConstantOfShape (s)  y = Add (x, big)",
        f"N, {side}, {side}",
        f"N, {side}, {side}",
    )
    simple = check(step, ["ConstantOfShape", "Add"], streams=(1,))
    assert len(simple.to_bytes()) < 2000


def test_q_dq_of_weights_is_no_constant() -> None:
    step = step_of(
        "q = QuantizeLinear (w, s, z)  d = DequantizeLinear (q, s, z)  y = MatMul (x, d)",
        "N, 2",
        "N, 2",
        "<float[2, 2] w = {1, 2, 3, 4}, float s = {0.5}, int8 z = {0}>",
    )
    check(step, ["QuantizeLinear", "DequantizeLinear", "MatMul"])


def test_outputs_keep_their_names_and_dead_code_goes() -> None:
    text = """
        step (float[N, 2] x) => (float[N, 2] y, float[N, 2] again, float[N, 2] same)
        { a = Abs (x)  y = Identity (a)  again = Identity (a)  dead = Exp (a)  same = Identity (x) }"""
    simple = check(from_text(text), ["Abs", "Identity", "Identity"])
    assert {tuple(n.input) + tuple(n.output) for n in simple.model.graph.node} == {
        ("x", "y"),
        ("y", "again"),
        ("x", "same"),
    }


def test_what_a_branch_captures_follows_its_new_name() -> None:
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["a"], [op])], op, [], [helper.make_tensor_value_info(op, 1, ["N", 2])]
        )
        for op in ("Neg", "Exp")
    ]
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["is"]),
        helper.make_node("If", ["is"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    spec = [TensorSpec(name, "float32", ("N", 2)) for name in ("x", "y")]
    signature = Signature((spec[0],), (spec[1],), ())
    check(
        make_step(nodes, signature, [numpy_helper.from_array(np.float32(0), "zero")]),
        ["ReduceSum", "Greater", "If"],
    )


def test_weights_need_not_be_inputs_and_notes_on_nodes_go() -> None:
    step = step_of("y = MatMul (x, w)", "N, 2", "N, 2", "<float[2, 2] w = {1, 2, 3, 4}>")
    model = step.copy_model()
    model.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2, 2]))
    model.graph.node[0].doc_string = "File /home/somebody/model.py, line 3"
    model.graph.node[0].metadata_props.add(key="trace", value="/home/somebody/model.py")
    simple = simplify(StepModel(model, step.signature))
    assert [v.name for v in simple.model.graph.input] == ["x"]
    assert b"somebody" not in simple.to_bytes()


@pytest.mark.parametrize(
    "step", [zoo.lstm(), zoo.conv_lstm(), zoo.two_inputs()], ids=["lstm", "conv_lstm", "sums"]
)
def test_what_is_simple_stays(step: StepModel) -> None:
    assert simplify(step).op_types() == step.op_types()
