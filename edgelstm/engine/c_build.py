"""Build the C library, libedgelstm: nothing but a C++ compiler is needed. What is written is a folder as compilers, pkg-config and
CMake expect it: ``include/``, ``lib/``, ``lib/pkgconfig/``, ``lib/cmake/``."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
import shlex
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelstm.engine.native_build import FLAGS, files_hash, find_compiler, run_compiler
from edgelstm.engine.plugin_build import Progress, find_source, headers_version
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, atomic_path, write_text
from edgelstm.runtime.native.library import machine_name, prebuilt_prefix
from edgelstm.runtime.plugin_library import plugin_folder
from edgelstm.version import __version__

FILE_NAME = "libedgelstm.so"
HEADER = "edgelstm.h"
BUILD_HINT = "Build it on this machine: edgelstm build-plugin --c (needs a C++ compiler); or pip install 'edgelstm[native]'"

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
_CMAKE_VERSION = """\
set(PACKAGE_VERSION {version})
string(REGEX MATCH "^[0-9]+[.][0-9]+" _edgelstm_wanted "${{PACKAGE_FIND_VERSION}}.0")
if(_edgelstm_wanted STREQUAL "{minor}" AND NOT PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
"""
_VERSION_LINE = re.compile(r"^Version: (\S+)$", re.MULTILINE)
_SOURCES_LINE = re.compile(r"^# sources: ([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True)
class CLibrary:
    """The folder that the library was built into. sources: hash of what it was built from. prebuilt: whether it is edgelstm-native's."""

    prefix: Path
    sources: str
    prebuilt: bool = False

    @property
    def path(self) -> Path:
        """The library itself."""
        return self.prefix / "lib" / FILE_NAME

    @property
    def pkgconfig(self) -> Path:
        """For ``PKG_CONFIG_PATH``."""
        return self.prefix / "lib" / "pkgconfig"

    @property
    def cmake(self) -> Path:
        """For CMake's ``edgelstm_DIR``."""
        return self.prefix / "lib" / "cmake" / "edgelstm"

    def abi_version(self) -> int:
        """Of its interface. Loads the library. Raises EdgeLstmError if it does not load."""
        try:
            function = ctypes.CDLL(str(self.path)).edgelstm_abi_version
        except (OSError, AttributeError) as error:
            raise EdgeLstmError(
                f"C library {self.path} does not load", found=str(error), hint=BUILD_HINT
            ) from error
        function.restype = ctypes.c_uint32
        return int(function())

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
            "prebuilt": self.prebuilt,
        }


