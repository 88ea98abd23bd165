"""Rounding a weight so that its errors cancel in what it is multiplied with, instead of one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Added to the diagonal, as a part of its mean: what the calibration frames do not show may still come.
_DAMPING = 0.3
_BLOCK = 64


def round_rows(weight: Array, scale: Array, moments: Array, largest: float) -> Array:
    """Codes [outputs, inputs] of ``weight`` at ``scale`` [outputs], integers of at most ``largest``.

    moments: E[a aT] [inputs, inputs] of the codes the weight meets. Columns are rounded one after the other, and
    the error of each is made good in those not rounded yet, as far as their inputs go along with its own: the
    optimal update of Hassibi and Stork 1993 in the order and form of Frantar et al. 2023 (GPTQ, algorithm 1). The
    inputs' own rounding, 1/12 in units of codes, is noise that goes along with nothing.
    """
    size = len(moments)
    damped = moments + np.eye(size) * (_DAMPING * float(np.mean(np.diag(moments))) + 1 / 12)
    ahead = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = weight / scale[:, None]
    codes = np.empty_like(left)
    for first in range(0, size, _BLOCK):
        last = min(size, first + _BLOCK)
        errors = np.empty((len(left), last - first))
        for k in range(first, last):
            codes[:, k] = np.clip(np.rint(left[:, k]), -largest, largest)
            errors[:, k - first] = (left[:, k] - codes[:, k]) / ahead[k, k]
            left[:, k + 1 : last] -= errors[:, k - first, None] * ahead[k, k + 1 : last]
        # What the block leaves for all later columns, at once: one product instead of many passes over memory.
        left[:, last:] -= errors @ ahead[first:last, last:]
    return codes
