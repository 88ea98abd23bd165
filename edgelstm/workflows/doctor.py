"""What this machine can do, and what to install for what is missing.

    doctor() -> DoctorReport        report.devices -> where it can stream; report.to_json() -> dict; report.table()

Quick, and it never fails: whatever can't be found out is reported as missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgelstm import machine
from edgelstm.errors import EdgeLstmError

if TYPE_CHECKING:
    from rich.table import Table

    from edgelstm.runtime.sidecar import RuntimeName

SCHEMA = 1
#: Devices a model can stream on, and the backends that would do it.
DEVICES = {"cpu": "ONNX Runtime", "cuda": "TensorRT, or ONNX Runtime's CUDA provider"}
#: Modules the TensorRT backend stands on.
TENSORRT_MODULES = ("tensorrt", "cuda.bindings")
#: Seconds they may take to load, in a process of their own: a broken library can abort it.
LOAD_TIMEOUT = 60.0
#: Python module, distribution that brings it, our extra that installs it, what it is for.
PACKAGES: tuple[tuple[str, str, str, str], ...] = (
    ("torch", "torch", "torch", "export from PyTorch, verify against it"),
    ("onnxscript", "onnxscript", "torch", "export from PyTorch"),
    ("av", "av", "video", "video files and cameras"),
    ("PIL", "pillow", "images", "image folders"),
    ("tifffile", "tifffile", "images", "TIFF"),
    ("imagecodecs", "imagecodecs", "images", "16-bit PNG and compressed TIFF"),
    ("h5py", "h5py", "radar", "HDF5 radar files"),
    ("cuda.bindings", "cuda-bindings", "gpu", "run on a GPU"),
    ("openvino", "openvino", "bench", "bench against OpenVINO"),
    ("matplotlib", "matplotlib", "bench", "plots"),
)

State = Literal["ok", "missing"]


@dataclass(frozen=True)
class Finding:
    """One thing looked for: in which ``area``, what was ``found`` (None: nothing), and a ``hint`` what to do if it
    is missed. ``needed`` is True for what is missed while the machine can't stream on any device."""

    area: str
    name: str
    found: str | None
    hint: str | None = None
    needed: bool = False

    @property
    def state(self) -> State:
        """``ok`` or ``missing``."""
        return "missing" if self.found is None else "ok"


