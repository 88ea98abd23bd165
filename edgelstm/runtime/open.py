"""Which backend opens which file on which device: :data:`BACKENDS` is the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.runtime.device import ENGINE_SUFFIXES, OutputPlace, device_kind
from edgelstm.runtime.protocol import Program


@dataclass(frozen=True)
class Wanted:
    """What is asked of a backend. index: N of ``cuda:N``. threads, outputs, native: only where the backend takes them."""

    path: PathLike
    streams: int
    index: int
    threads: int | None
    outputs: OutputPlace
    native: bool | None = None


@dataclass(frozen=True)
class Backend:
    """A backend. suffixes: of its files. device: "cpu", or the KIND of "KIND:N". takes: of "threads", "outputs", "native"."""

    suffixes: tuple[str, ...]
    device: str
    open: Callable[[Wanted], Program]
    takes: frozenset[str] = frozenset()


def _onnxruntime(wanted: Wanted) -> Program:
    from edgelstm.runtime.onnxruntime import OrtProgram

    return OrtProgram(wanted.path, streams=wanted.streams, threads=wanted.threads, native=wanted.native)


def _onnxruntime_cuda(wanted: Wanted) -> Program:
    from edgelstm.runtime.onnxruntime_cuda import OrtCudaProgram

    return OrtCudaProgram(
        wanted.path,
        streams=wanted.streams,
        device=wanted.index,
        threads=wanted.threads,
        outputs=wanted.outputs,
    )


def _tensorrt(wanted: Wanted) -> Program:
    from edgelstm.runtime.tensorrt import TensorRtProgram

    return TensorRtProgram(wanted.path, streams=wanted.streams, device=wanted.index, outputs=wanted.outputs)


#: A new backend is a function above and a line here; the first that reads a suffix says on which device it runs by itself.
BACKENDS = (
    Backend((".onnx",), "cpu", _onnxruntime, frozenset({"threads", "native"})),
    Backend((".onnx",), "cuda", _onnxruntime_cuda, frozenset({"threads", "outputs"})),
    Backend(ENGINE_SUFFIXES, "cuda", _tensorrt, frozenset({"outputs"})),
)


def suffixes() -> tuple[str, ...]:
    """Of the files that some backend opens."""
    return tuple(dict.fromkeys(suffix for backend in BACKENDS for suffix in backend.suffixes))


def open_program(
    path: PathLike,
    device: str | None = None,
    *,
    streams: int = 1,
    threads: int | None = None,
    outputs: OutputPlace = "host",
    native: bool | None = None,
) -> Program:
    """Open a model file on ``device``; the suffix and the device choose the backend.

    device: "cpu", "cuda" (the first GPU) or "cuda:N"; default: "cpu" for a step graph (``.onnx``), "cuda" for an engine
    (``.plan``, ``.engine``). threads: of ONNX Runtime. outputs: "device" leaves them on the GPU, as arrays that other
    libraries take as they are (:class:`edgelstm.runtime.device_array.DeviceArray`). native: whether cells become our own operators
    on the CPU; None: where their library is built (docs/native.md).

    Raises EdgeLstmError for a device or a kind of file that no backend takes.
    """
    suffix = Path(path).suffix.lower()
    able = [backend for backend in BACKENDS if suffix in backend.suffixes]
    if not able:
        raise EdgeLstmError(
            f"can't run {path}",
            found=f"suffix {suffix or '(none)'}",
            expected=" or ".join(suffixes()),
            hint="Make a step graph first: edgelstm export MODEL -o model.onnx",
        )
    kind, index = device_kind(
        able[0].device if device is None else device, [backend.device for backend in BACKENDS]
    )
    backend = next((backend for backend in able if backend.device == kind), None)
    if backend is None:
        expected = " or ".join(b.device if b.device == "cpu" else f"{b.device} or {b.device}:N" for b in able)
        engine = suffix in ENGINE_SUFFIXES
        raise EdgeLstmError(
            f"{path} is an engine for a GPU" if engine else f"can't run {path} there",
            found=f"device {device}",
            expected=expected,
            hint="On the CPU run the .onnx file it was built from" if engine else None,
        )
    where = {"cpu": "the CPU", "cuda": "a GPU"}.get(kind, kind)
    if threads is not None and "threads" not in backend.takes:
        raise EdgeLstmError(f"threads for {path}", found=threads, expected=f"none: {where} runs it")
    if outputs != "host" and "outputs" not in backend.takes:
        raise EdgeLstmError("outputs", found=outputs, expected=f"host, since the device is {where}")
    if native and "native" not in backend.takes:
        raise EdgeLstmError(
            f"our own operators for {path}", found="native=True", expected=f"none: {where} runs it"
        )
    return backend.open(Wanted(path, streams, index, threads, outputs, native))
