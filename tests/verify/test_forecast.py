"""Scores of forecasts taken while a stream runs: those of all forecasts at once, in little memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from edgelstm.demo.scores import csi, score
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.passes.unroll import unroll
from edgelstm.verify.forecast import ForecastScorer, forecast_output

FRAME = TensorSpec("x", "float32", ("N", 2, 3))


def signature(*output: int, window: int | None = None, inputs: int = 1) -> Signature:
    time = () if window is None else (window,)
    frames = tuple(TensorSpec(f"x{k}", "float32", ("N", *time, 2, 3)) for k in range(inputs))
    return Signature(frames, (TensorSpec("y", "float32", ("N", *time, *output)),), (), window)


def test_what_is_a_forecast_of_the_input() -> None:
    assert forecast_output(signature(4, 2, 3)) == ("y", 4)
    assert forecast_output(signature(4, 2, 3, window=5)) == ("y", 4)
    for other in (signature(2, 3), signature(4, 3, 2), signature(4), signature(4, 2, 3, inputs=2)):
        assert forecast_output(other) is None
    # A number for a number says nothing of time.
    assert forecast_output(zoo.running_sum().signature) is None
    assert forecast_output(unroll(zoo.lstm(), 4).signature) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12), st.integers(1, 3))
def test_it_scores_as_if_all_forecasts_were_at_hand(seed: int, leads: int, extra: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    count = leads + extra
    truth = rng.random((count, 2, 3)).astype(np.float32)
    known = rng.random(truth.shape) < 0.8
    known[:, 0, 0] = True
    ahead = rng.random((2, count, leads, 2, 3)).astype(np.float32)
    scorer = ForecastScorer(
        "y",
        leads,
        threshold=1.0,
        frame=FRAME,
        units=lambda v: 2 * v,
        known=lambda t: known[t],
    )
    for start in range(0, count, block):  # a window's frames arrive together
        for t in range(start, min(start + block, count)):
            scorer.arrived({"x": truth[t]}, t)
        for t in range(start, min(start + block, count)):
            scorer.observe({"y": ahead[0, t]}, {"y": ahead[1, t]})
        assert len(scorer._made) <= leads
        assert len(scorer._arrived) <= leads + block
    found = scorer.result()
    assert found is not None
    assert found.forecasts == extra
    for which, (mae, rates) in enumerate(((found.mae_a, found.csi_a), (found.mae_b, found.csi_b))):
        wanted = score(2 * ahead[which], 2 * truth, known)
        np.testing.assert_allclose(mae, [lead["mae"] for lead in wanted.leads], rtol=1e-5)
        for k in range(leads):
            parts = (
                2 * ahead[which, :extra, k],
                2 * truth[k + 1 : k + 1 + extra],
                known[k + 1 : k + 1 + extra],
            )
            assert (rates[k] or 0.0) == pytest.approx(csi(*parts, 1.0))


def test_losses() -> None:
    scorer = ForecastScorer("y", 1, threshold=0.5, frame=FRAME)
    ones, half = np.ones((1, 2, 3)), np.full((1, 2, 3), 0.9)
    half[0, 0, 0] = 0.0
    for _ in range(3):
        scorer.arrived({"x": np.full((2, 3), 0.8)})
        scorer.observe({"y": ones}, {"y": half})
    found = scorer.result()
    assert found is not None
    assert found.mae_a == pytest.approx([0.2])
    assert found.mae_b == pytest.approx([(5 * 0.1 + 0.8) / 6])
    assert found.mae_loss_percent == pytest.approx(100 * (1.3 / 6 / 0.2 - 1))
    assert found.csi_loss == pytest.approx(1 / 6)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["leads"][0]["csi_b"] == pytest.approx(5 / 6)
    assert data["forecasts"] == 2


def test_nothing_to_score_and_figures_that_do_not_exist() -> None:
    scorer = ForecastScorer("y", 1, threshold=2.0, frame=FRAME)
    frame, ahead = {"x": np.ones((2, 3))}, np.ones((1, 2, 3))
    scorer.arrived(frame)
    scorer.observe({"y": ahead}, {"y": np.full((1, 2, 3), np.nan)})
    assert scorer.result() is None
    scorer.arrived(frame)
    scorer.observe({"y": ahead}, {"y": ahead})
    found = scorer.result()
    assert found is not None
    assert (found.csi_loss, found.mae_loss_percent) == (
        None,
        None,
    )  # no value reaches 2, and a makes no error
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["leads"][0]["mae_b"] is None
