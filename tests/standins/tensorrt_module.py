"""A stand-in for TensorRT's Python module. NOT TensorRT: a plan of it holds the ONNX graph, and ONNX Runtime computes it.

It runs on the stand-in for the driver, and checks what TensorRT demands of its caller: addresses on boundaries of 256 bytes
that are the caller's, different ones for input and output of a state, shapes within the profile, one call before a capture, and a
context that is left alone once a graph was captured from it. It is harsher in one thing: capturing runs the step too.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import math
import re
import sys
import types
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgelstm.dtypes import np_dtype
from edgelstm.graph.step import StepModel
from edgelstm.runtime.sidecar import Sidecar, sidecar_path
from standins.cuda_driver import StandInDriver

VERSION = "10.13.0.35"
HEAD = b"stand-in plan, no TensorRT\n"
SCRATCH = 4096
_TYPES = {
    "tensor(float)": ("FLOAT", "float32"),
    "tensor(float16)": ("HALF", "float16"),
    "tensor(int64)": ("INT64", "int64"),
    "tensor(int8)": ("INT8", "int8"),
}


class ILogger:
    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def log(self, severity: Any, text: str) -> None:
        raise NotImplementedError


ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
)
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
CudaGraphStrategy = enum.Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
DataType = enum.Enum("DataType", sorted({name for name, _ in _TYPES.values()}))


def write_plan(
    step: StepModel, path: Path, streams: tuple[int, int, int], *, overwrites: bool = False, **sidecar: Any
) -> None:
    """A plan and its sidecar. ``overwrites``: the engine leaves next states where it read the current ones."""
    told = Sidecar(
        step.signature, **{"runtime": "tensorrt", "version": VERSION, "streams": streams, **sidecar}
    )
    profiles = sidecar.get("options", {}).get("profiles", [streams])
    ranges = ",".join(f"{p[0]}:{p[2]}" for p in profiles)
    options = f"overwrites={int(overwrites)} rows={ranges}"
    plan = HEAD + f"{told.engine_name} {options}\n".encode() + step.to_bytes()
    path.write_bytes(plan)
    sidecar_path(path).write_text(replace(told, plan_bytes=len(plan)).dumps())


@contextlib.contextmanager
def stand_in_tensorrt(
    driver: StandInDriver, name: str = "tensorrt", version: str = VERSION
) -> Iterator[types.ModuleType]:
    """``import tensorrt`` gives the stand-in."""
    module = types.ModuleType(name)
    loaded: list[str] = []

    def load_library(path: str) -> object:
        loaded.append(path)
        return object()

    module.__dict__.update(
        __version__=version,
        ILogger=ILogger,
        DataType=DataType,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        CudaGraphStrategy=CudaGraphStrategy,
        ProfilingVerbosity=ProfilingVerbosity,
        Runtime=partial(Runtime, driver),
        get_plugin_registry=lambda: types.SimpleNamespace(load_library=load_library, all_creators=()),
        loaded=loaded,
    )
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        yield module
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


class Runtime:
    def __init__(self, driver: StandInDriver, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        self.driver, self.logger = driver, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if not plan.startswith(HEAD):
            self.logger.log(ILogger.Severity.ERROR, "the plan's magic tag does not match\nmore of it")
            return None
        return Engine(self, plan)


class Engine:
    device_memory_size_v2 = SCRATCH

    def __init__(self, runtime: Runtime, plan: bytes) -> None:
        self.runtime = runtime
        _, line, model = plan.split(b"\n", 2)
        found = re.search(rb"(\S+) overwrites=(\d) rows=(\S+)", line)
        assert found
        self.name, self.overwrites = found[1].decode(), int(found[2])
        self.profiles = [tuple(map(int, p.split(b":"))) for p in found[3].split(b",")]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = {t.name: t for t in self.session.get_inputs()}
        self.outputs = {t.name: t for t in self.session.get_outputs()}
        self.tensors = self.inputs | self.outputs
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[_TYPES[self.tensors[name].type][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self.tensors[name].shape)

    def create_runtime_config(self) -> Any:
        config = types.SimpleNamespace(cuda_graph_strategy=CudaGraphStrategy.DISABLED)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(
            config, "strategy", strategy
        )
        return config

    def create_execution_context(self, given: Any) -> Context:
        strategy = getattr(given, "strategy", given)
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self, isinstance(given, types.SimpleNamespace))


#: All that were made and not freed.
CONTEXTS: weakref.WeakSet[Context] = weakref.WeakSet()


class Context:
    def __init__(self, engine: Engine, captures_itself: bool) -> None:
        self.engine, self.captures_itself = engine, captures_itself
        self.driver, self.log = engine.runtime.driver, engine.runtime.logger.log
        self.shapes = {name: engine.get_tensor_shape(name) for name in engine.inputs}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.active_optimization_profile = 0
        self.nvtx_verbosity = ProfilingVerbosity.DETAILED
        #: Goes up whenever the context changes: graphs captured before are then of no use.
        self.changes = 0
        self.deferred = True
        CONTEXTS.add(self)

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = (memory, size)
        self.changes += 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        wanted = self.engine.get_tensor_shape(name)
        fits = len(shape) == len(wanted) and all(w in (-1, d) for w, d in zip(wanted, shape, strict=True))
        fewest, most = self.engine.profiles[self.active_optimization_profile]
        if not fits or not fewest <= shape[0] <= most:
            self.log(ILogger.Severity.ERROR, f"{name}{list(shape)} is not within the profile")
            return False
        self.deferred = self.deferred or self.shapes[name] != shape
        self.shapes[name] = shape
        self.changes += 1
        return True

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert not self.driver.is_capturing(stream)
        self.active_optimization_profile = index
        self.shapes = {name: self.engine.get_tensor_shape(name) for name in self.engine.inputs}
        self.changes += 1
        self.deferred = True
        return index < len(self.engine.profiles)

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.tensors or address % 256:
            self.log(ILogger.Severity.ERROR, f"address {address:#x} of {name}")
            return False
        self.addresses[name] = address
        self.changes += 1
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert not self.captures_itself or not self.driver.is_capturing(stream)
        assert stream > 2, "the default stream"
        assert self.nvtx_verbosity is ProfilingVerbosity.NONE, "what profilers are told costs time"
        assert self.driver.owns(*self.memory)
        assert self.memory[0] % 256 == 0
        assert self.memory[1] >= SCRATCH
        rows = {shape[0] for shape in self.shapes.values()}
        assert len(rows) == 1, "inputs differ in their rows"
        assert -1 not in rows, "shapes were not set"
        views = {name: self.view(name, min(rows)) for name in self.engine.tensors}
        addresses = [view.ctypes.data for view in views.values() if view.size]
        assert len(set(addresses)) == len(addresses), "one address for two tensors"
        capturing = self.driver.is_capturing(stream)
        if capturing and self.deferred:
            self.log(ILogger.Severity.ERROR, "captured with updates of shapes still to do")
            return False
        self.deferred = False
        if capturing:
            self.compute(views, self.changes)
        changes, itself = self.changes if capturing else None, weakref.ref(self)

        def work() -> None:
            context = itself()
            assert context is not None, "a graph is run whose context is gone"
            context.compute(views, changes)

        self.driver.put(stream, work)
        return True

    def view(self, name: str, rows: int) -> np.ndarray:
        """The bytes at the tensor's address, as they will be when the work is done."""
        tensor = self.engine.tensors[name]
        dtype, shape = np_dtype(_TYPES[tensor.type][1]), (rows, *self.engine.get_tensor_shape(name)[1:])
        size = math.prod(shape) * dtype.itemsize
        assert self.driver.owns(self.addresses[name], size), f"{name} is not all in one allocation"
        memory = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)

    def compute(self, views: dict[str, np.ndarray], changes: int | None) -> None:
        assert changes in (None, self.changes), "the context was changed after its graph was captured"
        names = list(self.engine.outputs)
        feeds = {name: views[name].copy() for name in self.engine.inputs}
        for name, value in zip(names, self.engine.session.run(names, feeds), strict=True):
            views[name][:] = value
        if self.engine.overwrites:
            for name, view in views.items():
                if f"{name}_next" in views:
                    view[:] = views[f"{name}_next"]
