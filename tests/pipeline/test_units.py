"""The units behind a model's values, and which values are known."""

from __future__ import annotations

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import Preprocess
from edgelstm.pipeline.units import forecast_scorer, known, physical, usual_threshold

RAIN = [
    {"op": "nodata", "value": 65535, "replace": 0},
    {"op": "scale", "factor": 0.12},
    {"op": "crop", "top": 1, "left": 0, "height": 2, "width": 4},
    {"op": "average", "factor": 2},
    {"op": "log1p", "scale": 0.25},
]
SPEC = TensorSpec("x", "float32", ("N", 1, 2))


def test_rain_comes_back_in_mm_per_hour_and_never_below_zero() -> None:
    counts = np.full((3, 4), 100, np.uint16)
    assert physical(RAIN)(Preprocess(RAIN, SPEC)(counts)) == pytest.approx(np.full((1, 2), 12), rel=1e-5)
    assert physical(RAIN)(np.array([-0.1]))[0] == 0
    assert usual_threshold(RAIN) == 1


def test_scaled_and_normalized() -> None:
    brightness = [{"op": "scale", "factor": 1 / 255}]
    assert physical(brightness)(np.array([0.25]))[0] == 0.25
    assert usual_threshold(brightness) == 0.5
    kelvin = [{"op": "scale", "factor": 0.1}, {"op": "normalize", "mean": [280.0], "std": [10.0]}]
    assert physical(kelvin)(np.array([-1.0]))[0] == 270
    assert usual_threshold(kelvin) == 280


def test_what_lies_on_missing_data_is_not_known() -> None:
    counts = np.zeros((3, 4), np.uint16)
    counts[0, 0] = counts[2, 3] = 65535  # the first is cropped away
    np.testing.assert_array_equal(known(counts, RAIN, SPEC), [[True, False]])
    whole = TensorSpec("x", "int8", ("N", 2))
    gaps = [{"op": "nodata", "value": "nan"}]
    np.testing.assert_array_equal(known(np.array([np.nan, 1]), gaps, whole), [False, True])
    assert known(np.array([np.nan, 1]), [], whole).all()


def test_channels_that_cannot_be_undone_are_scored_as_the_model_sees_them() -> None:
    ops = [{"op": "normalize", "mean": [1.0, 2.0], "std": [1.0, 1.0]}]
    with pytest.raises(EdgeLstmError, match="can't be undone"):
        physical(ops)
    shape = ("N", 2, 3, 3)
    signature = Signature(
        (TensorSpec("x", "float32", shape),),
        (TensorSpec("y", "float32", ("N", 1, *shape[1:])),),
        (),
        preprocessing={"x": tuple(ops)},
    )
    scorer = forecast_scorer(signature, signature, None, None)
    assert scorer is not None
    assert scorer.threshold == 0
    for value in (1.0, 2.0):
        scorer.arrived({"x": np.full(shape[1:], value)})
        scorer.observe({"y": np.ones((1, 2, 3, 3))}, {"y": np.ones((1, 2, 3, 3))})
    found = scorer.result()
    assert found is not None
    assert found.mae_a == [1.0]
