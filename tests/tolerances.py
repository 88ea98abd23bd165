"""How close is close enough: one helper, whose tolerance comes from the dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def assert_close(
    actual: npt.ArrayLike,
    reference: npt.ArrayLike,
    dtype: npt.DTypeLike,
    *,
    k: float = 64,
    atol: float | None = None,
) -> None:
    """Fail unless ``|actual - reference| <= atol + k * eps(dtype) * |reference|`` for every element.

    dtype: the precision the computation ran in, which is not always that of the arrays (a float32 graph compared with
    a float64 reference: float32). k: how many roundings may add up; about the length of the longest sum, or its
    square root when signs are mixed. atol: for sums that cancel to nearly nothing; by default ``k * eps(dtype)``,
    right for values of the order of one, such as h. NaN equals nothing, infinity only itself, shapes must agree.
    """
    a, r = np.asarray(actual, np.float64), np.asarray(reference, np.float64)
    assert a.shape == r.shape, f"shape {a.shape}, expected {r.shape}"
    rounding = k * float(np.finfo(np.dtype(dtype)).eps)
    with np.errstate(invalid="ignore", divide="ignore"):
        allowed = (rounding if atol is None else atol) + rounding * np.abs(r)
        excess = np.nan_to_num(np.abs(a - r) / allowed, nan=np.inf)
        wrong = ~((np.abs(a - r) <= allowed) & np.isfinite(r) | (a == r))
    if wrong.any():
        at: Any = np.unravel_index(int(np.argmax(np.where(wrong, excess, -1))), wrong.shape)
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.size} values differ; the worst at {[int(i) for i in at]}: "
            f"{a[at]!r}, expected {r[at]!r} within {allowed[at]:.3g} ({np.dtype(dtype)}, k={k:g})"
        )
