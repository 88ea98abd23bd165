"""How good forecasts are: error at each lead and over time, beside repeating the last frame (persistence)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgelstm.runtime.protocol import Array
from edgelstm.verify.forecast import hits_and_events


@dataclass(frozen=True)
class Scores:
    """Mean absolute errors. A forecast counts when it was made early enough that its farthest lead has come.

    leads: one entry a lead: ``lead``, ``mae``, ``mae_persistence``.
    model, persistence: [K, T], the error of the forecast made at t for t + k; NaN where its truth has not come.
    """

    leads: list[dict[str, Any]]
    model: Array
    persistence: Array


def score(ahead: Array, truth: Array, known: Array | None = None) -> Scores:
    """Scores of forecasts ``ahead`` [T, K, ...] against ``truth`` [T, ...]; T > K. ``known``: the truth that counts."""
    count, horizon = ahead.shape[:2]
    known = np.ones(truth.shape, bool) if known is None else known
    model, persistence = np.full((2, horizon, count), np.nan)
    leads = []
    for lead in range(1, horizon + 1):
        was, counts = truth[lead:], known[lead:]
        errors = np.abs(ahead[:-lead, lead - 1] - was), np.abs(truth[:-lead] - was)
        model[lead - 1, :-lead], persistence[lead - 1, :-lead] = (_mean_per_frame(e, counts) for e in errors)
        mae, mae_persistence = (float(e[: count - horizon][counts[: count - horizon]].mean()) for e in errors)
        leads.append({"lead": lead, "mae": mae, "mae_persistence": mae_persistence})
    return Scores(leads, model, persistence)


def csi(forecast: Array, truth: Array, known: Array, threshold: float) -> float:
    """Critical success index of ``threshold``: hits / (hits + misses + false alarms), over what is ``known``."""
    hits, events = hits_and_events(forecast, truth, known, threshold)
    return hits / max(1, events)


def mean_over_leads(errors: Array) -> list[float | None]:
    """Error over time [K, T] as T numbers: the mean over leads, None from where not all of them have come."""
    return jsonable(errors.mean(axis=0))


def jsonable(values: Array) -> list[float | None]:
    """Numbers rounded for a report; NaN becomes None."""
    return [None if np.isnan(v) else float(f"{v:.5g}") for v in values]


def _mean_per_frame(values: Array, counts: Array) -> Array:
    """Mean of each frame's values that count; NaN when none does."""
    axes = tuple(range(1, values.ndim))
    sums, numbers = np.where(counts, values, 0).sum(axes), counts.sum(axes)
    means: Array = np.divide(sums, numbers, out=np.full(len(values), np.nan), where=numbers > 0)
    return means