def build_c(
    output: PathLike | None = None,
    *,
    compiler: PathLike | None = None,
    source: PathLike | None = None,
    target_machine: str | None = None,
    tensorrt_include: PathLike | None = None,
    flags: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> CLibrary:
    """Compile the library and write its folder; the library comes last.

    Parameters
    ----------
    output: the folder; default: its place in the user's cache, where :func:`find_c_library` looks.
    compiler, source, target_machine: as :func:`edgelstm.engine.native_build.build_native`.
    tensorrt_include: the folder of TensorRT's headers, 10.3 or later; with it the library opens engines too.
    flags: more of them for the compiler.

    Raises EdgeLstmError on macOS and Windows (unless for another machine), with what to install, for what is missing, and with the
    compiler's words if it fails.
    """
    machine = target_machine or machine_name()
    if target_machine is None:
        check_system()
    plugins = find_source(source)
    folder = plugins / "c"
    if not (folder / HEADER).is_file():
        raise EdgeLstmError("the C library's sources are not here", found=f"no {HEADER} in {folder}")
    command = [*find_compiler(compiler, machine), *FLAGS, *flags]
    if tensorrt_include is not None:
        command += _with_tensorrt(Path(tensorrt_include), folder)
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
        text = _PKG_CONFIG.format(version=__version__, sources=library.sources)
        write_text(library.pkgconfig / "edgelstm.pc", text)
        write_text(library.cmake / "edgelstm-config.cmake", _CMAKE)
        minor = ".".join(__version__.split(".")[:2])
        write_text(
            library.cmake / "edgelstm-config-version.cmake",
            _CMAKE_VERSION.format(version=__version__, minor=minor),
        )
        with atomic_path(library.path) as file:
            shutil.copyfile(linked, file)
    return library


def check_system() -> None:
    """Raise EdgeLstmError where linkers and names of libraries are others than Linux's."""
    hints = {
        "Darwin": "macOS: CMake builds it, tried with a cross-compiler alone: cmake -S plugins/native -B build -DCMAKE_INSTALL_PREFIX=FOLDER "
        "&& cmake --build build --target install; then PKG_CONFIG_PATH=FOLDER/lib/pkgconfig",
        "Windows": "It finds ONNX Runtime by dlopen, which Windows lacks. In WSL it builds as on Linux",
    }
    system = platform.system()
    if system in hints:
        raise EdgeLstmError(
            "the C library is built for Linux alone", found=system, expected="Linux", hint=hints[system]
        )


def _with_tensorrt(headers: Path, folder: Path) -> list[str]:
    """Flags for the compiler. Raises EdgeLstmError where the headers are not, or are of another version."""
    version = headers_version(headers)
    if version is None:
        raise EdgeLstmError(
            f"no TensorRT headers in {headers}",
            expected="the folder of NvInferVersion.h",
            hint="apt install libnvinfer-headers-dev",
        )
    major, minor = (int(part) for part in version.split(".")[:2])
    if major != 10 or minor < 3:
        raise EdgeLstmError(
            f"the TensorRT headers in {headers}",
            found=version,
            expected="10.3 or a later one of 10, for the C library",
            hint="Without --tensorrt-include it opens step graphs alone",
        )
    # CUDA's own header where it is, else the two names that TensorRT's need of it.
    return ["-DEDGELSTM_TENSORRT", "-isystem", str(headers), "-idirafter", str(folder / "cuda")]


def find_c_library(prefix: PathLike | None = None) -> CLibrary:
    """What :func:`build_c` wrote. prefix: the folder; default: the user's cache, then the package edgelstm-native.

    Raises EdgeLstmError where there is none, or where it is of other sources than this edgelstm's.
    """
    if prefix is not None:
        return _library(Path(prefix), prebuilt=False)
    try:
        return _library(cached_folder(machine_name()), prebuilt=False)
    except EdgeLstmError as error:
        prebuilt = prebuilt_prefix()
        if prebuilt is None:
            raise
        own, problem = cached_folder(machine_name()) / "lib" / FILE_NAME, error
    try:
        return _library(prebuilt, prebuilt=True)
    except EdgeLstmError as error:
        raise (problem if own.is_file() else error) from None


def _library(prefix: Path, prebuilt: bool) -> CLibrary:
    folder = prefix.absolute()
    library = folder / "lib" / FILE_NAME
    described = folder / "lib" / "pkgconfig" / "edgelstm.pc"
    text = described.read_text(encoding="utf-8") if described.is_file() else ""
    found, version = _SOURCES_LINE.search(text), _VERSION_LINE.search(text)
    if not library.is_file() or found is None:
        raise EdgeLstmError("the C library is not here", found=f"no {library}", hint=BUILD_HINT)
    if prebuilt and (version is None or version[1] != __version__):
        raise EdgeLstmError(
            f"the prebuilt C library in {folder}",
            found=f"edgelstm-native {version[1] if version else 'of no version'}",
            expected=f"{__version__}, as edgelstm itself",
            hint=f"pip install edgelstm-native=={__version__}. Or build it: edgelstm build-plugin --c",
        )
    if found[1] != sources_hash(find_source()):
        raise EdgeLstmError(
            f"the C library in {folder}", found="one built from other sources", hint=BUILD_HINT
        )
    return CLibrary(folder, found[1], prebuilt)


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
    own = [path for path in (plugins / "c").iterdir() if path.is_file()]
    return files_hash([*own, plugins / "onnxruntime" / "ort_abi.h"])
