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

import building
from building import missing
from edgelstm.runtime.native.library import VARIABLE
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
def built() -> Path:
    """Its path; skips the test where there is no compiler."""
    if reason := missing():
        pytest.skip(reason)
    return building.operators()


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
