"""edgelstm.kernels on a real GPU: the checks of benchmarks/gpu/own_checks.py, a few of each kind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgelstm.kernels.launch import no_gpu

CHECKS = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu" / "own_checks.py"


@pytest.mark.skipif(no_gpu() is not None, reason=f"needs a GPU: {no_gpu()}")
def test_every_kernel_against_float64() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch is one without CUDA")
    command = [sys.executable, str(CHECKS), "cuda", "--quick", "--seconds", "200"]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) > 20, done.stderr[-2000:]
    assert [row for row in rows if row["status"] != "passed"] == []
