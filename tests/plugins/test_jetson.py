"""The plugin for a Jetson, made on a PC: the library is cross-compiled, and the arithmetic run as Arm code under qemu-user.

Both need g++-aarch64-linux-gnu, the second qemu-user too. The library needs the CUDA runtime for 64-bit Arm: a folder with
include/ and lib/ that $EDGELSTM_CUDA_AARCH64 names, else cuda-aarch64/ in the user's cache (plugins/README.md says how).
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_library import PLUGINS, build_library, build_probe, headers_of, tools
from host_library import Params, compile_host_loop, pointers, table
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel_math import Case, cases, check

from edgelstm.runtime.plugin_library import cache_folder, read_plugin_library

COMPILER = "aarch64-linux-gnu-g++"
CUDA_VARIABLE = "EDGELSTM_CUDA_AARCH64"
EMULATED = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
#: JetPack 6 has TensorRT 10.3, JetPack 7.0 has 10.13; Orin is 8.7, Thor 11.0.
TENSORRT = "10.13"


def cross_compiler() -> str:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not here: apt install g++-aarch64-linux-gnu")
    return COMPILER


def emulator() -> tuple[str, ...]:
    if platform.machine() == "aarch64":
        return ()
    if shutil.which(EMULATED[0]) is None:
        pytest.skip("qemu-aarch64 is not here: apt install qemu-user")
    return EMULATED


# ---- The library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin for Orin and Thor, kernels included."""
    cross_compiler()
    tools()
    cuda = Path(os.environ.get(CUDA_VARIABLE) or cache_folder() / "cuda-aarch64")
    if not (cuda / "lib" / "libcudart_static.a").is_file():
        pytest.skip(
            f"no CUDA runtime for aarch64: neither ${CUDA_VARIABLE} nor {cuda} has lib/libcudart_static.a"
        )
    options = {
        "CMAKE_TOOLCHAIN_FILE": PLUGINS / "cmake" / "aarch64-linux.cmake",
        "EDGELSTM_CUDA_TARGET": cuda,
        "EDGELSTM_ARCHITECTURES": "87;110",
    }
    folder = tmp_path_factory.mktemp("jetson")
    return build_library(folder, headers_of(TENSORRT), None, *(f"-D{n}={v}" for n, v in options.items()))


def test_the_library_is_arm_code_for_orin_and_thor(library: Path) -> None:
    told = read_plugin_library(library)
    assert (told.machine, told.architectures, told.ptx) == ("aarch64", ("8.7", "11.0"), "11.0")
    header = library.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert struct.unpack("<H", header[18:20]) == (183,)  # EM_AARCH64
    if platform.machine() != "aarch64":
        with pytest.raises(Exception, match="was built for another processor: found aarch64"):
            told.check()


def test_the_library_works_on_arm(library: Path, tmp_path: Path) -> None:
    """Loaded by an Arm program, as TensorRT there loads it: a plugin is made, goes through a plan, answers for formats."""
    probe = build_probe(tmp_path, headers_of(TENSORRT), cross_compiler(), program=True)
    done = subprocess.run(
        [*emulator(), str(probe), str(library)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    creator, plugin, *supported = done.stdout.splitlines()
    assert creator.startswith("FusedGates 1 edgelstm peephole:5 ")
    assert plugin.startswith("peephole=0 hard_sigmoid=0 alpha=0.200000003 ")
    assert supported == ["1"] * 4


# ---- The arithmetic


class Remote:
    """The host loop in a process of another processor; stands in for the library that ``Case.run`` calls."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        self.process.communicate(timeout=10)

    def fused_gates(self, reference: Any) -> bytes | None:
        """As the library's function: computes on this process's memory, which is sent there and comes back."""
        params: Params = reference._obj
        there = Params.from_buffer_copy(params)
        memory, where = bytearray(), {}
        for holder, name, size in pointers(there):
            address = getattr(holder, name)
            if address and address not in where:
                memory += bytes(-len(memory) % 64 + address % 64)  # aligned there as it is here
                where[address] = (len(memory), size)
                memory += ctypes.string_at(address, size)
            if address:
                setattr(holder, name, 1 + where[address][0])
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(bytes(there) + struct.pack("<Q", len(memory)) + memory)
        stdin.flush()
        (refused,) = struct.unpack("<Q", stdout.read(8))
        if refused:
            return stdout.read(refused)
        answer = stdout.read(len(memory))
        for address, (start, size) in where.items():
            ctypes.memmove(address, answer[start : start + size], size)
        return None


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    return compile_host_loop()


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    program = tmp_path_factory.mktemp("arm") / "host_loop"
    source = Path(__file__).with_name("remote_main.cpp")
    # As host_library.py compiles it here: without contraction, so that both processors round alike.
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-static"]
    include = f"-I{PLUGINS / 'include'}"
    subprocess.run([cross_compiler(), *flags, include, str(source), "-o", str(program)], check=True)
    remote = Remote([*emulator(), str(program)])
    yield remote
    remote.close()


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_arm_computes_the_reference(host: ctypes.CDLL, arm: Any, data: st.DataObject) -> None:
    """Every value against GateVariant.reference in float64, as on this machine; and the very bits of this machine, but for
    a NaN's sign, which processors choose as they like."""
    case: Case = data.draw(cases(table(host)))
    there, here = check(case, arm), case.run(host)
    for name in ("h", "c_out"):
        found, expected = (np.ascontiguousarray(run[name].padded()) for run in (there, here))
        wide = expected.astype(np.float32)
        np.testing.assert_array_equal(np.isnan(found.astype(np.float32)), np.isnan(wide), err_msg=name)
        bits = f"u{found.itemsize}"
        np.testing.assert_array_equal(
            found.view(bits)[~np.isnan(wide)], expected.view(bits)[~np.isnan(wide)], name
        )
    np.testing.assert_array_equal(there["non_finite"], here["non_finite"])
