"""export, lower and verify: the model on its way to a step graph, and that graph beside its source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from edgelstm.cli.shared import (
    Frame,
    GateOrder,
    Hop,
    Init,
    Json,
    Postprocess,
    Preprocess,
    Results,
    States,
    Threads,
    Weights,
    app,
    confirm_pairs,
    fix_option,
    frame_shapes,
    json_option,
    names_option,
    out,
    print_json,
    progress_bar,
    say_sources,
    size_text,
    states_option,
)
from edgelstm.errors import count_of
from edgelstm.files import refuse_overwrite


@app.command(
    epilog="Examples: `edgelstm export model.safetensors -o model.onnx` · "
    "`edgelstm export nets.py:make --weights net.pt --frame 1,64,64 -o net.onnx --window 10` · "
    "`edgelstm export other.onnx --state h_in=h_out --fix sr=16000 -o step.onnx` · "
    "`edgelstm export model.keras -o model.onnx`"
)
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="package.module:factory, model.safetensors, model.pt (TorchScript or weights), model.keras, model.h5, "
            "net.jsn (CURRENNT), or model.onnx."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    weights: Weights = None,
    frame: Frame = None,
    init: Init = None,
    state: States = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(help="ONNX files: an input's value for good or a dynamic dimension's size, NAME=VALUE."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="ONNX files: take the state pairs that are proposed.")
    ] = False,
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65536,
            help="Write a window of T frames: unrolled, or as the module itself computes it.",
        ),
    ] = None,
    carry_state: Annotated[
        bool,
        typer.Option(
            "--carry-state", help="Carry states from frame to frame though each call starts from zeros."
        ),
    ] = False,
    results: Results = None,
    gate_order: GateOrder = None,
    source: Annotated[
        str | None, typer.Option(help="Frames to compare on (see `run`); else seeded noise.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Frames at most of the comparison.")] = 200,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Relative error from float64 that passes (default: a few times that of the source itself).",
        ),
    ] = None,
    preprocess: Preprocess = None,
    postprocess: Postprocess = None,
    hop: Hop = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="plain or openvino: the gates in standard operators, for other ONNX runtimes (see `lower`)."
        ),
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Turn a trained model into an ONNX step graph, proved equal to its source before it is written."""
    import edgelstm

    say_sources(source)
    with progress_bar("proving", limit, asks=model.endswith(".onnx") and not yes) as tick:
        result = edgelstm.export(
            model,
            output,
            weights=weights,
            frame=frame_shapes(frame),
            states=states_option(state),
            fix=fix_option(fix),
            confirm=confirm_pairs(yes),
            source=source,
            hop=hop,
            window=window,
            carry_state=carry_state,
            results=names_option(results),
            gate_order=gate_order,
            preprocess=preprocess,
            postprocess=postprocess,
            init=json_option("--init", init),
            limit=limit,
            tolerance=tolerance,
            runtime=runtime,  # type: ignore[arg-type]
            threads=threads,
            progress=tick,
            doing=tick.say,
        )
    if as_json:
        return print_json(result.to_json())
    if result.proof is None:
        print_comparison(result.comparison)
    else:
        print_proof(result.proof)
    for note in result.notes:
        out.print(note, highlight=False, markup=False)
    out.print(f"wrote {result.path}: {size_text(len(result.step.to_bytes()))}", markup=False)


