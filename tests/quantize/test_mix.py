"""precision auto: the budget holds, the mix is no dearer than it must be, and the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import zoo
from edgelstm import quantize
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.verify.compare import compare
from recordings import smooth_frames


def frames(count: int = 60) -> list[np.ndarray]:
    return [f["x"] for f in smooth_frames(zoo.lstm(), count)]


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_the_budget_holds(target: str) -> None:
    step = zoo.lstm()
    loose = quantize(step, runtime=target, precision="auto", budget=0.5, source=[frames()], threads=1)
    tight = quantize(step, runtime=target, precision="auto", budget=0.01, source=[frames()], threads=1)
    assert {u.level for u in loose.search.units} == {"int8"}
    assert "int8" not in {u.level for u in tight.search.units} or tight.search.cost > loose.search.cost
    for done in (loose, tight):
        a, b = (OrtProgram(s.to_bytes(), threads=1) for s in (step, done.step))
        found = compare(a, b, [{"x": f} for f in frames()])
        error = max(np.mean(t.norms[-15:]) for t in found.tensors if t.kind == "output")
        assert error <= done.search.budget
        assert error == pytest.approx(done.search.error, rel=1e-3)


def test_input_and_recurrent_paths_are_told_apart() -> None:
    done = quantize(zoo.lstm(), precision="auto", budget=0.03, source=[frames()], threads=1)
    assert {(u.weight, u.path) for u in done.search.units} == {
        ("w0", "input"), ("w0", "recurrent"), ("w1", "input"), ("w1", "recurrent"), ("head.w", "whole"),
    }  # fmt: skip
    assert all("int8" in u.errors for u in done.search.units)
    assert done.to_json()["search"]["units"][0]["name"]


def test_it_is_deterministic() -> None:
    a, b = (
        quantize(zoo.lstm(), precision="auto", budget=0.03, source=[frames()], threads=1) for _ in range(2)
    )
    assert a.step.to_bytes() == b.step.to_bytes()
    assert a.search.to_json() == b.search.to_json()


def test_no_mix_is_good_enough(tmp_path: Path) -> None:
    # In float32 the error is 0: every budget can be kept, a senseless one is refused.
    done = quantize(zoo.lstm(), precision="auto", budget=1e-9, source=[frames()], threads=1)
    assert {u.level for u in done.search.units} == {"fp32"}
    with pytest.raises(EdgeLstmError, match=r"budget: found -1; expected a relative error above 0"):
        quantize(zoo.lstm(), output=tmp_path / "a.onnx", precision="auto", budget=-1, source=[frames()])
    assert not list(tmp_path.iterdir())
