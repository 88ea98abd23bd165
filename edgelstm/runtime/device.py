"""Which backend opens which file on which device."""

from __future__ import annotations

from pathlib import Path

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.runtime.protocol import Program


def open_program(
    path: PathLike, device: str = "cpu", *, streams: int = 1, threads: int | None = None
) -> Program:
    """Open a model file on ``device``; the suffix and the device choose the backend.

    Raises EdgeLstmError for a device or a kind of file that no backend takes.
    """
    suffix = Path(path).suffix.lower()
    if suffix != ".onnx":
        raise EdgeLstmError(
            f"can't run {path}",
            found=f"suffix {suffix or '(none)'}",
            expected=".onnx",
            hint="Make a step graph first: edgelstm export MODEL -o model.onnx",
        )
    if device != "cpu":
        raise EdgeLstmError("device", found=device, expected="cpu")
    from edgelstm.runtime.onnxruntime import OrtProgram

    return OrtProgram(path, streams=streams, threads=threads)
