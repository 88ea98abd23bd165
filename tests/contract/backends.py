"""The backends that the contract suite runs on: each opens programs of step graphs, or says why it can't here."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import native_library
from edgelstm import machine
from edgelstm.files import sha256
from edgelstm.graph.step import StepModel
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Program
from standins import cuda_driver

#: A Program of a step graph with room for so many streams; closed when the backend's context ends.
Open = Callable[[StepModel, int], Program]


@contextlib.contextmanager
def _closing(open_one: Open) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def open_and_keep(step: StepModel, streams: int) -> Program:
            program = open_one(step, streams)
            stack.callback(program.close)
            return program

        yield open_and_keep


def onnxruntime() -> AbstractContextManager[Open]:
    return _closing(lambda step, streams: OrtProgram(step.to_bytes(), streams=streams, threads=1))


def onnxruntime_native() -> AbstractContextManager[Open]:
    """Cells as our own operators, in graphs that have some."""
    library = native_library.built()
    return _closing(
        lambda step, streams: native_library.opened(step.to_bytes(), library, streams=streams, threads=1)
    )


def c_library() -> AbstractContextManager[Open]:
    """libedgelstm by ctypes. A state is a program of its own, since its streams have their places there."""
    from contract.c_program import CProgram

    return _closing(lambda step, streams: CProgram(step, streams))


# ---- stand-ins: the real code of the GPU backends, on what is no GPU ----


@contextlib.contextmanager
def onnxruntime_cuda_stand_in(**gpu: Any) -> Iterator[Open]:
    from edgelstm.runtime.onnxruntime_cuda import OrtCudaProgram
    from standins.onnxruntime_cuda import stand_in_session

    with (
        cuda_driver.stand_in_driver(**gpu) as driver,
        stand_in_session(driver),
        _closing(lambda step, streams: OrtCudaProgram(step.to_bytes(), streams=streams)) as open_,
    ):
        yield open_


@contextlib.contextmanager
def c_cuda_stand_in() -> Iterator[Open]:
    """The C library by ONNX Runtime's CUDA provider."""
    from contract.c_program import CProgram
    from edgelstm.engine.c_build import find_onnxruntime
    from standins import nvinfer

    with (
        cuda_driver.stand_in_driver(),
        patch.dict(os.environ, {"EDGELSTM_STANDIN_RUNTIME": str(find_onnxruntime())}),
        _closing(
            lambda step, streams: CProgram(step, streams, device="cuda", onnxruntime=str(nvinfer.provider()))
        ) as open_,
    ):
        yield open_


@contextlib.contextmanager
def c_tensorrt_stand_in(*, overwrites: bool = False) -> Iterator[Open]:
    """The C library with TensorRT. The plan and its sidecar are those that Python's stand-in opens."""
    from contract.c_program import CProgram
    from edgelstm.engine.c_build import find_onnxruntime
    from plugins.adapter_library import headers_of
    from standins import nvinfer
    from standins.plugin import stand_in_plugin
    from standins.tensorrt_module import write_plan

    headers_of("10.3")

    def write(step: StepModel, path: Path, streams: int) -> None:
        axis = step.signature.stream_axis
        rows = (axis, axis, axis) if isinstance(axis, int) else (1, streams, streams)
        write_plan(step, path, rows, overwrites=overwrites, gates="plugin" if overwrites else "native")

    with (
        tempfile.TemporaryDirectory() as folder,
        cuda_driver.stand_in_driver(),
        stand_in_plugin(Path(folder)),
        patch.dict(os.environ, {"EDGELSTM_ONNXRUNTIME": str(find_onnxruntime())}),
        _closing(
            lambda step, streams: CProgram(step, streams, write=write, tensorrt=str(nvinfer.built()))
        ) as open_,
    ):
        yield open_


@contextlib.contextmanager
def tensorrt_stand_in(*, runtime: str = "tensorrt", overwrites: bool = False, **gpu: Any) -> Iterator[Open]:
    from edgelstm.runtime.tensorrt import TensorRtProgram
    from standins.plugin import stand_in_plugin
    from standins.tensorrt_module import stand_in_tensorrt, write_plan

    with (
        tempfile.TemporaryDirectory() as folder,
        cuda_driver.stand_in_driver(**gpu) as driver,
        stand_in_tensorrt(driver, runtime.replace("-", "_")),
        stand_in_plugin(Path(folder)),
    ):

        def open_one(step: StepModel, streams: int) -> Program:
            plan = Path(folder, f"{len(list(Path(folder).iterdir()))}.plan")
            axis = step.signature.stream_axis
            rows = (axis, axis, axis) if isinstance(axis, int) else (1, streams, streams)
            gates = "plugin" if overwrites else "native"
            write_plan(step, plan, rows, overwrites=overwrites, runtime=runtime, gates=gates)
            return TensorRtProgram(plan, streams=streams)

        with _closing(open_one) as open_:
            yield open_


