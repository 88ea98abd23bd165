"""Command that makes a page of one's own model and source: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgelstm.cli.shared import (
    Device,
    Hop,
    Json,
    Preprocess,
    Threads,
    app,
    out,
    print_json,
    progress_bar,
    say,
)
from edgelstm.errors import count_of


@app.command(epilog="Example: `edgelstm report model.onnx --source frames.npz -o report.html`")
def report(
    model: Annotated[Path, typer.Argument(help="A step graph or window (.onnx), or an engine (.plan).")],
    source: Annotated[str, typer.Option(help="Frames (see `run`).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .html file to write.")],
    limit: Annotated[int, typer.Option(min=1, help="Frames at most: each is on the page.")] = 240,
    preprocess: Preprocess = None,
    hop: Hop = None,
    on_gap: Annotated[str, typer.Option(help="Frames missing: hold the state, reset it, or error.")] = "hold",
    on_bad_frame: Annotated[
        str,
        typer.Option(
            help="NaN or infinity in a frame, or one that can't be read: error, skip, zero or pass."
        ),
    ] = "error",
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make a page of what a model does with a source: input, output, what came, states, time a frame."""
    import edgelstm

    with progress_bar("streaming", limit) as tick:
        made = edgelstm.report(
            model,
            source,
            output,
            limit=limit,
            preprocess=preprocess,
            hop=hop,
            on_gap=on_gap,  # type: ignore[arg-type]
            on_bad_frame=on_bad_frame,  # type: ignore[arg-type]
            device=device,
            threads=threads,
            progress=tick,
            say=say,
        )
    if as_json:
        return print_json(made.to_json())
    out.print(f"wrote {made.path}: {count_of(made.frames, 'frame')}", highlight=False, markup=False)
