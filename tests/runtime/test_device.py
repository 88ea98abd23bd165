"""Which backend opens what, and what a machine without it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import zoo
from edgelstm import machine
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime import open_program
from edgelstm.runtime.device import device_kind
from edgelstm.runtime.onnxruntime import OrtProgram


@pytest.fixture
def path(tmp_path: Path) -> Path:
    zoo.lstm().save(tmp_path / "lstm.onnx")
    return tmp_path / "lstm.onnx"


def test_names_of_devices() -> None:
    kinds = [device_kind(name) for name in ("cpu", "cuda", "cuda:0", "cuda:12")]
    assert kinds == [("cpu", 0), ("cuda", 0), ("cuda", 0), ("cuda", 12)]
    for name in ("gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "CPU", "", "cuda:1234"):
        with pytest.raises(EdgeLstmError, match="expected cpu, cuda or cuda:N"):
            device_kind(name)


def test_a_step_graph_runs_on_the_cpu_by_itself(path: Path) -> None:
    program = open_program(path)
    assert isinstance(program, OrtProgram)
    program.close()


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(
        EdgeLstmError, match=r"can't run .*model\.pt: found suffix \.pt; expected \.onnx or \.plan"
    ):
        open_program(tmp_path / "model.pt")


def test_onnxruntime_without_the_provider(path: Path) -> None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime is for GPUs")
    with pytest.raises(
        EdgeLstmError, match=r"has no CUDA provider: found providers .*pip install 'edgelstm\[gpu\]'"
    ):
        open_program(path, "cuda")


def test_onnxruntime_for_gpus_without_a_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    if machine.cuda() is not None:
        pytest.skip("a driver is here")
    pytest.importorskip("cuda.bindings")
    available: list[Any] = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: available)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    with pytest.raises(EdgeLstmError, match="there is no NVIDIA"):
        open_program(path, "cuda:1")
