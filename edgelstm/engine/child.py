"""The process that builds: ``python -m edgelstm.engine.child`` reads a request, writes a plan and tells how it goes.

TensorRT's builder aborts the process it runs in on graphs that its compiler trips over. So it has one of its own.
In: one JSON object on standard input (see :class:`edgelstm.engine.build.Request`). Out: one JSON object a line:
``{"log": [severity, text]}``, ``{"phase": name, "done": n, "of": m}``, ``{"parse": [errors]}``, ``{"bytes": n}``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgelstm.engine import versions


def tell(**message: Any) -> None:
    """One line to the parent."""
    print(json.dumps(message), flush=True)


def logger(trt: Any) -> Any:
    """TensorRT's log, passed on line by line."""

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            tell(log=[severity.name, text])

    return Log()


def monitor(trt: Any) -> Any:
    """TensorRT's progress, passed on phase by phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            tell(phase=phase, parent=parent, done=0, of=steps)

        def step_complete(self, phase: str, step: int) -> bool:
            tell(phase=phase, done=step + 1, of=self.steps.get(phase, 0))
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            tell(phase=phase, done=self.steps.pop(phase, 0), of=0)

    return Monitor()


def build(request: dict[str, Any]) -> None:
    """Parse, configure, build, write."""
    trt = versions.load(request["runtime"])
    log = logger(trt)
    if (
        request["plugin_library"]
        and trt.get_plugin_registry().load_library(request["plugin_library"]) is None
    ):
        tell(error="the plugin library does not load")
        return
    builder = trt.Builder(log)
    network = builder.create_network(versions.network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(Path(request["model"]).read_bytes()):
        tell(parse=versions.parser_errors(parser))
        return
    network.name = request["name"]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(trt, "IProgressMonitor"):
        watching = monitor(trt)
        config.progress_monitor = watching
    # On by default in the library: products of float32 with 10 bits of mantissa.
    versions.set_flag(trt, config, "TF32", request["tf32"])
    if request["workspace"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"])
    if request["optimization_level"] is not None:
        config.builder_optimization_level = request["optimization_level"]
    if request["version_compatible"]:
        versions.set_flag(trt, config, "VERSION_COMPATIBLE")
    if request["hardware_compatible"]:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request["dla_core"] is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = request["dla_core"]
        if request["gpu_fallback"]:
            versions.set_flag(trt, config, "GPU_FALLBACK")
    if request["in_place"]:
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if request["compile_for"]:
        versions.set_targets(trt, config, request["compile_for"])
    cache = None
    if request["timing_cache"]:
        file = Path(request["timing_cache"])
        cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
        if not config.set_timing_cache(cache, False):
            tell(log=["WARNING", "the timing cache is of another TensorRT or GPU: it is begun anew"])
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
    inputs = [network.get_input(k) for k in range(network.num_inputs)]
    if any(-1 in tuple(tensor.shape) for tensor in inputs):
        for streams in request["profiles"]:
            profile = builder.create_optimization_profile()
            for tensor in inputs:
                sizes = (tuple(rows if d == -1 else d for d in tuple(tensor.shape)) for rows in streams)
                profile.set_shape(tensor.name, *sizes)
            config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return
    with Path(request["plan"]).open("wb") as file_out:
        file_out.write(plan)
    if cache is not None:
        Path(request["timing_cache_out"]).write_bytes(bytes(cache.serialize()))
    tell(bytes=plan.nbytes)


if __name__ == "__main__":
    build(json.load(sys.stdin))
