"""Every graph for TensorRT is parsed and built by the real TensorRT for RTX, and computes in the types it was made for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rtx_builder import Built, build

import zoo
from edgelstm import export
from edgelstm.graph.step import StepModel
from edgelstm.passes.lower import lower
from edgelstm.passes.unroll import unroll
from edgelstm.quantize.calibrate import Recording, calibrate
from edgelstm.quantize.calibration import Calibration
from edgelstm.workflows.quantize import quantize
from recordings import drift, smooth_frames

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt-rtx-cu13: pip install 'edgelstm[rtx]'",
)
EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> StepModel:
    return export(str(EXAMPLES / name / "model.safetensors"), limit=1).step


STEPS: dict[str, Callable[[], StepModel]] = {
    "moving_digits": lambda: example("moving_digits"),
    "nowcast_radar": lambda: example("nowcast_radar"),
    "sensor_lstm": lambda: example("sensor_lstm"),
    "peephole_conv_lstm": lambda: zoo.conv_lstm(4, 8, 16),
    "lstm": lambda: zoo.lstm(16, (32, 32), head=16),
}
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int8 fp16")
#: What a quantised product's first two inputs are in the engine.
TYPES = {"int8": ["Int8", "Int8"], "fp8": ["FP8", "FP8"]}


@cache
def prepared(name: str, window: int | None = None) -> tuple[StepModel, Calibration]:
    step = STEPS[name]()
    frames = smooth_frames(step, 40)
    if window:
        step = unroll(step, window)
        frames = [
            {n: np.stack([f[n] for f in frames[k : k + window]]) for n in frames[0]}
            for k in range(0, 40, window)
        ]
    return step, calibrate(step, [Recording("a", frames)], threads=1)


def made(step: StepModel, calibration: Calibration, precision: str) -> Any:
    kind, _, rest = precision.partition(" ")
    return quantize(step, calibration, runtime="tensorrt", precision=kind, rest=rest or "fp32")


def built(step: StepModel, *capability: str) -> Built:
    lowered = lower(step, "tensorrt_rtx")
    # The parser takes more than ONNX allows, so ONNX's own checker looks first.
    onnx.checker.check_model(lowered.model, full_check=True)
    return build(lowered.to_bytes(), *capability)


def assert_types(result: Built, products: list[dict[str, Any]], precision: str) -> None:
    assert not result.error, result.error
    kind = precision.partition(" ")[0]
    wanted = sum(row["times"] for row in products if row["precision"] == kind) if kind in TYPES else 0
    quantised = [types for types in result.layers.values() if types[:2] == TYPES.get(kind)]
    assert len(quantised) == wanted, f"{wanted} products in {kind}; the engine's layers: {result.layers}"
    if precision in ("fp16", "bf16"):
        short = {"fp16": "Half", "bf16": "BFloat16"}[precision]
        assert any(short in types for types in result.layers.values())


#: In `make test` one model is built in every type, and a small one of each kind of cell in codes.
IN_CODES = ("peephole_conv_lstm",)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(
            name,
            p,
            marks=() if name == "sensor_lstm" or (name in IN_CODES and p in TYPES) else pytest.mark.thorough,
        )
        for name in STEPS
        for p in PRECISIONS
    ],
)
def test_steps(name: str, precision: str) -> None:
    step, calibration = prepared(name)
    if precision == "fp32":
        assert not built(step).error
        return
    done = made(step, calibration, precision)
    assert_types(built(done.step), done.products, precision)


#: Windows take seconds each: one in codes stands for them in `make test`, and `make thorough` builds the rest.
WINDOWS = [
    pytest.param(name, p, marks=() if (name, p) == ("peephole_conv_lstm", "int8") else pytest.mark.thorough)
    for name in STEPS
    for p in PRECISIONS
]


@pytest.mark.parametrize(("name", "precision"), WINDOWS)
def test_windows(name: str, precision: str) -> None:
    step, calibration = prepared(name, 10)
    if precision == "fp32":
        assert not built(step).error
        return
    done = made(step, calibration, precision)
    assert_types(built(done.step), done.products, precision)


@cache
def others(file: str, states: tuple[tuple[str, str], ...]) -> tuple[StepModel, Calibration]:
    step = export(file, states=dict(states), limit=2).step
    return step, calibrate(step, [Recording("noise", smooth_frames(step, 40))], threads=1)


#: In `make test` the first, in codes, stands for both in every type.
OTHERS = {
    "model_1.onnx": {"input_3": "tf_op_layer_stack_2"},
    "model_2.onnx": {"input_5": "tf_op_layer_stack_5"},
}


@pytest.mark.parametrize(
    ("file", "state", "precision"),
    [
        pytest.param(
            file, state, p, marks=() if (file, p) == ("model_1.onnx", "int8") else pytest.mark.thorough
        )
        for file, state in OTHERS.items()
        for p in PRECISIONS
    ],
)
def test_other_peoples_models(shared_dir: Path, file: str, state: dict[str, str], precision: str) -> None:
    step, calibration = others(str(shared_dir / "models" / "dtln" / file), tuple(state.items()))
    if precision == "fp32":
        assert not built(step).error
        return
    done = made(step, calibration, precision)
    assert_types(built(done.step), done.products, precision)


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.1), ("fp8", 0.3), ("fp16", 0.005)])
def test_numbers_in_another_runtime(precision: str, limit: float) -> None:
    """No GPU runs the engine here; ONNX Runtime runs the same graph, its states fed back, over 100 frames."""
    step, calibration = prepared("sensor_lstm")
    assert max(drift(step, made(step, calibration, precision).step, 100).values()) < limit


def test_fp8_where_there_is_none() -> None:
    step, calibration = prepared("sensor_lstm")
    done = made(step, calibration, "fp8")
    assert not built(done.step, "8.9").error
    assert "Cannot compile for target" in built(done.step, "8.6").error


def test_codes_for_the_cpu_are_refused() -> None:
    step, calibration = prepared("sensor_lstm")
    done = quantize(step, calibration, runtime="onnxruntime")
    assert "Non-zero zero point is not supported" in built(done.step).error
