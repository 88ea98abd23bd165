"""The plugin library built against each TensorRT's headers that are here, and asked what TensorRT asks (adapter_probe.cpp)."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from ctypes import Structure, c_char_p, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import building
from edgelstm import machine
from edgelstm.engine.native_build import files_hash
from edgelstm.engine.plugin_build import find_nvcc, headers_version
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.plugin_library import FILE_NAME, cache_folder

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
HEADERS_VARIABLE = "EDGELSTM_TENSORRT_HEADERS"
#: Quicker to compile; what they compute is the kernels'.
QUICK = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0")
#: One release of each that Jetsons have, or that changed what plugins see.
VERSIONS = ("8.5", "10.3", "10.13", "11.1")


def _architecture() -> str:
    """That of the GPU, so that its machine code is what is tested and not what the driver makes of older PTX."""
    cuda = machine.cuda()
    return cuda.gpus[0].capability.replace(".", "") if cuda and cuda.gpus else "80"


ARCHITECTURE = _architecture()

FLOAT, HALF, INT8, INT32, BF16 = 0, 1, 2, 3, 7
LINEAR, CHW2, HWC8, CHW4, CHW16, CHW32, DHWC8, CDHW32, HWC, DLA, HWC16 = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11
FIELD_INT32, FIELD_FLOAT32 = 5, 1


def headers_folders() -> dict[str, Path]:
    """Folders with headers by version, "10.3": those below $EDGELSTM_TENSORRT_HEADERS, else beside the checkout or in the cache."""
    beside = PLUGINS.parent.parent / "shared" / "tensorrt-headers"
    usual = beside if beside.is_dir() else cache_folder() / "tensorrt-headers"
    base = Path(os.environ.get(HEADERS_VARIABLE) or usual)
    found = {}
    for folder in sorted(base.glob("*")):
        version = headers_version(folder)
        if version is not None:
            found[".".join(version.split(".")[:2])] = folder
    return found


def headers_of(version: str) -> Path:
    """The headers of one release; the test is skipped where they are not."""
    folders = headers_folders()
    if version not in folders:
        pytest.skip(
            f"no headers of TensorRT {version} below ${HEADERS_VARIABLE} or {cache_folder() / 'tensorrt-headers'} "
            f"(found: {', '.join(folders) or 'none'})"
        )
    return folders[version]


def tools() -> tuple[str, str, Path]:
    """(cmake, g++, nvcc); the test is skipped where one is missing."""
    cmake, compiler = shutil.which("cmake"), shutil.which("g++")
    try:
        nvcc = find_nvcc()
    except EdgeLstmError as error:
        pytest.skip(str(error))
    if cmake is None or compiler is None:
        pytest.skip("cmake or g++ is not here")
    return cmake, compiler, nvcc


def build_library(folder: Path, headers: Path, kernels: Path | None = None, *options: str) -> Path:
    """The plugin library, built by its CMakeLists.txt in ``folder``; ``kernels``: of a build before."""
    cmake, _, nvcc = tools()
    given = {
        "EDGELSTM_TENSORRT_INCLUDE": headers,
        "EDGELSTM_NVCC": nvcc,
        "EDGELSTM_ARCHITECTURES": ARCHITECTURE,
        "CMAKE_CXX_FLAGS": "-Werror",
    }
    if kernels is not None:
        given["EDGELSTM_KERNELS"] = kernels
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    definitions = [f"-D{name}={value}" for name, value in given.items()]
    _run(cmake, "-S", PLUGINS, "-B", folder, *generator, *definitions, *options)
    _run(cmake, "--build", folder, "--parallel")
    return folder / FILE_NAME


def build_probe(folder: Path, headers: Path, compiler: str | None = None, *, program: bool = False) -> Path:
    """adapter_probe.cpp compiled against ``headers``: a library, or a program for a machine without Python."""
    _, here, nvcc = tools()
    cuda = nvcc.resolve().parents[1] / "include"
    includes = [
        f"-I{PLUGINS / 'include'}",
        *(f"-isystem{p}" for p in (headers, cuda, Path("/usr/local/cuda/include"))),
    ]
    flags = ["-std=c++17", "-O0", "-Wno-deprecated-declarations", *includes]
    flags += ["-DPROBE_MAIN"] if program else ["-fPIC", "-shared"]
    probe = folder / ("probe" if program else "libprobe.so")
    _run(compiler or here, *flags, Path(__file__).with_name("adapter_probe.cpp"), "-o", probe, "-ldl")
    return probe


class Adapters:
    """Libraries by version; a version whose headers are not here skips the test that asks for it."""

    def __init__(self) -> None:
        self.built: dict[str, Adapter] = {}

    def __getitem__(self, version: str) -> Adapter:
        if version not in self.built:
            headers, (*_, nvcc) = headers_of(version), tools()
            parts = [f for name in ("include", "src", "tensorrt") for f in (PLUGINS / name).rglob("*.*")]
            parts += [PLUGINS / "CMakeLists.txt", Path(__file__).with_name("adapter_probe.cpp")]
            sources = files_hash(part for part in parts if part.is_file())
            digest = hashlib.sha256(f"{sources} {nvcc} {ARCHITECTURE}".encode()).hexdigest()
            base = PLUGINS.parent / "build" / "adapter-tests" / digest[:16]
            folder = base / f"{version}-{headers_version(headers)}"
            whole = folder / "whole"
            with building.alone(base):
                if not whole.is_file():
                    # The kernels are those of the first one, and take longest.
                    others = (other.with_name("fused_gates.o") for other in base.glob("*/whole"))
                    kernels = next((kernel for kernel in others if kernel.is_file()), None)
                    build_library(folder, headers, kernels, *QUICK)
                    build_probe(folder, headers)
                    whole.touch()
            self.built[version] = Adapter(version, folder / FILE_NAME, folder / "libprobe.so")
        return self.built[version]


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


class Tensor(Structure):
    """A tensor as TensorRT describes it: dims (-1: not known yet), nvinfer1's numbers of type and format."""

    _fields_: ClassVar = [
        ("rank", c_int32),
        ("dims", c_int64 * 8),
        ("type", c_int32),
        ("format", c_int32),
        ("data", c_void_p),
    ]

    @classmethod
    def of(
        cls, shape: Sequence[int], kind: int = FLOAT, layout: int = LINEAR, data: int | None = None
    ) -> Tensor:
        return cls(len(shape), (c_int64 * 8)(*shape), kind, layout, data)


