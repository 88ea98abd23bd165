"""The real TensorRT for RTX, through the project's own child process, and what each layer computes in.

"It builds" says little: a Q/DQ pair that TensorRT does not recognise makes a layer that computes in float, silently. So
the layers' input types come back too, out of TensorRT's detailed log.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgelstm.engine.process import Request, build_in_child
from edgelstm.errors import EdgeLstmError


@dataclass(frozen=True)
class Built:
    """``layers``: the input types of each convolution or product, by layer name. ``error``: why there are none."""

    layers: dict[str, list[str]]
    error: str = ""


@contextmanager
def builder_log() -> Iterator[list[str]]:
    """Everything TensorRT logs, detailed messages included."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, keep = logging.getLogger("edgelstm.tensorrt"), Keep()
    level = logger.level
    logger.addHandler(keep)
    logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        logger.removeHandler(keep)
        logger.setLevel(level)


def layers_in(log: list[str]) -> dict[str, list[str]]:
    """Input types of each convolution and product of the engine, by layer name, from a detailed log."""
    listing = next(text for text in log if text.startswith("Layers:"))
    layers = re.findall(
        r"^Name: (\S+), LayerType: (?:correlation|gemm|runtime_\w+|deconv), Inputs: (.*?), Outputs",
        listing,
        re.MULTILINE,
    )
    return {name: re.findall(r"Datatype: (\w+)", inputs) for name, inputs in layers}


def build(model: bytes, *capability: str) -> Built:
    """Parse and build, for the default targets or one compute capability such as "8.6"."""
    with tempfile.TemporaryDirectory() as folder, builder_log() as log:
        path = Path(folder, "model.onnx")
        path.write_bytes(model)
        request = Request(
            "tensorrt-rtx",
            str(path),
            str(path.with_suffix(".plan")),
            "edgelstm-test",
            ((1, 1, 4),),
            compile_for=capability,
        )
        try:
            build_in_child(request, "the model")
        except EdgeLstmError as error:
            return Built({}, str(error))
        return Built(layers_in(log))
