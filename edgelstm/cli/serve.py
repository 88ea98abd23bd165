"""Command: serve."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from edgelstm.cli.shared import Json, app, err, out, print_json
from edgelstm.errors import EdgeLstmError


@app.command(
    epilog="Examples: `edgelstm serve --example camera > pipeline.toml` · `edgelstm serve --check pipeline.toml` · `edgelstm serve pipeline.toml`"
)
def serve(
    pipeline: Annotated[
        Path | None, typer.Argument(help="A pipeline file (.toml).", show_default=False)
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Open what the file names, say what would run, and stop.")
    ] = False,
    example: Annotated[
        str | None,
        typer.Option(
            help="Print a file that runs as it is: camera, radar, table, rtsp or audio.", show_default=False
        ),
    ] = None,
    log: Annotated[
        Literal["text", "json"],
        typer.Option(help="Log lines on standard error: text, or a line of JSON each."),
    ] = "text",
    schema: Annotated[bool, typer.Option("--schema", help="Print the file's JSON schema.")] = False,
    as_json: Json = False,
) -> None:
    """Run streams as a file declares them: sources, policies, models, sinks, until they end or are stopped."""
    from edgelstm.workflows import serve as workflow
    from edgelstm.workflows.serve_process import ended_if_stuck, stopped_by_signals

    if sum((pipeline is not None, example is not None, schema)) != 1:
        raise EdgeLstmError("serve", expected="one of: a pipeline file, --example, --schema")
    if example is not None:
        return typer.echo(workflow.example(example), nl=False)
    if schema:
        from edgelstm.pipeline.service.parse import schema as made

        return print_json(made())
    assert pipeline is not None
    read = workflow.Pipeline.from_file(pipeline)
    if check:
        found = read.check()
        if as_json:
            return print_json(found.to_json())
        for name, words in found.streams.items():
            out.print(f"{name}:", highlight=False, markup=False)
            for key, value in words.items():
                out.print(f"  {key}: {value or '(none)'}", highlight=False, markup=False, soft_wrap=True)
        return None
    handler = logging.StreamHandler()
    if log == "json":
        from edgelstm.pipeline.web.logs import JsonLines

        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(read.redactor)
    root = logging.getLogger("edgelstm")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with stopped_by_signals(read), ended_if_stuck(read):
            report = read.run()
    finally:
        root.removeHandler(handler)
    lines = any("-" in s.sinks for s in read.config.streams.values())  # standard output is the lines'
    if as_json:
        print_json(report.to_json(), error=lines)
    else:
        table = Table("stream", "stepped", "dropped", "resets", "delivered", "undelivered")
        for name, counts in list(report.streams.items())[:50]:
            kinds = ("dropped:", "reset:", "undelivered:")
            dropped, resets, undelivered = (
                sum(n for key, n in counts.items() if key.startswith(kind)) for kind in kinds
            )
            row = (counts.get("stepped", 0), dropped, resets, counts.get("delivered", 0), undelivered)
            table.add_row(escape(name), *map(str, row))
        (err if lines else out).print(table)
    if report.failed:
        raise typer.Exit(1)
