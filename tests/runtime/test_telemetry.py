"""ONNX Runtime from 1.29 on reports to Microsoft from Linux too, and keeps what it could not send. Not where edgelstm runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgelstm import export

MODEL = Path(__file__).resolve().parents[2] / "examples" / "sensor_lstm" / "model.safetensors"

OPENED = """
import numpy as np, os, sys
from edgelstm import Runner
runner = Runner.open(sys.argv[1])
runner.stream("a").step(np.zeros(runner.signature.inputs[0].frame_shape, np.float32))
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize("given", [None, "0"])
def test_nothing_is_kept_to_be_reported_unless_asked(tmp_path: Path, given: str | None) -> None:
    export(MODEL, tmp_path / "model.onnx")
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    done = subprocess.run(
        [sys.executable, "-c", OPENED, str(tmp_path / "model.onnx")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [given or "1"]
    if given is None:
        assert not list(tmp_path.rglob("*onnxruntime*"))
