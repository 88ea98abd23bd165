"""What works of every kind of model: ``python benchmarks/models/run.py [--docs] [NAME ...]``.

Each is exported (which proves it against its source), unrolled, given the plugin's gates, calibrated and quantised, and built by
TensorRT for RTX. A cell is what that gave, or why it can't. ``--docs`` writes the table into docs/models.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from kinds import ROOT, Kind, kinds
from rich.console import Console
from rich.markup import escape

import edgelstm
from edgelstm.engine.process import Request, build_in_child
from edgelstm.errors import EdgeLstmError
from edgelstm.files import write_text
from edgelstm.graph.step import StepModel
from edgelstm.passes.lower import lower
from edgelstm.passes.plugin_nodes import is_plugin
from edgelstm.passes.unroll import unroll
from edgelstm.quantize.calibrate import Recording, calibrate
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.verify.compare import compare
from edgelstm.workflows.quantize import quantize

COLUMNS = ("step", "window of 10", "plugin gates", "int8", "TensorRT for RTX")
DOCS = ROOT / "docs" / "models.md"
MARK, END = "<!-- table -->", "<!-- end of table -->"
console = Console()


def frames(step: StepModel, count: int) -> list[dict[str, np.ndarray]]:
    """Noise, seeded; windows get whole ones."""
    rng = np.random.default_rng(0)
    return [
        {t.name: rng.standard_normal(t.frame_shape).astype(t.dtype) for t in step.signature.inputs}
        for _ in range(count)
    ]


def drift(a: StepModel, b: StepModel, count: int = 60) -> float:
    """Largest relative error of any output or state, in the 2-norm, mean of the last third."""
    programs = [OrtProgram(s.to_bytes(), threads=1) for s in (a, b)]
    try:
        blocks = frames(a, count)
        length = a.signature.window
        single = (
            blocks
            if length is None
            else [{n: v[t] for n, v in f.items()} for f in blocks for t in range(length)]
        )
        found = compare(programs[0], programs[1], single)
        return max(float(np.mean(t.norms[-(len(t.norms) // 3 + 1) :])) for t in found.tensors)
    finally:
        for program in programs:
            program.close()


def row(kind: Kind) -> dict[str, str]:
    """The cells of one kind, by column."""
    cells: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = edgelstm.export(kind.make(Path(folder)), **{"steps": 60, **kind.options})
        except EdgeLstmError as error:
            return dict.fromkeys(COLUMNS, f"no: {error.what}".replace(f"{folder}/", ""))
    step = made.step
    proved = f"yes, {max(t.held for t in made.comparison.tensors):.0e}"
    cells["step"] = f"no: {kind.why}" if kind.window else proved
    cells["window of 10"] = (
        proved if kind.window else _try(lambda: f"yes, {drift(step, unroll(step, 10)):.0e}")
    )
    cells["plugin gates"] = _try(lambda: _gates(step))
    cells["int8"] = _try(lambda: _int8(step))
    cells["TensorRT for RTX"] = _try(lambda: _built(step))
    return cells


def _try(cell: Callable[[], str]) -> str:
    try:
        return cell()
    except EdgeLstmError as error:
        return f"no: {error.what}" + (f" ({error.found})" if error.found else "")


def _gates(step: StepModel) -> str:
    count = sum(is_plugin(n) for n in lower(step, "tensorrt", "plugin").model.graph.node)
    if count:
        return f"{count}"
    if "LSTM" in step.op_types():
        return "none: LSTM operators over the whole window"
    return "none: its equations are not an LSTM's"


def _int8(step: StepModel) -> str:
    measured = calibrate(step, [Recording("noise", frames(step, 60))], threads=1)
    done = quantize(step, measured)
    coded = sum(product["precision"] == "int8" for product in done.products)
    return f"yes, {drift(step, done.step):.1g}" if coded else "no product large enough"


def _built(step: StepModel) -> str:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise EdgeLstmError("tensorrt-rtx is not installed")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        path.write_bytes(lower(step, "tensorrt_rtx").to_bytes())
        build_in_child(
            Request("tensorrt-rtx", str(path), f"{folder}/plan", "edgelstm-table", ((1, 1, 4),)), "the model"
        )
    return "builds"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="only kinds whose name holds one of these")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/models.md")
    options = parser.parse_args()
    lines = ["| source | kind | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for kind in kinds():
        if options.names and not any(name in kind.name for name in options.names):
            continue
        cells = row(kind)
        lines.append(
            f"| {kind.source} | {kind.name} | "
            + " | ".join(cells[c].replace("|", "/") for c in COLUMNS)
            + " |"
        )
        console.print(escape(lines[-1]), soft_wrap=True, highlight=False)
    if options.docs:
        text = DOCS.read_text("utf-8")
        before, after = text[: text.index(MARK) + len(MARK)], text[text.index(END) :]
        write_text(DOCS, before + "\n" + "\n".join(lines) + "\n" + after)


if __name__ == "__main__":
    main()
