"""FusedGates's kernel code on the host, for the tests of edgelstm.kernels: NumPy arrays seen as arrays of a GPU would be."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.kernels.arrays import View

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins"))

import host_library

compile_host_loop = host_library.compile_host_loop


def seen(array: Any, dtype: str | None = None) -> View:
    """A NumPy array as a view; bfloat16 by its name."""
    strides = tuple(s // array.itemsize for s in array.strides)
    return View(array.ctypes.data, array.shape, strides, dtype or str(array.dtype), 0, array)


def fields(struct: Any) -> dict[str, Any]:
    """A ctypes struct as plain values: padding bytes do not count."""
    return {
        name: fields(value) if isinstance(value := getattr(struct, name), ctypes.Structure) else value
        for name, _ in struct._fields_
    }


def channels_last(array: Any) -> Any:
    """The same values, the channels side by side."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)
