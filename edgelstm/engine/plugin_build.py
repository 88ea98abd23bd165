"""Build the FusedGates plugin: find nvcc, TensorRT's headers and the sources, run CMake, put the library where it is looked for.

Only headers of TensorRT are needed, and a library built with those of one release loads in every release of the same major
version. What is missing is said before anything is compiled.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from edgelstm import machine
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, atomic_path
from edgelstm.runtime.plugin_library import (
    FILE_NAME,
    PluginLibrary,
    cache_folder,
    plugin_folder,
    read_plugin_library,
)

HEADERS_VARIABLE = "EDGELSTM_TENSORRT_INCLUDE"
HEADER = "NvInferRuntime.h"
MACHINES = ("x86_64", "aarch64")
#: Called with what is done now, how many steps are done, and of how many (0: not known yet).
Progress = Callable[[str, int, int], None]

_SYSTEM_FOLDERS = (
    "/usr/include/{machine}-linux-gnu",
    "/usr/include",
    "/usr/local/include",
    "/usr/local/tensorrt/include",
    "/usr/local/TensorRT*/include",
    "/opt/tensorrt/include",
    "/opt/TensorRT*/include",
)
_STEP = re.compile(r"^\[\s*(\d+)(?:/(\d+)|%)\] ?(.*)")


@dataclass(frozen=True)
class Headers:
    """A folder with TensorRT's headers, and the version they are of, such as "10.3.0"."""

    folder: Path
    version: str


def build_plugin(
    output: PathLike | None = None,
    *,
    tensorrt_include: PathLike | None = None,
    nvcc: PathLike | None = None,
    architectures: Iterable[str] | None = None,
    source: PathLike | None = None,
    target_machine: str | None = None,
    cuda_target: PathLike | None = None,
    progress: Progress | None = None,
) -> PluginLibrary:
    """Compile the plugin and write it whole or not at all.

    Parameters
    ----------
    output: the file to write; default: its place in the user's cache, where it is looked for.
    tensorrt_include: folder with TensorRT's headers; default: see :func:`find_headers`.
    nvcc: CUDA's compiler, or CUDA's folder; default: see :func:`find_nvcc`.
    architectures: compute capabilities such as "8.7" or "87"; default: that of the GPU here, else all that this CUDA knows.
    source: the folder ``plugins`` of edgelstm's sources; default: the one beside this package.
    target_machine: "x86_64" or "aarch64" to cross-compile; default: this machine.
    cuda_target: with another machine: a folder with the CUDA runtime's ``include`` and ``lib`` for it.

    Raises EdgeLstmError, with what to install, for what is missing, and with the compiler's words if it fails.
    """
    built_for = target_machine or platform.machine()
    if built_for not in MACHINES:
        raise EdgeLstmError("machine to build for", found=built_for, expected=f"one of {', '.join(MACHINES)}")
    sources, headers, compiler = find_source(source), find_headers(tensorrt_include), find_nvcc(nvcc)
    definitions = {
        "EDGELSTM_TENSORRT_INCLUDE": str(headers.folder),
        "EDGELSTM_NVCC": str(compiler),
        "EDGELSTM_ARCHITECTURES": ";".join(_architectures(architectures)),
    }
    if built_for != platform.machine():
        definitions |= _cross(sources, built_for, cuda_target)
    elif cuda_target is not None:
        raise EdgeLstmError("CUDA for another machine", found="no other machine to build for")
    destination = Path(output) if output is not None else _place(headers.version, built_for)
    if output is None:
        _make_folder(destination.parent)
    with atomic_path(destination) as file, tempfile.TemporaryDirectory() as folder:
        _run_cmake(sources, Path(folder), definitions, progress)
        shutil.copyfile(Path(folder) / FILE_NAME, file)
        library = read_plugin_library(file)
    return replace(library, path=destination)


