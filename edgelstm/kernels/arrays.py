"""Arrays of other libraries on the GPU as addresses, shapes and strides; and the stream their work is on."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgelstm.errors import EdgeLstmError

_ON_GPU = {2, 13}  # DLPack's kDLCUDA, kDLCUDAManaged


@dataclass(frozen=True)
class View:
    """An array on a GPU. strides: in elements. dtype: such as "float16". keep: what holds the memory."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: int
    keep: Any = field(repr=False, default=None)

    @property
    def contiguous(self) -> bool:
        """Whether elements lie in the order of their indices."""
        return self.lies_as(contiguous_strides(self.shape))

    def lies_as(self, strides: Sequence[int]) -> bool:
        """Whether its strides are these, where it has more than one element along an axis."""
        axes = zip(self.shape, self.strides, strides, strict=True)
        return math.prod(self.shape) == 0 or all(a == b for n, a, b in axes if n > 1)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """In elements, the last axis fastest."""
    return tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))


def is_torch(value: Any) -> bool:
    """Whether it is a tensor of torch, which need not be there."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def on_gpu(value: Any) -> bool:
    """Whether its memory is a GPU's: torch, ``__cuda_array_interface__`` or DLPack."""
    if is_torch(value):
        return bool(value.is_cuda)
    if hasattr(value, "__cuda_array_interface__"):
        return True
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in _ON_GPU


def view(label: str, value: Any, stream: int) -> View:
    """``value`` without a copy. What comes on ``stream`` waits for what its maker has put on its own.

    Raises EdgeLstmError, with the label, for what is no array on a GPU.
    """
    if is_torch(value):
        if not value.is_cuda:
            raise EdgeLstmError(label, found=f"a tensor on {value.device}", expected="one on the GPU")
        dtype = str(value.dtype).removeprefix("torch.")
        return View(
            value.data_ptr(), tuple(value.shape), tuple(value.stride()), dtype, value.device.index, value
        )
    if not on_gpu(value):
        raise EdgeLstmError(
            label,
            found=type(value).__name__,
            expected="an array on the GPU: torch's, CuPy's, or any with DLPack or __cuda_array_interface__",
        )
    try:
        from cuda.core.utils import StridedMemoryView
    except ImportError as error:
        raise EdgeLstmError(
            "arrays of other libraries than torch need cuda-core", hint="pip install 'edgelstm[gpu]'"
        ) from error
    try:
        seen = StridedMemoryView.from_any_interface(value, stream_ptr=stream)
    except Exception as error:  # of the library that made the array, or of cuda-core
        raise EdgeLstmError(f"{label} can't be read", found=f"{type(value).__name__}: {error}") from error
    shape = tuple(int(n) for n in seen.shape)
    strides = contiguous_strides(shape) if seen.strides is None else tuple(int(n) for n in seen.strides)
    return View(int(seen.ptr), shape, strides, str(seen.dtype), int(seen.device_id), (value, seen))


def stream_handle(stream: Any, like: Any) -> int:
    """The driver's handle of a stream.

    stream: a number, or an object of torch, CuPy or cuda-core; None: the one that is current in the library of ``like``,
    and for any other library an EdgeLstmError, since nothing says what its work is on.
    """
    if stream is None:
        torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
        if is_torch(like):
            assert torch is not None
            return int(torch.cuda.current_stream(like.device).cuda_stream)
        if cupy is not None and isinstance(like, cupy.ndarray):
            return int(cupy.cuda.get_current_stream().ptr)
        raise EdgeLstmError(
            f"no stream is given, and {type(like).__name__} does not say which one is current",
            expected="stream=, a handle or a stream of torch, CuPy or cuda-core",
        )
    if isinstance(stream, int):
        return stream
    for name in ("cuda_stream", "ptr", "handle"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    raise EdgeLstmError(
        "stream", found=type(stream).__name__, expected="a handle, or a stream of torch, CuPy or cuda-core"
    )
