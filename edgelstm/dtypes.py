"""Element types of a Signature, and what the ones NumPy does not have are worth. NumPy only."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    "float8e4m3fn",
    "float64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)
#: Types that NumPy lacks travel as their raw bits.
_RAW: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype(np.uint16), "float8e4m3fn": np.dtype(np.uint8)}
#: These two: what an array of them holds are no numbers for NumPy.
CODED = frozenset(_RAW)
#: Largest finite value of each floating type.
LARGEST = {"float16": 65504.0, "bfloat16": 3.3895314e38, "float8e4m3fn": 448.0, "float32": 3.4028235e38}


def np_dtype(name: str) -> np.dtype[Any]:
    """NumPy dtype of a Signature dtype; bfloat16 travels as its 16 raw bits (uint16), float8e4m3fn as uint8."""
    return _RAW[name] if name in _RAW else np.dtype(name)


def to_float32(stored: Array, dtype: str) -> Array:
    """The values of an array held as :func:`np_dtype` says."""
    if dtype == "bfloat16":
        wide: Array = stored.astype(np.uint32) << 16
        return wide.view(np.float32)
    if dtype == "float8e4m3fn":
        decoded: Array = _float8_values()[stored]
        return decoded
    return stored.astype(np.float32)


def from_float32(values: Array, dtype: str) -> Array:
    """The inverse of :func:`to_float32`: nearest, ties to even; out of range saturates in float8e4m3fn and integers."""
    values = np.asarray(values, np.float32)
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
        coded: Array = np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
        return coded
    if dtype == "float8e4m3fn":
        return _to_float8(values)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return np.clip(np.rint(values), limits.min, limits.max).astype(kind)
    return values.astype(kind)


@cache
def _float8_values() -> Array:
    """Value of every E4M3 (fn) byte: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity (Micikevicius 2022)."""
    byte = np.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    size = np.where((byte & 127) == 127, np.nan, size)
    values: Array = np.where(byte & 128, -size, size).astype(np.float32)
    return values


def _to_float8(values: Array) -> Array:
    positive = _float8_values()[:127].astype(np.float64)
    size = np.minimum(np.abs(values.astype(np.float64)), positive[-1])
    above = np.clip(np.searchsorted(positive, size), 1, 126)
    below = above - 1
    middle = (positive[above] + positive[below]) / 2
    # On the middle the even byte wins.
    byte = np.where((size > middle) | ((size == middle) & (above % 2 == 0)), above, below)
    byte = np.where(np.isnan(values), 127, byte)
    return np.where(np.signbit(values), byte | 128, byte).astype(np.uint8)
