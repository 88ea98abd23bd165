"""What sixteen bits must not hold: states that grow, and values near the end of fp16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgelstm import calibrate, quantize
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.runner import Runner
from stepping import from_text


def counter() -> StepModel:
    """A sum of frames that a product reads."""
    return from_text(
        """total (float[N, 2] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] t)
        <float[2, 2] w = {0.01, 0.02, -0.01, 0.03}> { t = Add (s, x)  m = MatMul (t, w)  y = Tanh (m) }""",
        s="t",
    )


def loud() -> StepModel:
    """Frames up to 50,000, whose product is within fp16 in the calibration, though hardly."""
    return from_text(
        """loud (float[N, 2] x, float[N, 2] s) => (float[N, 2] y, float[N, 2] t)
        <float[2, 2] w = {1, 0.5, 0, 1}, float[2, 2] v = {1, 0, 0.3, 1}, float small = {0.00001}>
        { m = MatMul (x, w)  n = Mul (m, small)  t = Tanh (n)  y = MatMul (t, v)  }""",
        s="t",
    )


def last(step: StepModel, frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with Runner(OrtProgram(step.to_bytes(), threads=1)) as runner:
        stream = runner.stream("a")
        return np.stack([stream.step(f)["y"].copy() for f in frames])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_state_that_grows_stays_float_in_sixteen_bits(precision: str) -> None:
    step, ones = counter(), np.full((3000, 2), [0.02, 0.01], np.float32)
    found = calibrate(step, [list(ones[:400])], threads=1).calibration
    made = quantize(step, found, precision=precision, threads=1)
    assert made.step.signature.state("s").dtype == "float32"
    assert any("'s' stays in float32: it was still growing" in note for note in made.notes)
    true = last(step, ones)
    assert np.linalg.norm(last(made.step, ones) - true) < 0.01 * np.linalg.norm(true)


def test_without_a_calibration_that_is_said() -> None:
    made = quantize(counter(), precision="bf16", threads=1)
    assert made.step.signature.state("s").dtype == "bfloat16"
    assert any("no calibration was given, so whether a state grows" in note for note in made.notes)


def test_a_calibration_of_another_model_is_refused_for_sixteen_bits_too() -> None:
    frames = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    found = calibrate(counter(), [list(frames)], threads=1).calibration
    with pytest.raises(EdgeLstmError, match="made for another model"):
        quantize(loud(), found, precision="fp16", threads=1)


def test_values_near_the_end_of_fp16_stay_float() -> None:
    step = loud()
    frames = np.random.default_rng(0).uniform(-5e4, 5e4, (100, 2)).astype(np.float32)
    found = calibrate(step, [list(frames)], threads=1).calibration
    made = quantize(step, found, runtime="tensorrt", precision="fp16", threads=1)
    assert any(note.startswith("w stays in float32: ") for note in made.notes)
    assert {row["weight"]: row["precision"] for row in made.products} == {"w": "fp32", "v": "fp16"}
    # Twice as loud: what fp16 has no number for.
    shown = last(made.step, 2 * frames)
    assert np.isfinite(shown).all()
    np.testing.assert_allclose(shown, last(step, 2 * frames), atol=0.01)


def test_auto_does_not_advise_auto() -> None:
    step = loud()
    rng = np.random.default_rng(0)
    tall = [list(rng.uniform(-5e4, 5e4, (100, 2)).astype(np.float32))]
    made = quantize(
        step,
        calibrate(step, tall, threads=1).calibration,
        precision="auto",
        budget=5.0,
        source=tall,
        limit=90,
    )
    assert made.check.why_not is None
    assert not any("--precision auto" in remedy for remedy in made.check.remedies)
