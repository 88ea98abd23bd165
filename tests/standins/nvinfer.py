"""Builds the stand-ins that the C library loads on no GPU: ``nvinfer.cpp`` against TensorRT's real headers, and ``onnxruntime_cuda.cpp``.
See there what they are, and what they are not."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import c_library
from building import alone
from plugins.adapter_library import headers_of

SOURCE = Path(__file__).with_suffix(".cpp")
#: Of the headers' classes: the ones whose functions the stand-in has, with the name that those nobody calls get.
_CLASSES = {"VRuntime": "RuntimeRest", "VCudaEngine": "EngineRest", "VExecutionContext": "ContextRest"}
_PURE = re.compile(r"virtual\s+([^;{}]*?)\s*=\s*0\s*;")


def functions_of(text: str, name: str) -> list[str]:
    """Declarations of the pure virtual functions of a class in a header."""
    body = re.search(rf"^class {name}\b[^;{{]*\n\{{(.*?)^\}};", text, re.MULTILINE | re.DOTALL)
    assert body, name
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", body[1], flags=re.DOTALL)
    return [" ".join(found.split()) for found in _PURE.findall(code)]


def rest_of(headers: Path) -> str:
    """Classes with all functions of the interface, which end the process."""
    impl = (headers / "NvInferImpl.h").read_text(encoding="utf-8", errors="replace")
    lines = ["#include <cstdlib>", "namespace nvinfer1 { namespace apiv {"]
    for base, name in _CLASSES.items():
        lines.append(f"struct {name} : {base} {{")
        lines += [f"  {f} override {{ abort(); }}" for f in functions_of(impl, base)]
        lines.append("};")
    registry = "".join(
        (headers / name).read_text(encoding="utf-8", errors="replace")
        for name in ("NvInferRuntimeCommon.h", "NvInferRuntime.h", "NvInferRuntimeBase.h")
    )
    lines.append("struct RegistryRest : IPluginRegistry {")
    lines += [f"  {f} override {{ abort(); }}" for f in functions_of(registry, "IPluginRegistry")]
    lines += ["};", "}}"]
    return "\n".join(lines) + "\n"


@cache
def built(version: str = "10.13", number: int = 101300) -> Path:
    """Its path; the test is skipped without the headers. ``number``: the version it tells."""
    headers = headers_of(version)
    sources = [SOURCE, *(c_library.SOURCES / name for name in ("ort.cpp", "signature.cpp", "json.cpp"))]
    defines = [
        f"-DSTANDIN_VERSION={number}",
        "-isystem",
        str(headers),
        "-idirafter",
        str(c_library.SOURCES / "cuda"),
    ]
    return _compiled("libnvinfer.so.10", sources, defines, rest_of(headers))


@cache
def provider() -> Path:
    """The library of ONNX Runtime with the stand-in for the CUDA provider."""
    return _compiled("libonnxruntime.so", [SOURCE.with_name("onnxruntime_cuda.cpp")], [], "")


def _compiled(name: str, sources: list[Path], flags: list[str], rest: str) -> Path:
    c_library.built()  # skips where there is no compiler
    parts = [*sources, *c_library.SOURCES.glob("*.h"), c_library.SOURCES.parent / "onnxruntime" / "ort_abi.h"]
    digest = hashlib.sha256(
        rest.encode() + b"".join(path.read_bytes() for path in sorted(parts)) + " ".join(flags).encode()
    )
    folder = c_library.ROOT / "build" / "c-tests" / f"{name}-{digest.hexdigest()[:16]}"
    path = folder / name
    with alone(path):
        if not path.is_file():
            _compile(path, sources, flags, rest)
    return path


def _compile(path: Path, sources: list[Path], flags: list[str], rest: str) -> None:
    folder, made = path.parent, path.with_name(f"{os.getpid()}.so")
    (folder / "rest.h").write_text(rest)
    command = [
        "c++", "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-w", *flags, f"-I{folder}", f"-I{c_library.SOURCES}", *map(str, sources),
        f"-Wl,-soname,standin-{path.name}", "-o", str(made), "-ldl", "-pthread",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    made.rename(path)
