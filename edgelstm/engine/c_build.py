"""Build the C library, libedgelstm: nothing but a C++ compiler is needed. What is written is a folder as compilers, pkg-config and
CMake expect it: ``include/``, ``lib/``, ``lib/pkgconfig/``, ``lib/cmake/``."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelstm.engine.native_build import FLAGS, find_compiler, run_compiler
from edgelstm.engine.plugin_build import Progress, find_source
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, atomic_path, write_text
from edgelstm.runtime.native.library import machine_name
from edgelstm.runtime.plugin_library import plugin_folder

FILE_NAME = "libedgelstm.so"
HEADER = "edgelstm.h"
BUILD_HINT = "Build it on this machine: edgelstm build-plugin --c (needs a C++ compiler)"

_PKG_CONFIG = """\
# sources: {sources}
prefix=${{pcfiledir}}/../..

Name: edgelstm
Description: Step graphs of recurrent models, streamed with the state kept
Version: {version}
Cflags: -I${{prefix}}/include
Libs: -L${{prefix}}/lib -ledgelstm
"""
_CMAKE = """\
# find_package(edgelstm), then target_link_libraries(program PRIVATE edgelstm::edgelstm).
get_filename_component(_edgelstm_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET edgelstm::edgelstm)
  add_library(edgelstm::edgelstm SHARED IMPORTED)
  set_target_properties(edgelstm::edgelstm PROPERTIES
    IMPORTED_LOCATION "${_edgelstm_prefix}/lib/libedgelstm.so"
    INTERFACE_INCLUDE_DIRECTORIES "${_edgelstm_prefix}/include")
endif()
"""
_VERSION = re.compile(r"^#define EDGELSTM_ABI_VERSION (\d+)$", re.MULTILINE)
_SOURCES_LINE = re.compile(r"^# sources: ([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True)
class CLibrary:
    """The folder that the library was built into. sources: hash of what it was built from."""

    prefix: Path
    sources: str

    @property
    def path(self) -> Path:
        """The library itself."""
        return self.prefix / "lib" / FILE_NAME

    @property
    def cflags(self) -> list[str]:
        """For a compiler."""
        return [f"-I{self.prefix / 'include'}"]

    @property
    def libs(self) -> list[str]:
        """For a linker; the program finds the library where it lies now."""
        lib = self.prefix / "lib"
        # -Wl would divide a path at its commas.
        return [f"-L{lib}", "-Xlinker", "-rpath", "-Xlinker", str(lib), "-ledgelstm"]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "prefix": str(self.prefix),
            "library": str(self.path),
            "cflags": shlex.join(self.cflags),
            "libs": shlex.join(self.libs),
            "sources": self.sources,
        }


def build_c(
    output: PathLike | None = None,
    *,
    compiler: PathLike | None = None,
    source: PathLike | None = None,
    target_machine: str | None = None,
    flags: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> CLibrary:
    """Compile the library and write its folder; the library comes last.

    Parameters
    ----------
    output: the folder; default: its place in the user's cache, where :func:`find_c_library` looks.
    compiler, source, target_machine: as :func:`edgelstm.engine.native_build.build_native`.
    flags: more of them for the compiler.

    Raises EdgeLstmError, with what to install, for what is missing, and with the compiler's words if it fails.
    """
    machine = target_machine or machine_name()
    plugins = find_source(source)
    folder = plugins / "c"
    if not (folder / HEADER).is_file():
        raise EdgeLstmError("the C library's sources are not here", found=f"no {HEADER} in {folder}")
    command = [*find_compiler(compiler, machine), *FLAGS, *flags]
    prefix = Path(output) if output is not None else cached_folder(machine)
    names = sorted(path.name for path in folder.glob("*.cpp"))
    with tempfile.TemporaryDirectory() as scratch:
        objects = [str(Path(scratch) / f"{name}.o") for name in names]

        def compile_one(k: int) -> None:
            job = [*command, "-c", str(folder / names[k]), "-o", objects[k]]
            run_compiler(job, f"compiling {names[k]}")

        if progress:
            progress("compiling", 0, len(names))
        with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as pool:
            for done, _ in enumerate(pool.map(compile_one, range(len(names))), 1):
                if progress:
                    progress("compiling", done, len(names))
        linked = Path(scratch) / FILE_NAME
        exports = [f"-Wl,--version-script={folder / 'exports.map'}", f"-Wl,-soname,{FILE_NAME}"]
        run_compiler(
            [*command, "-shared", "-o", str(linked), *objects, *exports, "-ldl", "-pthread"], "linking"
        )
        library = CLibrary(prefix.absolute(), sources_hash(plugins))
        try:
            for part in ("include", "lib/pkgconfig", "lib/cmake/edgelstm"):
                (prefix / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeLstmError(
                f"can't make {prefix}", found=str(error), hint="Give a folder with -o"
            ) from error
        header = (folder / HEADER).read_text(encoding="utf-8")
        write_text(prefix / "include" / HEADER, header)
        text = _PKG_CONFIG.format(version=_VERSION.findall(header)[0], sources=library.sources)
        write_text(prefix / "lib" / "pkgconfig" / "edgelstm.pc", text)
        write_text(prefix / "lib" / "cmake" / "edgelstm" / "edgelstm-config.cmake", _CMAKE)
        with atomic_path(library.path) as file:
            shutil.copyfile(linked, file)
    return library


def find_c_library(prefix: PathLike | None = None) -> CLibrary:
    """What :func:`build_c` wrote. prefix: the folder; default: the user's cache.

    Raises EdgeLstmError where there is none, or where it is of other sources than this edgelstm's.
    """
    folder = (Path(prefix) if prefix is not None else cached_folder(machine_name())).absolute()
    library = folder / "lib" / FILE_NAME
    described = folder / "lib" / "pkgconfig" / "edgelstm.pc"
    found = _SOURCES_LINE.search(described.read_text(encoding="utf-8")) if described.is_file() else None
    if not library.is_file() or found is None:
        raise EdgeLstmError("the C library is not here", found=f"no {library}", hint=BUILD_HINT)
    if found[1] != sources_hash(find_source()):
        raise EdgeLstmError(
            f"the C library in {folder}", found="one built from other sources", hint=BUILD_HINT
        )
    return CLibrary(folder, found[1])


def find_onnxruntime() -> Path:
    """The library of ONNX Runtime in the PyPI package of this Python. Raises EdgeLstmError where there is none."""
    spec = importlib.util.find_spec("onnxruntime")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for pattern in ("libonnxruntime.so*", "libonnxruntime.*.dylib"):
            for path in sorted(Path(folder, "capi").glob(pattern)):
                return path
    raise EdgeLstmError(
        "no library of ONNX Runtime is in this Python's packages",
        hint="pip install 'edgelstm[cpu]', or any release of ONNX Runtime",
    )


def cached_folder(machine: str) -> Path:
    """Where `edgelstm build-plugin --c` puts it."""
    return plugin_folder() / f"c-{machine}"


def sources_hash(plugins: Path) -> str:
    """SHA-256 of what the library is built from."""
    digest = hashlib.sha256()
    for path in (
        *sorted(p for p in (plugins / "c").iterdir() if p.is_file()),
        plugins / "onnxruntime" / "ort_abi.h",
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
