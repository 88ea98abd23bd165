"""run: sources streamed through a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from edgelstm.cli.shared import (
    Device,
    Hop,
    Json,
    Limit,
    Postprocess,
    Preprocess,
    Threads,
    app,
    err,
    out,
    print_json,
    progress_bar,
    say,
    two_numbers,
)


@app.command(
    epilog="Examples: `edgelstm run digits.onnx --source frames.npz --output forecast.mp4` · "
    "`edgelstm run radar.plan --source knmi/ --output forecast.npz --device cuda --json`"
)
def run(
    model: Annotated[Path, typer.Argument(help="A step graph or window (.onnx), or an engine (.plan).")],
    source: Annotated[
        list[str],
        typer.Option(
            help="{sources}. Several run side by side, each with a state and an output of its own: NAME=SOURCE."
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="{sinks}.",
        ),
    ] = None,
    limit: Limit = None,
    preprocess: Preprocess = None,
    postprocess: Postprocess = None,
    hop: Hop = None,
    then: Annotated[
        list[Path] | None, typer.Option(help="A model that takes what the one before gives; may be repeated.")
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            help="Of outputs that are frames: model, physical (mm/h of rain) or source (pixels of 0 to 255). "
            "Default: physical in .nc, .tif, .h5 and pictures with captions, else model.",
            show_default=False,
        ),
    ] = None,
    on_gap: Annotated[
        str, typer.Option(help="Frames missing in the source: hold the state, reset it, or error.")
    ] = "hold",
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Wait for further files of a folder, or rows of a table, until interrupted."
        ),
    ] = False,
    idle: Annotated[
        float | None, typer.Option(min=0, help="With --follow: end after so many seconds without a new file.")
    ] = None,
    begin: Annotated[
        Path | None,
        typer.Option(
            help="Begin with the state in a file that `serve` kept (keep_frames), which may be the source too.",
            show_default=False,
        ),
    ] = None,
    on_bad_frame: Annotated[
        str,
        typer.Option(
            help="NaN or infinity in a frame, or one that can't be read: error, skip, zero or pass."
        ),
    ] = "error",
    show: Annotated[str | None, typer.Option(help="PNG and MP4: which output.", metavar="OUTPUT")] = None,
    lead: Annotated[
        int | None,
        typer.Option(min=1, help="PNG and MP4: which lead time of a forecast, 1 for the next frame."),
    ] = None,
    channel: Annotated[int | None, typer.Option(min=0, help="PNG and MP4: which channel, from 0.")] = None,
    colours: Annotated[
        str | None,
        typer.Option(
            help="PNG and MP4: blue, heat, viridis, balance (two directions) or rain (mm/h) instead of grey."
        ),
    ] = None,
    beside: Annotated[
        bool, typer.Option("--beside", help="PNG and MP4: the input stands left of the output.")
    ] = False,
    caption: Annotated[
        bool, typer.Option("--caption", help="PNG and MP4: what is shown, when, and a bar of the colours.")
    ] = False,
    truth: Annotated[
        bool,
        typer.Option("--truth", help="PNG and MP4 of a forecast: what came then beside it, with captions."),
    ] = False,
    value_range: Annotated[
        str | None,
        typer.Option(
            "--range", help="PNG and MP4: the values of black and white, such as 0,1.", metavar="LOW,HIGH"
        ),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Stream frames through a model, the state carried from frame to frame."""
    import edgelstm
    from edgelstm.pipeline import View

    with progress_bar("streaming", limit) as tick:
        report = edgelstm.run(
            model,
            source,
            output,
            device=device,
            threads=threads,
            limit=limit,
            preprocess=preprocess,
            postprocess=postprocess,
            hop=hop,
            then=then or (),
            units=units,  # type: ignore[arg-type]
            on_gap=on_gap,  # type: ignore[arg-type]
            follow=follow,
            idle=idle,
            begin=begin,
            on_bad_frame=on_bad_frame,  # type: ignore[arg-type]
            view=View(
                output=show,
                channel=channel,
                lead=lead,
                range=two_numbers("--range", value_range),
                colours=colours,
                beside=beside,
                caption=caption,
                truth=truth,
            ),
            progress=tick,
            say=say,
        )
    shown = err if output == "-" else out  # standard output is the lines'
    if as_json:
        return print_json(report.to_json(), error=output == "-")
    table = Table(title=escape(f"{report.model} on {report.source}"))
    for column in ("frames", "skipped", "p50 ms", "p99 ms", "max ms", "output"):
        table.add_column(column, justify="right")
    times = [f"{report.percentile(q):.3f}" for q in (50, 99, 100)]
    table.add_row(str(report.frames), str(report.skipped), *times, escape(report.out or "(none)"))
    shown.print(table)
