"""What the operators compute, in NumPy, as the equations stand in the papers: the truth of their tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.graph.gates import GateVariant

Array = npt.NDArray[Any]


def fused_gates(variant: GateVariant, z: Array, c: Array, *peepholes: Array) -> tuple[Array, Array]:
    """FusedGates: h, c_out. Shapes as in edgelstm.graph.gates, whose reference this is."""
    return variant.reference(z, c, *peepholes)


def worth(codes: Array, scale: Array) -> Array:
    """Weights [rows, columns] of FusedLSTMCellI8 and FusedGRUCellI8: int8 codes and what one is worth in each row."""
    value: Array = codes * scale[:, None]
    return value


def lstm_cell(
    variant: GateVariant, x: Array, h: Array, c: Array, w: Array, b: Array, *peepholes: Array
) -> tuple[Array, Array]:
    """FusedLSTMCell: h', c'. x [N, I], h [N, R], c [N, units], w [gates * units, I + R], b [gates * units], p [units] each."""
    return variant.reference(np.concatenate([x, h], axis=1) @ w.T + b, c, *peepholes)


def conv_lstm_cell(
    variant: GateVariant, x: Array, h: Array, c: Array, w: Array, b: Array, *peepholes: Array
) -> tuple[Array, Array]:
    """FusedConvLSTMCell: h', c'. x [N, I, H, W], h [N, R, H, W], c [N, units, H, W], w [gates * units, I + R, 3, 3], b [gates * units];
    p: [1], [units, 1, 1] or [units, H, W] each."""
    return variant.reference(pre_activations(x, h, w, b), c, *peepholes)


def pre_activations(x: Array, h: Array, w: Array, b: Array) -> Array:
    """Of a ConvLSTM: [N, gates * units, H, W]."""
    z: Array = b[:, None, None] + convolved(np.concatenate([x, h], axis=1), w)
    return z


def gate_codes(z: Array, scale: Array, zero: Array, low: float, high: float) -> Array:
    """What gates read in place of z [N, gates * units, H, W] where FusedConvLSTMCell* rounds it: scale, zero [gates]."""
    steps = np.clip(np.rint(z), low, high).reshape(len(z), len(scale), -1, *z.shape[2:])
    worth: Array = (steps - zero[:, None, None, None]) * scale[:, None, None, None]
    return worth.reshape(z.shape)


def quantised(h: Array, scale: Array, zero: Array, dtype: type) -> Array:
    """QuantizeLinear(h, scale, zero), both [units, 1, 1] or one number, in h's own precision."""
    limits = np.iinfo(dtype)
    low, high = limits.min - zero.astype(h.dtype), limits.max - zero.astype(h.dtype)
    codes: Array = (np.clip(np.rint(h / scale), low, high) + zero).astype(dtype)
    return codes


def convolved(x: Array, w: Array) -> Array:
    """x [N, I, H, W] by kernels [rows, I, 3, 3], padded with zeros: [N, rows, H, W]."""
    height, width = x.shape[2:]
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    y: Array = np.zeros((len(x), len(w), height, width))
    for i in range(3):
        for j in range(3):
            y = y + np.einsum("oc,nchw->nohw", w[:, :, i, j], padded[:, :, i : i + height, j : j + width])
    return y


def conv_gru_cell(x: Array, h: Array, w: Array, r: Array, b: Array, *, after: bool) -> Array:
    """FusedConvGRUCell: h'. x [N, I, H, W], h [N, units, H, W], w [3 units, I, 3, 3], r [3 units, units, 3, 3], b [4 units]: z, r, n of
    x, n of h. after: the reset gate works on the product. Source: Ballas et al. 2016 (arXiv:1511.06432)."""
    (w_z, w_r, w_n), (r_z, r_r, r_n) = np.split(w, 3), np.split(r, 3)
    b_z, b_r, b_n, c_n = np.split(b[:, None, None], 4)
    z = sigmoid(convolved(x, w_z) + convolved(h, r_z) + b_z)
    reset = sigmoid(convolved(x, w_r) + convolved(h, r_r) + b_r)
    inner = reset * (convolved(h, r_n) + c_n) if after else convolved(reset * h, r_n) + c_n
    n = np.tanh(convolved(x, w_n) + b_n + inner)
    result: Array = (1 - z) * n + z * h
    return result


def gru_cell(x: Array, h: Array, w: Array, r: Array, b: Array, *, after: bool) -> Array:
    """FusedGRUCell: h'. x [N, I], h [N, units], w [3 units, I], r [3 units, units], b [6 units]; gates z, r, n.

    after: the reset gate works on the product (linear_before_reset). Source: the operator GRU of ONNX, version 22.
    """
    (w_z, w_r, w_n), (r_z, r_r, r_n) = np.split(w, 3), np.split(r, 3)
    b_z, b_r, b_n, c_z, c_r, c_n = np.split(b, 6)
    z = sigmoid(x @ w_z.T + h @ r_z.T + b_z + c_z)
    reset = sigmoid(x @ w_r.T + h @ r_r.T + b_r + c_r)
    inner = reset * (h @ r_n.T + c_n) if after else (reset * h) @ r_n.T + c_n
    n = np.tanh(x @ w_n.T + b_n + inner)
    result: Array = (1 - z) * n + z * h
    return result


def sigmoid(x: Array) -> Array:
    """By tanh: no overflow."""
    y: Array = 0.5 * np.tanh(0.5 * x) + 0.5
    return y


def dense(x: Array, w: Array, b: Array, activation: int, factor: Array | None = None) -> Array:
    """FusedDense: x [rows, inputs], w [units, inputs], b [units]; activation 0 none, 1 sigmoid, 2 tanh, 3 relu; times factor."""
    y = x @ w.T + b
    y = (y, sigmoid(y), np.tanh(y), np.maximum(y, 0))[activation]
    return y if factor is None else y * factor.reshape(y.shape)


def norm(x: Array, gain: Array, bias: Array, epsilon: float) -> Array:
    """FusedNorm: over the last axis."""
    apart = x - x.mean(-1, keepdims=True)
    y: Array = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + epsilon) * gain + bias
    return y
