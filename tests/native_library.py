"""The library of our operators for ONNX Runtime, built once for all tests (and kept while its sources stay the same)."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx
import onnxruntime as ort
import pytest

from building import alone
from edgelstm.engine.native_build import build_native, find_compiler, sources_hash
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.native.library import FILE_NAME, VARIABLE, machine_name
from edgelstm.runtime.onnxruntime import OrtProgram

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "plugins" / "onnxruntime"


def _naive() -> Any:
    spec = importlib.util.spec_from_file_location("naive_operators", SOURCES / "naive.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


#: The operators in NumPy, beside their sources.
naive = _naive()


@cache
def missing() -> str | None:
    """Why it can't be built here."""
    try:
        find_compiler(None, machine_name())
    except EdgeLstmError as error:
        return str(error)  # no C++ compiler is here
    return None


@cache
def built() -> Path:
    """Its path; skips the test where there is no compiler."""
    if reason := missing():
        pytest.skip(reason)
    path = ROOT / "build" / "native-tests" / sources_hash(SOURCES)[:16] / FILE_NAME
    with alone(path):
        if not path.is_file():
            build_native(path, source=ROOT / "plugins")
    return path


def opened(model: bytes | Path, library: Path, *, native: bool | None = None, **options: Any) -> OrtProgram:
    """A program whose cells are our operators, where the graph has some."""
    with patch.dict(os.environ, {VARIABLE: str(library), "EDGELSTM_NATIVE": ""}):
        return OrtProgram(model, native=native, **options)


def session(model: onnx.ModelProto | bytes, library: Path, threads: int = 1) -> ort.InferenceSession:
    """ONNX Runtime with our operators."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":  # before the tests, beside lint
    print(missing() or f"{built().name}: built")
