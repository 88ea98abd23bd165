"""What tests compile is compiled once: the other workers of pytest-xdist wait for it and take it, and so does the next run.

Run as a program it makes what most of them load. That needs NumPy alone, so ``make test`` does it while pip installs the rest.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from edgelstm.engine import c_build, native_build
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.native.library import FILE_NAME, machine_name

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ROOT / "plugins"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nobody else builds ``path`` meanwhile; look whether it is there inside. A process that ends lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        try:
            import fcntl
        except ImportError:  # Windows: built by each
            yield
            return
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def library(name: str, command: Sequence[str | Path], sources: Iterable[Path]) -> Path:
    """What the command makes with ``-o FILE`` from the sources: a shared library ``name``."""
    words = [str(word) for word in command]
    digest = hashlib.sha256(" ".join([native_build.files_hash(sources), *words]).encode()).hexdigest()
    path = ROOT / "build" / "kernel-tests" / digest[:16] / name
    with alone(path):
        if not path.is_file():
            made = path.with_suffix(f".{os.getpid()}")
            subprocess.run([*words, "-o", str(made)], check=True)
            made.rename(path)
    return path


@cache
def missing() -> str | None:
    """Why nothing can be compiled here."""
    try:
        native_build.find_compiler(None, machine_name())
    except EdgeLstmError as error:
        return str(error)  # no C++ compiler is here
    return None


def operators() -> Path:
    """The library of our operators for ONNX Runtime."""
    digest = native_build.sources_hash(PLUGINS / "onnxruntime")
    path = ROOT / "build" / "native-tests" / digest[:16] / FILE_NAME
    with alone(path):
        if not path.is_file():
            native_build.build_native(path, source=PLUGINS)
    return path


def c_library(*flags: str) -> c_build.CLibrary:
    """The C library, with more flags for the compiler, and with engines where TensorRT's headers are beside the checkout."""
    digest = c_build.sources_hash(PLUGINS)
    # Those of its first release that is taken.
    headers = ROOT.parent / "shared" / "tensorrt-headers" / "10.3"
    with_engines = headers if headers.is_dir() else None
    name = digest[:16] + "".join(flags).replace("=", "-") + ("-tensorrt" if with_engines else "")
    prefix = ROOT / "build" / "c-tests" / name
    library = c_build.CLibrary(prefix, digest)
    with alone(prefix):
        if library.path.is_file():
            return library
        # Quicker to compile; what takes time in it is ONNX Runtime.
        quick = ("-O1", *flags)
        return c_build.build_c(prefix, source=PLUGINS, tensorrt_include=with_engines, flags=quick)


if __name__ == "__main__":
    if reason := missing():
        print(reason)
    else:
        print(f"{operators().name}: built")
        if platform.system() == "Linux":  # others have no C library
            print(f"{c_library().path.name}: built")
