"""Arrays on the GPU, to and from other libraries: ``__cuda_array_interface__`` (version 3) and DLPack."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.cuda import Cuda
from edgelstm.runtime.protocol import Array

_ON_GPU = {2, 13}  # DLPack's kDLCUDA, kDLCUDAManaged


class DeviceArray:
    """A C-contiguous array in the memory of a GPU: an output of a program opened with ``outputs="device"``, or a frame.

    PyTorch, CuPy, JAX and others take it as it is (``torch.as_tensor(y, device="cuda")``, ``cupy.asarray(y)``). Like
    every output it is valid until the next step, and so is what shares its memory.

    shape, dtype: as NumPy's; bfloat16 is seen as its bits (uint16), float8e4m3fn as uint8. pointer: its address.
    """

    __slots__ = ("_cuda", "_keep", "dtype", "pointer", "shape")

    def __init__(
        self, cuda: Cuda, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], keep: Any = None
    ) -> None:
        self._cuda = cuda
        self._keep = keep
        self.pointer = pointer
        self.shape = shape
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._check_open()
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": None,  # the step has returned, so the values are there
        }

    def __dlpack__(self, **options: Any) -> Any:
        self._check_open()
        core = _cuda_core()
        with self._cuda:
            buffer = core.Buffer.from_handle(self.pointer, max(self.nbytes, 1), owner=self)
            view = core.utils.StridedMemoryView.from_buffer(buffer, self.shape, dtype=self.dtype)
            options.pop("copy", None)
            options.pop("dl_device", None)
            return view.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._cuda.index

    def row(self, index: int) -> DeviceArray:
        """One row of it: the array at ``index`` of its first axis."""
        shape = self.shape[1:]
        size = math.prod(shape) * self.dtype.itemsize
        return DeviceArray(self._cuda, self.pointer + index * size, shape, self.dtype, self._keep)

    def used_on(self, stream: int) -> None:
        """Let the next step wait for what reads this array on another stream, given by its handle.

        Needed where a reader works on a stream that does not wait for the default one, and has not made the next frame on it too:
        ``y.used_on(torch.cuda.current_stream().cuda_stream)`` after the last kernel that reads ``y``.
        """
        self._check_open()
        with self._cuda as cuda:
            cuda.follow(stream)

    def copy(self) -> Array:
        """Its values in a NumPy array of their own."""
        self._check_open()
        array: Array = np.empty(self.shape, self.dtype)
        with self._cuda as cuda:
            cuda.copy(array.ctypes.data, self.pointer, self.nbytes)
            cuda.wait()
        return array

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}{list(self.shape)}, cuda:{self._cuda.index})"

    def _check_open(self) -> None:
        if self._cuda.closed:
            raise EdgeLstmError(
                "the program of this array is closed: its memory is gone", hint="Copy it before"
            )


def as_device_array(cuda: Cuda, value: Any) -> DeviceArray | None:
    """``value`` if it is an array on the GPU, without a copy; None if it is anything else.

    What comes on our stream waits for what the array's maker has put on its own. Raises EdgeLstmError for an array on another
    GPU, and for one that is not C-contiguous.
    """
    if isinstance(value, DeviceArray):
        value._check_open()
        if value._cuda is cuda:
            return value
    device = getattr(value, "__dlpack_device__", None)
    if device is not None:
        if int(device()[0]) not in _ON_GPU:
            return None
    elif not hasattr(value, "__cuda_array_interface__"):
        return None
    bits = str(getattr(value, "dtype", "")) == "torch.bfloat16"
    try:
        if bits:
            # NumPy has no such type, nor have the interfaces below; a Signature's bfloat16 is its bits, too.
            value = value.view(sys.modules["torch"].int16)
        with cuda:
            view = _cuda_core().utils.StridedMemoryView.from_any_interface(value, stream_ptr=cuda.stream)
    except EdgeLstmError:
        raise
    except Exception as error:  # of the library that made the array, or of cuda-core
        raise EdgeLstmError(
            "a frame on the GPU can't be read",
            found=f"{type(value).__name__}: {error}",
            expected="__cuda_array_interface__ or DLPack, of a type that NumPy has",
            hint="See bfloat16 of other libraries than PyTorch as its bits, uint16",
        ) from error
    if view.device_id != cuda.index:
        raise EdgeLstmError(
            "frame on another GPU", found=f"cuda:{view.device_id}", expected=f"cuda:{cuda.index}"
        )
    shape = tuple(int(d) for d in view.shape)
    if view.strides is not None and tuple(view.strides) != _contiguous(shape) and math.prod(shape) > 1:
        raise EdgeLstmError(
            "frame on the GPU is not contiguous",
            found=f"strides {tuple(view.strides)}",
            expected=f"{_contiguous(shape)}",
            hint="Make it so first: tensor.contiguous()",
        )
    dtype = np_dtype("bfloat16") if bits else np.dtype(view.dtype)
    return DeviceArray(cuda, int(view.ptr), shape, dtype, view)


def device_output(cuda: Cuda, pointer: int, shape: tuple[int, ...], dtype: str) -> DeviceArray:
    """A view of our own memory; ``dtype`` as in a Signature."""
    return DeviceArray(cuda, pointer, shape, np_dtype(dtype))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements."""
    return tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))


def _cuda_core() -> Any:
    try:
        import cuda.core
        import cuda.core.utils
    except ImportError as error:
        raise EdgeLstmError(
            "arrays of other libraries on the GPU need cuda-core, which is not installed",
            hint="pip install 'edgelstm[gpu]' (ONNX Runtime) or 'edgelstm[tensorrt]'",
        ) from error
    return cuda.core
