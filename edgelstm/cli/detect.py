"""Commands for anomalies in tables of sensors: scales, fit-detector, detect."""

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
    within,
)
from edgelstm.errors import count_of

Model = Annotated[Path, typer.Argument(help="A step graph (.onnx) or an engine (.plan).")]
Source = Annotated[list[str], typer.Option(help="Tables or other frames (see `run`).")]
BadFrame = Annotated[str, typer.Option(help="NaN or infinity in a frame: error, skip, zero or pass.")]
OnGap = Annotated[str, typer.Option(help="Rows missing in time: hold the state, reset it, or error.")]


@app.command("fit-detector", epilog="Example: `edgelstm fit-detector engine.onnx --source engines.csv:key=unit:head=60 --hop 1 -o normal.json`")  # fmt: skip
def fit_detector(
    model: Model,
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .json file to write.")],
    method: Annotated[str, typer.Option(help="mae, mse or mahalanobis.")] = "mae",
    quantile: Annotated[
        float, typer.Option(callback=within(0, 1), help="Share of normal steps that are no anomaly.")
    ] = 0.999,
    target: Annotated[
        str | None, typer.Option(help="What the output stands for: input (given back) or next (foretold).")
    ] = None,
    settle: Annotated[
        int,
        typer.Option(
            min=0,
            help="Steps that are not scored after a stream's state began; `detect` leaves them out too.",
        ),
    ] = 0,
    hop: Hop = None,
    preprocess: Preprocess = None,
    on_bad_frame: BadFrame = "error",
    on_gap: OnGap = "hold",
    limit: Limit = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """See how large a model's errors are on normal data, and set a threshold."""
    import edgelstm

    with progress_bar("fitting", limit) as tick:
        found = edgelstm.fit_detector(
            model,
            source,
            output,
            method=method,  # type: ignore[arg-type]
            quantile=quantile,
            target=target,  # type: ignore[arg-type]
            settle=settle,
            hop=hop,
            preprocess=preprocess,
            on_bad_frame=on_bad_frame,  # type: ignore[arg-type]
            on_gap=on_gap,  # type: ignore[arg-type]
            limit=limit,
            device=device,
            threads=threads,
            progress=tick,
            say=say,
        )
    if as_json:
        return print_json(found.to_json())
    out.print(
        f"wrote {output}: {found.method} above {found.threshold:.6g} is an anomaly; {found.quantile:.4%} of "
        f"{count_of(found.samples, 'normal step is', 'normal steps are')} below",
        highlight=False,
        markup=False,
    )


@app.command(epilog="Example: `edgelstm detect engine.onnx --detector normal.json --source engines.csv:key=unit --hop 1 -o scores.csv`")  # fmt: skip
def detect(
    model: Model,
    source: Source,
    detector: Annotated[Path, typer.Option(help="The .json file of fit-detector.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .csv file: a row for each step.")
    ] = None,
    hop: Hop = None,
    preprocess: Preprocess = None,
    on_bad_frame: BadFrame = "error",
    on_gap: OnGap = "hold",
    limit: Limit = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score every step of a stream, and say which are anomalies."""
    import edgelstm

    with progress_bar("scoring", limit) as tick:
        found = edgelstm.detect(
            model,
            detector,
            source,
            output,
            hop=hop,
            preprocess=preprocess,
            on_bad_frame=on_bad_frame,  # type: ignore[arg-type]
            on_gap=on_gap,  # type: ignore[arg-type]
            limit=limit,
            device=device,
            threads=threads,
            progress=tick,
            say=say,
        )
    if as_json:
        return print_json(found.to_json())
    table = Table(
        title=f"{found.anomalies} of {count_of(found.steps, 'step')} above {found.detector.threshold:.4g}"
    )
    for column in ("stream", "steps", "anomalies", "highest score"):
        table.add_column(column, justify="right")
    for name, (steps, alarms, highest) in sorted(found.streams.items(), key=lambda s: -s[1][2])[:20]:
        table.add_row(name, str(steps), str(alarms), f"{highest:.4g}")
    out.print(table)
    if len(found.streams) > 20:
        out.print(f"the 20 streams with the highest scores, of {len(found.streams)}")


@app.command(epilog="Example: `edgelstm scales engines.csv:key=unit:columns=s2,s3 -o scales.csv`")
def scales(
    source: Annotated[str, typer.Argument(help="A table: FILE.csv:key=...:columns=...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .csv file to write.")],
) -> None:
    """Write each stream's smallest and largest values, for FILE.csv:scale=SCALES.csv."""
    from edgelstm.pipeline.sources.table import fit_scales

    count = fit_scales(source, output)
    out.print(f"wrote {output}: {count_of(count, 'stream')}", highlight=False, markup=False)
