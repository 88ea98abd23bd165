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
            device=device,
            threads=threads,
            progress=tick,
            say=say,
        )
    if as_json:
        return print_json(made.to_json())
    out.print(f"wrote {made.path}: {count_of(made.frames, 'frame')}", highlight=False, markup=False)
