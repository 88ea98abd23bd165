"""What the values of a model's frames stand for: the units behind its preprocessing, and which of them are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline.operations import Array, Transform
from edgelstm.pipeline.preprocess import Preprocess, inverse
from edgelstm.verify.forecast import ForecastScorer, forecast_output

Op = Mapping[str, Any]


def physical(ops: Sequence[Op]) -> Transform:
    """From model values back to the units that logarithm or normalization was applied to, such as mm/h of rain.

    What was scaled before that stays scaled: counts are no units, and 0 to 1 is as good a brightness as 0 to 255. What
    had its logarithm taken has no negative values. Raises EdgeLstmError where ``inverse`` does.
    """
    names = [op["op"] for op in ops]
    first = min((names.index(name) for name in ("log1p", "normalize") if name in names), default=len(ops))
    undo = inverse(ops[first:])
    if "log1p" not in names:
        return undo
    return lambda values: np.maximum(undo(values), 0)


def usual_threshold(ops: Sequence[Op]) -> float:
    """From which physical value on an event counts, unless the user says: 1 of what had its logarithm taken (rain, mm/h),
    the mean of what was normalized, else the middle of 0 to 1."""
    for op in ops:
        if op["op"] == "log1p":
            return 1.0
        if op["op"] == "normalize":
            return float(op["mean"][0]) if len(op["mean"]) == 1 else 0.0
    return 0.5


def known(raw: Any, ops: Sequence[Op], spec: TensorSpec) -> Array:
    """Which values of a model's frame hold no "no data" of the raw frame; bool, in ``spec.frame_shape``."""
    value = next((op["value"] for op in ops if op["op"] == "nodata"), None)
    if value is None:
        return np.ones(spec.frame_shape, bool)
    raw = np.asarray(raw, np.float32)
    missing = np.isnan(raw) if value == "nan" else raw == np.float32(value)
    places = [op for op in ops if op["op"] in ("crop", "average", "resize", "grey", "channels_first")]
    share = Preprocess(places, replace(spec, dtype="float32"))(missing.astype(np.float32))
    every: Array = share == 0
    return every


def forecast_scorer(
    a: Signature,
    b: Signature,
    overrides: Mapping[str, Sequence[Op]] | None,
    threshold: float | None,
    windows: bool = False,
) -> ForecastScorer | None:
    """What scores two models that forecast their own input; None where they do not.

    In physical units, or in the model's own where its preprocessing (``overrides`` replace it) can't be undone.
    ``threshold``: of CSI; None for :func:`usual_threshold`. windows: a hop cuts what one step takes.
    """
    found = forecast_output(a, windows)
    if found is None or found[0] not in [t.name for t in b.outputs]:
        return None
    spec = a.inputs[0]
    ops = {**a.preprocessing, **(overrides or {})}.get(spec.name, ())
    if a.window is not None or windows:
        spec = replace(spec, shape=(spec.shape[0], *spec.shape[2:]))
    try:
        units = physical(ops)
    except EdgeLstmError:
        units = None
    return ForecastScorer(
        *found,
        threshold=usual_threshold(ops) if threshold is None else threshold,
        frame=spec,
        units=units,
        known=lambda raw: known(raw, ops, spec),
        windows=windows,
    )
