"""build_engine: a step graph becomes a TensorRT plan with its sidecar beside it."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from edgelstm import machine
from edgelstm.engine import versions
from edgelstm.engine.capability import Library, check, library
from edgelstm.engine.precisions import check_made_for_tensorrt, product_precisions
from edgelstm.engine.process import Progress, Request, build_in_child
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import (
    PathLike,
    atomic_path,
    read_bytes,
    refuse_overwrite,
    sha256,
    write_bytes,
    write_text,
)
from edgelstm.graph.step import StepModel
from edgelstm.passes.lower import lower
from edgelstm.passes.plugin_nodes import overwrites_cells
from edgelstm.runtime.identity import file_sha256
from edgelstm.runtime.plugin_library import cache_folder, find_plugin_library
from edgelstm.runtime.sidecar import (
    PLAN,
    Gates,
    RuntimeName,
    Sidecar,
    engine_name_in,
    sidecar_path,
)

GatesChoice = Literal["native", "plugin", "auto"]
SUFFIXES = (".plan", ".engine")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


@dataclass(frozen=True)
class BuildOptions:
    """What can be asked of the builder; the command line has one option for each.

    streams: (fewest, usual, most) rows of a call. also: further numbers of rows to tune for: each gets a profile of its own, which
    costs time to build and none to run. workspace: bytes that kernels may use for themselves. targets: compute
    capabilities, TensorRT for RTX only. tf32: let float32 products round their inputs to 10 bits of mantissa, as
    TensorRT does by default.
    """

    streams: tuple[int, int, int] = (1, 1, 1)
    also: tuple[int, ...] = ()
    workspace: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla_core: int | None = None
    gpu_fallback: bool = False
    targets: tuple[str, ...] = ()

    def profiles(self) -> list[tuple[int, int, int]]:
        """(fewest, usual, most) rows of each profile. They do not overlap: each serves the rows up to what it is tuned for, the
        last all that remain."""
        fewest, usual, most = self.streams
        tuned = sorted({usual, *self.also})
        if not fewest <= tuned[0] <= tuned[-1] <= most:
            raise EdgeLstmError(
                "streams to tune for", found=", ".join(map(str, tuned)), expected=f"{fewest} to {most}"
            )
        starts = [fewest, *(n + 1 for n in tuned[:-1])]
        return list(zip(starts, tuned, [*tuned[:-1], most], strict=True))


@dataclass(frozen=True, repr=False)
class BuiltEngine:
    """What :func:`build_engine` wrote. ``seconds`` it took; ``notes`` worth reading; ``timings`` in milliseconds a step
    by kind of gates, where several were tried."""

    plan: Path
    sidecar: Sidecar
    seconds: float
    notes: tuple[str, ...] = ()
    timings: dict[str, float] | None = None

    def __repr__(self) -> str:
        return f"BuiltEngine({self.plan}, {self.sidecar})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "plan": str(self.plan),
            "sidecar": str(sidecar_path(self.plan)),
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "timings_ms": self.timings,
            "engine": self.sidecar.to_json(),
        }


def build_engine(
    model: PathLike,
    output: PathLike,
    options: BuildOptions | None = None,
    *,
    runtime: RuntimeName | None = None,
    gates: GatesChoice = "auto",
    calibration: PathLike | None = None,
    timing_cache: PathLike | None = None,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Compile a step graph or window for TensorRT, and write ``output`` and its sidecar, both or neither.

    Parameters
    ----------
    model: an ``.onnx`` file of ours: a float one, or one quantised with ``target="tensorrt"``.
    output: the ``.plan`` (or ``.engine``) file; the sidecar is ``output`` and ``.json``.
    runtime: "tensorrt" or "tensorrt-rtx"; default: TensorRT if it is installed and a GPU is there, else TensorRT for RTX.
    gates: "native" writes FusedGates as standard operators, "plugin" has our kernel run them, "auto" builds both on a
        GPU, times both and keeps the faster; without a GPU, or without the plugin, it is native.
    calibration: the file the model was quantised with; its hash goes into the sidecar.
    timing_cache: file that keeps the builder's measurements for the next build; default: one in the user's cache.

    Raises EdgeLstmError, and writes nothing, for a model that can't be read or was quantised for ONNX Runtime, for what the
    library or the GPU lacks, and when the build fails.
    """
    options = options or BuildOptions()
    target = Path(output)
    if target.suffix not in SUFFIXES:
        raise EdgeLstmError(
            f"output {target}", found=target.suffix or "no suffix", expected=" or ".join(SUFFIXES)
        )
    if not target.absolute().parent.is_dir():
        raise EdgeLstmError(f"can't write {target}", found="no such folder", hint="Create the folder first")
    refuse_overwrite(output, (model, calibration, timing_cache))
    data = read_bytes(model)
    step = StepModel.from_bytes(data, str(model))
    check_made_for_tensorrt(step, str(model))
    options = _for_axis(step, options)
    gpus = _gpus()
    chosen = runtime or _default_runtime(gpus)
    trt = versions.load(chosen)
    job = Job(
        step=step,
        where=str(model),
        runtime=chosen,
        row=library(chosen, trt.__version__),
        version=str(trt.__version__),
        gpu=gpus[0] if gpus else None,
        options=options,
        hashes={
            "onnx": sha256(data),
            **({"calibration": sha256(read_bytes(calibration))} if calibration is not None else {}),
        },
        timing_cache=None if timing_cache is None else Path(timing_cache),
        progress=progress,
    )
    if gates not in get_args(GatesChoice):
        raise EdgeLstmError("gates", found=gates, expected=f"one of {', '.join(get_args(GatesChoice))}")
    if gates == "auto":
        from edgelstm.engine.auto import build_faster

        return build_faster(job, target)
    return job.build(target, gates)


