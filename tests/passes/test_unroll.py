"""unroll: a window gives what its steps give, and does once what needs doing once."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.described.architecture import loads
from edgelstm.frontends.described.graph import Described, to_step
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step, value_shape
from edgelstm.passes.unroll import unroll
from stepping import Stepper, from_text, some_frames
from tolerances import assert_close

FORECASTER = {
    "architecture": "encoder_forecaster",
    "channels": 1,
    "size": [8, 8],
    "patch": 2,
    "stem": 3,
    "hidden": [4, 3],
    "kernel": 3,
    "peephole": True,
    "horizon": 3,
    "residual": True,
}


def described(spec: dict[str, Any], seed: int = 0) -> StepModel:
    architecture = loads(json.dumps({"schema": 1, **spec}), "test")
    rng = np.random.default_rng(seed)
    weights = {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in architecture.tensors().items()}
    return to_step(Described(architecture, weights))


def assert_streams_alike(step: StepModel, window: StepModel, streams: int, windows: int = 2) -> None:
    """Windows chained by their states give every output of every step, and the same states in between."""
    frames = window.signature.window
    assert frames is not None
    single, whole = Stepper(step), Stepper(window)
    states, carried = single.initial(streams), whole.initial(streams)
    for k in range(windows):
        x = some_frames(step, streams, frames, seed=k)
        steps = []
        for t in range(frames):
            outputs, states = single({name: value[:, t] for name, value in x.items()}, states)
            steps.append(outputs)
        outputs, carried = whole(x, carried)
        assert list(outputs) == [t.name for t in step.signature.outputs]
        for name, value in outputs.items():
            assert_close(value, np.stack([s[name] for s in steps], 1), np.float32)
        for name, value in carried.items():
            assert_close(value, states[name], np.float32)


def window_of(step: StepModel, frames: int, **options: Any) -> StepModel:
    """The window, after a round trip through its file, which checks it."""
    before = step.to_bytes()
    window = unroll(step, frames, **options)
    assert step.to_bytes() == before
    return StepModel.from_bytes(window.to_bytes())


def copies(window: StepModel, op_type: str) -> int:
    return Counter(window.op_types())[op_type]


@st.composite
def architectures(draw: st.DrawFn) -> dict[str, Any]:
    hidden = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    common = {"hidden": hidden, "peephole": draw(st.booleans())}
    with_head = draw(st.booleans())
    if draw(st.booleans()):
        head = {"outputs": 3} if with_head else None
        return common | {"architecture": "lstm", "inputs": 3, "head": head, "residual": with_head}
    sizes = {"channels": 2, "kernel": draw(st.sampled_from([1, 3])), "size": [4, 5]}
    return (
        common
        | sizes
        | {"architecture": "conv_lstm", "head": {"channels": 1, "kernel": 3} if with_head else None}
    )


@settings(max_examples=40, deadline=None)
@given(
    spec=architectures(),
    frames=st.sampled_from([1, 2, 3, 10]),
    streams=st.sampled_from([1, 3]),
    hoist=st.sampled_from(["auto", "all", "none"]),
    seed=st.integers(0, 100),
)
def test_a_window_gives_what_its_steps_give(
    spec: dict[str, Any], frames: int, streams: int, hoist: str, seed: int
) -> None:
    step = described(spec, seed)
    assert_streams_alike(step, window_of(step, frames, hoist=hoist), streams)


@pytest.mark.parametrize("frames", [1, 2, 10])
@pytest.mark.parametrize(
    ("step", "streams"),
    [
        (zoo.lstm(), 3),
        (zoo.lstm(axis=1), 1),
        (zoo.lstm(axis=2, head=None), 2),
        (zoo.conv_lstm(), 3),
        (zoo.two_inputs(), 3),
        (described(FORECASTER), 2),
    ],
    ids=["lstm", "one stream", "two streams", "conv_lstm", "two inputs and a counter", "encoder_forecaster"],
)
def test_every_kind_of_step(step: StepModel, streams: int, frames: int) -> None:
    assert_streams_alike(step, window_of(step, frames), streams)


def test_large_frames_cross_the_edge_of_the_graph() -> None:
    """From some size on they are cut and joined in another way."""
    step = zoo.conv_lstm(channels=2, hidden=2, size=64)
    assert_streams_alike(step, window_of(step, 3), streams=2)


def test_the_signature_of_a_window() -> None:
    window = window_of(zoo.lstm(), 4)
    s = window.signature
    assert s.window == 4
    assert [(t.name, t.shape) for t in (*s.inputs, *s.outputs)] == [("x", ("N", 4, 3)), ("y", ("N", 4, 2))]
    assert s.states == zoo.lstm().signature.states
    assert [f.name for f in window.model.functions] == ["FusedGates_lstm"]


def test_a_state_that_is_an_output_too_gets_a_second_name() -> None:
    s = window_of(zoo.conv_lstm(), 4).signature
    assert [(t.name, t.shape) for t in s.outputs] == [("h_next", ("N", 4, 3, 5, 5))]
    assert [(x.name, x.output, x.shape) for x in s.states] == [
        ("h", "h_next_last", ("N", 3, 5, 5)),
        ("c", "c_next", ("N", 3, 5, 5)),
    ]


def test_the_nodes_of_an_lstm() -> None:
    """Both layers' input products and the head run once; for each frame Wh·h, an Add and the gates remain."""
    first_frame = ["Gemm", "Reshape", "Split", "Add", "FusedGates_lstm"]
    second_frame = ["Gemm", "Add", "FusedGates_lstm"]
    assert window_of(zoo.lstm(), 2).op_types() == [
        *("Reshape", "Gemm", *first_frame, *second_frame),
        *("Concat", "Reshape", "Gemm", *first_frame, *second_frame),
        *("Concat", "Reshape", "MatMul", "Reshape"),
    ]


