"""CUDA sources of this project into machine code for one GPU: by NVRTC, else by nvcc; kept in the user's cache.

NVRTC comes with PyTorch's and CuPy's CUDA builds and as a wheel (nvidia-cuda-nvrtc). The sources need no header but their own,
so neither a CUDA toolkit nor a C++ compiler has to be there.
"""

from __future__ import annotations

import functools
import logging
import re
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgelstm import machine
from edgelstm.errors import EdgeLstmError
from edgelstm.files import sha256, write_bytes
from edgelstm.runtime.plugin_library import cache_folder

_LOG = logging.getLogger(__name__)
_DIGEST = 64  # bytes of a SHA-256 in hexadecimal
_LOCK = threading.Lock()
_compiled: dict[str, bytes] = {}


@dataclass(frozen=True)
class Code:
    """What is to be compiled. source: a file of plugins/src. defines: its macros. arch: such as "90" or "87"."""

    source: str
    defines: tuple[tuple[str, int], ...]
    arch: str

    def flags(self) -> list[str]:
        """For either compiler."""
        include = str(sources() / "include")
        return [
            f"-arch=sm_{self.arch}",
            "-std=c++17",
            f"-I{include}",
            *(f"-D{name}={value}" for name, value in self.defines),
        ]


class Compiler(Protocol):
    """name: with its version, as the cache tells compilers apart."""

    name: str

    def compile(self, code: Code) -> bytes:
        """A cubin, or EdgeLstmError with the compiler's words."""
        ...


def code_of(source: str, defines: Mapping[str, int], capability: tuple[int, int]) -> Code:
    """Code for GPUs of a compute capability such as (9, 0)."""
    return Code(source, tuple(sorted(defines.items())), f"{capability[0]}{capability[1]}")


def cubin(code: Code, compiler: Compiler | None = None) -> bytes:
    """The machine code: from this process, from the cache, or compiled now.

    Raises EdgeLstmError where there is neither NVRTC nor nvcc, and with the compiler's words if it fails.
    """
    with _LOCK:
        compiler = compiler or find_compiler()
        key = sha256(repr((code, compiler.name, _sources_digest())).encode())
        if key not in _compiled:
            file = cache_folder() / "kernels" / f"{Path(code.source).stem}-sm{code.arch}-{key[:32]}.cubin"
            _compiled[key] = _cached(file) or _compile(compiler, code, file)
        return _compiled[key]


def sources() -> Path:
    """The folder with ``include`` and ``src``: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_plugins", package.parent / "plugins"):
        if (folder / "src" / "fused_gates_alone.cu").is_file():
            return folder
    raise EdgeLstmError(
        "the kernels' sources are not here",
        found=f"neither {package / '_plugins'} nor {package.parent / 'plugins'}",
        hint="Install edgelstm again",
    )


@functools.cache
def find_compiler() -> Compiler:
    """NVRTC, else nvcc. Raises EdgeLstmError if there is neither."""
    why: list[str] = []
    for make in (Nvrtc, Nvcc):
        try:
            return make()
        except EdgeLstmError as error:
            why.append(str(error))
    raise EdgeLstmError(
        "no compiler for CUDA kernels is here",
        found="; ".join(why),
        hint="pip install nvidia-cuda-nvrtc (of the driver's CUDA generation), or install the CUDA toolkit",
    )


class Nvrtc:
    """CUDA's compiler as a library, through cuda-bindings."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import nvrtc
        except ImportError as error:
            raise EdgeLstmError(
                "cuda-bindings is not installed", hint="pip install 'edgelstm[gpu]'"
            ) from error
        self._nvrtc = nvrtc
        try:
            major, minor = self._ok(nvrtc.nvrtcVersion())
        except Exception as error:  # how a missing library is told differs between versions of cuda-bindings
            raise EdgeLstmError("the library libnvrtc is not here") from error
        self.name = f"NVRTC {major}.{minor}"

    def compile(self, code: Code) -> bytes:
        nvrtc = self._nvrtc
        text = (sources() / "src" / code.source).read_bytes()
        program = self._ok(nvrtc.nvrtcCreateProgram(text, code.source.encode(), 0, [], []))
        try:
            flags = [flag.encode() for flag in (*code.flags(), "-default-device")]
            if int(nvrtc.nvrtcCompileProgram(program, len(flags), flags)[0]):
                log = b" " * self._ok(nvrtc.nvrtcGetProgramLogSize(program))
                self._ok(nvrtc.nvrtcGetProgramLog(program, log))
                raise EdgeLstmError(
                    f"{self.name} refuses {code.source} for sm_{code.arch}", found=_first_errors(log.decode())
                )
            binary = b" " * int(self._ok(nvrtc.nvrtcGetCUBINSize(program)))
            self._ok(nvrtc.nvrtcGetCUBIN(program, binary))
            return binary
        finally:
            nvrtc.nvrtcDestroyProgram(program)

    def _ok(self, result: tuple[Any, ...]) -> Any:
        error, *values = result
        if int(error):
            raise EdgeLstmError("NVRTC failed", found=str(getattr(error, "name", error)))
        return values[0] if len(values) == 1 else tuple(values)


class Nvcc:
    """CUDA's compiler as a program."""

    def __init__(self, path: Path | None = None) -> None:
        found = path or machine.cuda_compiler()
        if found is None:
            raise EdgeLstmError("nvcc is not here")
        self.path = found
        said = subprocess.run([str(found), "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"release [\d.]+, V([\d.]+)", said)
        self.name = f"nvcc {version[1] if version else said.strip()[-40:]}"

    def compile(self, code: Code) -> bytes:
        with tempfile.TemporaryDirectory(prefix="edgelstm-kernel-") as folder:
            file = Path(folder, "kernel.cubin")
            source = str(sources() / "src" / code.source)
            command = [str(self.path), "-cubin", "-O3", *code.flags(), "-o", str(file), source]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise EdgeLstmError(
                    f"{self.name} refuses {code.source} for sm_{code.arch}",
                    found=_first_errors(done.stderr or done.stdout),
                )
            return file.read_bytes()


def _compile(compiler: Compiler, code: Code, file: Path) -> bytes:
    binary = compiler.compile(code)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, sha256(binary).encode() + binary)
    except (OSError, EdgeLstmError) as error:
        _LOG.warning("the compiled kernel can't be kept, so each process compiles it anew: %s", error)
    return binary


def _cached(file: Path) -> bytes | None:
    """What the cache holds, if it is whole."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, binary = content[:_DIGEST], content[_DIGEST:]
    return binary if binary and sha256(binary).encode() == digest else None


@functools.cache
def _sources_digest() -> str:
    folder = sources()
    files = sorted([*(folder / "include" / "edgelstm").glob("*.h"), *(folder / "src").glob("*.cu")])
    return sha256(b"\0".join(file.name.encode() + b"\0" + file.read_bytes() for file in files))


def _first_errors(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if "error" in line.lower()]
    return " | ".join(lines[:3])[:600] or log.strip()[-300:] or "no output"
