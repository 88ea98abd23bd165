"""A graph with a fault is refused, however small the fault is; a right one passes, whatever its source loses to rounding."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import planted
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step
from edgelstm.verify.proof import EPS32, FACTOR, ROUNDINGS, NotFinite, allowance

REFUSED = "does not match its source"
few = settings(max_examples=12, deadline=None)


def test_a_graph_equals_itself() -> None:
    found = planted.judged(planted.model(), planted.model(), 200)
    assert found.proof is not None
    assert found.proof.worst.share < 0.5, "right by a wide margin"
    assert "from float64" in found.proof.text
    assert not found.notes


@pytest.mark.parametrize("name", planted.SIZED)
def test_the_smallest_fault_is_caught(name: str) -> None:
    fault, size = planted.SIZED[name]
    source = planted.model()
    with pytest.raises(EdgeLstmError, match=REFUSED):
        planted.judged(source, fault(source, size), 60)


@pytest.mark.parametrize("name", planted.WHOLE)
def test_every_kind_of_fault_is_caught(name: str) -> None:
    source = planted.model()
    with pytest.raises(EdgeLstmError, match=REFUSED):
        planted.judged(source, planted.WHOLE[name](source))


@few
@given(seed=st.integers(0, 1000), at=st.integers(0, 12 * 5 * 9 - 1), sign=st.sampled_from((-1, 1)))
def test_any_weight_off_by_a_hundredth(seed: int, at: int, sign: int) -> None:
    source = planted.model(seed)
    (weight,) = (numpy_helper.to_array(t) for t in source.model.graph.initializer if t.name == "w")
    # A hundredth of next to nothing drowns in rounding; weights are .23 on average.
    assume(abs(weight.reshape(-1)[at]) > 0.02)
    with pytest.raises(EdgeLstmError, match=REFUSED):
        planted.judged(source, planted.wrong_weight(source, 0.01 * sign, at=at), 40)


@few
@given(seed=st.integers(0, 1000), at=st.integers(0, 11), size=st.floats(1e-3, 0.1))
def test_any_bias_off_by_a_thousandth(seed: int, at: int, size: float) -> None:
    source = planted.model(seed)
    with pytest.raises(EdgeLstmError, match=REFUSED):
        planted.judged(source, planted.wrong_bias(source, size, at))


@few
@given(
    seed=st.integers(0, 1000),
    channel=st.integers(0, 2),
    gates=st.sampled_from([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
)
def test_any_two_gates_of_any_channel(seed: int, channel: int, gates: tuple[int, int]) -> None:
    source = planted.model(seed)
    with pytest.raises(EdgeLstmError, match=REFUSED):
        planted.judged(source, planted.swapped_gates(source, channel, *gates))


@few
@given(seed=st.integers(0, 1000), state=st.sampled_from(("h_next", "c_next", "r_next")))
def test_any_state_whose_rows_are_swapped_or_coarse(seed: int, state: str) -> None:
    source = planted.model(seed)
    for fault in (planted.rows_out_of_order, planted.coarse_state):
        with pytest.raises(EdgeLstmError, match=REFUSED):
            planted.judged(source, fault(source, state))


def test_the_refusal_says_what_the_table_says() -> None:
    source = planted.model()
    with pytest.raises(EdgeLstmError) as caught:
        planted.judged(source, planted.wrong_bias(source, 1e-3))
    text = str(caught.value)
    assert "from float64, source" in text
    assert "--source FILE" in text


# -- what must not be refused -------------------------------------------------------------------------------------


def cancelling(terms: float, order: int = 1) -> StepModel:
    """y = (large terms) that all but cancel, of a leaky average of the frames; ``order`` -1 sums them the other way round."""
    rng = np.random.default_rng(3)
    half = rng.normal(0, terms, 64)
    weights = np.concatenate([half, -half * (1 + rng.normal(0, 1 / terms, 64))])[::order]
    initializers = [
        numpy_helper.from_array(np.tile(np.eye(4), (1, 32)).astype(np.float32)[:, ::order].copy(), "spread"),
        numpy_helper.from_array(weights.astype(np.float32)[:, None].copy(), "w"),
        numpy_helper.from_array(np.float32(0.9), "keep"),
        numpy_helper.from_array(np.float32(0.1), "take"),
    ]
    nodes = [
        helper.make_node("Mul", ["s", "keep"], ["kept"]),
        helper.make_node("Mul", ["x", "take"], ["taken"]),
        helper.make_node("Add", ["kept", "taken"], ["s_next"]),
        helper.make_node("MatMul", ["s_next", "spread"], ["wide"]),
        helper.make_node("MatMul", ["wide", "w"], ["y"]),
    ]
    signature = Signature(
        inputs=(TensorSpec("x", "float32", ("N", 4)),),
        outputs=(TensorSpec("y", "float32", ("N", 1)),),
        states=(StateSpec("s", "s", "s_next", "float32", ("N", 4)),),
    )
    return make_step(nodes, signature, initializers, [])


@few
@given(terms=st.sampled_from((10.0, 300.0, 3000.0, 30000.0)))
def test_a_head_that_cancels_passes_in_any_order_of_its_sum(terms: float) -> None:
    found = planted.judged(cancelling(terms), cancelling(terms, -1), 100)
    assert found.proof is not None
    assert found.proof.holds


def test_nan_on_both_sides_is_not_equal() -> None:
    """Every frame that may be drawn gives NaN: refused, and said why."""
    nodes = [
        helper.make_node("Add", ["s", "x"], ["s_next"]),
        helper.make_node("Sub", ["s_next", "much"], ["less"]),
        helper.make_node("Sqrt", ["less"], ["y"]),
    ]
    spec = ("N", 2)
    signature = Signature(
        inputs=(TensorSpec("x", "float32", spec),),
        outputs=(TensorSpec("y", "float32", spec),),
        states=(StateSpec("s", "s", "s_next", "float32", spec),),
    )
    step = make_step(nodes, signature, [numpy_helper.from_array(np.float32(1e6), "much")], [])
    with pytest.raises(NotFinite, match="the source gives NaN for frame 0"):
        planted.judged(step, step)


def test_frames_are_drawn_from_what_the_model_takes() -> None:
    """A logarithm of the frame: not negative; ids of a table with 9 rows, all of them, and none that it lacks."""
    nodes = [
        helper.make_node("Log", ["x"], ["log"]),
        helper.make_node("Gather", ["table", "id"], ["row"]),
        helper.make_node("Add", ["log", "row"], ["z"]),
        helper.make_node("Add", ["s", "z"], ["s_next"]),
    ]
    spec = ("N", 2)
    signature = Signature(
        inputs=(TensorSpec("x", "float32", spec), TensorSpec("id", "int64", ("N",))),
        outputs=(TensorSpec("s_next", "float32", spec),),
        states=(StateSpec("s", "s", "s_next", "float32", spec),),
    )
    table = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    step = make_step(nodes, signature, [numpy_helper.from_array(table, "table")], [])
    found = planted.judged(step, step, 100)
    assert any("absolute values" in note and "0 to 8 for id" in note for note in found.notes)

    def last_row(values: np.ndarray) -> None:
        values[8] += 0.01

    with pytest.raises(EdgeLstmError, match=REFUSED):
        planted.judged(step, planted.weights(step, "table", last_row), 100)


@given(
    size=st.floats(1e-8, 1e8),
    source=st.floats(0, 1e-5),
    scale=st.floats(1e-6, 1e6),
)
def test_an_allowance_follows_the_scale_of_its_own_element(size: float, source: float, scale: float) -> None:
    """What one element may be off by does not depend on how large its neighbour is."""
    one = allowance(np.array([size, size]), np.array([source, source]) * size, 200, EPS32)
    other = allowance(np.array([size, size * scale]), np.array([source, source * scale]) * size, 200, EPS32)
    assert other[0] == pytest.approx(one[0], rel=1e-6)
    assert one[0] == pytest.approx((FACTOR * 1.02 * source + ROUNDINGS * EPS32) * size, rel=1e-6)