def find_source(given: PathLike | None = None) -> Path:
    """The folder ``plugins`` of edgelstm's sources. Raises EdgeLstmError if there is none."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "_plugins"  # in a wheel; a checkout has the folder beside the package
    folder = Path(given) if given is not None else shipped if shipped.is_dir() else package.parent / "plugins"
    if not (folder / "CMakeLists.txt").is_file() or not (folder / "tensorrt").is_dir():
        raise EdgeLstmError(
            "the plugin's sources are not here",
            found=f"no CMakeLists.txt and tensorrt/ in {folder}",
            expected="the folder plugins/ of edgelstm's source",
            hint="Reinstall edgelstm, or give --source path/to/plugins",
        )
    return folder.resolve()


def find_headers(given: PathLike | None = None) -> Headers:
    """TensorRT's headers: the folder given, else ``$EDGELSTM_TENSORRT_INCLUDE``, else the system's folders, else those in
    ``tensorrt-headers/`` of the user's cache: there, those that go best with the TensorRT installed here, else the newest.

    Raises EdgeLstmError if there are none.
    """
    for label, named in (("", given), (f"{HEADERS_VARIABLE}=", os.environ.get(HEADERS_VARIABLE))):
        if named:
            version = headers_version(Path(named))
            if version is None:
                raise EdgeLstmError(
                    f"{label}{named} has no TensorRT headers", expected=f"a folder with {HEADER}"
                )
            return Headers(Path(named), version)
    system = [
        folder
        for pattern in _SYSTEM_FOLDERS
        for folder in _matches(pattern.format(machine=platform.machine()))
    ]
    cached = _cached_headers()
    for folder in (*system, *(h.folder for h in cached)):
        version = headers_version(folder)
        if version is not None:
            return Headers(folder, version)
    raise EdgeLstmError(
        "TensorRT's headers are not here",
        expected=f"a folder with {HEADER}, of the TensorRT that is to load the plugin",
        hint="Install libnvinfer-headers-dev (JetPack has it), or copy the folder include of github.com/NVIDIA/TensorRT at that "
        f"version's tag, and name it: --tensorrt-include, or {HEADERS_VARIABLE}; or put it in "
        f"{cache_folder() / 'tensorrt-headers'}",
    )


def headers_version(folder: Path) -> str | None:
    """The version of the TensorRT headers in a folder, such as "10.3.0"; None if there are none."""
    try:
        if not (folder / HEADER).is_file():
            return None
        text = (folder / "NvInferVersion.h").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # 10.13 and later write TRT_MAJOR_ENTERPRISE and define NV_TENSORRT_MAJOR as that.
    numbers = [
        re.search(rf"^#define (?:NV_TENSORRT_{part}|TRT_{part}_ENTERPRISE)\s+(\d+)", text, re.MULTILINE)
        for part in ("MAJOR", "MINOR", "PATCH")
    ]
    return ".".join(n[1] for n in numbers if n) if all(numbers) else None


def find_nvcc(given: PathLike | None = None) -> Path:
    """CUDA's compiler: the one given (or in the folder given), else :func:`edgelstm.machine.cuda_compiler`'s.

    Raises EdgeLstmError if there is none."""
    found = machine.cuda_compiler() if given is None else machine.nvcc_in(given)
    if found is None and given is not None:
        raise EdgeLstmError(
            f"no nvcc at {given}", expected="CUDA's compiler, or the folder of a CUDA toolkit"
        )
    if found is None:
        raise EdgeLstmError(
            "nvcc, CUDA's compiler, is not here",
            expected="the CUDA toolkit, 11.4 or later",
            hint="Install it (on a Jetson: cuda-toolkit, which JetPack has; on x86-64 and Arm servers also pip install "
            "nvidia-cuda-nvcc), or give --cuda FOLDER",
        )
    return found


def _run_cmake(sources: Path, folder: Path, definitions: dict[str, str], progress: Progress | None) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        raise EdgeLstmError("cmake is not here", hint="Install it: apt install cmake, or pip install cmake")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    given = [f"-D{name}={value}" for name, value in definitions.items() if value]
    by_hand = shlex.join(["cmake", "-S", str(sources), "-B", "build/plugin", *given])
    commands = {
        "configuring": [cmake, "-S", str(sources), "-B", str(folder), *generator, *given],
        "compiling": [cmake, "--build", str(folder), "--parallel"],
    }
    for phase, command in commands.items():
        error = _run(command, phase, progress)
        if error is not None:
            raise EdgeLstmError(
                f"{phase} the plugin failed",
                found=error,
                hint=f"To see everything: {by_hand} && cmake --build build/plugin",
            )


def _run(command: list[str], phase: str, progress: Progress | None) -> str | None:
    """Run one of CMake's commands. Returns the compiler's or CMake's own words if it fails."""
    lines: list[str] = []
    if progress:
        progress(phase, 0, 0)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            step = _STEP.match(line)
            if step and progress:
                progress(phase, int(step[1]), int(step[2] or 100))
    return _said(lines) if process.returncode else None


