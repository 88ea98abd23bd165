"""The C library with other releases of ONNX Runtime, and on Arm in an emulator. Each is fetched from its registry; without one, the
test is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import c_library
import native_library
import zoo
from c_library import Program
from edgelstm.engine.c_build import build_c
from edgelstm.runtime import Runner
from edgelstm.runtime.native.library import machine_name

HERE = Path(__file__).parent
FETCHED = c_library.ROOT / "build" / "onnxruntimes"


def from_pypi(version: str, machine: str) -> Path:
    """The library in PyPI's wheel; kept in build/."""
    folder = FETCHED / f"{version}-{machine}"
    if not folder.is_dir():
        platforms = [f"--platform=manylinux_2_{k}_{machine}" for k in (27, 28)]
        wheels = FETCHED / "wheels"
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=312", *platforms,
            f"--dest={wheels}", f"onnxruntime=={version}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        if done.returncode:
            pytest.skip(f"onnxruntime {version} can't be fetched from PyPI")
        (wheel,) = wheels.glob(f"onnxruntime-{version}-*_{machine}.whl")
        with zipfile.ZipFile(wheel) as packed:
            (name,) = [n for n in packed.namelist() if "/libonnxruntime.so" in n]
            packed.extract(name, folder)
    (library,) = folder.rglob("libonnxruntime.so*")
    return library


def from_npm(version: str, machine: str) -> Path:
    """Of 1.18 to 1.20: PyPI's wheels have no library by itself."""
    folder = FETCHED / f"{version}-npm"
    if not folder.is_dir():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not here")
        FETCHED.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [npm, "pack", "--silent", f"onnxruntime-node@{version}"], cwd=FETCHED, capture_output=True, text=True, check=False, timeout=200
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"onnxruntime-node {version} can't be fetched from npm")
        shutil.unpack_archive(FETCHED / f"onnxruntime-node-{version}.tgz", folder, filter="data")
    return next(folder.rglob(f"linux/{machine}/libonnxruntime.so.{version}"))


LIBRARIES = {
    "1.18.0": lambda: from_npm("1.18.0", "x64"),
    "1.20.1": lambda: from_npm("1.20.1", "x64"),
    "1.21.1": lambda: from_pypi("1.21.1", "x86_64"),
    "1.23.2": lambda: from_pypi("1.23.2", "x86_64"),
    "1.26.0": lambda: from_pypi("1.26.0", "x86_64"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("version", list(LIBRARIES))
def test_other_releases_give_the_same(version: str, tmp_path: Path) -> None:
    """As the Python Runner on the release that is here, to float32's rounding; with our operators too."""
    if machine_name() != "x86_64":
        pytest.skip("the libraries that are fetched are for x86-64")
    runtime, operators = LIBRARIES[version](), tmp_path / "operators.so"
    shutil.copyfile(native_library.built(), operators)  # a file serves one ONNX Runtime of a process
    for name, step in {
        "lstm": zoo.lstm(),
        "conv_lstm": zoo.conv_lstm(),
        "two_inputs": zoo.two_inputs(),
    }.items():
        plain, lowered = tmp_path / f"{name}.onnx", tmp_path / f"{name}.native.onnx"
        step.save(plain)
        models = [plain]
        if name == "lstm":
            done = subprocess.run(
                [sys.executable, "-m", "edgelstm", "lower", plain, "--runtime", "native", "-o", lowered], capture_output=True, text=True, check=False,
                env={**os.environ, "EDGELSTM_NATIVE": "", "EDGELSTM_NATIVE_LIBRARY": str(native_library.built())},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            models.append(lowered)
        for model in models:
            rng = np.random.default_rng(1)
            with Runner.open(plain, streams=3, threads=1, native=False) as runner:
                for n in "abc":
                    runner.stream(n)
                with Program(
                    model,
                    streams=3,
                    onnxruntime=str(runtime),
                    operators=str(operators) if model is lowered else "",
                ) as program:
                    ours = {n: program.stream() for n in "abc"}
                    for k in range(30):
                        frames = {
                            n: {
                                t.name: rng.normal(size=t.frame_shape).astype(t.dtype)
                                for t in step.signature.inputs
                            }
                            for n in ("abc", "a", "ac")[k % 3]
                        }
                        expected = runner.step(frames)
                        for n, found in zip(
                            frames, program.step([(ours[n], f) for n, f in frames.items()]), strict=True
                        ):
                            for output, value in found.items():
                                np.testing.assert_allclose(value, expected[n][output], rtol=2e-5, atol=2e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("version", ["1.18.0", "1.26.0"])
def test_on_arm_in_an_emulator(version: str, tmp_path: Path) -> None:
    """Built for aarch64, with a real ONNX Runtime for it: all functions again and again. 1.31.1 is not among the releases, since qemu 7.2
    itself ends when it loads it, with nothing of ours."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("no compiler and emulator for aarch64: apt install g++-aarch64-linux-gnu qemu-user")
    runtime = from_npm(version, "arm64") if version < "1.21" else from_pypi(version, "aarch64")
    library = build_c(tmp_path / "lib", source=c_library.ROOT / "plugins", target_machine="aarch64")
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        str(HERE / "stress.cpp"),
        "-o",
        str(tmp_path / "stress"),
        *library.cflags,
        *library.libs,
        "-pthread",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    zoo.lstm().save(tmp_path / "model.onnx")
    done = subprocess.run(
        [emulator, "-L", "/usr/aarch64-linux-gnu", tmp_path / "stress", tmp_path / "model.onnx", runtime, "30"],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "good\n"