@dataclass(frozen=True)
class Job:
    """One model on its way to one library; :meth:`build` may be called for each kind of gates."""

    step: StepModel
    where: str
    runtime: RuntimeName
    row: Library
    version: str
    gpu: machine.Gpu | None
    options: BuildOptions
    hashes: dict[str, str]
    timing_cache: Path | None
    progress: Progress | None

    def check(self, gates: Gates) -> None:
        """Refuse what the library or the GPU lacks, before anything is built."""
        options = self.options
        if self.runtime == "tensorrt" and options.targets:
            raise EdgeLstmError(
                "compute capabilities named for TensorRT",
                found=", ".join(options.targets),
                expected="the GPU at hand: it compiles for no other",
                hint="Use --runtime tensorrt-rtx, or --hardware-compatible",
            )
        targets = options.targets or ((self.gpu.capability,) if self.gpu and not self.row.without_gpu else ())
        check(
            self.row,
            targets,
            precisions=product_precisions(self.step),
            plugin=gates == "plugin",
            timing_cache=self.timing_cache is not None,
            dla=options.dla_core is not None,
        )
        if self.gpu is None and not self.row.without_gpu:
            raise EdgeLstmError(
                f"TensorRT {self.version} builds on the GPU it builds for",
                found="no NVIDIA GPU",
                hint="Build on the device, or with --runtime tensorrt-rtx, which needs none",
            )
        if options.gpu_fallback and options.dla_core is None:
            raise EdgeLstmError("--gpu-fallback without a DLA core", hint="Add --dla-core 0")

    def build(self, target: Path, gates: Gates) -> BuiltEngine:
        """Write ``target`` and its sidecar."""
        self.check(gates)
        started = time.monotonic()
        hashes, plugin = dict(self.hashes), None
        if gates == "plugin":
            plugin = self.plugin_library()
            hashes["plugin"] = sha256(read_bytes(plugin))
        in_place = gates == "plugin" and self.row.aliasing
        lowered = lower(
            self.step,
            "tensorrt_rtx" if self.runtime == "tensorrt-rtx" else "tensorrt",
            gates,
            in_place=in_place,
        )
        sidecar = self._sidecar(gates, hashes, in_place and overwrites_cells(lowered))
        cache = self._cache_file()
        with (
            tempfile.TemporaryDirectory(prefix="edgelstm-") as folder,
            atomic_path(target) as plan,
        ):
            graph, kept = Path(folder, "model.onnx"), Path(folder, "timing.cache")
            graph.write_bytes(lowered.to_bytes())
            request = Request(
                runtime=self.runtime,
                model=str(graph),
                plan=str(plan),
                name=sidecar.engine_name,
                profiles=tuple(self.options.profiles()),
                tf32=self.options.tf32,
                workspace=self.options.workspace,
                optimization_level=self.options.optimization_level,
                version_compatible=self.options.version_compatible,
                hardware_compatible=self.options.hardware_compatible,
                dla_core=self.options.dla_core,
                gpu_fallback=self.options.gpu_fallback,
                in_place=in_place,
                plugin_library=None if plugin is None else str(plugin),
                compile_for=self.options.targets,
                timing_cache=None if cache is None else str(cache),
                timing_cache_out=None if cache is None else str(kept),
            )
            size = build_in_child(request, self.where, self.progress)
            if plan.stat().st_size != size:
                raise EdgeLstmError(
                    f"the plan of {self.where} was not written whole",
                    found=f"{count_of(plan.stat().st_size, 'byte')}",
                    expected=f"{count_of(size, 'byte')}",
                )
            sidecar = replace(sidecar, plan_bytes=size)
            if engine_name_in(plan) is None:
                sidecar = replace(sidecar, hashes={**sidecar.hashes, PLAN: file_sha256(plan)})
            if cache is not None and kept.is_file():
                cache.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(cache, kept.read_bytes())
            # First the sidecar: a plan without one is never left behind, and an old plan beside a new sidecar is told apart.
            write_text(sidecar_path(target), sidecar.dumps())
        return BuiltEngine(target, sidecar, time.monotonic() - started)

    def plugin_library(self) -> Path:
        """The plugin's library for this TensorRT and GPU. Raises EdgeLstmError where there is none that fits."""
        capability = self.gpu.capability if self.gpu else None
        return find_plugin_library(tensorrt=self.version, capability=capability)

    def _sidecar(self, gates: Gates, hashes: dict[str, str], in_place: bool) -> Sidecar:
        options = self.options
        profiles = options.profiles()
        shown = {
            "workspace": options.workspace,
            "optimization_level": options.optimization_level,
            "tf32": options.tf32,
            "version_compatible": options.version_compatible,
            "hardware_compatible": options.hardware_compatible,
            "dla_core": options.dla_core,
            "gpu_fallback": options.gpu_fallback,
        }
        built_here = self.gpu is not None and not self.row.without_gpu
        return Sidecar(
            self.step.signature,
            self.runtime,
            self.version,
            streams=options.streams,
            targets=options.targets or ((self.gpu.capability,) if self.gpu and built_here else ()),
            gpu=self.gpu.name if self.gpu and built_here else None,
            gates=gates,
            precision=product_precisions(self.step),
            options={
                **{name: value for name, value in shown.items() if value is not None and value is not False},
                # Whether the plugin writes over any tensor: the runner asks before it lets idle streams lie in a call.
                **({"in_place": in_place} if gates == "plugin" else {}),
                **({"profiles": [list(p) for p in profiles]} if len(profiles) > 1 else {}),
            },
            hashes=hashes,
        )

    def _cache_file(self) -> Path | None:
        if not self.row.timing_cache:
            return None
        if self.timing_cache is not None:
            return self.timing_cache
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", self.gpu.name if self.gpu else "none")
        return cache_folder() / "timing" / f"{self.version}-{gpu}.cache"