def _said(lines: list[str]) -> str:
    """What went wrong, out of everything CMake and the compilers printed: three lines, from the first error on."""
    found = [line for line in lines if line]
    errors = (i for i, line in enumerate(found) if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE))
    return " | ".join(found[next(errors, -3) :][:3])[:600].rstrip(".") or "no output"


def _architectures(given: Iterable[str] | None) -> list[str]:
    """As nvcc writes them: "8.7" and "87" are 87. Empty: whatever this CUDA knows."""
    if given is None:
        cuda = machine.cuda()
        given = [gpu.capability for gpu in cuda.gpus] if cuda else []
    given = set(given)
    for text in given:
        if not re.fullmatch(r"\d{1,2}\.\d|\d{2,3}", text):
            raise EdgeLstmError(
                f"GPU architecture {text!r}", expected="a compute capability such as 8.7 or 87"
            )
    return sorted({text.replace(".", "") for text in given}, key=int)


def _cross(sources: Path, built_for: str, cuda_target: PathLike | None) -> dict[str, str]:
    compiler = f"{built_for}-linux-gnu-g++"
    toolchain = sources / "cmake" / f"{built_for}-linux.cmake"
    if not toolchain.is_file():
        raise EdgeLstmError(f"building for {built_for} on {platform.machine()}", expected="aarch64 on x86_64")
    if shutil.which(compiler) is None:
        raise EdgeLstmError(
            f"{compiler} is not here", hint=f"Install it: apt install g++-{built_for}-linux-gnu"
        )
    if cuda_target is None or not (Path(cuda_target) / "lib" / "libcudart_static.a").is_file():
        raise EdgeLstmError(
            f"the CUDA runtime for {built_for}",
            found="none" if cuda_target is None else f"no lib/libcudart_static.a in {cuda_target}",
            expected="--cuda-target FOLDER with include/ and lib/",
            hint=f"{toolchain} says where it comes from",
        )
    return {
        "CMAKE_TOOLCHAIN_FILE": str(toolchain),
        "EDGELSTM_CUDA_TARGET": str(Path(cuda_target).resolve()),
    }


def _place(tensorrt: str, built_for: str) -> Path:
    return plugin_folder() / f"tensorrt{tensorrt.split('.')[0]}-{built_for}" / FILE_NAME


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeLstmError(
            f"can't make {folder}", found=error.strerror or str(error), hint="Give a file with -o"
        ) from error


def _cached_headers() -> list[Headers]:
    """Those in the user's cache, best first: of the installed TensorRT's major version, then the newest."""
    found = [
        Headers(folder, version)
        for folder in _matches(str(cache_folder() / "tensorrt-headers" / "*"))
        if (version := headers_version(folder)) is not None
    ]
    installed = _installed_tensorrt()

    def rank(headers: Headers) -> tuple[bool, tuple[int, ...]]:
        numbers = tuple(int(part) for part in headers.version.split("."))
        return installed is not None and installed.split(".")[0] == str(numbers[0]), numbers

    return sorted(found, key=rank, reverse=True)


def _installed_tensorrt() -> str | None:
    for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _matches(pattern: str) -> list[Path]:
    """Folders that match an absolute pattern, newest name first."""
    root, _, rest = pattern.partition("/")
    return sorted((p for p in Path(root or "/").glob(rest) if p.is_dir()), reverse=True)
