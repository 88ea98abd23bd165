"""choose_bools: a choice between True and False becomes operators of logic, any other choice stays."""

from __future__ import annotations

import numpy as np
from onnx.reference import ReferenceEvaluator

from edgelstm.passes.choose_bools import choose_bools
from stepping import from_text


def test_a_choice_between_bools() -> None:
    step = from_text(
        "step (float[N, 3] x, bool[N, 3] on) => (float[N, 3] y, bool[N, 3] next) <float high = {0.5}, float low = {-0.5}> {"
        " a = Greater(x, low)  b = Greater(x, high)  next = Where(on, a, b)  y = Where(next, x, low) }"
    )
    after = choose_bools(step)
    after.check()
    assert sorted(after.op_types()) == ["And", "And", "Greater", "Greater", "Not", "Or", "Where"]
    assert choose_bools(after).op_types() == after.op_types()
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    for on in (np.ones((4, 3), bool), np.zeros((4, 3), bool), x > 0):
        first, second = (ReferenceEvaluator(s.model).run(None, {"x": x, "on": on}) for s in (step, after))
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)
