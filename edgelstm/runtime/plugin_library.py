"""The library of the FusedGates plugin: where it lies, what it was built for, whether that fits.

Looked for in this order: the file that ``$EDGELSTM_PLUGIN_LIBRARY`` names (then nowhere else), the package's own folder,
``plugins/`` in the user's cache, where `edgelstm build-plugin` puts it. What it was built for stands in the file as text
(``edgelstm-plugin {json}``), so that it is known before TensorRT loads it: one of another TensorRT may crash there.

Standard library only: a small device reads it.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, read_bytes, sha256

VARIABLE = "EDGELSTM_PLUGIN_LIBRARY"
FILE_NAME = "libedgelstm_plugin.so"
SCHEMA = 1
MAX_LIBRARY_BYTES = 256 * 1024**2
BUILD_HINT = "Build it on this machine: edgelstm build-plugin"

_MARKER = b"edgelstm-plugin {"
_MAX_INFO_BYTES = 4096
#: Compute capabilities of Jetson and Drive chips. Machine code for other GPUs of their generation does not run on them, nor
#: theirs on those (CUDA C++ Programming Guide, binary compatibility).
_TEGRA = frozenset({"5.3", "6.2", "7.2", "8.7", "10.1", "11.0"})


@dataclass(frozen=True)
class PluginLibrary:
    """A library file, and what it was built for.

    sha256: of the file. tensorrt: version of the headers, "10.3.0". cuda: version of the CUDA runtime inside, "12.6".
    architectures: compute capabilities it has machine code for. ptx: the one it has PTX for, which the driver of any later
    GPU compiles. machine: "x86_64" or "aarch64".
    """

    path: Path
    sha256: str
    tensorrt: str
    cuda: str
    architectures: tuple[str, ...]
    ptx: str
    machine: str

    def summary(self) -> str:
        """One line for people."""
        return (
            f"TensorRT {self.tensorrt}, CUDA {self.cuda}, compute capabilities {', '.join(self.architectures)}, "
            f"{self.machine}"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "tensorrt": self.tensorrt,
            "cuda": self.cuda,
            "architectures": list(self.architectures),
            "ptx": self.ptx,
            "machine": self.machine,
        }

    def runs_on(self, capability: str) -> bool:
        """Whether it has code for GPUs of a compute capability such as "8.7"."""
        wanted = _numbers(capability)
        same_generation = capability not in _TEGRA and any(
            _numbers(a)[0] == wanted[0] and _numbers(a) <= wanted for a in set(self.architectures) - _TEGRA
        )
        return capability in self.architectures or same_generation or _numbers(self.ptx) <= wanted

    def check(
        self, *, tensorrt: str | None = None, capability: str | None = None, driver: str | None = None
    ) -> None:
        """Raise EdgeLstmError, with what to do, if it does not fit this machine, or what else is given.

        tensorrt: version that is to load it. capability: of the GPU. driver: the newest CUDA version the driver runs.
        """
        here = {"amd64": "x86_64", "arm64": "aarch64"}.get(m := platform.machine().lower(), m)
        if self.machine != here:
            self._refuse("another processor", self.machine, here)
        if tensorrt is not None and _numbers(tensorrt)[0] != _numbers(self.tensorrt)[0]:
            self._refuse(
                "another TensorRT",
                f"TensorRT {self.tensorrt}",
                f"TensorRT {_numbers(tensorrt)[0]}, since {tensorrt} is here",
            )
        if capability is not None and not self.runs_on(capability):
            self._refuse(
                "other GPUs",
                f"compute capabilities {', '.join(self.architectures)}",
                f"{capability}, which the GPU has",
            )
        if driver is not None and _numbers(driver)[0] < _numbers(self.cuda)[0]:
            self._refuse("a later CUDA", f"CUDA {self.cuda}", f"at most CUDA {driver}, which the driver runs")

    def _refuse(self, what: str, found: str, expected: str) -> None:
        raise EdgeLstmError(
            f"plugin library {self.path} was built for {what}",
            found=found,
            expected=expected,
            hint=BUILD_HINT,
        )


def find_plugin_library(
    *, tensorrt: str | None = None, capability: str | None = None, driver: str | None = None
) -> Path:
    """The first library that fits what is given (see :meth:`PluginLibrary.check`), in the order at the head of this module.

    Raises EdgeLstmError if there is none, or none that fits; the message then tells of the first.
    """
    problem: EdgeLstmError | None = None
    for path in _candidates():
        try:
            read_plugin_library(path).check(tensorrt=tensorrt, capability=capability, driver=driver)
            return path
        except EdgeLstmError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    raise EdgeLstmError(
        "the FusedGates plugin's library is not here",
        expected=f"the file that {VARIABLE} names, or one in {plugin_folder()}",
        hint=BUILD_HINT,
    )


def read_plugin_library(path: PathLike) -> PluginLibrary:
    """What the library at ``path`` was built for, from its bytes. Raises EdgeLstmError if it is no such library."""
    data = read_bytes(path, MAX_LIBRARY_BYTES)
    start = data.find(_MARKER)
    end = data.find(b"\0", start)
    if start < 0 or not 0 < end - start <= _MAX_INFO_BYTES:
        raise EdgeLstmError(
            f"{path} is not the FusedGates plugin",
            found="no build information in it",
            expected=f"{FILE_NAME} as `edgelstm build-plugin` makes it",
        )
    try:
        library = _library(Path(path), json.loads(data[start + len(_MARKER) - 1 : end]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EdgeLstmError(
            f"{path} is a FusedGates plugin that this version of edgelstm can't read",
            found=str(data[start : start + 80])[2:-1],
            hint=BUILD_HINT,
        ) from error
    return replace(library, sha256=sha256(data))


def register(registry: Any, path: PathLike) -> bool:
    """Load the library into a TensorRT's plugin registry; whether FusedGates is in there now.

    A registry takes no library twice, so one that has FusedGates already, for another engine say, is left as it is.
    """
    names = {(creator.name, creator.plugin_namespace) for creator in registry.all_creators}
    return ("FusedGates", "edgelstm") in names or registry.load_library(str(path)) is not None


def cache_folder() -> Path:
    """The user's cache: ``$XDG_CACHE_HOME/edgelstm``, else ``~/.cache/edgelstm``. It need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(base).is_absolute():  # as the XDG base directory specification says
        base = os.path.expanduser("~/.cache")  # noqa: PTH111 (Path's raises where there is no home)
    return Path(base) / "edgelstm"


