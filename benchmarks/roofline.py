"""What to expect of a Jetson at best: ``python benchmarks/roofline.py MODEL...`` prints the bounds of step graphs.

``--write`` puts the table of the reference models, in three precisions, into docs/jetson.md. All of it is computed from the
graphs and from data sheets (edgelstm/bench/roofline.py); nothing is measured.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgelstm.bench.result import format_time
from edgelstm.bench.roofline import DEVICES, Bound, bound, work
from edgelstm.errors import EdgeLstmError
from edgelstm.files import write_text
from edgelstm.frontends.described.architecture import ConvLstm, Lstm
from edgelstm.frontends.described.graph import Described, load_described, to_step
from edgelstm.graph.step import StepModel
from edgelstm.quantize.precision import to_half
from edgelstm.workflows.calibrate import calibrate

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "jetson.md"
EXAMPLES = ("moving_digits", "nowcast_radar", "sensor_lstm")
#: Enough to calibrate on: what the codes are worth changes neither FLOPs nor bytes.
FRAMES = 24


def random_weights(architecture: ConvLstm | Lstm) -> StepModel:
    """A model of this shape; its speed does not depend on what it was trained for."""
    rng = np.random.default_rng(0)
    tensors = architecture.tensors().items()
    weights = {name: rng.uniform(-0.04, 0.04, shape).astype(np.float32) for name, shape in tensors}
    return to_step(Described(architecture, weights))


def models() -> Iterator[tuple[str, StepModel]]:
    """The reference cell, the examples, and an LSTM whose weights do not fit into a cache."""
    yield "ConvLSTM 16 → 64, 3x3, 64x64", random_weights(ConvLstm(16, (64,), 3, (64, 64)))
    for name in EXAMPLES:
        yield f"examples/{name}", to_step(load_described(ROOT / "examples" / name / "model.safetensors"))
    yield "LSTM 2 x 1024", random_weights(Lstm(16, (1024, 1024)))


def in_precision(step: StepModel, precision: str) -> StepModel:
    """The graph for TensorRT: fp32, fp16, or int8 with fp16 around it."""
    if precision == "fp32":
        return step
    if precision == "int8":
        from edgelstm.quantize.qdq import quantize

        rng = np.random.default_rng(0)
        frames = [
            {t.name: rng.random(t.frame_shape, np.float32) for t in step.signature.inputs}
            for _ in range(FRAMES)
        ]
        # Rounding weights by what meets them takes time and changes only their values.
        step = quantize(
            step, calibrate(step, [frames], method="minmax", threads=1).calibration, "tensorrt", learned=False
        )
    return to_half(step, "fp16", "tensorrt")


def bounds(step: StepModel, streams: int = 1) -> list[str]:
    """Cells of a table: GFLOP, MB moved at least, kernels, then both times for each device."""
    done = work(step, streams)
    cells = [f"{done.flops / 1e9:.3g}", f"{done.once / 1e6:.3g}", str(len(done.kernels))]
    for device in DEVICES:
        try:
            cells.append(times(bound(done, device)))
        except EdgeLstmError:  # a GPU without the type
            cells.append("-")
    return cells


def times(b: Bound) -> str:
    """Both bounds; a star where bandwidth sets the first."""
    return f"{format_time(b.best * 1e6)}{'*' if b.memory else ''} to {format_time(b.kernels * 1e6)}"


HEADINGS = ("model", "precision", "GFLOP", "MB", "kernels", *(d.name for d in DEVICES))


def table() -> str:
    """The reference models as a Markdown table, and where the devices' data comes from."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|---|--:|--:|--:|" + "--:|" * len(DEVICES)]
    for name, step in models():
        for precision in ("fp32", "fp16", "int8"):
            cells = [name, precision, *bounds(in_precision(step, precision))]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", devices()])


def devices() -> str:
    """What is known of the devices, and where from, as a Markdown table."""
    lines = [
        "| device | SMs | GHz | GB/s | TFLOPS fp32, fp16 | TOPS int8 | from |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for d in DEVICES:
        fp32, fp16, int8 = (d.peak(t) / 1e12 for t in ("float32", "float16", "int8"))
        peaks = f"{fp32:.3g}, {fp16:.3g} | {int8:.3g}"
        lines.append(f"| {d.name} | {d.sms} | {d.clock:g} | {d.bandwidth:g} | {peaks} | {d.source} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with a fresh table between its two marks."""
    block = f"<!-- roofline -->\n{table()}\n<!-- /roofline -->"
    return re.sub(r"<!-- roofline -->.*<!-- /roofline -->", lambda _: block, text, flags=re.DOTALL)


def main() -> None:
    """Print the bounds of models, or renew the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="*", type=Path, help="step graphs, in the precision they will be built in"
    )
    parser.add_argument("--streams", type=int, default=1, help="streams a step advances together (default 1)")
    parser.add_argument("--write", action="store_true", help="renew the table of docs/jetson.md")
    arguments = parser.parse_args()
    if arguments.write:
        write_text(PAGE, page(PAGE.read_text("utf-8")))
    elif not arguments.models:
        print(table())
    for path in arguments.models:
        try:
            cells = bounds(StepModel.load(path), arguments.streams)
        except EdgeLstmError as error:
            sys.exit(f"{path}: {error}")
        print(path)
        for heading, cell in zip(HEADINGS[2:], cells, strict=True):
            print(f"  {heading:16} {cell}")


if __name__ == "__main__":
    main()
