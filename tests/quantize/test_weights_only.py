"""Weights alone in int8 or bfloat16: valid ONNX, states and frames as they were, small errors, no calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from command_line import Run
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.quantize.weights_only import rounded, weights_only
from recordings import calibrated

Array = np.ndarray[Any, Any]


def one_step(step: StepModel) -> list[Array]:
    rng = np.random.default_rng(0)
    specs = [(t.name, t.frame_shape) for t in step.signature.inputs]
    specs += [(s.input, s.frame_shape) for s in step.signature.states]
    feeds = {name: rng.normal(size=(2, *shape)).astype(np.float32) for name, shape in specs}
    session = ort.InferenceSession(step.to_bytes(), providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feeds)
    return found


@pytest.mark.parametrize(
    ("precision", "bound", "size"), [("int8-weights", 0.03, 0.5), ("bf16-weights", 0.005, 0.7)]
)
def test_the_graph_is_plain_onnx_that_any_runtime_computes(precision: Any, bound: float, size: float) -> None:
    step = zoo.lstm(5, (37, 13))
    made = weights_only(step, precision)
    made.check()
    onnx.checker.check_model(made.model, full_check=True)
    assert made.signature == step.signature
    assert len(made.to_bytes()) < size * len(step.to_bytes())
    for a, b in zip(one_step(made), one_step(step), strict=True):
        assert 0 < np.linalg.norm(a - b) < bound * np.linalg.norm(b)


def test_weights_that_are_kept_and_those_of_convolutions_stay() -> None:
    made = weights_only(zoo.lstm(5, (37, 13)), "int8-weights", keep={"w0"})
    names = {t.name: t.data_type for t in made.model.graph.initializer}
    assert names["w0"] == onnx.TensorProto.FLOAT
    assert "w1" not in names
    for step, keep in ((zoo.conv_lstm(), ()), (zoo.lstm(head=None, hidden=(5,)), ("w0",))):
        with pytest.raises(EdgeLstmError, match="precision int8-weights has nothing to store"):
            weights_only(step, "int8-weights", keep=keep)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([1, 3, 17]),
    columns=st.sampled_from([1, 2, 13, 67]),
    size=st.floats(-44, 37),
    spread=st.floats(0, 3),
    seed=st.integers(0, 99),
)
def test_a_row_s_error_is_at_most_that_of_the_largest_weight_worth_127(
    rows: int, columns: int, size: float, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    wide = rng.standard_t(3, (rows, columns)) * 10**size * np.exp(spread * rng.normal(size=(rows, 1)))
    wide = np.clip(wide, -3e38, 3e38).astype(np.float32)
    wide[0] *= seed % 3 != 0  # a row of zeros
    codes, scale = rounded(wide)
    assert (codes.dtype, scale.dtype) == (np.int8, np.float32)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert np.abs(codes.astype(int)).max() <= 127
    largest = np.maximum(np.abs(wide.astype(float)).max(1) / 127, np.finfo(np.float32).tiny)
    plain = np.rint(wide / largest[:, None]) * largest[:, None]
    error, bound = (
        np.sqrt(((a - wide.astype(float)) ** 2).sum(1)) for a in (codes * scale[:, None].astype(float), plain)
    )
    assert (error <= bound * 1.001 + 1e-5 * largest).all()


def test_a_calibration_rounds_weights_together_and_verifies(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    zoo.lstm(5, (37, 13)).save(tmp_path / "m.onnx")
    np.save(tmp_path / "long.npy", np.cumsum(rng.normal(size=(160, 5)) * 0.3, 0).astype(np.float32))
    model = tmp_path / "m.onnx"
    code, text, error = run("quantize", model, "--precision", "int8-weights", "-o", "w.onnx")
    assert (code, error) == (0, ""), error
    assert "not verified: no calibration was given" in text
    assert "z9_h float32" in text
    assert run("calibrate", model, "--source", tmp_path / "long.npy", "-o", "c.json")[0] == 0
    code, text, error = run(
        "quantize", model, "--precision", "int8-weights", "--calibration", "c.json", "-o", "c.onnx", "--json"
    )
    assert (code, error) == (0, ""), error
    data = json.loads(text)
    assert {row["precision"] for row in data["products"]} == {"int8-weights"}
    assert Path("w.onnx").read_bytes() != Path("c.onnx").read_bytes()
    assert max(o["error"] for o in data["verification"]["outputs"]) < 0.02
    code, text, error = run("verify", model, "w.onnx", "--source", tmp_path / "long.npy", "--json")
    assert (code, error) == (0, "")
    code, _, error = run("quantize", "w.onnx", "--precision", "int8-weights", "-o", "again.onnx")
    assert code == 2
    assert "quantised already" in error
    code, _, error = run(
        "quantize", model, "--precision", "int8-weights", "--rest", "fp16", "-o", "again.onnx"
    )
    assert code == 2
    assert "weights alone change" in error
    assert not Path("again.onnx").exists()


def test_a_calibration_of_another_model_is_refused() -> None:
    import edgelstm

    other = calibrated(zoo.lstm(3, (4,)))
    with pytest.raises(EdgeLstmError, match="made for another model"):
        edgelstm.quantize(zoo.lstm(5, (37,)), other, precision="int8-weights")
