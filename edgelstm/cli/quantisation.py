"""Commands that make a model smaller: calibrate, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from edgelstm.cli.shared import (
    Hop,
    Json,
    Limit,
    Preprocess,
    Threads,
    app,
    err,
    out,
    print_json,
    progress_bar,
    say_sources,
    size_text,
    within,
)
from edgelstm.errors import count_of


@app.command(
    epilog="Examples: `edgelstm calibrate model.onnx --source frames.npz -o model.calib.json` · "
    "`edgelstm calibrate radar.onnx --recipe calibration/nowcast_radar.toml --rounds 2 -o radar.calib.json`"
)
def calibrate(
    model: Annotated[Path, typer.Argument(help="A float step graph or window (.onnx).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .calib.json file to write.")],
    source: Annotated[
        list[str] | None, typer.Option(help="Frames (see `run`); repeat it, each is a sequence.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Which sequences, how many, which method: .toml.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="recurrent (default), minmax, percentile, entropy or mse.")
    ] = None,
    percentile: Annotated[
        float | None, typer.Option(callback=within(50, 100), help="Of method percentile; default 99.99.")
    ] = None,
    streams: Annotated[int | None, typer.Option(min=1, help="Sequences side by side; default 8.")] = None,
    limit: Limit = None,
    sequence: Annotated[
        int | None, typer.Option(min=1, help="Cut sources into sequences of so many frames.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=2, help="2: once more, with the quantised graph driving the state.")
    ] = 1,
    runtime: Annotated[
        str,
        typer.Option(help="What the second round is quantised for: onnxruntime or tensorrt."),
    ] = "onnxruntime",
    preprocess: Preprocess = None,
    hop: Hop = None,
    on_bad_frame: Annotated[
        str,
        typer.Option(
            help="A frame that can't be read, or with NaN or infinity: error, or skip to leave it out."
        ),
    ] = "error",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Record the ranges of everything that may be quantised, over sequences with the state carried."""
    import edgelstm
    from edgelstm.quantize.calibration import growing_states

    say_sources(*(source or ()))
    with progress_bar("calibrating", None) as tick:
        result = edgelstm.calibrate(
            model,
            source or (),
            output,
            recipe=recipe,
            method=method,
            percentile=percentile,
            streams=streams,
            limit=limit,
            sequence=sequence,
            preprocess=preprocess,
            hop=hop,
            on_bad_frame=on_bad_frame,  # type: ignore[arg-type]
            rounds=rounds,
            runtime=runtime,  # type: ignore[arg-type]
            threads=threads,
            progress=tick,
        )
    if as_json:
        return print_json(result.to_json())
    c = result.calibration
    table = Table(
        title=f"{count_of(c.frames, 'frame')} in {count_of(len(c.data), 'sequence')}, method {c.method['method']}"
    )
    for column in ("tensor", "role", "channels", "seen", "range"):
        table.add_column(column, justify="left" if column in ("tensor", "role") else "right")
    for t in c.tensors.values():
        seen, chosen = (
            f"{low:.3g} .. {high:.3g}"
            for low, high in ((t.minimum.min(), t.maximum.max()), (t.tensor_low, t.tensor_high))
        )
        table.add_row(escape(t.name), t.role, str(t.channels), seen, chosen)
    out.print(table)
    held = sum(d["check"]["held_back"] for d in c.data if "check" in d)
    if held:
        out.print(
            f"{count_of(held, 'more frame, at the end of a sequence, is', 'more frames, at the ends of sequences, are')} left for `quantize` to verify on",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    for name, grown in growing_states(c).items():
        out.print(_growing(name, grown), highlight=False, markup=False)
    for note in result.notes:
        out.print(note, highlight=False, markup=False)
    if result.moved:
        table = Table(title="second round: what changed")
        for column in ("tensor", "range, times", "mean, of the range"):
            table.add_column(column, justify="left" if column == "tensor" else "right")
        for row in result.moved[:12]:
            table.add_row(escape(row["tensor"]), f"{row['range']:.3f}", f"{row['mean']:.1e}")
        out.print(table)
    out.print(f"wrote {result.path}", markup=False, highlight=False)


@app.command(
    epilog="Examples: `edgelstm quantize model.onnx --calibration model.calib.json -o model.int8.onnx` · "
    "`edgelstm quantize model.onnx --precision int8-weights -o model.w8.onnx` · "
    "`edgelstm quantize model.onnx --runtime tensorrt --precision fp16 -o model.fp16.onnx` · "
    "`edgelstm quantize model.onnx --precision auto --budget 0.01 --source frames.npz -o model.mixed.onnx`"
)
def quantize(
    model: Annotated[Path, typer.Argument(help="A float step graph or window (.onnx).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    calibration: Annotated[Path | None, typer.Option(help="What `calibrate` wrote for this model.")] = None,
    runtime: Annotated[str, typer.Option(help="onnxruntime (CPU) or tensorrt.")] = "onnxruntime",
    precision: Annotated[
        str, typer.Option(help="int8, fp8, fp16, bf16, int8-weights, bf16-weights, or auto.")
    ] = "int8",
    gpu: Annotated[
        str | None, typer.Option(help="Refuse what it lacks: orin, ada, hopper, ..., or 8.7.")
    ] = None,
    rest: Annotated[
        str, typer.Option(help="With int8 and fp8, what is not quantised: fp32, fp16, bf16.")
    ] = "fp32",
    cell_state: Annotated[str, typer.Option(help="fp16, bf16: type the cell state is kept in.")] = "fp32",
    keep: Annotated[
        list[str] | None, typer.Option(help="Weights to leave alone, by pattern, such as 'head.*'.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            callback=within(0), help="auto: largest relative error of the outputs after --limit frames."
        ),
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="auto: frames to measure on (see `run`).")] = None,
    limit: Annotated[int, typer.Option(min=1, help="auto: frames at most of a measurement.")] = 200,
    hop: Hop = None,
    verify: Annotated[
        bool,
        typer.Option(
            help="Run both over the ends of the calibration's sequences; say how far outputs are off."
        ),
    ] = True,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write a model in fewer bits: explicit Q/DQ per target, states stored as they are computed with."""
    import edgelstm

    say_sources(*(source or ()))
    with progress_bar("searching" if precision == "auto" else "quantising", None) as tick:
        result = edgelstm.quantize(
            model,
            calibration,
            output,
            runtime=runtime,  # type: ignore[arg-type]
            precision=precision,
            gpu=gpu,
            rest=rest,
            cell_state=cell_state,
            keep=keep or (),
            budget=budget,
            source=source or (),
            limit=limit,
            hop=hop,
            verify=verify,
            threads=threads,
            progress=tick,
        )
    if as_json:
        print_json(result.to_json())
        return _warn(result.check)
    if result.search is not None:
        out.print(result.search.table())
    table = Table(title=f"{model.name} for {result.target}, {result.precision}")
    for column in ("weight", "product", "reads", "times", "work", "precision"):
        table.add_column(column, justify="right" if column in ("times", "work") else "left")
    for row in result.products:
        reads = ", ".join(row["reads"])
        table.add_row(
            escape(row["weight"]),
            row["kind"],
            escape(reads),
            str(row["times"]),
            f"{row['work']:.1%}",
            row["precision"],
        )
    out.print(table)
    stored = ", ".join(f"{s.name} {s.dtype}" for s in result.step.signature.states)
    out.print(f"states: {stored}", highlight=False, markup=False)
    for note in result.notes:
        out.print(note, highlight=False, markup=False)
    if verify:
        for line in result.check.text():
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    size = len(result.step.to_bytes())
    out.print(
        f"wrote {result.path}: {size_text(size)}, {size / result.float_bytes:.2f} of {size_text(result.float_bytes)}",
        markup=False,
        highlight=False,
    )
    _warn(result.check)


def _warn(check: Any) -> None:
    """Say where an output is too far off, on standard error; the exit code stays 0: only the user knows what matters."""
    if check.warning is None:
        return
    err.print(f"warning: {check.warning}", style="bold yellow", markup=False, highlight=False, soft_wrap=True)
    for remedy in check.remedies:
        err.print(f"  {remedy}", markup=False, highlight=False, soft_wrap=True)


def _growing(name: str, grown: dict[str, Any]) -> str:
    frame = grown["fp16_overflows_at"]
    end = "" if frame is None else f"; fp16 would overflow at about frame {frame}"
    return f"state {name!r} was still growing at the end (largest value {grown['largest']:.4g}){end}"
