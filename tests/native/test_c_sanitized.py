"""The C library built to look at every access to memory and every undefined step, and at what two threads share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import c_library
import zoo
from edgelstm.engine.c_build import find_onnxruntime

HERE = Path(__file__).parent
KINDS = ["address,undefined", "thread"]


def flags_of(looks: str) -> list[str]:
    return [f"-fsanitize={looks}", "-fno-sanitize-recover=all", "-g", "-O1"]


def test_streams_come_and_go_while_threads_use_them(tmp_path: Path) -> None:
    """The program for the builds below, with the usual one."""
    library, program = c_library.built(), tmp_path / "stress"
    command = [
        "c++",
        "-std=c++17",
        str(HERE / "stress.cpp"),
        "-o",
        str(program),
        *library.cflags,
        *library.libs,
    ]
    subprocess.run([*command, "-pthread"], capture_output=True, check=True)
    zoo.lstm().save(tmp_path / "model.onnx")
    command = [str(program), str(tmp_path / "model.onnx"), str(find_onnxruntime()), "900"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "good\n", done.stdout + done.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("looks", KINDS)
def test_nothing_is_found(looks: str, tmp_path: Path) -> None:
    flags = flags_of(looks)
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


@pytest.mark.thorough
@pytest.mark.parametrize("looks", KINDS)
def test_nothing_is_found_while_python_calls_it(looks: str) -> None:
    """The tests by ctypes and the contract again, in a Python that loaded the sanitizer's library first."""
    first = {"address,undefined": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}[looks]
    found = [
        subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip() for name in first
    ]  # fmt: skip
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip("this compiler has no sanitizers")
    c_library.built(*flags_of(looks))
    # What Python itself leaves behind at its end is not ours. Threads of code that was not built with the sanitizer say nothing.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "ignore_noninstrumented_modules=1"}
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout", "500", "-k", "not fuzz and (native or library)",
            "tests/native/test_c_errors.py", "tests/native/test_c_interface.py", "tests/native/test_c_snapshots.py", "tests/native/test_c_gpu.py", "tests/contract",
        ],
        cwd=c_library.ROOT, capture_output=True, text=True, check=False, timeout=550,
        env={**os.environ, **options, "LD_PRELOAD": ":".join(found), "EDGELSTM_C_FLAGS": " ".join(flags_of(looks))},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"\d{2,} passed", done.stdout)


@pytest.mark.thorough
def test_valgrind_finds_nothing(tmp_path: Path) -> None:
    """No access outside of memory or to what was not written, and nothing left at the end."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not here: apt install valgrind")
    library, program = c_library.built(), tmp_path / "stress"
    command = [
        "c++",
        "-std=c++17",
        "-g",
        str(HERE / "stress.cpp"),
        "-o",
        str(program),
        *library.cflags,
        *library.libs,
        "-pthread",
    ]
    subprocess.run(command, capture_output=True, check=True)
    zoo.lstm().save(tmp_path / "model.onnx")
    done = subprocess.run(
        [
            "valgrind", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect",
            f"--suppressions={HERE / 'onnxruntime.supp'}", program, tmp_path / "model.onnx", find_onnxruntime(), "20",
        ],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert "good" in done.stdout


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