@pytest.mark.parametrize(("hoist", "convolutions"), [("auto", 5), ("none", 5), ("all", 1 + 5)])
def test_a_joined_convolution_is_split_on_request(hoist: str, convolutions: int) -> None:
    assert copies(window_of(zoo.conv_lstm(), 5, hoist=hoist), "Conv") == convolutions


def test_a_forecaster_runs_once_for_all_frames() -> None:
    """It starts from the encoder's states and feeds nothing back, so only the encoder's cells are copied."""
    step = described(FORECASTER)
    for op in ("Conv", "FusedGates_peephole"):
        growth = copies(window_of(step, 4), op) - copies(step, op)
        assert growth == 3 * len(FORECASTER["hidden"])


def weight_bytes(step: StepModel) -> int:
    return sum(
        numpy_helper.to_array(t).nbytes for t in step.model.graph.initializer if t.data_type == t.FLOAT
    )


@pytest.mark.parametrize("hoist", ["auto", "all", "none"])
def test_weights_are_stored_once(hoist: str) -> None:
    for step in (zoo.lstm(hidden=(64, 64)), zoo.conv_lstm(hidden=16), described(FORECASTER)):
        window = window_of(step, 10, hoist=hoist)
        assert weight_bytes(window) == weight_bytes(step)
        assert len(window.to_bytes()) < len(step.to_bytes()) + 200 * len(window.model.graph.node)


def test_cells_that_share_a_weight_still_share_it_split() -> None:
    def cell(n: int, x: str) -> list[Any]:
        return [
            helper.make_node("Concat", [x, f"h{n}"], [f"xh{n}"], axis=1),
            helper.make_node("Gemm", [f"xh{n}", "w"], [f"z{n}"]),
            helper.make_node("Tanh", [f"z{n}"], [f"h{n}_next"]),
        ]

    states = tuple(StateSpec(f"h{n}", f"h{n}", f"h{n}_next", "float32", ("N", 3)) for n in range(2))
    tensor = TensorSpec("x", "float32", ("N", 3))
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32), "w")
    step = make_step([*cell(0, "x"), *cell(1, "h0_next")], Signature((tensor,), (), states), [weight])
    window = window_of(step, 3)
    assert weight_bytes(window) == weight_bytes(step)
    assert copies(window, "Gemm") == 2 * (1 + 3)
    assert_streams_alike(step, window, 2)


def test_a_long_window_opens_quickly() -> None:
    """Its inner shapes are noted: with unknown ones ONNX Runtime searches for minutes."""
    window = window_of(zoo.lstm(), 400)
    noted = {v.name: value_shape(v) for v in window.model.graph.value_info}
    assert noted["g0_input"] == ["400*N", 16]
    assert noted["g0_input_t7"] == noted["g0_t7"] == ["N", 16]
    begin = time.perf_counter()
    Stepper(window)
    assert time.perf_counter() - begin < 20
    fixed = window_of(zoo.lstm(axis=2), 50)
    assert {v.name: value_shape(v) for v in fixed.model.graph.value_info}["g0_input"] == [100, 16]


# -- which nodes run once ------------------------------------------------------------------------------------------

