"""Build the library of our operators for ONNX Runtime: nothing but a C++ compiler is needed, and some seconds.

The kernels are compiled once for each set of instructions; which one runs is found out when the library is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from edgelstm.engine.plugin_build import Progress, find_source
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, atomic_path
from edgelstm.runtime.native.library import (
    SCHEMA,
    NativeLibrary,
    cached_place,
    machine_name,
    read_native_library,
)
from edgelstm.version import __version__

FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-fno-math-errno",
    "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-warning-option",
)  # fmt: skip
#: By machine, the kernels' variants: name, the table's name, floats in a vector, rows at once, the compiler's flags.
_AVX512 = ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma")
_PORTABLE = ("portable", "kPortable", 4, 2, ())
VARIANTS: dict[str, tuple[tuple[str, str, int, int, Sequence[str]], ...]] = {
    "x86_64": (
        ("avx512", "kAvx512", 16, 4, _AVX512),
        ("avx2", "kAvx2", 8, 3, ("-mavx2", "-mfma")),
        _PORTABLE,
    ),
    # 32 registers of 128 bits, multiply-add always there.
    "aarch64": (("neon", "kPortable", 4, 4, ()),),
}
#: By machine, the flags of each variant of what multiplies bytes (dot.cpp).
DOT_FLAGS: dict[str, tuple[tuple[str, ...], ...]] = {
    "x86_64": ((*_AVX512, "-mavx512vnni"), ("-mavx2", "-mfma", "-DDOT_VEX")),
    "aarch64": ((),),
}
COMPILE_TIMEOUT = 600.0


def build_native(
    output: PathLike | None = None,
    *,
    compiler: PathLike | None = None,
    source: PathLike | None = None,
    target_machine: str | None = None,
    progress: Progress | None = None,
) -> NativeLibrary:
    """Compile the library and write it whole or not at all.

    Parameters
    ----------
    output: the file to write; default: its place in the user's cache, where it is looked for.
    compiler: a C++17 compiler, GCC 9 or Clang 12 or later; default: ``$CXX``, else c++, g++ or clang++ of the path.
    source: the folder ``plugins`` of edgelstm's sources; default: the one beside this package.
    target_machine: such as "aarch64", to cross-compile with ``aarch64-linux-gnu-g++``; default: this machine.

    Raises EdgeLstmError, with what to install, for what is missing, and with the compiler's words if it fails.
    """
    machine = target_machine or machine_name()
    folder = find_source(source) / "onnxruntime"
    if not (folder / "operators.cpp").is_file():
        raise EdgeLstmError("the operators' sources are not here", found=f"no operators.cpp in {folder}")
    command = find_compiler(compiler, machine)
    destination = (
        Path(output)
        if output is not None
        else cached_place().parent.with_name(f"onnxruntime-{machine}") / cached_place().name
    )
    if output is None:
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeLstmError(
                f"can't make {destination.parent}", found=str(error), hint="Give a file with -o"
            ) from error
    told = {"schema": SCHEMA, "machine": machine, "sources": sources_hash(folder), "version": __version__}
    info = json.dumps(told)
    jobs: list[tuple[str, list[str]]] = [
        (
            f"kernels for {name}",
            [
                "kernels.cpp",
                f"-DLANES={lanes}",
                f"-DROWS={rows}",
                f'-DNAME="{name}"',
                f"-DKERNELS={table}",
                *flags,
            ],
        )
        for name, table, lanes, rows, flags in VARIANTS.get(machine, (_PORTABLE,))
    ]
    quoted = info.replace('"', '\\"')
    jobs += [
        ("operators", ["operators.cpp", f'-DEDGELSTM_BUILD="{quoted}"']),
        ("calls", ["node.cpp"]),
        ("packed weights", ["packed.cpp"]),
        *(("products of bytes", ["dot.cpp", *flags]) for flags in DOT_FLAGS.get(machine, ())),
        ("convolutions' weights", ["winograd.cpp"]),
        ("sessions", ["session.cpp"]),
    ]
    with atomic_path(destination) as file, tempfile.TemporaryDirectory() as scratch:
        objects = [str(Path(scratch) / f"{k}.o") for k in range(len(jobs))]

        def compile_one(k: int) -> None:
            what, (name, *rest) = jobs[k]
            run_compiler(
                [*command, *FLAGS, *rest, "-c", str(folder / name), "-o", objects[k]], f"compiling {what}"
            )

        if progress:
            progress("compiling", 0, len(jobs))
        with ThreadPoolExecutor(max(1, min(len(jobs), os.cpu_count() or 1))) as pool:
            for done, _ in enumerate(pool.map(compile_one, range(len(jobs))), 1):
                if progress:
                    progress("compiling", done, len(jobs))
        run_compiler(
            [*command, "-shared", "-o", str(file), *objects, *(["-pthread"] if os.name == "posix" else [])],
            "linking",
        )
        library = read_native_library(file)
    return replace(library, path=destination)


def find_compiler(given: PathLike | None, machine: str) -> list[str]:
    """The command of a C++ compiler. Raises EdgeLstmError if there is none."""
    if given is not None:
        found = shutil.which(str(given))
        if found is None:
            raise EdgeLstmError(f"no C++ compiler at {given}", expected="GCC or Clang")
        return [found]
    if machine != machine_name():
        name = f"{machine}-linux-gnu-g++"
        found = shutil.which(name)
        if found is None:
            raise EdgeLstmError(
                f"{name} is not here", hint=f"Install it: apt install g++-{machine}-linux-gnu"
            )
        return [found]
    named = os.environ.get("CXX", "").split()
    if named and shutil.which(named[0]):
        return named
    for name in ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found is not None:
            return [found]
    raise EdgeLstmError(
        "no C++ compiler is here",
        expected="GCC 9 or Clang 12, or later",
        hint="Install one: apt install g++ (Debian, Ubuntu, Jetson), xcode-select --install (macOS)",
    )


def sources_hash(folder: Path) -> str:
    """SHA-256 of what the library is built from."""
    return files_hash(path for path in folder.iterdir() if path.suffix in (".cpp", ".h"))


def files_hash(paths: Iterable[Path]) -> str:
    """SHA-256 of a line a file, in the order of their paths, as sha256sum writes it: CMake computes it too (plugins/native)."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(paths, key=lambda path: path.as_posix())
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def run_compiler(command: list[str], what: str) -> None:
    """Raises EdgeLstmError, with the compiler's first words, if it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMPILE_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EdgeLstmError(f"{what} failed", found=str(error)) from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        first = next((k for k, line in enumerate(lines) if "error" in line), 0)
        raise EdgeLstmError(
            f"{what} failed",
            found=" | ".join(lines[first : first + 3])[:600].rstrip(".")
            or f"exit code {done.returncode} and no output",
            hint=f"Compiler: {command[0]} on {platform.machine()}; another one with --cxx",
        )
