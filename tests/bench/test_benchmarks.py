"""benchmarks/: that `make bench` would run. The figures themselves are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.thorough
def test_memory_stays_flat_over_100_000_steps(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = run("memory", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "memory.json").read_text())
    assert len(data["figures"]) == 2
    for figure in data["figures"]:
        assert figure["reached"], figure


def test_an_unknown_part_is_named() -> None:
    pytest.importorskip("torch")
    done = run("memroy")
    assert done.returncode == 2
    assert "unknown part memroy; there are conv_lstm" in done.stderr