@app.command(
    epilog="Examples: `edgelstm lower model.onnx -o model.plain.onnx` · `edgelstm lower model.onnx --runtime openvino -o model.ov.onnx`"
)
def lower(
    model: Annotated[Path, typer.Argument(help="A step graph or window (.onnx).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    runtime: Annotated[
        str,
        typer.Option(
            help="plain: standard operators, for any ONNX runtime; openvino; onnxruntime: FusedGates as functions; native: our own operators, for the C library."
        ),
    ] = "plain",
    as_json: Json = False,
) -> None:
    """Write a model for another ONNX runtime: its fused gates in standard operators. The numbers stay the same."""
    import edgelstm

    made = edgelstm.lower(model, output, runtime)  # type: ignore[arg-type]
    if as_json:
        return print_json(made.to_json())
    out.print(
        f"wrote {made.path}: {size_text(len(made.step.to_bytes()))}, operators {', '.join(made.operators)}",
        markup=False,
        highlight=False,
    )


@app.command(
    epilog="Examples: `edgelstm verify float.onnx int8.onnx --source frames.npz --limit 10000 --plot drift.png` · "
    "`edgelstm verify nets.py:make model.onnx --weights net.pt --json`"
)
def verify(
    a: Annotated[
        str,
        typer.Argument(
            help="The reference: .onnx, described .safetensors, torch factory or TorchScript file."
        ),
    ],
    b: Annotated[str, typer.Argument(help="What is compared with it.")],
    source: Annotated[str | None, typer.Option(help="Frames (see `run`); else seeded noise.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Frames at most.")] = 200,
    weights: Weights = None,
    init: Init = None,
    frame: Annotated[
        list[str] | None,
        typer.Option(
            help="Torch: as `export` was told, where the other model does not say it: 'NAME:1,64,64'."
        ),
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="Torch: states as `export` was told, NAME=64,32,32.")
    ] = None,
    results: Results = None,
    gate_order: GateOrder = None,
    preprocess: Preprocess = None,
    hop: Hop = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw errors and ranges over time: .png, .svg or .pdf.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Forecasts: CSI of this value (default: 1 of rain in mm/h, 0.5 of brightness)."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Exit with code 1 if the worst relative error is larger.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare two runnables over the same frames: errors of every output and state, and where they lead."""
    import edgelstm
    from edgelstm.verify import report as verify_report
    from edgelstm.verify.plot import check_plot

    if plot is not None:
        check_plot(plot)
        refuse_overwrite(plot, (a, b, source, weights))
    say_sources(source)
    with progress_bar("comparing", limit) as tick:
        result = edgelstm.verify(
            a,
            b,
            source,
            limit=limit,
            weights=weights,
            init=json_option("--init", init),
            frame=frame_shapes(frame),
            states=states_option(state),
            results=names_option(results),
            gate_order=gate_order,
            preprocess=preprocess,
            hop=hop,
            threshold=threshold,
            threads=threads,
            progress=tick,
        )
    if plot is not None:
        result.plot(plot)
    if as_json:
        print_json(result.to_json())
    else:
        out.print(verify_report.errors(result))
        for line in verify_report.notes(result):
            out.print(line, highlight=False, markup=False)
        if result.forecast is not None:
            out.print(verify_report.forecast(result.forecast))
    if tolerance is not None and not result.worst.worst <= tolerance:
        raise typer.Exit(1)


def print_comparison(result: Any) -> None:
    table = Table(
        title=escape(f"{result.b} against {result.a}, {count_of(result.frames, 'frame')}: relative error")
    )
    for column in ("kind", "tensor", "worst", "at frame", "last"):
        table.add_column(column, justify="left" if column in ("kind", "tensor") else "right")
    for t in result.tensors:
        style = "bold" if t is result.worst else None
        table.add_row(
            t.kind, escape(t.name), f"{t.worst:.2e}", str(t.worst_frame), f"{t.last:.2e}", style=style
        )
    out.print(table)


def print_proof(proof: Any) -> None:
    """What export judged by: how far source and graph are from float64, tensor by tensor."""
    title = f"{proof.comparison.b} and {proof.comparison.a.removesuffix(' in float64')} against float64"
    how = ", each step from equal states" if proof.together else ""
    table = Table(title=escape(f"{title}, {count_of(proof.comparison.frames, 'frame')}{how}: relative error"))
    for column in ("kind", "tensor", "source", "graph", "of what passes"):
        table.add_column(column, justify="left" if column in ("kind", "tensor") else "right")
    for t in proof.tensors:
        style = "bold" if t is proof.worst else None
        table.add_row(
            t.kind, escape(t.name), f"{t.source:.2e}", f"{t.graph:.2e}", f"{100 * t.share:.2g}%", style=style
        )
    out.print(table)
    out.print(proof.text, highlight=False, markup=False)