def parse_streams(text: str) -> tuple[int, int, int]:
    """``"4"`` is 1 to 4 rows, best at 4; ``"1:2:8"`` fewest, usual and most."""
    parts = text.split(":")
    if all(part.isdigit() for part in parts) and len(parts) in (1, 3):
        numbers = [int(part) for part in parts]
        streams = (1, numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1], numbers[2])
        if 1 <= streams[0] <= streams[1] <= streams[2]:
            return streams
    raise EdgeLstmError(f"--streams {text}", expected="a number such as 4, or MIN:OPT:MAX such as 1:4:16")


def parse_size(text: str) -> int:
    """Bytes of a size such as ``512MiB``, ``2GB`` or ``1048576``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    size = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if size < 1:
        raise EdgeLstmError(f"--workspace {text}", expected="a size such as 512MiB")
    return size


def _for_axis(step: StepModel, options: BuildOptions) -> BuildOptions:
    """Options with the streams a graph of a fixed stream axis takes. Raises EdgeLstmError where others were asked for."""
    fewest, usual, most = options.streams
    if not 1 <= fewest <= usual <= most:
        raise EdgeLstmError("streams", found=options.streams, expected="1 <= fewest <= usual <= most")
    axis = step.signature.stream_axis
    if not isinstance(axis, int):
        options.profiles()
        return options
    if options.streams not in ((1, 1, 1), (axis, axis, axis), (1, axis, axis)):
        raise EdgeLstmError(
            f"the model takes {count_of(axis, 'stream')} in every call",
            found=f"streams {fewest}:{usual}:{most}",
            expected=str(axis),
            hint="Export it with a stream axis that has a name",
        )
    return replace(options, streams=(axis, axis, axis), also=())


def _gpus() -> Sequence[machine.Gpu]:
    cuda = machine.cuda()
    return cuda.gpus if cuda else ()


def _default_runtime(gpus: Sequence[machine.Gpu]) -> RuntimeName:
    there = versions.installed()
    if not there:
        raise EdgeLstmError(
            "TensorRT is not installed",
            hint="pip install 'edgelstm[tensorrt]' for the GPU at hand, or 'edgelstm[rtx]', which builds anywhere",
        )
    return there[0] if gpus else there[-1]