@dataclass(frozen=True)
class DoctorReport:
    """Everything ``doctor`` found, in the order in which to read it."""

    findings: tuple[Finding, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices on which this machine can stream, out of :data:`DEVICES`."""
        return tuple(f.name for f in self.findings if f.area == "stream" and f.found is not None)

    @property
    def ready(self) -> bool:
        """Whether this machine can stream a model at all."""
        return bool(self.devices)

    def check(self, device: str | None = None) -> None:
        """Raise EdgeLstmError, with what to do, unless this machine can stream on ``device`` (None: on any)."""
        if device is not None and device not in DEVICES:
            raise EdgeLstmError("device", found=device, expected=f"one of {', '.join(DEVICES)}")
        wanted = list(DEVICES) if device is None else [device]
        if not set(wanted) & set(self.devices):
            raise EdgeLstmError(
                f"this machine can't stream on {' or '.join(wanted)}",
                expected="; ".join(DEVICES[name] for name in wanted),
                hint=". ".join(self[name].hint or "" for name in wanted),
            )

    def __getitem__(self, name: str) -> Finding:
        """The finding called ``name``."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; ``hint`` is null where nothing is to be done."""
        return {
            "schema": SCHEMA,
            "ready": self.ready,
            "devices": list(self.devices),
            "findings": [{**asdict(f), "state": f.state} for f in self.findings],
        }

    def table(self) -> Table:
        """For people."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title="What this machine can do" + ("" if self.ready else ": not ready to stream"))
        for heading in ("", "", "found", "to install or do"):
            table.add_column(heading, overflow="fold")
        area = ""
        for f in self.findings:
            if f.area != area and area:
                table.add_section()
            found = escape(f.found) if f.found is not None else "[red]missing[/]" if f.needed else "[dim]-[/]"
            table.add_row("" if f.area == area else f.area, f.name, found, escape(f.hint or ""))
            area = f.area
        return table


def doctor() -> DoctorReport:
    """Look this machine over: processor, memory, runtimes, GPU, plugin, optional packages, cameras."""
    runtimes, nvidia = list(_runtimes()), list(_nvidia())
    streaming = list(_streaming({f.name: f for f in (*runtimes, *nvidia)}))
    if all(f.found is None for f in streaming):
        streaming = [replace(f, needed=True) for f in streaming]
    return DoctorReport((*streaming, *_hardware(), *runtimes, *nvidia, *_packages(), _cameras()))


def _streaming(found: dict[str, Finding]) -> Iterator[Finding]:
    """Whether a model could stream on each device, from what else was found."""
    ort, gpu, tensorrt = found["onnxruntime"], found["GPU"], found["tensorrt"]
    yield Finding("stream", "cpu", ort.found and f"ONNX Runtime {ort.found}", ort.hint)
    if gpu.found is None:
        yield Finding("stream", "cuda", None, gpu.hint or found["CUDA driver"].hint)
        return
    device = gpu.found.partition(",")[0]
    trouble = tensorrt.hint if tensorrt.found is None else _trouble_loading(TENSORRT_MODULES)
    if trouble is None:
        yield Finding("stream", "cuda", f"TensorRT {tensorrt.found} on {device}")
    elif "CUDA" in (found["onnxruntime providers"].found or "").split(", "):
        yield Finding("stream", "cuda", f"ONNX Runtime {ort.found} on {device}", trouble)
    else:
        yield Finding("stream", "cuda", None, trouble)


def _trouble_loading(modules: Sequence[str]) -> str | None:
    """Why modules that are installed do not load, as a hint; None if they do."""
    command = [sys.executable, "-c", f"import {', '.join(modules)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{' and '.join(modules)} do not load: {_first_line(error)}"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    said = lines[-1] if lines else f"its process ended with code {done.returncode}"
    return f"{' and '.join(modules)} do not load ({said}): pip install 'edgelstm[tensorrt]' cuda-bindings"


def _hardware() -> Iterator[Finding]:
    cpu = machine.cpu()
    yield Finding("machine", "processor", f"{cpu.model} ({cpu.architecture})")
    yield Finding("machine", "features", ", ".join(cpu.features) or "none that matter here")
    yield Finding("machine", "processors", f"{cpu.usable} usable of {cpu.total}")
    sizes = machine.memory()
    yield Finding("machine", "memory", f"{_gib(sizes[0])}, {_gib(sizes[1])} available" if sizes else None)
    board, jetson = machine.board(), machine.jetson_linux()
    if board:
        yield Finding("machine", "board", f"{board}, Jetson Linux {jetson}" if jetson else board)
    yield Finding("machine", "python", f"{platform.python_version()} on {platform.platform(terse=True)}")


def _runtimes() -> Iterator[Finding]:
    hint = "pip install 'edgelstm[cpu]' (with an NVIDIA GPU: 'edgelstm[gpu]'; not both)"
    version = providers = None
    trouble = None
    try:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as runtime.session does
        import onnxruntime

        version = str(onnxruntime.__version__)
        providers = ", ".join(
            name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
        )
    except ImportError as error:
        if importlib.util.find_spec("onnxruntime") is not None:
            trouble = f"It is installed but does not load: {_first_line(error)}. Reinstall it: {hint}"
    except Exception as error:  # a broken binary package can raise anything
        trouble = f"It is installed but does not load: {_first_line(error)}. Reinstall it: {hint}"
    missing = trouble or hint
    yield Finding("run", "onnxruntime", version, None if version else missing)
    yield Finding("run", "onnxruntime providers", providers, None if providers else missing)
    yield _native()
    yield _c_library()


def _native() -> Finding:
    """The library of our operators for ONNX Runtime, and which of its kernels this processor gets."""
    name, off = (
        "onnxruntime operators",
        os.environ.get("EDGELSTM_NATIVE", "").strip().lower() in ("0", "off", "no"),
    )
    try:
        from edgelstm.runtime.native.library import BUILD_HINT, find_native_library

        library = find_native_library()
        if library is None:
            return Finding(
                "run", name, None, f"Small LSTM and GRU models run some times faster with them. {BUILD_HINT}"
            )
        origin = "prebuilt" if library.prebuilt else "built here"
        found = f"{library.instructions()}: {library.path} ({origin})"
    except (EdgeLstmError, ImportError) as error:  # without NumPy, which a broken installation lacks
        return Finding("run", name, None, str(error))
    hint = "They are off: EDGELSTM_NATIVE=0" if off else _older_than_sources(library.sources)
    return Finding("run", name, found, hint)


def _c_library() -> Finding:
    """libedgelstm, for programs in C and C++."""
    try:
        from edgelstm.engine.c_build import find_c_library

        library = find_c_library()
        origin = "prebuilt" if library.prebuilt else "built here"
        return Finding("run", "C library", f"interface {library.abi_version()}: {library.path} ({origin})")
    except (EdgeLstmError, ImportError, OSError) as error:
        return Finding("run", "C library", None, f"Only for programs in C and C++: {error}")


def _older_than_sources(built_from: str) -> str | None:
    from edgelstm.engine.native_build import sources_hash
    from edgelstm.engine.plugin_build import find_source

    try:
        same = sources_hash(find_source() / "onnxruntime") == built_from
    except (EdgeLstmError, OSError):
        return None
    return None if same else "Built from other sources than this edgelstm's: edgelstm build-plugin --ort"


def _nvidia() -> Iterator[Finding]:
    cuda = machine.cuda()
    yield Finding(
        "nvidia",
        "CUDA driver",
        f"up to CUDA {cuda.version}" if cuda else None,
        None if cuda else "Only for NVIDIA GPUs: install the driver (on a Jetson: JetPack)",
    )
    gpus = cuda.gpus if cuda else ()
    yield Finding(
        "nvidia",
        "GPU",
        "; ".join(f"{g.name}, compute capability {g.capability}, {_gib(g.memory)}" for g in gpus) or None,
        "The driver is there but shows no GPU: check nvidia-smi and the container's --gpus"
        if cuda and not gpus
        else None,
    )
    tensorrt = _package(
        "nvidia",
        "tensorrt",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "pip install 'edgelstm[tensorrt]' (on a Jetson: it comes with JetPack)",
    )
    rtx = _package(
        "nvidia", "tensorrt_rtx", ("tensorrt-rtx", "tensorrt-rtx-cu13"), "pip install 'edgelstm[rtx]'"
    )
    yield from (tensorrt, *_capability("tensorrt", tensorrt.found))
    yield from (rtx, *_capability("tensorrt-rtx", rtx.found))
    for capability in dict.fromkeys(g.capability for g in gpus):
        yield _gpu_capability(capability)
    yield _package(
        "nvidia",
        "cuda.bindings",
        ("cuda-bindings",),
        "Only for TensorRT engines: pip install cuda-bindings of the CUDA version that the driver runs",
    )
    yield _plugin(cuda, gpus)


def _capability(runtime: RuntimeName, version: str | None) -> Iterator[Finding]:
    """What a TensorRT that is installed can do: its row of the table that `build-engine` refuses by."""
    if version is None or not version[:1].isdigit():
        return
    from edgelstm.engine.capability import library

    try:
        row = library(runtime, version)
    except EdgeLstmError as error:
        yield Finding("nvidia", f"{runtime} can", None, str(error))
        return
    dla = f"DLA of {', '.join(sorted(row.dla))}" if row.dla else "no DLA"
    plugins = (
        f"plugins {row.plugins}{', in place' if row.aliasing else ''}"
        if row.plugins != "none"
        else "no plugins"
    )
    typing = "strongly typed" if row.strong else "not strongly typed: build-engine refuses it"
    yield Finding(
        "nvidia",
        f"{runtime} can",
        f"{typing}; {', '.join(sorted(row.precisions))}; {plugins}; {dla}; compute capability {row.oldest} to {row.newest}",
    )


def _gpu_capability(capability: str) -> Finding:
    """What a GPU of a compute capability multiplies in."""
    from edgelstm.engine.capability import architecture

    try:
        gpu = architecture(capability)
    except EdgeLstmError as error:
        return Finding("nvidia", "GPU can", None, str(error))
    return Finding("nvidia", "GPU can", f"{gpu.label}: {', '.join(sorted(gpu.precisions))}")


def _plugin(cuda: machine.Cuda | None, gpus: Sequence[machine.Gpu]) -> Finding:
    """The FusedGates plugin's library, and whether it fits the GPU and the driver that are here."""
    found, hint = None, None
    try:
        from edgelstm.runtime import plugin_library as library

        path = library.find_plugin_library(
            capability=gpus[0].capability if gpus else None, driver=cuda.version if cuda else None
        )
        found = f"{path}: {library.read_plugin_library(path).summary()}"
    except (EdgeLstmError, ImportError) as error:  # without NumPy, which a broken installation lacks
        hint = f"Only for TensorRT engines: {error}"
    return Finding("nvidia", "FusedGates plugin", found, hint)


def _packages() -> Iterator[Finding]:
    for module, name, extra, purpose in PACKAGES:
        yield _package("packages", module, (name,), f"{purpose}: pip install 'edgelstm[{extra}]'")


def _package(area: str, module: str, distributions: tuple[str, ...], hint: str) -> Finding:
    """Version of an installed module, looked up without importing it: some take seconds, some abort."""
    try:  # looking up a module inside a package imports the package
        present = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        present = False
    if not present:
        return Finding(area, distributions[0], None, hint)
    for name in distributions:
        try:
            return Finding(area, distributions[0], importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return Finding(area, distributions[0], "unknown version")


def _cameras() -> Finding:
    devices = []
    closed = []
    for device in sorted(Path("/dev").glob("video*")):
        try:
            name = Path(f"/sys/class/video4linux/{device.name}/name").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            name = ""
        devices.append(f"{device} ({name})" if name else str(device))
        if not os.access(device, os.R_OK | os.W_OK):
            closed.append(str(device))
    hint = None
    if not devices:
        hint = "Plug one in; in a container pass --device /dev/video0"
    elif closed:
        hint = f"No permission for {', '.join(closed)}: add yourself to the group video"
    return Finding("input", "cameras", ", ".join(devices) or None, hint)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
