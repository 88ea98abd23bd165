"""The C library through ctypes, built once for all tests (and kept while its sources stay the same)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import building
from building import missing
from edgelstm.dtypes import np_dtype
from edgelstm.engine.c_build import CLibrary, find_onnxruntime
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "plugins" / "c"
Array = np.ndarray[Any, Any]

OK, INVALID, ABI, LIBRARY, MODEL, FULL, BUSY, RUN, SNAPSHOT, OTHER_MODEL, MEMORY, DEVICE = range(12)


class Error(ctypes.Structure):
    _fields_ = (("code", ctypes.c_int32), ("what", ctypes.c_char * 508), ("hint", ctypes.c_char * 512))


class Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("abi", ctypes.c_uint32),
        ("streams", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("no_spin", ctypes.c_uint32),
        ("onnxruntime", ctypes.c_char_p),
        ("operators", ctypes.c_char_p),
        ("device", ctypes.c_char_p),
        ("tensorrt", ctypes.c_char_p),
    )


class Piece(ctypes.Structure):
    """edgelstm_input, edgelstm_output."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class Refused(Exception):
    """A code other than EDGELSTM_OK."""

    def __init__(self, code: int, error: Error) -> None:
        self.code, self.what, self.hint = code, error.what.decode(), error.hint.decode()
        assert error.code == code
        super().__init__(f"{code}: {self.what}. {self.hint}")


@cache
def built(*flags: str) -> CLibrary:
    """Skips the test where there is no compiler, or no library of ONNX Runtime."""
    if reason := missing():
        pytest.skip(reason)
    try:
        find_onnxruntime()
    except EdgeLstmError as error:
        pytest.skip(str(error))
    return building.c_library(*flags)


@cache
def functions() -> Any:
    # Other flags than usual come from test_c_sanitized.py, which runs the tests again.
    library = ctypes.CDLL(str(built(*os.environ.get("EDGELSTM_C_FLAGS", "").split()).path))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.edgelstm_open.argtypes = [ctypes.c_char_p, pointer, pointer, pointer]
    library.edgelstm_close.argtypes = library.edgelstm_stream_free.argtypes = [pointer]
    library.edgelstm_close.restype = library.edgelstm_stream_free.restype = None
    library.edgelstm_signature_json.argtypes = library.edgelstm_state_size.argtypes = [pointer]
    library.edgelstm_signature_json.restype = ctypes.c_char_p
    library.edgelstm_state_size.restype = size
    library.edgelstm_stream_new.argtypes = [pointer, pointer, pointer]
    library.edgelstm_step.argtypes = [pointer, size, pointer, pointer, pointer]
    library.edgelstm_reset.argtypes = [pointer, pointer]
    library.edgelstm_state_save.argtypes = [pointer, pointer, size, pointer]
    library.edgelstm_state_load.argtypes = [pointer, ctypes.c_char_p, size, pointer]
    return library


def refused(code: int, match: str, call: Callable[[], Any]) -> Refused:
    with pytest.raises(Refused, match=match) as caught:
        call()
    assert caught.value.code == code
    return caught.value


def checked(function: Any, *arguments: Any) -> None:
    error = Error()
    code = function(*arguments, ctypes.byref(error))
    if code != OK:
        raise Refused(code, error)


class Program:
    """As Runner, of the C library. Arrays by name, one stream each."""

    def __init__(self, model: Path, **options: Any) -> None:
        self.library, self.handle = functions(), ctypes.c_void_p()
        given: dict[str, Any] = {
            "size": ctypes.sizeof(Options), "abi": 1, "threads": 1, "onnxruntime": str(find_onnxruntime()), **options
        }  # fmt: skip
        held = Options(**{n: v.encode() if isinstance(v, str) else v for n, v in given.items()})
        checked(
            self.library.edgelstm_open, str(model).encode(), ctypes.byref(held), ctypes.byref(self.handle)
        )
        self.json = self.library.edgelstm_signature_json(self.handle).decode()
        self.signature = Signature.loads(self.json)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.library.edgelstm_close(self.handle)
        self.handle = ctypes.c_void_p()

    def stream(self) -> Stream:
        handle = ctypes.c_void_p()
        checked(self.library.edgelstm_stream_new, self.handle, ctypes.byref(handle))
        return Stream(self, handle)

    def step(self, frames: Sequence[tuple[Stream, Mapping[str, Array] | Array]]) -> list[dict[str, Array]]:
        specs, count = self.signature, len(frames)
        inputs: list[Array] = []
        results: list[dict[str, Array]] = []
        for _, frame in frames:
            named = frame if isinstance(frame, Mapping) else {specs.inputs[0].name: frame}
            inputs += [np.ascontiguousarray(named[t.name]) for t in specs.inputs]
            results.append({t.name: np.full(t.frame_shape, 9, np_dtype(t.dtype)) for t in specs.outputs})
        outputs = [result[t.name] for result in results for t in specs.outputs]
        checked(
            self.library.edgelstm_step,
            (ctypes.c_void_p * count)(*(stream.handle.value for stream, _ in frames)),
            count,
            (Piece * len(inputs))(*(Piece(a.ctypes.data, a.nbytes) for a in inputs)),
            (Piece * len(outputs))(*(Piece(a.ctypes.data, a.nbytes) for a in outputs)),
        )
        return results


class Stream:
    def __init__(self, program: Program, handle: ctypes.c_void_p) -> None:
        self.program, self.handle = program, handle

    def step(self, frame: Mapping[str, Array] | Array) -> dict[str, Array]:
        return self.program.step([(self, frame)])[0]

    def reset(self) -> None:
        checked(self.program.library.edgelstm_reset, self.handle)

    def save(self) -> bytes:
        size = self.program.library.edgelstm_state_size(self.program.handle)
        buffer = ctypes.create_string_buffer(size)
        checked(self.program.library.edgelstm_state_save, self.handle, buffer, size)
        return buffer.raw

    def load(self, data: bytes) -> None:
        checked(self.program.library.edgelstm_state_load, self.handle, data, len(data))

    def free(self) -> None:
        self.program.library.edgelstm_stream_free(self.handle)
