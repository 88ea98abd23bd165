"""The C library built to look at every access to memory and every undefined step, and at what two threads share."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import c_library
import zoo
from edgelstm.engine.c_build import find_onnxruntime

HERE = Path(__file__).parent


@pytest.mark.thorough
@pytest.mark.parametrize("looks", ["address,undefined", "thread"])
def test_nothing_is_found(looks: str, tmp_path: Path) -> None:
    flags = [f"-fsanitize={looks}", "-fno-sanitize-recover=all", "-g", "-O1"]
    library = c_library.built(*flags)
    command = [
        "c++", "-std=c++17", *flags, str(HERE / "stress.cpp"), "-o", str(tmp_path / "stress"), *library.cflags, *library.libs, "-pthread",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "san" in done.stderr.partition("cannot find")[2]:
        pytest.skip("this compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    zoo.lstm().save(tmp_path / "model.onnx")
    done = subprocess.run(
        [tmp_path / "stress", tmp_path / "model.onnx", find_onnxruntime(), "300"],
        capture_output=True, text=True, check=False, timeout=250,
        env={**os.environ, "TSAN_OPTIONS": "ignore_noninstrumented_modules=1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "good\n"


def test_steps_allocate_nothing_once_their_streams_were_stepped(tmp_path: Path) -> None:
    library = c_library.built()
    source, program = HERE / "allocations.cpp", tmp_path / "allocations"
    command = ["c++", "-std=c++17", str(source), "-o", str(program), *library.cflags, *library.libs, "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    zoo.lstm().save(tmp_path / "model.onnx")
    done = subprocess.run(
        [program, tmp_path / "model.onnx", find_onnxruntime()], capture_output=True, text=True, check=True, timeout=60
    )  # fmt: skip
    first, after = map(int, done.stdout.split())
    assert first > 0  # it counts
    assert after == 0