def _tensors(tensors: Sequence[Tensor]) -> Any:
    return (Tensor * len(tensors))(*tensors)


class Adapter:
    """A plugin library, loaded; makes plugins."""

    def __init__(self, version: str, library: Path, probe: Path) -> None:
        self.version = tuple(int(part) for part in version.split("."))
        self.library = library
        self.call = ctypes.CDLL(str(probe))
        for name in ("probeOpen", "probeCreate", "probeClone", "probeRoundTrip"):
            getattr(self.call, name).restype = c_void_p
        self.call.probeKernel.restype = ctypes.c_bool
        self.creator = self.call.probeOpen(str(library).encode())
        assert self.creator, self.messages()

    @property
    def v3(self) -> bool:
        return self.version[0] >= 10

    def messages(self) -> str:
        """What was logged since the last call. TensorRT 8.5 gives plugins no logger: its go to standard error."""
        return _text(self.call.probeMessages)

    def has_kernel(self, forms: Sequence[tuple[int, int]]) -> bool:
        """Whether there is a kernel for z, c and h of these types and layouts."""
        types, layouts = ((c_int32 * 3)(*numbers) for numbers in zip(*forms, strict=True))
        return bool(self.call.probeKernel(types, layouts))

    def names(self) -> tuple[str, dict[str, int]]:
        """(name, version and namespace; field types by name)."""
        words = _text(self.call.probeCreator, c_void_p(self.creator)).split()
        return " ".join(words[:3]), {n: int(t) for n, t in (word.split(":") for word in words[3:])}

    def create(self, fields: Mapping[str, Any] | None = None) -> Plugin | None:
        """A plugin; an int is an int32 field, a float a float32 one, an array as it is. None: refused."""
        given = {
            name: value
            if isinstance(value, np.ndarray)
            else np.array([value], np.float32 if isinstance(value, float) else np.int32)
            for name, value in (fields or {}).items()
        }
        count = len(given)
        types = {np.dtype(np.int32): FIELD_INT32, np.dtype(np.float32): FIELD_FLOAT32, np.dtype(np.int64): 10}
        found = self.call.probeCreate(
            c_void_p(self.creator),
            count,
            (c_char_p * count)(*(name.encode() for name in given)),
            (c_int32 * count)(*(types[array.dtype] for array in given.values())),
            (c_void_p * count)(*(array.ctypes.data for array in given.values())),
            (c_int32 * count)(*(array.size for array in given.values())),
        )
        return Plugin(self, found) if found else None


