"""inspect: what a step graph or an engine takes, gives and carries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgelstm.cli.shared import (
    Json,
    app,
    out,
    print_json,
    shape_text,
    size_text,
)
from edgelstm.errors import count_of
from edgelstm.graph.signature import Signature, StateSpec


@app.command(epilog="Examples: `edgelstm inspect model.onnx --json` · `edgelstm inspect model.plan`")
def inspect(
    model: Annotated[Path, typer.Argument(help="A step graph or window (.onnx), or an engine (.plan).")],
    as_json: Json = False,
) -> None:
    """Show what a model or an engine takes, gives and remembers; on a GPU also an engine's layers."""
    if model.suffix in (".plan", ".engine"):
        return _inspect_engine(model, as_json)
    import edgelstm

    found = edgelstm.inspect(model)
    if as_json:
        return print_json(found.to_json())
    _print_signature(found.path, found.signature)
    operators = ", ".join(f"{count} {name}" for name, count in found.operators.items())
    out.print(f"operators: {operators}", highlight=False)
    out.print(
        f"{found.parameters:,} parameters, {size_text(found.bytes)}, opset {found.opset}, sha256 {found.sha256}"
    )


def _inspect_engine(plan: Path, as_json: bool) -> None:
    from edgelstm.engine.inspect import inspect_engine

    found = inspect_engine(plan)
    if as_json:
        return print_json(found.to_json())
    e = found.sidecar
    _print_signature(str(plan), e.signature)
    facts = {
        "runtime": f"{e.runtime} {e.version}",
        "built on": e.gpu or "no GPU",
        "compute capabilities": ", ".join(e.targets) or "what its library compiles for",
        "products in": ", ".join(e.precision),
        "gates": e.gates,
        "streams": ":".join(map(str, e.streams)),
        "size": size_text(found.bytes),
        **{f"sha256 of {name}": value for name, value in e.hashes.items()},
        **{name.replace("_", " "): str(value) for name, value in e.options.items()},
    }
    for name, value in facts.items():
        out.print(f"{name}: {value}", highlight=False, markup=False)
    if found.layers is None:
        return out.print(found.note, highlight=False, markup=False)
    table = Table(title=f"{count_of(len(found.layers), 'layer')}, {found.reformats} of them reformat")
    for column in ("layer", "kind", "kernel", "reads"):
        table.add_column(column, overflow="fold")
    for layer in found.layers:
        table.add_row(escape(layer.name), layer.kind, escape(layer.kernel), escape(", ".join(layer.reads)))
    out.print(table)


def _print_signature(path: str, s: Signature) -> None:
    kind = "step" if s.window is None else f"window of {count_of(s.window, 'frame')}"
    table = Table(title=f"{escape(path)}: {kind}")
    for column in ("kind", "name", "dtype", "shape", "graph"):
        table.add_column(column)
    for kind, tensors in (("input", s.inputs), ("output", s.outputs)):
        for t in tensors:
            table.add_row(kind, escape(t.name), t.dtype, shape_text(t.shape), "")
    for x in s.states:
        pair = escape(f"{x.input} -> {x.output}")
        table.add_row("state", escape(x.name), x.dtype, shape_text(x.shape), f"{pair}, {_start(x)}")
    out.print(table)
    for name, ops in s.preprocessing.items():
        from edgelstm.pipeline import format_ops

        out.print(f"preprocessing of {name}: {format_ops(ops)}", highlight=False, markup=False)
    for name, ops in s.postprocessing.items():
        from edgelstm.pipeline import format_ops
        from edgelstm.pipeline.postprocess import POST_OPERATIONS

        out.print(
            f"postprocessing of {name}: {format_ops(ops, POST_OPERATIONS)}", highlight=False, markup=False
        )


def _start(state: StateSpec) -> str:
    """What a state starts at: a number, or the range of its numbers."""
    if state.initial is None:
        return "starts at 0"
    values = state.values(state.initial_value())
    low, high = float(values.min()), float(values.max())
    return f"starts at {low:g}" if low == high else f"starts at {low:.3g} to {high:.3g}"
