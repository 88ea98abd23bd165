"""Comparing two programs: the figures, the pairing by name, and what can't be compared."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.signature import Signature, TensorSpec
from edgelstm.step import StepModel, make_step
from edgelstm.verify import TensorError, compare


def frames(count: int, width: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(size=width).astype(np.float32)} for _ in range(count)]


def program(step: StepModel) -> OrtProgram:
    return OrtProgram(step.to_bytes(), threads=1)


def disturbed(step: StepModel, name: str, factor: float) -> StepModel:
    model = step.copy_model()
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return StepModel(model, step.signature)


def test_equal_programs_have_no_error() -> None:
    result = compare(program(zoo.lstm()), program(zoo.lstm()), frames(5))
    assert result.frames == 5
    assert {t.name for t in result.tensors} == {"y", "z9_h", "a0_c", "z8_h", "a1_c"}
    assert all(list(t.errors) == list(t.norms) == [0.0] * 5 for t in result.tensors)


def test_a_disturbed_head_shows_in_the_output_alone() -> None:
    result = compare(program(zoo.lstm()), program(disturbed(zoo.lstm(), "head.w", 1.01)), frames(20))
    by_name = {t.name: t for t in result.tensors}
    np.testing.assert_allclose(by_name["y"].errors, 0.01, rtol=1e-3)
    assert result.worst.name == "y"
    assert by_name["z8_h"].worst == 0


def test_an_error_fed_back_grows_from_the_first_frame_on() -> None:
    result = compare(program(zoo.lstm()), program(disturbed(zoo.lstm(), "w0", 1.001)), frames(50))
    h = next(t for t in result.tensors if t.name == "z9_h")
    assert 0 < h.errors[0] < h.worst
    assert h.worst_frame == h.frames[int(np.argmax(h.errors))]
    assert h.last == h.errors[-1]


def test_not_a_number_is_the_largest_error() -> None:
    tensor = TensorError("y", "output")
    tensor.add(0, np.ones(2, np.float32), np.array([1, np.nan], np.float32))
    assert tensor.worst == math.inf


def test_a_value_that_all_but_vanishes_is_measured_against_what_was() -> None:
    tensor = TensorError("y", "output")
    tensor.add(0, np.array([10.0]), np.array([10.0]))
    tensor.add(1, np.array([1e-9]), np.array([2e-9]))
    assert tensor.last < 1e-6


def test_programs_without_common_names_or_inputs_are_refused() -> None:
    with pytest.raises(EdgeLstmError, match="a and b take different frames"):
        compare(program(zoo.lstm()), program(zoo.lstm(inputs=4)), frames(2))
    with pytest.raises(EdgeLstmError, match="nothing to compare: found 0 frames; expected at least 1 frames"):
        compare(program(zoo.lstm()), program(zoo.lstm()), [])


def test_an_output_is_no_match_for_a_state_of_the_same_name() -> None:
    stateless = renamed_output("s")
    only_state = zoo.running_sum(outputs=())
    with pytest.raises(
        EdgeLstmError, match="a and b share no output and no state: found output s and state s"
    ):
        compare(program(stateless), program(only_state), [{"x": np.array(1, np.float32)}])


def renamed_output(name: str) -> StepModel:
    signature = Signature((TensorSpec("x", "float32", ("N",)),), (TensorSpec(name, "float32", ("N",)),), ())
    return make_step([helper.make_node("Abs", ["x"], [name])], signature, [])


def test_json_and_plot(tmp_path: Path) -> None:
    result = compare(
        program(zoo.lstm()), program(disturbed(zoo.lstm(), "head.w", 2)), frames(3), names=("p", "q")
    )
    data = result.to_json()
    assert data["worst"]["tensor"] == "y"
    assert data["frames"] == 3
    assert len(data["tensors"][0]["errors"]) == 3
    pytest.importorskip("matplotlib")
    result.plot(tmp_path / "drift.png")
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(EdgeLstmError, match="can't draw"):
        result.plot(tmp_path / "drift.nonsense")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drift.png"]
