"""The small cell in NumPy, step by step: what the kernel has to give. Plain, and the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.graph.gates import GateVariant

Array = npt.NDArray[Any]


def run(
    variant: GateVariant | None,
    weight: Array,
    bias: Array,
    recurrent_bias: Array | None,
    peepholes: tuple[Array, ...],
    x: Array,
    h: Array,
    c: Array | None,
    rows: Array | None = None,
    stored: Any = None,
) -> Array:
    """Run T frames; h [R, H] and c [R, H] are replaced. Returns y [T, N, H], zeros where a stream is idle.

    variant: an LSTM's; None: a GRU (r, z, n; the reset gate on the product). weight [gates * H, I + H], bias [gates * H],
    recurrent_bias [H] (GRU: n's), x [T, N, I]. rows [N]: each stream's row of the pool; outside it: idle. stored: the
    dtype that h is rounded to after each step. Everything is computed in float64.
    """
    hidden = h.shape[1]
    rows = np.arange(x.shape[1]) if rows is None else rows
    alive = [n for n, row in enumerate(rows) if 0 <= row < len(h)]
    at = np.asarray(rows)[alive]
    w_x, w_h = np.split(weight.astype(float), [weight.shape[1] - hidden], 1)
    y = np.zeros((*x.shape[:2], hidden), h.dtype)
    old = h[at].astype(float)
    cell = None if c is None else c[at].astype(float)
    for t, frame in enumerate(x[:, alive].astype(float)):
        from_x = frame @ w_x.T + bias
        if variant is not None:
            assert cell is not None
            new, cell = variant.reference(from_x + old @ w_h.T, cell, *peepholes)
        else:
            assert recurrent_bias is not None
            from_h = old @ w_h.T
            r, z, n = np.split(from_x, 3, 1)
            r_h, z_h, n_h = np.split(from_h, 3, 1)
            reset, kept = _sigmoid(r + r_h), _sigmoid(z + z_h)
            new = (1 - kept) * np.tanh(n + reset * (n_h + recurrent_bias)) + kept * old
        old = new.astype(stored or float).astype(float)
        y[t, alive] = old
    h[at] = old
    if c is not None and cell is not None:
        c[at] = cell
    return y


def _sigmoid(x: Array) -> Array:
    y: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return y