#: A stateless tail y = f(x) with x [N, 4, 6], y's shape, and whether it runs once for all frames.
TAILS = {
    "elementwise": ("y = Relu(x)", [4, 6], True),
    "a constant of lower rank": ("c = Constant<value = float[6] {1, 2, 3, 4, 5, 6}>() y = Mul(x, c)", [4, 6], True),
    "a constant of the same rank": ("c = Constant<value = float[1, 1, 1] {2}>() y = Add(x, c)", [4, 6], True),
    "operands of different rank": (
        "m = ReduceMean<keepdims = 0>(x, two) t = Transpose<perm = [1, 0]>(m) u = Unsqueeze(t, two) "
        "v = Transpose<perm = [1, 0, 2]>(u) y = Sub(x, v)",
        [4, 6],
        False,
    ),
    "softmax over features": ("y = Softmax<axis = -1>(x)", [4, 6], True),
    "softmax over streams": ("y = Softmax<axis = 0>(x)", [4, 6], False),
    "mean over a map": ("y = ReduceMean<keepdims = 0>(x, two)", [4], True),
    "mean over streams": ("m = ReduceMean(x, zero) y = Sub(x, m)", [4, 6], False),
    "mean over everything": ("m = ReduceMean(x) y = Sub(x, m)", [4, 6], False),
    "transpose of features": ("y = Transpose<perm = [0, 2, 1]>(x)", [6, 4], True),
    "reshape with -1": ("s = Constant<value = int64[2] {-1, 24}>() y = Reshape(x, s)", [24], True),
    "reshape with 0": ("s = Constant<value = int64[3] {0, -1, 3}>() y = Reshape(x, s)", [8, 3], True),
    "reshape through Shape": (
        "s = Shape<end = 1>(x) f = Constant<value = int64[1] {24}>() t = Concat<axis = 0>(s, f) y = Reshape(x, t)",
        [24],
        True,
    ),
    "reshape that mixes streams": (
        "s = Constant<value = int64[2] {4, -1}>() a = Reshape(x, s) b = Tanh(a) "
        "u = Shape(x) y = Reshape(b, u)",
        [4, 6],
        False,
    ),
    "flatten": ("y = Flatten(x)", [24], True),
    "unsqueeze and squeeze": ("a = Unsqueeze(x, two) b = Sin(a) y = Squeeze(b, two)", [4, 6], True),
    "slice of features": ("y = Slice(x, zero, two, two)", [4, 2], True),
    "gather of a feature": ("i = Constant<value_int = 1>() y = Gather<axis = 1>(x, i)", [6], True),
    "concat": ("a = Neg(x) y = Concat<axis = 1>(a, x)", [8, 6], True),
    "split": ("a, b = Split<axis = 2, num_outputs = 2>(x) y = Add(a, b)", [4, 3], True),
    "matrix times weights": ("w = Constant<value = float[6, 1] {1, 2, 3, 4, 5, 6}>() y = MatMul(x, w)", [4, 1], True),
    "attention of a frame with itself": ("t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, t)", [4, 4], True),
    "pad": ("p = Constant<value = int64[6] {0, 1, 0, 0, 0, 2}>() y = Pad(x, p)", [5, 8], True),
    "tile": ("r = Constant<value = int64[3] {1, 2, 1}>() y = Tile(x, r)", [8, 6], True),
    "cumulative sum over streams": ("z = Constant<value_int = 0>() y = CumSum(x, z)", [4, 6], False),
    "pooling": ("y = MaxPool<kernel_shape = [2], strides = [2]>(x)", [4, 3], True),
    "resize": (
        "s = Constant<value = float[3] {1, 1, 2}>() y = Resize<mode = \"nearest\">(x, , s)",
        [4, 12],
        True,
    ),
    "an operator no rule knows": ("y = Einsum<equation = \"nij->nji\">(x)", [6, 4], False),
    "a table looked up by stream": (
        "a = ArgMax<axis = 2, keepdims = 0>(x) t = Constant<value = float[6] {6, 5, 4, 3, 2, 1}>() y = Gather(t, a)",
        [4],
        True,
    ),
    "quantize and back": (
        "s = Constant<value_float = 0.1>() q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)",
        [4, 6],
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "shape", "once"), TAILS.values(), ids=TAILS)
@pytest.mark.parametrize("streams", ["N", 1, 2])
def test_a_node_runs_once_unless_it_mixes_streams(
    body: str, shape: list[int], once: bool, streams: str | int
) -> None:
    dims = ", ".join(map(str, shape))
    step = from_text(
        f"tail (float[{streams}, 4, 6] x) => (float[{streams}, {dims}] y)"
        f"<int64[1] zero = {{0}}, int64[1] two = {{2}}> {{ {body} }}"
    )
    window = window_of(step, 3)
    assert_streams_alike(step, window, streams=streams if isinstance(streams, int) else 3)
    if streams == "N":
        last = step.op_types()[-1]
        rest = [op for op in window.op_types() if op not in ("Reshape", "Split", "Concat")]
        assert (max(Counter(rest).values(), default=1) < 3) == once, (last, window.op_types())


