"""Build the GStreamer element: a C++ compiler, pkg-config and GStreamer's headers are needed. It lies beside the C library, which it
finds by its own place: ``lib/gstreamer-1.0/`` in the same folder."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelstm.engine.c_build import FILE_NAME as C_LIBRARY
from edgelstm.engine.c_build import CLibrary, build_c, cached_folder, check_system, find_c_library
from edgelstm.engine.c_build import sources_hash as c_sources_hash
from edgelstm.engine.native_build import find_compiler, run_compiler
from edgelstm.engine.plugin_build import Progress, find_source
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, atomic_path
from edgelstm.runtime.native.library import machine_name

FILE_NAME = "libgstedgelstm.so"
BUILD_HINT = (
    "Build it on this machine: edgelstm build-plugin --gst (needs a C++ compiler and GStreamer's headers)"
)
#: What pkg-config has to know, and the Debian package that brings it.
PACKAGES = {
    "gstreamer-1.0": "libgstreamer1.0-dev",
    "gstreamer-base-1.0": "libgstreamer1.0-dev",
    "gstreamer-video-1.0": "libgstreamer-plugins-base1.0-dev",
}
OLDEST = "1.14"
#: No fused multiply-add: preprocessing has the bits that NumPy gives.
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wextra",
    "-Wno-unknown-warning-option",
)  # fmt: skip
#: Parts of the C library that it does not show.
_SHARED = ("json.cpp", "signature.cpp")
_SOURCES = re.compile(rb"edgelstm-gst-sources ([0-9a-f]{64})")


@dataclass(frozen=True)
class GstPlugin:
    """The folder that the element was built into. sources: hash of what it was built from."""

    prefix: Path
    sources: str

    @property
    def path(self) -> Path:
        """The plugin; its folder is for GST_PLUGIN_PATH."""
        return self.prefix / "lib" / "gstreamer-1.0" / FILE_NAME

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "prefix": str(self.prefix),
            "plugin": str(self.path),
            "gst_plugin_path": str(self.path.parent),
            "sources": self.sources,
        }


def build_gst(
    output: PathLike | None = None,
    *,
    compiler: PathLike | None = None,
    source: PathLike | None = None,
    flags: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> GstPlugin:
    """Compile the element, and the C library where it is not yet in the folder.

    Parameters are those of :func:`edgelstm.engine.c_build.build_c`. Raises EdgeLstmError, with what to install, for what is
    missing, and with the compiler's words if it fails.
    """
    check_system()
    plugins = find_source(source)
    folder = plugins / "gstreamer"
    if not (folder / "element.cpp").is_file():
        raise EdgeLstmError("the element's sources are not here", found=f"no element.cpp in {folder}")
    found = find_gstreamer()
    command = [*find_compiler(compiler, machine_name()), *FLAGS, *flags]
    prefix = (Path(output) if output is not None else cached_folder(machine_name())).absolute()
    library = _c_library(prefix, plugins, compiler, flags, progress)
    plugin = GstPlugin(prefix, sources_hash(plugins))
    sources = [*sorted(folder.glob("*.cpp")), *(plugins / "c" / name for name in _SHARED)]
    defined = [f'-DEDGELSTM_SOURCES="{plugin.sources}"']
    with tempfile.TemporaryDirectory() as scratch:
        objects = [str(Path(scratch) / f"{path.name}.o") for path in sources]

        def compile_one(k: int) -> None:
            job = [*command, *defined, *found.cflags, "-c", str(sources[k]), "-o", objects[k]]
            run_compiler(job, f"compiling {sources[k].name}")

        if progress:
            progress("compiling", 0, len(sources))
        with ThreadPoolExecutor(2) as pool:
            for done, _ in enumerate(pool.map(compile_one, range(len(sources))), 1):
                if progress:
                    progress("compiling", done, len(sources))
        linked = Path(scratch) / FILE_NAME
        place = ["-Wl,-rpath,$ORIGIN/..", f"-L{library.path.parent}", f"-l:{C_LIBRARY}"]
        run_compiler(
            [*command, "-shared", "-o", str(linked), *objects, *place, *found.libs], "linking the element"
        )
        try:
            plugin.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeLstmError(
                f"can't make {plugin.path.parent}", found=str(error), hint="Give a folder with -o"
            ) from error
        with atomic_path(plugin.path) as file:
            shutil.copyfile(linked, file)
    return plugin


@dataclass(frozen=True)
class GStreamer:
    """Flags of GStreamer's own libraries."""

    cflags: tuple[str, ...]
    libs: tuple[str, ...]


def find_gstreamer() -> GStreamer:
    """What pkg-config says. Raises EdgeLstmError, naming Debian's packages, for what is missing."""
    needed = " ".join(dict.fromkeys(PACKAGES.values()))
    if shutil.which("pkg-config") is None:
        raise EdgeLstmError(
            "pkg-config is not here",
            hint=f"Install it and GStreamer's headers: apt install pkg-config {needed}",
        )
    missing = [
        name for name in PACKAGES if _pkg_config("--exists", f"{name} >= {OLDEST}").returncode
    ]  # fmt: skip
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGES[name] for name in missing))
        raise EdgeLstmError(
            "GStreamer's headers are not here",
            found=f"no {', '.join(missing)} of {OLDEST} or later by pkg-config",
            hint=f"Install them: apt install {packages} (Debian, Ubuntu, Jetson)",
        )
    said = []
    for what in ("--cflags", "--libs"):
        done = _pkg_config(what, *PACKAGES)
        if done.returncode:
            raise EdgeLstmError(f"pkg-config {what} failed", found=done.stderr.strip()[:300])
        said.append(tuple(done.stdout.split()))
    return GStreamer(*said)


def find_gst(prefix: PathLike | None = None) -> GstPlugin:
    """What :func:`build_gst` wrote. prefix: the folder; default: the user's cache.

    Raises EdgeLstmError where there is none, or where it is of other sources than this edgelstm's.
    """
    folder = (Path(prefix) if prefix is not None else cached_folder(machine_name())).absolute()
    plugin = GstPlugin(folder, sources_hash(find_source()))
    if not plugin.path.is_file():
        raise EdgeLstmError("the GStreamer element is not here", found=f"no {plugin.path}", hint=BUILD_HINT)
    built = _SOURCES.search(plugin.path.read_bytes())
    if built is None or built[1].decode() != plugin.sources:
        raise EdgeLstmError(
            f"the GStreamer element in {folder}", found="one built from other sources", hint=BUILD_HINT
        )
    find_c_library(folder)
    return plugin


def sources_hash(plugins: Path) -> str:
    """SHA-256 of what the element is built from, the C library included."""
    digest = hashlib.sha256(c_sources_hash(plugins).encode())
    for path in sorted(p for p in (plugins / "gstreamer").iterdir() if p.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _c_library(
    prefix: Path,
    plugins: Path,
    compiler: PathLike | None,
    flags: tuple[str, ...],
    progress: Progress | None,
) -> CLibrary:
    try:
        library = find_c_library(prefix)
        if library.sources == c_sources_hash(plugins):
            return library
    except EdgeLstmError:
        pass
    return build_c(prefix, compiler=compiler, source=plugins, flags=flags, progress=progress)


def _pkg_config(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["pkg-config", *arguments], capture_output=True, text=True, errors="replace", timeout=60, check=False
    )
