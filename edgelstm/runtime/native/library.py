"""The library of our operators for ONNX Runtime: where it lies, what it was built for, whether that fits.

Looked for in this order: the file that ``$EDGELSTM_NATIVE_LIBRARY`` names (then nowhere else), the package's own folder,
``plugins/`` in the user's cache, where `edgelstm build-plugin --ort` puts it, the package edgelstm-native, which brings one that is
built already. What it was built for stands in the file as text
(``edgelstm-native {json}``), so that it is known before it is loaded.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, read_bytes
from edgelstm.runtime.plugin_library import plugin_folder
from edgelstm.version import __version__

VARIABLE = "EDGELSTM_NATIVE_LIBRARY"
FILE_NAME = "libedgelstm_onnxruntime.so"
#: Which operators with which attributes, and which functions: what calls the library and what is in it have to agree.
SCHEMA = 12
#: The first ONNX Runtime that has all the calls the library makes.
OLDEST_ONNXRUNTIME = (1, 18)
MAX_LIBRARY_BYTES = 64 * 1024**2
#: The package with libraries that are built already.
PREBUILT = "edgelstm_native"
BUILD_HINT = "Build it on this machine: edgelstm build-plugin --ort (needs a C++ compiler); or pip install 'edgelstm[native]'"

_MARKER = b"edgelstm-native {"
_MAX_INFO_BYTES = 1024
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class NativeLibrary:
    """A library file and what it was built for. sources: hash of the sources it was built from. version: edgelstm's, "" before it
    was written. prebuilt: whether it is the one of edgelstm-native."""

    path: Path
    schema: int
    machine: str
    sources: str
    version: str = ""
    prebuilt: bool = False

    def check(self) -> None:
        """Raise EdgeLstmError, with what to do, unless it fits this edgelstm and this processor."""
        if self.machine != machine_name():
            self._refuse("another processor", self.machine, machine_name())
        if self.prebuilt and self.version != __version__:
            raise EdgeLstmError(
                f"the prebuilt operators in {self.path.parents[1]}",
                found=f"edgelstm-native {self.version}",
                expected=f"{__version__}, as edgelstm itself",
                hint=f"pip install edgelstm-native=={__version__}. Or build them: edgelstm build-plugin --ort",
            )
        if self.schema != SCHEMA:
            self._refuse("another version of edgelstm", f"schema {self.schema}", f"schema {SCHEMA}")

    def instructions(self) -> str:
        """Which of its kernels this processor gets: avx512vnni, avx512, avx2vnni, avx2, portable (Arm: neondot, neon). Loads the library."""
        try:
            loaded = ctypes.CDLL(str(self.path))
            name = loaded.edgelstm_native_isa
        except (OSError, AttributeError) as error:
            raise EdgeLstmError(
                f"library of operators {self.path} does not load", found=str(error), hint=BUILD_HINT
            ) from error
        name.restype = ctypes.c_char_p
        return bytes(name()).decode()

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": str(self.path),
            "schema": self.schema,
            "machine": self.machine,
            "sources": self.sources,
            "version": self.version,
            "prebuilt": self.prebuilt,
        }

    def _refuse(self, what: str, found: str, expected: str) -> None:
        raise EdgeLstmError(
            f"library of operators {self.path} was built for {what}",
            found=found,
            expected=expected,
            hint=BUILD_HINT,
        )


def find_native_library() -> NativeLibrary | None:
    """The library that fits, in the order at the head of this module; None if there is none.

    Raises EdgeLstmError for a named one that is missing or does not fit, or if the only ones found do not.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise EdgeLstmError(
                f"{VARIABLE}={named} names no file",
                expected=f"the library of operators for ONNX Runtime, {FILE_NAME}",
                hint=f"Correct it or unset it. {BUILD_HINT}",
            )
        library = read_native_library(named)
        library.check()
        return library
    own = Path(__file__).resolve().parents[2] / FILE_NAME
    problem: EdgeLstmError | None = None
    for path, prebuilt in ((own, False), (cached_place(), False), (prebuilt_place(), True)):
        if path is None or not path.is_file():
            continue
        try:
            library = replace(read_native_library(path), prebuilt=prebuilt)
            library.check()
            return library
        except EdgeLstmError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return None


def needed_native_library() -> NativeLibrary:
    """:func:`find_native_library`, but EdgeLstmError where there is none."""
    library = find_native_library()
    if library is None:
        raise EdgeLstmError("the library of operators for ONNX Runtime is not here", hint=BUILD_HINT)
    return library


def read_native_library(path: PathLike) -> NativeLibrary:
    """What the library at ``path`` was built for, from its bytes. Raises EdgeLstmError if it is no such library."""
    data = read_bytes(path, MAX_LIBRARY_BYTES)
    start = data.find(_MARKER)
    end = data.find(b"\0", start)
    try:
        if start < 0 or not 0 < end - start <= _MAX_INFO_BYTES:
            raise ValueError("no build information")
        info = json.loads(data[start + len(_MARKER) - 1 : end])
        schema, *texts = info["schema"], info["machine"], info["sources"], info.get("version", "")
        if type(schema) is not int or not all(isinstance(text, str) for text in texts):
            raise TypeError("other types")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EdgeLstmError(
            f"{path} is not the library of operators for ONNX Runtime",
            found="no build information that can be read",
            expected=f"{FILE_NAME} as `edgelstm build-plugin --ort` makes it",
        ) from error
    return NativeLibrary(Path(path), schema, *texts)


def cached_place() -> Path:
    """Where `edgelstm build-plugin --ort` puts the library."""
    return plugin_folder() / f"onnxruntime-{machine_name()}" / FILE_NAME


def prebuilt_prefix() -> Path | None:
    """The folder of edgelstm-native, with ``include/`` and ``lib/``; None where it is not installed."""
    try:
        spec = importlib.util.find_spec(PREBUILT)
    except ValueError:  # a module of that name that was made by hand, or barred
        return None
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).resolve().parent


def prebuilt_place() -> Path | None:
    """The operators of edgelstm-native, if it is installed."""
    prefix = prebuilt_prefix()
    return None if prefix is None else prefix / "lib" / FILE_NAME


def machine_name() -> str:
    """This machine's processor: x86_64, aarch64, ..."""
    name = platform.machine().lower()
    return _MACHINES.get(name, name)
