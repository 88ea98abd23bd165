"""A session of ONNX Runtime opened by our library: a step is one call through ctypes with one argument.

ONNX Runtime's own Python interface takes longer over a call than a small cell takes to compute. The options are those of
:func:`edgelstm.runtime.session.open_session`.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.native.library import BUILD_HINT
from edgelstm.runtime.protocol import Array

#: TensorProto's numbers of the types a Signature can name.
ELEMENTS = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "bfloat16": 16, "float8e4m3fn": 17,
}  # fmt: skip
#: The same of what is lent; bfloat16 is held as uint16.
LENT = {"f4": 1, "i1": 3, "u2": 16}
#: Name, dtype as in a Signature, and the memory that is read or written.
Bound = tuple[str, str, Array]
#: Contiguous float32, the lowest and the highest number that are good there, both finite.
Piece = tuple[Array, float, float]
#: What a step gives that was not done: there is NaN or infinity in what it takes; and one that was: what it wrote is bad.
NOT_FINITE, IS_BAD = 2, 3


class NativeSession:
    """See the module. matrices: what is lent to the library while it opens the graph, by number. onnxruntime: the module whose
    library is to run it. Raises EdgeLstmError where it can't be opened: ONNX Runtime 1.22 and earlier has no place for sessions beside
    those of its Python module."""

    def __init__(
        self,
        data: bytes,
        matrices: Mapping[int, Array],
        library: Path,
        onnxruntime: Any,
        threads: int,
        spin: bool,
    ) -> None:
        self._library = load(library, onnxruntime)
        handle = ctypes.c_void_p()
        with lent(self._library, matrices):
            failed = self._library.edgelstm_open(data, len(data), threads, int(spin), ctypes.byref(handle))
        if failed:
            raise EdgeLstmError("ONNX Runtime can't open the graph with our operators", found=self._message())
        self._handle = handle
        self._close = weakref.finalize(self, self._library.edgelstm_close, handle)

    @property
    def can_look(self) -> bool:
        """Whether :meth:`Steps.look` is there: a library that was built earlier lacks it."""
        return hasattr(self._library, "edgelstm_watch")

    def bind(self, inputs: Sequence[Bound], outputs: Sequence[Bound], watched: Array | None = None) -> Steps:
        """A step over fixed memory, which it keeps; it outlives :meth:`close`. watched: float32, among the inputs."""
        tensors = (*inputs, *outputs)
        count = len(tensors)
        arrays = [array for _, _, array in tensors]
        dims = [size for array in arrays for size in array.shape]
        call = ctypes.c_void_p()
        failed = self._library.edgelstm_bind(
            self._handle,
            len(inputs),
            len(outputs),
            (ctypes.c_char_p * count)(*(name.encode() for name, _, _ in tensors)),
            (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays)),
            (ctypes.c_size_t * count)(*(array.nbytes for array in arrays)),
            (ctypes.c_int * count)(*(ELEMENTS[dtype] for _, dtype, _ in tensors)),
            (ctypes.c_size_t * count)(*(array.ndim for array in arrays)),
            (ctypes.c_int64 * len(dims))(*dims),
            None if watched is None else watched.ctypes.data,
            0 if watched is None else watched.size,
            ctypes.byref(call),
        )
        if failed:
            raise EdgeLstmError("ONNX Runtime refuses a tensor", found=self._message())
        return Steps(self._library, call, arrays)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], like: Sequence[Array]) -> list[Array]:
        """Outputs ``names`` for ``feeds``, in arrays as ``like``; for a comparison, since it binds anew."""
        results = [np.zeros_like(array) for array in like]
        steps = self.bind(
            [(name, str(array.dtype), array) for name, array in feeds.items()],
            [(name, str(array.dtype), array) for name, array in zip(names, results, strict=True)],
        )
        if steps.run():
            raise EdgeLstmError("ONNX Runtime failed in a step", found=self._message())
        return results

    def failure(self) -> str:
        """What the last step of this thread that failed said."""
        return self._message()

    def close(self) -> None:
        """Free what no step keeps; calling it again does nothing."""
        self._close()

    def _message(self) -> str:
        text: bytes = self._library.edgelstm_message()
        return (text.decode(errors="replace").strip().splitlines() or ["no reason given"])[0]


class Steps:
    """A step over fixed memory; it has to be kept as long as one of its functions.

    run: 0 when done; :data:`IS_BAD` when done and what it wrote is bad, as far as it looks; else :meth:`NativeSession.failure` says
    why it failed. run_watched: the same, but :data:`NOT_FINITE`, and nothing is done, where what is watched holds NaN or infinity.
    """

    def __init__(self, library: Any, call: ctypes.c_void_p, memory: list[Array]) -> None:
        self._library, self._call = library, call
        self._looked: Sequence[Piece] = ()
        self.run: Callable[[], int] = partial(library.edgelstm_run, call.value)
        self.run_watched: Callable[[], int] = partial(library.edgelstm_run_watched, call.value)
        weakref.finalize(self, _unbind, library, call, memory)

    def look(self, pieces: Sequence[Piece]) -> None:
        """Look at these, right after each step from here on, for NaN, infinity, and numbers out of their bounds."""
        count = len(pieces)
        failed = self._library.edgelstm_watch(
            self._call,
            count,
            (ctypes.c_void_p * count)(*(array.ctypes.data for array, _, _ in pieces)),
            (ctypes.c_int64 * count)(*(array.size for array, _, _ in pieces)),
            (ctypes.c_float * count)(*(low for _, low, _ in pieces)),
            (ctypes.c_float * count)(*(high for _, _, high in pieces)),
        )
        if failed:
            raise MemoryError
        self._looked = pieces  # the call points there


def load(path: Path, onnxruntime: Any) -> Any:
    """The library's functions, once it knows ONNX Runtime. Raises EdgeLstmError where it does not load."""
    try:
        library = _functions(path)
        # How the library learns which ONNX Runtime it is in. It stays loaded, as it would not with the options alone.
        onnxruntime.SessionOptions().register_custom_ops_library(str(path))
        return library
    except Exception as error:  # ONNX Runtime raises several unrelated classes
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EdgeLstmError(
            f"library of operators {path} does not load", found=text, hint=BUILD_HINT
        ) from error


