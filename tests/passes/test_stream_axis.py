"""Operators that let streams see each other are found in the graph and named, and by running it; others are left alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper, numpy_helper

import zoo
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import StepModel, make_step
from edgelstm.passes.one_stream import for_one_stream
from edgelstm.passes.stream_axis import find_mixing
from edgelstm.passes.unroll import unroll
from edgelstm.verify.streams import find_leak
from stepping import from_text

A, B = 4, 6
FRAMES = [{"x": np.random.default_rng(k).normal(size=(A, B)).astype("f4")} for k in range(3)]


@dataclass
class Chain:
    """A step on x [N, 4, 6] written operator by operator; its state is a leaky sum of what comes out."""

    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    value: str = "x"

    def op(self, op_type: str, *inputs: Any, name: str = "", domain: str = "", **attributes: Any) -> str:
        """A node on names and arrays; the first input is the running value where it is None."""
        names = []
        for item in inputs:
            if isinstance(item, np.ndarray):
                names.append(f"w{len(self.weights)}")
                self.weights.append(numpy_helper.from_array(item, names[-1]))
            else:
                names.append(self.value if item is None else item)
        self.value = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op_type, names, [self.value], name=name, domain=domain, **attributes)
        )
        return self.value

    def step(self) -> StepModel:
        last = self.value
        kept = self.op("Mul", "s", np.float32([0.5]))
        self.nodes.append(helper.make_node("Add", [kept, last], ["s_next"]))
        self.nodes.append(helper.make_node("Identity", [last], ["y"]))
        shape = ("N", A, B)
        signature = Signature(
            (TensorSpec("x", "float32", shape),),
            (TensorSpec("y", "float32", shape),),
            (StateSpec("s", "s", "s_next", "float32", shape),),
        )
        return make_step(self.nodes, signature, self.weights)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def folded(c: Chain) -> None:
    """The streams into the rows of a matrix and back."""
    c.op("Reshape", None, ints(-1, B))
    c.op("Softmax", None, axis=1)
    c.op("MatMul", None, np.eye(B, dtype="f4")[::-1].copy())
    c.op("Reshape", None, ints(-1, A, B))


def folded_inside(c: Chain) -> None:
    """The streams in the middle of an axis: [N, A, B] -> [A, N, B] -> [A * N, B] and back."""
    c.op("Transpose", None, perm=[1, 0, 2])
    c.op("Reshape", None, ints(-1, B))
    c.op("LayerNormalization", None, np.ones(B, "f4"), axis=-1)
    c.op("Reshape", None, ints(A, -1, B))
    c.op("Transpose", None, perm=[1, 0, 2])


def swapped(c: Chain) -> None:
    c.op("Transpose", None, perm=[2, 0, 1])
    c.op("Softmax", None, axis=0)
    c.op("Transpose", None, perm=[1, 2, 0])


def convolved(c: Chain) -> None:
    c.op("Conv", None, np.random.default_rng(0).normal(0, 0.3, (A, A, 3)).astype("f4"), pads=[1, 1])


def cut(c: Chain) -> None:
    whole = c.value
    first = c.op("Slice", whole, ints(0), ints(1), ints(1))
    rest = c.op("Slice", whole, ints(1), ints(9), ints(1))
    c.op("Concat", rest, first, axis=1)


def gathered(c: Chain) -> None:
    c.op("Gather", None, ints(3, 2, 1, 0), axis=1)


def centred(c: Chain) -> None:
    whole = c.value
    mean = c.op("ReduceMean", whole, ints(1, 2), keepdims=1)
    c.op("Sub", whole, mean)


def flattened(c: Chain) -> None:
    whole = c.value
    c.op("Flatten", None, axis=1)
    c.op("Tanh", None)
    shape = c.op("Shape", whole)
    c.op("Reshape", f"v{len(c.nodes) - 2}", shape)


def attended(c: Chain) -> None:
    whole = c.value
    c.op("Einsum", whole, whole, equation="nab,ncb->nac")
    scores = c.op("Softmax", None, axis=-1)
    c.op("MatMul", scores, whole)


def padded(c: Chain) -> None:
    c.op("Pad", None, ints(0, 1, 0, 0, 0, 0))
    c.op("Slice", None, ints(0), ints(A), ints(1))


def written(c: Chain) -> None:
    """A row of each stream written over, as a buffer is."""
    whole = c.value
    new = c.op("Slice", whole, ints(0), ints(1), ints(1))
    swap = c.op("Transpose", whole, perm=[1, 0, 2])
    new = c.op("Transpose", new, perm=[1, 0, 2])
    c.op("ScatterND", swap, ints(2)[None], new)
    c.op("Transpose", None, perm=[1, 0, 2])


APART = [
    *(folded, folded_inside, swapped, convolved, cut, gathered, centred, flattened, attended, padded),
    written,
]
#: Padded with zeros a planted operator may have nothing left to mix, which a run then does not show.
SHOWN = [part for part in APART if part is not padded]

#: Operator, further inputs and attributes; each mixes the rows of [N, 4, 6], the first of them whatever comes before it.
MIXING: dict[str, Any] = {
    "max": lambda c: c.op("ReduceMax", None, keepdims=1, name="planted"),
    "mean": lambda c: c.op("ReduceMean", None, ints(0), keepdims=1, name="planted"),
    "softmax": lambda c: c.op("Softmax", None, axis=0, name="planted"),
    "sum so far": lambda c: c.op("CumSum", None, np.array(0, np.int64), name="planted"),
    "reversed": lambda c: c.op("Slice", None, ints(-1), ints(-99), ints(0), ints(-1), name="planted"),
    "first row": lambda c: c.op("Gather", None, ints(0), axis=0, name="planted"),
    "batch statistics": lambda c: (
        c.op("BatchNormalization", None, *(np.full(A, v, "f4") for v in (1, 0, 0, 1)), training_mode=0)
        and c.op("MeanVarianceNormalization", None, axes=[0, 2], name="planted")
    ),
    "gram": lambda c: c.op("Einsum", c.value, c.value, equation="nab,mab->nm", name="planted"),
}


def planted(c: Chain, kind: str) -> None:
    before = c.value
    MIXING[kind](c)
    if kind == "gram":
        c.op("ReduceSum", None, ints(1), keepdims=1)
        c.op("Unsqueeze", None, ints(2))
    c.op("Add", before, c.value)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(APART), max_size=6), st.booleans())
def test_what_keeps_streams_apart_is_left_alone(parts: list[Any], window: bool) -> None:
    c = Chain()
    for part in parts:
        part(c)
    step = c.step()
    assert find_mixing(step) is None
    assert find_leak(step, FRAMES) is None
    if window:
        assert find_mixing(unroll(step, 3)) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(SHOWN), max_size=3),
    st.sampled_from(sorted(MIXING)),
    st.lists(st.sampled_from(SHOWN), max_size=2),
)
def test_a_planted_operator_is_named(before: list[Any], kind: str, after: list[Any]) -> None:
    c = Chain()
    for part in before:
        part(c)
    planted(c, kind)
    for part in after:
        part(c)
    step = c.step()
    found = find_mixing(step)
    assert found is not None
    assert found.node.name == "planted"
    assert "'planted'" in str(found)
    assert find_leak(step, FRAMES) is not None, "running it shows it as well"
    alone = for_one_stream(step)
    assert alone.signature.stream_axis == 1
    assert find_mixing(alone) is None
    assert find_leak(alone, FRAMES) is None, "one call a stream"


@pytest.mark.parametrize(
    "step", [zoo.lstm(), zoo.conv_lstm(), zoo.lstm(axis=4)], ids=["lstm", "conv", "fixed"]
)
def test_cells_keep_streams_apart_as_steps_and_windows(step: StepModel) -> None:
    assert find_mixing(step) is None
    assert find_mixing(unroll(step, 4)) is None


@pytest.mark.parametrize("axis", ["N", 3])
def test_a_state_that_hands_its_rows_round_is_found(axis: object) -> None:
    """Nothing is added up, yet stream 1 goes on with what stream 0 left."""
    step = from_text(
        f"""g (float[{axis}, 2] x, float[{axis}, 2] s) => (float[{axis}, 2] y, float[{axis}, 2] s_next)
        <int64[1] one = {{1}}, int64[1] none = {{0}}, int64[1] all = {{99}}>
        {{ y = Add (x, s)  head = Slice (y, none, one, none)  tail = Slice (y, one, all, none)
           s_next = Concat <axis = 0> (tail, head) }}""",
        s="s_next",
    )
    found = find_mixing(step)
    assert found is not None
    assert (found.node.op_type, found.tensor) == ("Slice", "s_next")


def test_what_only_the_count_of_streams_tells_shows_when_it_runs() -> None:
    step = from_text(
        """g (float[N, 2] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] s_next)
        <int64[1] none = {0}>
        { shape = Shape (x)  many = Gather (shape, none)  n = Cast <to = 1> (many)  y = Div (x, n)  s_next = Add (y, s) }""",
        s="s_next",
    )
    assert find_mixing(step) is None
    leak = find_leak(step, [{"x": np.float32([1, 2])}])
    assert leak is not None
    assert "alone" in str(leak)
