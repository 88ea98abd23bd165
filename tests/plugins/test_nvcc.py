"""nvcc builds the FusedGates kernels for every architecture: no spills, no stack, wide accesses.

Jetson Orin's by default; EDGELSTM_CUDA_ARCHS="75,80,..." names others (`make plugin-check`: all that are supported).
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from edgelstm.machine import cuda_compiler

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
ARCHS = os.environ.get("EDGELSTM_CUDA_ARCHS", "87").split(",")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
#: Of a kernel's mangled name: type of z (0 float, 1 half, 7 bf16), elements of a thread, walk (0 flat, 1 vectors, 2 channels).
KERNEL = re.compile(r"KernelILNS_8DataTypeE(\d)ELi(\d)ELNS_4WalkE(\d)E")


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = cuda_compiler()
    if found is None:
        pytest.skip("nvcc is not here")
    return str(found)


def _compile(nvcc: str, *arguments: str) -> str:
    done = subprocess.run(
        [nvcc, "-std=c++17", "-O3", f"-I{PLUGINS / 'include'}", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def _supports(nvcc: str, arch: str) -> bool:
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    return f"compute_{arch}" in listed.split()


@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_fit_in_registers(nvcc: str, arch: str, tmp_path: Path) -> None:
    if not _supports(nvcc, arch):
        pytest.skip(f"this nvcc does not know sm_{arch}")
    source = str(PLUGINS / "src" / "fused_gates.cu")
    kept = ["--keep", "--keep-dir", str(tmp_path)]
    output = ["-cubin", "-o", str(tmp_path / "kernels.cubin")]
    log = _compile(
        nvcc,
        f"-arch=sm_{arch}",
        "-Xptxas",
        "-v,-warn-spills",
        "-Werror",
        "all-warnings",
        *kept,
        *output,
        source,
    )

    entries = ENTRY.findall(log)
    assert len(entries) == len({name for name, _ in entries}) >= 40
    assert {found for _, found in entries} == {arch}
    used = [tuple(map(int, found)) for found in STACK.findall(log)]
    assert used == [(0, 0, 0)] * len(entries), "a kernel spills registers or has a stack frame"
    # 80 registers leave room for three blocks of 256 threads, enough loads under way to fill the memory's latency.
    assert max(map(int, REGISTERS.findall(log))) <= 80

    ptx = (tmp_path / "fused_gates.ptx").read_text()
    assert ".local" not in ptx
    kernels = [(found.groups(), body) for body in ptx.split(".entry ")[1:] if (found := KERNEL.search(body))]
    assert len(kernels) == len(entries)
    for (z, run, walk), body in kernels:
        if run == "1" or walk == "2":
            continue
        # z by 16 bytes a gate; by 8 where a run of 4 is 16 bytes of a float32 c.
        wide = 8 if z != "0" and run == "4" else 16
        assert _widths(body, "ld").count(wide) >= 4, (z, run, walk)
        if walk == "0":
            assert 16 in _widths(body, "st"), (z, run, walk)


@pytest.mark.thorough
def test_the_second_build_to_compare_compiles_too(nvcc: str, tmp_path: Path) -> None:
    """EDGELSTM_MIN_BLOCKS=4 pulls the loads of a run forward (README: which is faster is measured on a GPU)."""
    arch = ARCHS[0]
    log = _compile(
        nvcc, f"-arch=sm_{arch}", "-DEDGELSTM_MIN_BLOCKS=4", "-Xptxas", "-v", "-cubin",
        "-o", str(tmp_path / "kernels.cubin"), str(PLUGINS / "src" / "fused_gates.cu"),
    )  # fmt: skip
    assert max(map(int, REGISTERS.findall(log))) <= 64, "four blocks of 256 threads have 64 registers each"


def _widths(body: str, kind: str) -> list[int]:
    """Bytes of each load ("ld") or store ("st") of global memory in a kernel's PTX."""
    found = re.findall(kind + r"\.global(?:\.nc)?(?:\.v(\d))?\.[a-z](\d+)", body)
    return [int(count or 1) * int(bits) // 8 for count, bits in found]


@pytest.mark.skipif("EDGELSTM_CUDA_ARCHS" not in os.environ, reason="slow: make plugin-check runs it")
def test_the_bench_compiles_and_says_that_there_is_no_gpu(nvcc: str, tmp_path: Path) -> None:
    program = tmp_path / "fused_gates_bench"
    sources = [str(PLUGINS / "bench" / "fused_gates_bench.cu"), str(PLUGINS / "src" / "fused_gates.cu")]
    runtime = f"-L{Path(nvcc).resolve().parents[1] / 'lib'}"  # where PyPI's has it; it looks in lib64
    flags = ["-Xcompiler", "-Wall,-Wextra,-Werror", runtime]
    _compile(nvcc, f"-arch=sm_{ARCHS[-1]}", *flags, "-o", str(program), *sources)
    done = subprocess.run([str(program), "--checks-only", "--every", "7"], capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stdout
    assert ('"checks_failed": 0' in done.stdout) == (done.returncode == 0)
    assert ("no usable GPU" in done.stdout) == (done.returncode == 2)
