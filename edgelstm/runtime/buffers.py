"""How rows lie in the memory of a GPU, and whether they fit in."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.runtime.cuda import Cuda
from edgelstm.runtime.protocol import Array

#: Bytes: TensorRT asks for addresses on such a boundary, and kernels that load vectors rely on it.
ALIGNMENT = 256


def row_bytes(spec: TensorSpec | StateSpec) -> int:
    """Bytes of one row."""
    return math.prod(spec.frame_shape) * np_dtype(spec.dtype).itemsize


def stride(spec: TensorSpec | StateSpec, alone: bool) -> int:
    """Bytes from row to row: rows that go into a call ``alone`` lie on boundaries, others side by side."""
    size = row_bytes(spec)
    return -(-size // ALIGNMENT) * ALIGNMENT if alone else size


def granule(signature: Signature, alone: bool) -> int:
    """Rows from one that lies on a boundary to the next, for all tensors at once."""
    specs: tuple[TensorSpec | StateSpec, ...] = (*signature.inputs, *signature.outputs, *signature.states)
    # All are powers of two, so the largest is a multiple of each.
    return max(ALIGNMENT // math.gcd(ALIGNMENT, stride(spec, alone)) for spec in specs)


def row_of(data: Array, row: int, step: int, spec: TensorSpec) -> Array:
    """Row ``row`` of a buffer of bytes, ``step`` bytes a row, as the array it holds."""
    view: Array = data[row * step : row * step + row_bytes(spec)].view(np_dtype(spec.dtype))
    return view.reshape(spec.frame_shape)


def rows_of(data: Array, first: int, count: int, spec: TensorSpec) -> Array:
    """Rows [first, first + count) of a buffer whose rows lie side by side, as one array."""
    size = row_bytes(spec)
    view: Array = data[first * size : (first + count) * size].view(np_dtype(spec.dtype))
    return view.reshape(count, *spec.frame_shape)


def buffer_bytes(signature: Signature, rows: int, alone: bool) -> int:
    """Bytes on the GPU for both sides of the states, the frames and the outputs of ``rows`` rows."""
    both = 2 * sum(stride(s, alone) for s in signature.states)
    return rows * (both + sum(stride(t, alone) for t in (*signature.inputs, *signature.outputs)))


def check_memory(cuda: Cuda, needs: Mapping[str, int]) -> None:
    """Raise EdgeLstmError, saying how much is needed for what, when the GPU has less free memory. In its context."""
    needed, free = sum(needs.values()), cuda.free_memory()
    if needed > free:
        parts = ", ".join(f"{size_text(size)} {what}" for what, size in needs.items())
        raise EdgeLstmError(
            f"the memory of {cuda.name} is too small",
            found=f"{size_text(free)} free",
            expected=f"{size_text(needed)}: {parts}",
            hint="Use fewer streams, a smaller precision, or end other programs on this GPU",
        )


def size_text(size: int) -> str:
    """Bytes for people."""
    if size >= 2**30:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{-(-size // 1024)} KiB"
