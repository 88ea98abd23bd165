"""Commands that make and try step graphs: export, run, verify, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from edgelstm.cli.shared import (
    Device,
    Frame,
    GateOrder,
    Hop,
    Init,
    Json,
    Limit,
    Postprocess,
    Preprocess,
    Results,
    States,
    Threads,
    Weights,
    app,
    confirm_pairs,
    err,
    fix_option,
    frame_shapes,
    json_option,
    names_option,
    out,
    print_json,
    progress_bar,
    say,
    say_sources,
    shape_text,
    size_text,
    states_option,
    two_numbers,
)
from edgelstm.errors import count_of
from edgelstm.files import refuse_overwrite
from edgelstm.graph.signature import Signature, StateSpec


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
    lower: Annotated[
        str | None,
        typer.Option(help="plain or openvino: the gates in standard operators, for other ONNX runtimes."),
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
            kwargs=json_option("--init", init),
            limit=limit,
            tolerance=tolerance,
            lower=lower,  # type: ignore[arg-type]
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
        str, typer.Option(help="NaN or infinity in a frame: error, skip, zero or pass.")
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
            kwargs=json_option("--init", init),
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