def test_a_state_that_only_delays_is_no_recurrence() -> None:
    step = from_text(
        "delay (float[N, 3] x, float[N, 3] before) => (float[N, 3] change, float[N, 3] now)"
        "{ change = Sub(x, before) now = Identity(x) }",
        before="now",
    )
    window = window_of(step, 5)
    assert copies(window, "Sub") == 1
    assert_streams_alike(step, window, 3)


def test_frames_of_one_number() -> None:
    step = from_text(
        "sum (float[N] x, float[N] total) => (float[N] y, float[N] total_next)"
        "{ total_next = Add(x, total) y = Tanh(total_next) }",
        total="total_next",
    )
    window = window_of(step, 4)
    assert [copies(window, op) for op in ("Add", "Tanh")] == [4, 1]
    assert_streams_alike(step, window, 3)


def test_a_branch_that_reads_values_around_it() -> None:
    step = from_text(
        """gate (float[1, 2] x, float[1, 2] s) => (float[1, 2] y, float[1, 2] s_next) <float zero = {0}> {
            all = ReduceSum<keepdims = 0>(s)
            positive = Greater(all, zero)
            y = If (positive) <
                then_branch = kept () => (float[1, 2] a) { a = Sub(s, x) },
                else_branch = reset () => (float[1, 2] b) { b = Add(x, x) }
            >
            s_next = Tanh(y)
        }""",
        s="s_next",
    )
    assert_streams_alike(step, window_of(step, 4), 1)


def test_noise_is_drawn_for_every_frame() -> None:
    step = from_text(
        "noise (float[1, 2] x) => (float[1, 2] y) { n = RandomNormal<shape = [1, 2]>() y = Add(x, n) }"
    )
    assert copies(window_of(step, 3), "RandomNormal") == 3


def test_an_output_that_never_changes() -> None:
    step = from_text(
        "fixed (float[2, 1] x) => (float[2, 1] y, float[2, 1] k) "
        "{ y = Neg(x) k = Constant<value = float[2, 1] {3, 4}>() }"
    )
    assert_streams_alike(step, window_of(step, 3), 2)


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [0, -1, True, 2.5])
def test_a_window_has_at_least_one_frame(frames: Any) -> None:
    with pytest.raises(
        EdgeLstmError, match=r"frames of a window: found .*; expected a whole number of at least 1"
    ):
        unroll(zoo.lstm(), frames)


def test_a_window_is_not_unrolled_again() -> None:
    with pytest.raises(
        EdgeLstmError, match=r"a window already: found 2 frames; expected a step\. Unroll the step"
    ):
        unroll(unroll(zoo.lstm(), 2), 2)


def test_too_many_copies() -> None:
    with pytest.raises(
        EdgeLstmError,
        match=r"a window of 5000 frames is too large: found 6 nodes to copy for each frame, 30000 in all; "
        r"expected at most 10000\. Use a window of at most 1666 frames and chain windows",
    ):
        unroll(zoo.lstm(), 5000)


def test_too_large_a_frame() -> None:
    step = from_text("big (float[N, 1000, 1000] x) => (float[N, 1000, 1000] y) { y = Neg(x) }")
    with pytest.raises(EdgeLstmError, match=r"shape of 'x' is too large: found \['N', 3000, 1000, 1000\]"):
        unroll(step, 3000)


def test_unknown_hoist() -> None:
    with pytest.raises(
        EdgeLstmError, match=r"hoist: found 'some'; expected one of \('auto', 'all', 'none'\)"
    ):
        unroll(zoo.lstm(), 2, hoist="some")  # type: ignore[arg-type]


def test_a_weight_that_is_an_output() -> None:
    step = from_text(
        "constant (float[1, 2] x, float[1, 2] s) => (float[1, 2] y, float[1, 2] s_next) <float[1, 2] y = {1, 2}>"
        " { s_next = Add(x, s) }",
        s="s_next",
    )
    with pytest.raises(
        EdgeLstmError, match=r"also a graph output: found y; expected outputs with names of their own"
    ):
        unroll(step, 2)
