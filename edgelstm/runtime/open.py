"""Which backend opens which file on which device."""

from __future__ import annotations

from pathlib import Path

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.runtime.device import ENGINE_SUFFIXES, OutputPlace, gpu_index
from edgelstm.runtime.protocol import Program


def open_program(
    path: PathLike,
    device: str | None = None,
    *,
    streams: int = 1,
    threads: int | None = None,
    outputs: OutputPlace = "host",
) -> Program:
    """Open a model file on ``device``; the suffix and the device choose the backend.

    device: "cpu", "cuda" (the first GPU) or "cuda:N"; default: "cpu" for a step graph (``.onnx``), "cuda" for an engine
    (``.plan``, ``.engine``). threads: of ONNX Runtime. outputs: "device" leaves them on the GPU, as arrays that other
    libraries take as they are (:class:`edgelstm.runtime.device_array.DeviceArray`).

    Raises EdgeLstmError for a device or a kind of file that no backend takes.
    """
    suffix = Path(path).suffix.lower()
    is_engine = suffix in ENGINE_SUFFIXES
    if suffix != ".onnx" and not is_engine:
        raise EdgeLstmError(
            f"can't run {path}",
            found=f"suffix {suffix or '(none)'}",
            expected=f".onnx or {' or '.join(ENGINE_SUFFIXES)}",
            hint="Make a step graph first: edgelstm export MODEL -o model.onnx",
        )
    index = gpu_index(device if device is not None else "cuda" if is_engine else "cpu")
    if is_engine:
        if index is None:
            raise EdgeLstmError(
                f"{path} is an engine for a GPU",
                found=f"device {device}",
                expected="cuda or cuda:N",
                hint="On the CPU run the .onnx file it was built from",
            )
        if threads is not None:
            raise EdgeLstmError("threads for an engine", found=threads, expected="none: a GPU runs it")
        from edgelstm.runtime.tensorrt import TensorRtProgram

        return TensorRtProgram(path, streams=streams, device=index, outputs=outputs)
    if index is not None:
        from edgelstm.runtime.onnxruntime_cuda import OrtCudaProgram

        return OrtCudaProgram(path, streams=streams, device=index, threads=threads, outputs=outputs)
    if outputs != "host":
        raise EdgeLstmError("outputs", found=outputs, expected="host, since the device is the CPU")
    from edgelstm.runtime.onnxruntime import OrtProgram

    return OrtProgram(path, streams=streams, threads=threads)