@dataclass
class Plugin:
    """One plugin object; outputs are asked for by number."""

    adapter: Adapter
    address: int

    def __post_init__(self) -> None:
        self.call = self.adapter.call
        self.pointer = c_void_p(self.address)

    def destroy(self) -> None:
        self.call.probeDestroy(self.pointer)

    def clone(self) -> Plugin:
        return Plugin(self.adapter, self.call.probeClone(self.pointer))

    def round_trip(self, damaged: int = -1) -> Plugin | None:
        """Through a plan. ``damaged``: a byte of what V2 stores; for V3, TensorRT itself stores."""
        found = self.call.probeRoundTrip(c_void_p(self.adapter.creator), self.pointer, damaged)
        return Plugin(self.adapter, found) if found else None

    def describe(self) -> str:
        return _text(self.call.probeDescribe, self.pointer)

    @property
    def outputs(self) -> int:
        return int(self.call.probeOutputs(self.pointer))

    def output_types(self, inputs: Sequence[int], outputs: int) -> list[int] | None:
        out = (c_int32 * outputs)()
        failed = self.call.probeTypes(
            self.pointer, len(inputs), (c_int32 * len(inputs))(*inputs), outputs, out
        )
        return None if failed else list(out)

    def output_shapes(self, inputs: Sequence[Tensor], outputs: int) -> list[list[tuple[int, int]]] | None:
        """For each output, for each of its axes: (input, axis) that it is as long as."""
        ranks, tokens = (c_int32 * outputs)(), (c_int32 * (8 * outputs))()
        if self.call.probeShapes(self.pointer, len(inputs), _tensors(inputs), outputs, ranks, tokens):
            return None
        return [[divmod(tokens[8 * i + k], 100) for k in range(ranks[i])] for i in range(outputs)]

    def aliased(self, output: int) -> int:
        return int(self.call.probeAliased(self.pointer, output))

    def supports(self, position: int, tensors: Sequence[Tensor], outputs: int) -> bool:
        """What is asked about the tensor at ``position``; those after it are not shown to the plugin."""
        inputs = len(tensors) - outputs
        return bool(self.call.probeSupports(self.pointer, position, inputs, outputs, _tensors(tensors)))

    def accepts(self, tensors: Sequence[Tensor], outputs: int) -> bool:
        """Whether TensorRT, asking about one tensor after the other, takes this combination."""
        return all(self.supports(position, tensors, outputs) for position in range(len(tensors)))

    def takes_shapes(self, inputs: Sequence[Tensor], outputs: int, at_runtime: bool = False) -> bool:
        return (
            self.call.probeShapeCheck(self.pointer, len(inputs), _tensors(inputs), outputs, int(at_runtime))
            == 0
        )

    def enqueue(self, tensors: Sequence[Tensor], outputs: int) -> int:
        return int(self.call.probeEnqueue(self.pointer, len(tensors) - outputs, outputs, _tensors(tensors)))


def _text(function: Any, *arguments: Any) -> str:
    buffer = ctypes.create_string_buffer(16384)
    function(*arguments, buffer, len(buffer))
    return buffer.value.decode()
