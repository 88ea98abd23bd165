"""One ConvLSTM step as a Triton kernel. Imports triton: only edgelstm.kernels.conv_lstm.kernel imports this.

A program computes h and c of BM places of one stream and BC channels: for each tap of the kernel and each BK input channels it
loads the places' inputs once and multiplies them with all gates' weights on tensor cores; the gates follow in registers, so that the
pre-activations z are never written. Maps lie channels last.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 2.0 * _sigmoid(2.0 * x) - 1.0


@triton.jit
def _gate(x, HARD: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr):
    if HARD:
        y = ALPHA * x + BETA
        y = tl.where(y < 0.0, 0.0, y)  # comparisons: NaN stays NaN
        return tl.where(y > 1.0, 1.0, y)
    else:
        return _sigmoid(x)


@triton.jit
def _act(x, RELU: tl.constexpr):
    if RELU:
        return tl.where(x < 0.0, 0.0, x)
    else:
        return _tanh(x)


@triton.jit
def _products(
    source, weights, row, column, channel, i, f, g, o,
    CIN: tl.constexpr, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
    COUPLED: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to the gates' sums the products of one stream's input [H, W, CIN] with its weights [K * K, CIN, gates, C]."""
    GATES: tl.constexpr = 3 if COUPLED else 4
    R: tl.constexpr = K // 2
    WHOLE_K: tl.constexpr = CIN % BK == 0
    WHOLE: tl.constexpr = WHOLE_K and C % BC == 0
    for tap in range(K * K):
        y = row + tap // K - R
        x = column + tap % K - R
        # A place past the end of the map may read a place of it; its sums are not stored.
        inside = ((y >= 0) & (y < H) & (x >= 0) & (x < W))[:, None]
        place = ((y * W + x) * CIN)[:, None]
        for first in range(0, CIN, BK):
            k = first + tl.arange(0, BK)
            at = weights + (tap * CIN + k[:, None]) * (GATES * C) + channel[None, :]
            if WHOLE_K:
                a = tl.load(source + place + k[None, :], mask=inside, other=0.0)
            else:
                a = tl.load(source + place + k[None, :], mask=inside & (k < CIN)[None, :], other=0.0)
            if WHOLE:
                i = tl.dot(a, tl.load(at), i, input_precision=PRECISION)
                if not COUPLED:
                    f = tl.dot(a, tl.load(at + C), f, input_precision=PRECISION)
                g = tl.dot(a, tl.load(at + (GATES - 2) * C), g, input_precision=PRECISION)
                o = tl.dot(a, tl.load(at + (GATES - 1) * C), o, input_precision=PRECISION)
            else:
                some = (channel < C)[None, :] & (k < CIN)[:, None]
                i = tl.dot(a, tl.load(at, mask=some, other=0.0), i, input_precision=PRECISION)
                if not COUPLED:
                    f = tl.dot(a, tl.load(at + C, mask=some, other=0.0), f, input_precision=PRECISION)
                g = tl.dot(
                    a, tl.load(at + (GATES - 2) * C, mask=some, other=0.0), g, input_precision=PRECISION
                )
                o = tl.dot(
                    a, tl.load(at + (GATES - 1) * C, mask=some, other=0.0), o, input_precision=PRECISION
                )
    return i, f, g, o


@triton.jit
def conv_lstm_step(
    x, h, w_x, w_h, bias, p_i, p_f, p_o, active, c, c_out, h_out,
    H: tl.constexpr, W: tl.constexpr, INPUTS: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
    PEEPHOLE: tl.constexpr, HARD: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, G_RELU: tl.constexpr,
    H_RELU: tl.constexpr, CLIP: tl.constexpr, COUPLED: tl.constexpr, ACTIVE: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (streams * ceil(H * W / BM), ceil(C / BC)). x [N, H, W, INPUTS], h, c, c_out, h_out [N, H, W, C]; peepholes [H, W, C]."""
    TILES: tl.constexpr = (H * W + BM - 1) // BM
    GATES: tl.constexpr = 3 if COUPLED else 4
    stream = tl.program_id(0) // TILES
    s = (tl.program_id(0) % TILES) * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    known = (s < H * W)[:, None] & (channel < C)[None, :]
    wide = stream.to(tl.int64) * (
        H * W
    )  # places before this stream: with all streams there may be 2^31 values
    off = wide * C + s[:, None] * C + channel[None, :]
    alive = True
    if ACTIVE:
        alive = tl.load(active + stream) != 0
    if alive:
        row = s // W
        column = s % W
        i = tl.zeros((BM, BC), tl.float32)
        f = tl.zeros((BM, BC), tl.float32)
        g = tl.zeros((BM, BC), tl.float32)
        o = tl.zeros((BM, BC), tl.float32)
        if INPUTS > 0:
            i, f, g, o = _products(
                x + wide * INPUTS,
                w_x,
                row,
                column,
                channel,
                i,
                f,
                g,
                o,
                INPUTS,
                H,
                W,
                C,
                K,
                COUPLED,
                BC,
                BK,
                PRECISION,
            )
        i, f, g, o = _products(
            h + wide * C, w_h, row, column, channel, i, f, g, o, C, H, W, C, K, COUPLED, BC, BK, PRECISION
        )
        some = channel < C
        i += tl.load(bias + channel, mask=some, other=0.0)[None, :]
        if not COUPLED:
            f += tl.load(bias + C + channel, mask=some, other=0.0)[None, :]
        g += tl.load(bias + (GATES - 2) * C + channel, mask=some, other=0.0)[None, :]
        o += tl.load(bias + (GATES - 1) * C + channel, mask=some, other=0.0)[None, :]
        old = tl.load(c + off, mask=known, other=0.0).to(tl.float32)
        weight = s[:, None] * C + channel[None, :]
        if PEEPHOLE:
            i += tl.load(p_i + weight, mask=known, other=0.0) * old
            if not COUPLED:
                f += tl.load(p_f + weight, mask=known, other=0.0) * old
        opened = _gate(i, HARD, ALPHA, BETA)
        kept = 1.0 - opened if COUPLED else _gate(f, HARD, ALPHA, BETA)
        new = kept * old + opened * _act(g, G_RELU)
        if CLIP > 0:
            new = tl.where(new > CLIP, CLIP, new)
            new = tl.where(new < -CLIP, -CLIP, new)
        if PEEPHOLE:
            o += tl.load(p_o + weight, mask=known, other=0.0) * new
        tl.store(c_out + off, new.to(c_out.dtype.element_ty), mask=known)
        out = _gate(o, HARD, ALPHA, BETA) * _act(new, H_RELU)
        tl.store(h_out + off, out.to(h_out.dtype.element_ty), mask=known)
    else:
        tl.store(h_out + off, tl.load(h + off, mask=known), mask=known)
        tl.store(c_out + off, tl.load(c + off, mask=known), mask=known)