def plugin_folder() -> Path:
    """Where `edgelstm build-plugin` puts libraries: one folder for each TensorRT and processor."""
    return cache_folder() / "plugins"


def _candidates() -> Iterator[Path]:
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise EdgeLstmError(
                f"{VARIABLE}={named} names no file",
                expected=f"the plugin's library, {FILE_NAME}",
                hint=f"Correct it or unset it. {BUILD_HINT}",
            )
        yield Path(named)
        return
    own = Path(__file__).resolve().parents[1] / FILE_NAME
    try:
        cached = sorted(plugin_folder().glob(f"*/{FILE_NAME}"))
    except OSError:
        cached = []
    yield from (path for path in (own, *cached) if path.is_file())


def _library(path: Path, info: dict[str, Any]) -> PluginLibrary:
    """Raises ValueError, TypeError or KeyError for what is not the build information of schema 1."""
    architectures, ptx, cuda = info["architectures"], info["ptx"], info["cuda"]
    texts, numbers = (info["tensorrt"], info["machine"]), (ptx, cuda, *architectures)
    if info["schema"] != SCHEMA or not architectures:
        raise ValueError("another schema")
    if not all(isinstance(text, str) for text in texts) or not all(type(n) is int for n in numbers):
        raise TypeError("other types")
    _numbers(info["tensorrt"])
    return PluginLibrary(
        path=path,
        sha256="",
        tensorrt=info["tensorrt"],
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
        architectures=tuple(f"{n // 10}.{n % 10}" for n in architectures),
        ptx=f"{ptx // 10}.{ptx % 10}",
        machine=info["machine"],
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])
