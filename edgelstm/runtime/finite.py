"""Whether numbers are finite, as cheaply as can be told: it is asked after every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgelstm.dtypes import to_float32
from edgelstm.graph.signature import StateSpec
from edgelstm.runtime.protocol import Array

#: Elements up to which BLAS works in the calling thread.
SMALL = 8192
#: Elements up to which Python is faster.
FEW = 16
#: Bits of the exponent, all of which are set in NaN and infinity alone (in float8e4m3fn with those of the mantissa: NaN alone).
_BITS: dict[str, tuple[type[Any], int]] = {
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float8e4m3fn": (np.uint8, 0x7F),
}


def look(array: Array, dtype: str) -> Callable[[], bool]:
    """What tells, again and again, whether a flat, contiguous array holds no NaN and no infinity; dtype as in the Signature."""
    if dtype in _BITS:
        kind, mask = _BITS[dtype]
        bits = array.view(kind)
        buffer = np.empty_like(bits)

        def by_bits() -> bool:
            # NumPy computes in float16 a number at a time; this is 300 times as fast.
            np.bitwise_and(bits, mask, out=buffer)
            return buffer.size == 0 or int(buffer.max()) < mask

        return by_bits
    isfinite = math.isfinite
    # The cheapest that reads memory once; of larger pieces BLAS would wake threads. A sum may overflow though every value is finite.
    pieces = [(piece.dot, piece) for piece in (array[k : k + SMALL] for k in range(0, array.size, SMALL))]
    if len(pieces) == 1:
        dot = array.dot
        return lambda: isfinite(dot(array)) or bool(np.isfinite(array).all())

    return lambda: all(isfinite(dot(piece)) or np.isfinite(piece).all() for dot, piece in pieces)


def all_of(looks: Sequence[Callable[[], bool]]) -> Callable[[], bool]:
    """All of several :func:`look` in one."""
    return looks[0] if len(looks) == 1 else lambda: all(look() for look in looks)


def can_be_infinite(dtype: str) -> bool:
    """Whether there is NaN or infinity in a Signature's dtype."""
    return dtype in _BITS or np.dtype(dtype).kind == "f"


def is_finite(array: Array, dtype: str) -> Array:
    """Which values are neither NaN nor infinite; dtype as in the Signature, which an array of codes does not tell."""
    finite: Array = np.isfinite(to_float32(array, dtype) if dtype in _BITS else array)
    return finite


def all_finite(array: Array, dtype: str) -> bool:
    """Whether no value is NaN or infinite, without a temporary array where the dtype has 32 bits or more."""
    if dtype in _BITS:
        return look(np.ascontiguousarray(array).reshape(-1), dtype)()
    if array.size <= FEW and array.ndim == 1:
        # NumPy takes longer to begin than this. In float64, no sum of float32 overflows.
        return math.isfinite(sum(array.tolist())) or bool(np.isfinite(array).all())
    if array.size > SMALL:
        return math.isfinite(array.max()) and math.isfinite(array.min())
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def is_looked_at(spec: StateSpec) -> bool:
    """Whether a state can turn to NaN or infinity and is not meant to: one that begins with them is."""
    stored = spec.initial_value()
    if spec.dtype not in _BITS and stored.dtype.kind != "f":
        return False
    return bool(np.isfinite(spec.values(stored)).all())
