"""Command that holds forecasts against what came: score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from edgelstm.cli.shared import (
    Device,
    Hop,
    Json,
    Limit,
    Preprocess,
    Threads,
    app,
    out,
    print_json,
    progress_bar,
    say,
)
from edgelstm.errors import EdgeLstmError


@app.command(
    epilog="Examples: `edgelstm score nowcast.onnx --source knmi/ -o scores.csv` · "
    "`edgelstm score nowcast.onnx --source knmi/ --threshold 5 --json`"
)
def score(
    model: Annotated[
        Path, typer.Argument(help="A step graph (.onnx) or an engine (.plan) that forecasts its input.")
    ],
    source: Annotated[
        list[str], typer.Option(help="Frames (see `run`); several are scored each for itself.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A .csv file to write.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="CSI of this value (default: 1 of rain in mm/h, 0.5 of brightness).")
    ] = None,
    limit: Limit = None,
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
    """Score forecasts against the frames that came, beside repeating the last frame."""
    import edgelstm

    if output is not None and output.suffix.lower() != ".csv":
        raise EdgeLstmError(f"--output {output}", expected="a .csv file")
    with progress_bar("scoring", limit) as tick:
        report = edgelstm.score(
            model,
            source,
            output,
            threshold=threshold,
            device=device,
            threads=threads,
            limit=limit,
            preprocess=preprocess,
            hop=hop,
            on_gap=on_gap,  # type: ignore[arg-type]
            on_bad_frame=on_bad_frame,  # type: ignore[arg-type]
            progress=tick,
            say=say,
        )
    if as_json:
        return print_json(report.to_json())
    first = report.rows[0]
    unit = f" {first['unit']}" if first["unit"] else ""
    table = Table(title=f"{first['forecasts']} forecasts of {first['output']} against what came")
    for column in ("stream", "ahead", f"MAE{unit}", "MAE, last frame", f"CSI {first['threshold']:g}{unit}", "CSI, last frame"):  # fmt: skip
        table.add_column(column, justify="right")
    for row in report.rows:
        ahead = f"{row['lead']}" if row["lead_seconds"] is None else f"{row['lead_seconds'] / 60:g} min"
        csi = ["-" if row[k] is None else f"{row[k]:.3f}" for k in ("csi", "csi_persistence")]
        table.add_row(row["stream"], ahead, f"{row['mae']:.4g}", f"{row['mae_persistence']:.4g}", *csi)
    out.print(table)
