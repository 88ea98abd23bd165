"""Whether a step is computed on one thread or on all (plugins/onnxruntime/choice.h): the choice, of times that are made up."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import native_library
from edgelstm.engine.native_build import find_compiler
from edgelstm.runtime.native.library import machine_name


def test_the_way_that_is_faster_most_of_the_time_is_found_and_kept(tmp_path: Path) -> None:
    if reason := native_library.missing():
        pytest.skip(reason)
    source, program = Path(__file__).with_name("native_choice.cpp"), tmp_path / "choice"
    command = [*find_compiler(None, machine_name()), "-std=c++17", "-O1", f"-I{native_library.SOURCES}"]
    made = subprocess.run(
        [*command, str(source), "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("good\n")
