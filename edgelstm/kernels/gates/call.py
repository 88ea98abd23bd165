"""``fused_gates``: h and the new cell state from pre-activations, in one kernel, on arrays of any library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import GateVariant
from edgelstm.kernels.arrays import is_torch, on_gpu, stream_handle
from edgelstm.kernels.gates.queue import NO_OLD, NO_OLD_HINT, new_tensors, peephole_names, run


def fused_gates(
    z: Any,
    c: Any,
    *peepholes: Any,
    variant: GateVariant | None = None,
    out: tuple[Any, Any] | None = None,
    active: Any = None,
    h_old: Any = None,
    stream: Any = None,
) -> tuple[Any, Any]:
    """(h, c_out) of an LSTM step from the gates' pre-activations and the old cell state.

    z: [N, 4C, *S] in the order i, f, g, o (coupled: [N, 3C, *S], i, g, o); fp32, fp16 or bf16; contiguous, or the 16-bit types
    channels last with C a multiple of 8. c: [N, C, *S], fp32 or fp16, contiguous. peepholes: p_i, p_f, p_o (coupled: no p_f),
    each [C] or [C, *S] in c's dtype. variant: default the standard LSTM.
    out: where h and c_out go; c_out may be c itself. Default: new arrays, h in z's dtype and layout (torch and CuPy).
    active: int32 [N] on the GPU; a stream with 0 keeps its state bit for bit, h being copied from h_old, which may be h itself.
    stream: see :func:`edgelstm.kernels.arrays.stream_handle`. Returns at once; the kernel is queued.

    NumPy arrays and torch tensors on the CPU are computed by the reference. Raises EdgeLstmError for what the kernel does
    not take, before anything is queued.
    """
    variant = variant or GateVariant()
    if is_torch(z) and out is None and stream is None:
        from edgelstm.kernels.gates.torch_op import register_torch

        named = dict(zip(peephole_names(variant, peepholes), peepholes, strict=True))
        h, c_out = register_torch().fused_gates(
            z, c, **named, variant=variant.op_type, active=active, h_old=h_old
        )
        return h, c_out
    if not on_gpu(z):
        return _on_host(variant, z, c, peepholes, out, active, h_old)
    handle = stream_handle(stream, z)
    h, c_out = out if out is not None else _new_outputs(z, c)
    run(variant, handle, z, c, peepholes, h, c_out, active, h_old)
    return h, c_out


def _new_outputs(z: Any, c: Any) -> tuple[Any, Any]:
    """h [like c in shape, like z in dtype and layout] and c_out, of z's library."""
    if is_torch(z):
        return new_tensors(z, c)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(z, cupy.ndarray):
        h = cupy.empty(c.shape, z.dtype)
        if not z.flags.c_contiguous:  # channels last
            h = cupy.moveaxis(cupy.empty((c.shape[0], *c.shape[2:], c.shape[1]), z.dtype), -1, 1)
        return h, cupy.empty_like(c)
    raise EdgeLstmError(
        f"there is no way to make arrays of {type(z).__name__}", expected="out=(h, c_out), made by you"
    )


def _on_host(
    variant: GateVariant, z: Any, c: Any, peepholes: Sequence[Any], out: Any, active: Any, h_old: Any
) -> tuple[Any, Any]:
    h: Any
    c_out: Any
    if is_torch(z):
        from edgelstm.kernels.gates.torch_op import on_host

        h, c_out = on_host(z, c, list(peepholes), variant, active, h_old)
    else:
        z, c = np.asarray(z), np.asarray(c)
        wide = np.float64 if np.float64 in (z.dtype, c.dtype) else np.float32
        spread = [1] * (c.ndim - 2)
        weights = [np.asarray(p, wide) for p in peepholes]
        weights = [p.reshape(-1, *spread) if p.ndim == 1 else p for p in weights]
        h, c_out = variant.reference(z.astype(wide), c.astype(wide), *weights)
        h, c_out = h.astype(z.dtype), c_out.astype(c.dtype)
        if active is not None:
            if h_old is None:
                raise EdgeLstmError(NO_OLD, hint=NO_OLD_HINT)
            idle = np.asarray(active) == 0
            h[idle], c_out[idle] = np.asarray(h_old)[idle], c[idle]
    if out is None:
        return h, c_out
    out[0][...], out[1][...] = h, c_out
    return out[0], out[1]