# ---- the real ones ----


def onnxruntime_cuda() -> AbstractContextManager[Open]:
    from edgelstm.runtime.onnxruntime_cuda import OrtCudaProgram

    return _closing(lambda step, streams: OrtCudaProgram(step.to_bytes(), streams=streams))


MOST = 8  # streams that engines of the tests are built for


def tensorrt(runtime: str) -> AbstractContextManager[Open]:
    from edgelstm.runtime.tensorrt import TensorRtProgram

    return _closing(
        lambda step, streams: TensorRtProgram(built_engine(step.to_bytes(), runtime), streams=streams)
    )


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgelstm-engines-")


@cache
def built_engine(model: bytes, runtime: str) -> Path:
    """A plan of a step graph, built once."""
    from edgelstm.engine.build import BuildOptions, build_engine

    name = f"{sha256(model)[:16]}-{runtime}"
    path = Path(_folder().name, f"{name}.onnx")
    path.write_bytes(model)
    fixed = isinstance(StepModel.from_bytes(model).signature.stream_axis, int)
    options = BuildOptions() if fixed else BuildOptions(streams=(1, MOST, MOST))
    plan = path.with_suffix(".plan")
    build_engine(path, plan, options, runtime=runtime, gates="native")  # type: ignore[arg-type]
    return plan


@cache
def no_gpu() -> str | None:
    cuda = machine.cuda()
    if cuda is None or not cuda.gpus:
        return "needs an NVIDIA GPU"
    if importlib.util.find_spec("cuda") is None:
        return "needs cuda-bindings: pip install 'edgelstm[gpu]'"
    return None


@cache
def c_missing() -> str | None:
    from edgelstm.engine.c_build import find_onnxruntime
    from edgelstm.errors import EdgeLstmError

    try:
        find_onnxruntime()
    except EdgeLstmError as error:
        return str(error)
    return native_library.missing()


@cache
def _no_provider() -> str | None:
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "needs ONNX Runtime for GPUs: pip install 'edgelstm[gpu]'"
    return no_gpu()


@cache
def _no_module(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    # A folder of that name is a module without an origin.
    return no_gpu() or (None if spec and spec.origin else f"needs {name}")


#: A new backend adds a line here: how to open it, and why it can't be (None: it can).
BACKENDS: dict[str, tuple[Callable[[], AbstractContextManager[Open]], Callable[[], str | None]]] = {
    "onnxruntime": (onnxruntime, lambda: None),
    "onnxruntime, our operators": (onnxruntime_native, native_library.missing),
    "C library": (c_library, c_missing),
    "onnxruntime-cuda": (onnxruntime_cuda, _no_provider),
    "tensorrt": (partial(tensorrt, "tensorrt"), partial(_no_module, "tensorrt")),
    "tensorrt-rtx": (partial(tensorrt, "tensorrt-rtx"), partial(_no_module, "tensorrt_rtx")),
    "C library, onnxruntime-cuda, stand-in": (c_cuda_stand_in, cuda_driver.missing),
    "C library, tensorrt, stand-in": (c_tensorrt_stand_in, cuda_driver.missing),
    "C library, tensorrt, stand-in, writes over states": (
        partial(c_tensorrt_stand_in, overwrites=True),
        cuda_driver.missing,
    ),
    "onnxruntime-cuda, stand-in": (onnxruntime_cuda_stand_in, cuda_driver.missing),
    "tensorrt, stand-in": (tensorrt_stand_in, cuda_driver.missing),
    "tensorrt, stand-in, writes over states": (
        partial(tensorrt_stand_in, overwrites=True),
        cuda_driver.missing,
    ),
    "tensorrt, stand-in, shared memory": (partial(tensorrt_stand_in, integrated=True), cuda_driver.missing),
    "tensorrt-rtx, stand-in": (partial(tensorrt_stand_in, runtime="tensorrt-rtx"), cuda_driver.missing),
}


@contextlib.contextmanager
def backend(name: str) -> Iterator[Open]:
    """Open programs with a backend; skips the test where that can't be."""
    import pytest

    make, missing = BACKENDS[name]
    if reason := missing():
        pytest.skip(reason)
    with make() as open_:
        yield open_