@contextmanager
def lent(library: Any, matrices: Mapping[int, Array]) -> Iterator[None]:
    """The kernels of a session that is opened inside find these matrices."""
    for number, matrix in matrices.items():
        library.edgelstm_lend(number, matrix.ctypes.data, LENT[matrix.dtype.str[1:]], *matrix.shape)
    try:
        yield
    finally:
        for number in matrices:
            library.edgelstm_lend(number, None, 0, 0, 0)


def _unbind(library: Any, call: ctypes.c_void_p, memory: list[Array]) -> None:
    """``memory``: what the call points to lives as long as it."""
    library.edgelstm_unbind(call)


def _functions(path: Path) -> Any:
    """The library with its functions' types. Raises OSError or AttributeError for another one."""
    library = ctypes.CDLL(str(path))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.edgelstm_message.restype = ctypes.c_char_p
    library.edgelstm_open.argtypes = [ctypes.c_char_p, size, ctypes.c_int, ctypes.c_int, pointer]
    library.edgelstm_lend.argtypes = [ctypes.c_int64, pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    library.edgelstm_lend.restype = None
    library.edgelstm_close.argtypes = [pointer]
    library.edgelstm_close.restype = None
    library.edgelstm_bind.argtypes = [pointer, size, size, *[pointer] * 7, ctypes.c_int64, pointer]
    library.edgelstm_unbind.argtypes = [pointer]
    library.edgelstm_unbind.restype = None
    library.edgelstm_run.argtypes = library.edgelstm_run_watched.argtypes = [pointer]
    if hasattr(library, "edgelstm_watch"):
        library.edgelstm_watch.argtypes = [pointer, size, *[pointer] * 4]
    return library
