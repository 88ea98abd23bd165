"""What this machine is made of: processor, memory, NVIDIA driver. Standard library only; nothing here raises."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

#: Features that change which kernels run: name here, flag in /proc/cpuinfo (x86 "flags", Arm "Features").
CPU_FEATURES = {
    "AVX2": "avx2",
    "FMA": "fma",
    "AVX-512": "avx512f",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX-512 BF16": "avx512_bf16",
    "AVX VNNI": "avx_vnni",
    "AMX INT8": "amx_int8",
    "AMX BF16": "amx_bf16",
    "NEON": "asimd",
    "dot product": "asimddp",
    "FP16 arithmetic": "asimdhp",
    "I8MM": "i8mm",
    "BF16": "bf16",
    "SVE": "sve",
}

_NVCC_FOLDERS = ("usr/local/cuda/bin", "opt/cuda/bin", "usr/local/cuda-*/bin")


@dataclass(frozen=True)
class Cpu:
    """The processor: ``model`` as it calls itself, ``features`` out of :data:`CPU_FEATURES`, and how many of them
    this process may use (``usable``) of those there are (``total``)."""

    model: str
    architecture: str
    features: tuple[str, ...]
    usable: int
    total: int


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its name, compute capability such as "8.7", and memory in bytes."""

    name: str
    capability: str
    memory: int


@dataclass(frozen=True)
class Cuda:
    """The NVIDIA driver: the newest CUDA version it runs, such as "12.6", and the devices it sees."""

    version: str
    gpus: tuple[Gpu, ...]


def cpu() -> Cpu:
    """The processor, from /proc/cpuinfo where there is one."""
    text = _read("/proc/cpuinfo")
    flags = set(_field(text, "flags").split()) | set(_field(text, "Features").split())
    if platform.machine() in ("arm64", "aarch64"):
        flags.add("asimd")  # part of every 64-bit Arm
    model = _field(text, "model name") or board() or platform.processor() or platform.machine() or "unknown"
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    features = tuple(name for name, flag in CPU_FEATURES.items() if flag in flags)
    return Cpu(model, platform.machine() or "unknown", features, usable, total)


def python_command(module: str, *arguments: str) -> list[str]:
    """What runs a module in a Python of its own that finds what this one finds, and nothing in the folder that happens to be the working one:
    ``-m`` would look there first, for every module."""
    here = Path().absolute() if Path().is_dir() else None
    asked = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    wanted = [Path(__file__).parents[1], *(map(Path, asked) if here is None else (here / p for p in asked))]
    path = [p for p in sys.path if p and (here is None or here / p != here or here in wanted)]
    code = f"import sys; sys.path[:] = {path!r}; import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", code, *arguments]


def cuda_compiler() -> Path | None:
    """nvcc: ``$CUDACXX``, ``$CUDA_HOME``, ``$CUDA_PATH``, on the path, where CUDA is usually installed, or from PyPI."""
    for variable in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        place = os.environ.get(variable)
        named = nvcc_in(place) if place else None
        if named is not None:
            return named
    # PyPI's nvidia-cuda-nvcc (13 and later) lies beside the modules of this environment: nvidia/cu13/bin.
    installed = [
        str(found) for folder in sys.path for found in sorted(Path(folder or ".").glob("nvidia/cu*/bin"))
    ]
    usual = [str(found) for p in _NVCC_FOLDERS for found in sorted(Path("/").glob(p), reverse=True)]
    found = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join((*usual, *installed)) or "/")
    return None if found is None else Path(found)


def nvcc_in(place: str | os.PathLike[str]) -> Path | None:
    """nvcc itself, in the folder named, or in its ``bin``; None if it is in none of them."""
    for candidate in (Path(place), Path(place) / "nvcc", Path(place) / "bin" / "nvcc"):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.absolute()
    return None


def board() -> str | None:
    """Name of the board, such as a Jetson's; None on PCs."""
    return _read("/proc/device-tree/model").strip("\0 \n") or None


def jetson_linux() -> str | None:
    """Release of Jetson Linux, such as "R36.4.3"; None elsewhere."""
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", _read("/etc/nv_tegra_release"))
    return f"R{found[1]}.{found[2]}" if found else None


def memory() -> tuple[int, int] | None:
    """(Total, available) bytes of memory; None where the system does not say."""
    text = _read("/proc/meminfo")
    sizes = [re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE) for name in ("MemTotal", "MemAvailable")]
    if sizes[0] and sizes[1]:
        return int(sizes[0][1]) * 1024, int(sizes[1][1]) * 1024
    return None


def cuda() -> Cuda | None:
    """The NVIDIA driver and its devices, asked through the driver's own library; None without a driver."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
        label = f"{version.value // 1000}.{version.value % 1000 // 10}"
        count = ctypes.c_int()
        if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return Cuda(label, ())
        return Cuda(label, tuple(_gpu(library, i) for i in range(count.value)))
    except (OSError, AttributeError):
        return None


def resident_bytes() -> int | None:
    """Memory this process has in RAM now; None where the system does not say."""
    return _status_bytes("VmRSS")


def peak_resident_bytes() -> int | None:
    """The most memory this process ever had in RAM; None where the system does not say."""
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int | None:
    found = re.search(rf"^{key}:\s*(\d+) kB", _read("/proc/self/status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGetName(name, len(name), device)
    numbers = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        numbers.append(value.value)
    size = ctypes.c_size_t()
    library.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return Gpu(name.value.decode(errors="replace"), f"{numbers[0]}.{numbers[1]}", size.value)


def _field(text: str, key: str) -> str:
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
