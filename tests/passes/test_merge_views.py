"""merge_views: chains of views become one Reshape or nothing, and the bits stay."""

from __future__ import annotations

import numpy as np
import pytest

from edgelstm.graph.step import StepModel
from edgelstm.passes.merge_views import merge_views
from edgelstm.passes.simplify import simplify
from stepping import Stepper, from_text

#: x [N, 2, 3] -> y, over a state that keeps each graph a step.
HEAD = "step (float[N, 2, 3] x, float[N, 1] c) => (float[{y}] y, float[N, 1] d)"
CASES = {
    "time first and back: nothing": (
        "N, 2, 3",
        """<int64[1] one = {1}, int64 zero = {0}> {
            a = Unsqueeze(x, one)  t = Transpose<perm = [1, 0, 2, 3]>(a)  f = Gather<axis = 0>(t, zero)
            y = Relu(f)  d = Relu(c) }""",
        ["Relu", "Relu"],
    ),
    "two Reshapes: one": (
        "N, 6, 1",
        """<int64[3] a = {-1, 3, 2}, int64[3] b = {-1, 6, 1}> {
            p = Reshape(x, a)  q = Reshape(p, b)  y = Relu(q)  d = Relu(c) }""",
        ["Reshape", "Relu", "Relu"],
    ),
    "a Transpose that moves elements stays": (
        "N, 3, 2",
        "{ t = Transpose<perm = [0, 2, 1]>(x)  y = Relu(t)  d = Relu(c) }",
        ["Transpose", "Relu", "Relu"],
    ),
    "a Gather of one of two stays": (
        "N, 3",
        "<int64 zero = {0}> { g = Gather<axis = 1>(x, zero)  y = Relu(g)  d = Relu(c) }",
        ["Gather", "Relu", "Relu"],
    ),
    "streams folded into another axis stay": (
        "N, 2, 3",
        """<int64[2] a = {-1, 3}, int64[3] b = {-1, 2, 3}> {
            p = Reshape(x, a)  r = Relu(p)  y = Reshape(r, b)  d = Relu(c) }""",
        ["Reshape", "Relu", "Reshape", "Relu"],
    ),
    "a view that is an output": (
        "N, 2, 3",
        """<int64[1] one = {1}> {
            r = Relu(x)  a = Unsqueeze(r, one)  y = Squeeze(a, one)  d = Relu(c) }""",
        ["Relu", "Relu"],
    ),
}


def step(name: str) -> StepModel:
    y, body, _ = CASES[name]
    return from_text(f"{HEAD.format(y=y)} {body}", c="d")


@pytest.mark.parametrize("name", CASES)
def test_views(name: str) -> None:
    before = step(name)
    data = before.to_bytes()
    after = merge_views(before)
    assert before.to_bytes() == data
    after.check()
    assert simplify(after).op_types() == CASES[name][2]
    x = np.random.default_rng(0).normal(size=(3, 2, 3)).astype(np.float32)
    a, b = Stepper(before), Stepper(after)
    (first, _), (second, _) = a({"x": x}, a.initial(3)), b({"x": x}, b.initial(3))
    np.testing.assert_array_equal(first["y"], second["y"])
