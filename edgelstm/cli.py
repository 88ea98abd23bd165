"""The command line: parse, call one workflow, print a table or JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from edgelstm import __version__
from edgelstm.errors import EdgeLstmError

app = typer.Typer(
    name="edgelstm",
    help="Run trained ConvLSTM and LSTM models live: export, verify, stream, with the state kept for you.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: What typer raises for wrong options and arguments; it is click's, which typer may bring along under its own name.
UsageError: Any = typer.BadParameter.__mro__[1]
out = Console()
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads (default: all processors).")]
Weights = Annotated[Path | None, typer.Option(help="Weights for a torch factory: .safetensors, .pt or .pth.")]
Init = Annotated[str | None, typer.Option(help="JSON keyword arguments for a torch factory.")]
Preprocess = Annotated[
    list[str] | None,
    typer.Option(
        "--preprocess",
        help="What is done to raw frames, such as 'resize=64,64;grey;scale=0.0039'; 'INPUT:...' for one of several.",
    ),
]


@app.command(
    epilog="Examples: `edgelstm export model.safetensors -o model.onnx` · "
    "`edgelstm export nets.py:make --weights net.pt --frame 1,64,64 -o net.onnx --window 10` · "
    "`edgelstm export other.onnx --state h_in=h_out -o step.onnx`"
)
def export(
    source: Annotated[
        str, typer.Argument(help="model.safetensors (described), package.module:factory, or model.onnx.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    weights: Weights = None,
    frame: Annotated[
        list[str] | None,
        typer.Option(help="Shape of a frame, '1,64,64', for torch; 'NAME:1,64,64' if several."),
    ] = None,
    init: Init = None,
    state: Annotated[
        list[str] | None,
        typer.Option(help="ONNX files: a state pair INPUT=OUTPUT. Torch: a state's shape NAME=64,32,32."),
    ] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Write an unrolled window of T frames.")] = None,
    frames: Annotated[
        str | None, typer.Option("--source", help="Frames to compare on (see `run`); else seeded noise.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Frames of the comparison.")] = 200,
    preprocess: Preprocess = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Turn a trained model into an ONNX step graph, proved equal to its source before it is written."""
    from edgelstm import workflows

    with _progress("comparing with the source", steps) as tick:
        result = workflows.export(
            source,
            output,
            weights=weights,
            frame=_frame_shapes(frame),
            states=_states(state),
            frames=frames,
            window=window,
            preprocess=preprocess,
            kwargs=_json_option("--init", init),
            steps=steps,
            threads=threads,
            progress=tick,
        )
    if as_json:
        return _print_json(result.to_json())
    _print_comparison(result.comparison)
    out.print(f"wrote {result.path}: {_size(len(result.step.to_bytes()))}", markup=False)


@app.command(
    epilog="Examples: `edgelstm run digits.onnx --source frames.npz --out forecast.mp4` · "
    "`edgelstm run radar.onnx --source knmi/ --out forecast.npz --json`"
)
def run(
    model: Annotated[Path, typer.Argument(help="A step graph or window (.onnx).")],
    source: Annotated[
        str,
        typer.Option(help="Folder of KNMI radar files or of images, video file, .npy, or FILE.npz[:NAME]."),
    ],
    output: Annotated[
        str | None, typer.Option("--out", "-o", help="FILE.npz, FILE.jsonl, FILE.mp4, or FOLDER/ for PNGs.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    preprocess: Preprocess = None,
    on_bad_frame: Annotated[
        str, typer.Option(help="NaN or infinity in a frame: error, skip or zero.")
    ] = "error",
    show: Annotated[str | None, typer.Option(help="PNG and MP4: which output.", metavar="OUTPUT")] = None,
    lead: Annotated[int | None, typer.Option(help="PNG and MP4: which lead time of a forecast.")] = None,
    channel: Annotated[int | None, typer.Option(help="PNG and MP4: which channel.")] = None,
    value_range: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", help="PNG and MP4: the values of black and white."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Stream frames through a model, the state carried from frame to frame."""
    from edgelstm import workflows
    from edgelstm.pipeline import View

    with _progress("streaming", limit) as tick:
        report = workflows.run(
            model,
            source,
            output,
            device=device,
            threads=threads,
            limit=limit,
            preprocess=preprocess,
            on_bad_frame=on_bad_frame,  # type: ignore[arg-type]
            view=View(output=show, channel=channel, lead=lead, range=value_range),
            progress=tick,
        )
    if as_json:
        return _print_json(report.to_json())
    table = Table(title=escape(f"{report.model} on {report.source}"))
    for column in ("frames", "skipped", "p50 ms", "p99 ms", "max ms", "output"):
        table.add_column(column, justify="right")
    times = [f"{report.percentile(q):.3f}" for q in (50, 99, 100)]
    table.add_row(str(report.frames), str(report.skipped), *times, escape(report.out or "(none)"))
    out.print(table)


@app.command(
    epilog="Examples: `edgelstm verify float.onnx int8.onnx --source frames.npz --steps 10000 --plot drift.png` · "
    "`edgelstm verify nets.py:make model.onnx --weights net.pt --json`"
)
def verify(
    a: Annotated[str, typer.Argument(help="The reference: .onnx, described .safetensors, or torch factory.")],
    b: Annotated[str, typer.Argument(help="What is compared with it.")],
    source: Annotated[str | None, typer.Option(help="Frames (see `run`); else seeded noise.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Frames at most.")] = 200,
    weights: Weights = None,
    init: Init = None,
    preprocess: Preprocess = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw errors and ranges over time: .png, .svg or .pdf.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Forecasts: CSI of this value (default: 1 of rain in mm/h, 0.5 of brightness)."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Exit with code 1 if the worst relative error is larger.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare two runnables over the same frames: errors of every output and state, and where they lead."""
    from edgelstm import verify_report, workflows
    from edgelstm.verify_plot import check_plot

    if tolerance is not None and not tolerance >= 0:
        raise EdgeLstmError("--tolerance", found=tolerance, expected="a relative error of at least 0")
    if plot is not None:
        check_plot(plot)
    with _progress("comparing", steps) as tick:
        result = workflows.verify(
            a,
            b,
            source,
            steps=steps,
            weights=weights,
            kwargs=_json_option("--init", init),
            preprocess=preprocess,
            threshold=threshold,
            threads=threads,
            progress=tick,
        )
    if plot is not None:
        result.plot(plot)
    if as_json:
        _print_json(result.to_json())
    else:
        out.print(verify_report.errors(result))
        for line in verify_report.notes(result):
            out.print(line, highlight=False, markup=False)
        if result.forecast is not None:
            out.print(verify_report.forecast(result.forecast))
    if tolerance is not None and not result.worst.worst <= tolerance:
        raise typer.Exit(1)


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
    percentile: Annotated[float | None, typer.Option(help="Of method percentile; default 99.99.")] = None,
    streams: Annotated[int | None, typer.Option(min=1, help="Sequences side by side; default 8.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="At most so many frames of each source.")] = None,
    sequence: Annotated[
        int | None, typer.Option(min=1, help="Cut sources into sequences of so many frames.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=2, help="2: once more, with the quantised graph driving the state.")
    ] = 1,
    target: Annotated[
        str, typer.Option(help="What the second round is quantised for: onnxruntime or tensorrt.")
    ] = "onnxruntime",
    preprocess: Preprocess = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Record the ranges of everything that may be quantised, over sequences with the state carried."""
    from edgelstm import quantization

    with _progress("calibrating", None) as tick:
        result = quantization.calibrate(
            model,
            source or (),
            output,
            recipe=recipe,
            method=method,
            percentile=percentile,
            streams=streams,
            frames=frames,
            sequence=sequence,
            preprocess=preprocess,
            rounds=rounds,
            target=target,  # type: ignore[arg-type]
            threads=threads,
            progress=tick,
        )
    if as_json:
        return _print_json(result.to_json())
    c = result.calibration
    table = Table(title=f"{c.frames} frames in {len(c.data)} sequences, method {c.method['method']}")
    for column in ("tensor", "role", "channels", "seen", "range"):
        table.add_column(column, justify="left" if column in ("tensor", "role") else "right")
    for t in c.tensors.values():
        seen, chosen = (
            f"{low:.3g} .. {high:.3g}"
            for low, high in ((t.minimum.min(), t.maximum.max()), (t.tensor_low, t.tensor_high))
        )
        table.add_row(escape(t.name), t.role, str(t.channels), seen, chosen)
    out.print(table)
    for name, grown in quantization.growing_states(c).items():
        out.print(_growing(name, grown), highlight=False, markup=False)
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
    "`edgelstm quantize model.onnx --target tensorrt --precision fp16 -o model.fp16.onnx` · "
    "`edgelstm quantize model.onnx --precision auto --budget 0.01 --source frames.npz -o model.mixed.onnx`"
)
def quantize(
    model: Annotated[Path, typer.Argument(help="A float step graph or window (.onnx).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    calibration: Annotated[Path | None, typer.Option(help="What `calibrate` wrote for this model.")] = None,
    target: Annotated[str, typer.Option(help="onnxruntime (CPU) or tensorrt.")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="int8, fp8, fp16, bf16, or auto.")] = "int8",
    gpu: Annotated[
        str | None, typer.Option(help="Refuse what it lacks: xavier, turing, ampere, orin, ada, hopper, ...")
    ] = None,
    rest: Annotated[
        str, typer.Option(help="With int8 and fp8, what is not quantised: fp32, fp16, bf16.")
    ] = "fp32",
    cell_state: Annotated[str, typer.Option(help="fp16, bf16: type the cell state is kept in.")] = "fp32",
    keep: Annotated[
        list[str] | None, typer.Option(help="Weights to leave alone, by pattern, such as 'head.*'.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="auto: largest relative error of the outputs after --steps frames.")
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="auto: frames to measure on (see `run`).")] = None,
    steps: Annotated[int, typer.Option(min=1, help="auto: frames of a measurement.")] = 200,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write a model in fewer bits: explicit Q/DQ per target, states stored as they are computed with."""
    from edgelstm import quantization

    with _progress("searching" if precision == "auto" else "quantising", None) as tick:
        result = quantization.quantize(
            model,
            calibration,
            output,
            target=target,  # type: ignore[arg-type]
            precision=precision,
            gpu=gpu,
            rest=rest,
            cell_state=cell_state,
            keep=keep or (),
            budget=budget,
            source=source or (),
            steps=steps,
            threads=threads,
            progress=tick,
        )
    if as_json:
        return _print_json(result.to_json())
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
    size = len(result.step.to_bytes())
    out.print(
        f"wrote {result.path}: {_size(size)}, {size / result.float_bytes:.2f} of {_size(result.float_bytes)}",
        markup=False,
        highlight=False,
    )


def _growing(name: str, grown: dict[str, Any]) -> str:
    frame = grown["fp16_overflows_at"]
    end = "" if frame is None else f"; fp16 would overflow at about frame {frame}"
    return f"state {name!r} was still growing at the end (largest value {grown['largest']:.4g}){end}"


@app.command(epilog="Example: `edgelstm inspect model.onnx --json`")
def inspect(
    model: Annotated[Path, typer.Argument(help="A step graph or window (.onnx).")], as_json: Json = False
) -> None:
    """Show what a model takes, gives and remembers."""
    from edgelstm import workflows

    found = workflows.inspect(model)
    if as_json:
        return _print_json(found.to_json())
    s = found.signature
    table = Table(
        title=f"{escape(found.path)}: {'step' if s.window is None else f'window of {s.window} frames'}"
    )
    for column in ("kind", "name", "dtype", "shape", "graph"):
        table.add_column(column)
    for kind, tensors in (("input", s.inputs), ("output", s.outputs)):
        for t in tensors:
            table.add_row(kind, escape(t.name), t.dtype, _shape(t.shape), "")
    for x in s.states:
        start = "zeros" if x.initial is None else "constant"
        pair = escape(f"{x.input} -> {x.output}")
        table.add_row("state", escape(x.name), x.dtype, _shape(x.shape), f"{pair}, from {start}")
    out.print(table)
    for name, ops in s.preprocessing.items():
        from edgelstm.pipeline import format_ops

        out.print(f"preprocessing of {name}: {format_ops(ops)}", highlight=False, markup=False)
    operators = ", ".join(f"{count} {name}" for name, count in found.operators.items())
    out.print(f"operators: {operators}", highlight=False)
    out.print(
        f"{found.parameters:,} parameters, {_size(found.bytes)}, opset {found.opset}, sha256 {found.sha256}"
    )


@app.command(epilog="Example: `edgelstm bench model.safetensors --against torch,onnxruntime,openvino --json`")
def bench(
    models: Annotated[list[Path], typer.Argument(help="Step graphs (.onnx) or described .safetensors.")],
    against: Annotated[
        str, typer.Option(help="Comma-separated: torch, torch-compile, onnxruntime, openvino.")
    ] = "onnxruntime",
    module: Annotated[str | None, typer.Option(help="Torch factory of an .onnx model, for torch.")] = None,
    weights: Weights = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; contestants take turns.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps a round.")] = 100,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Time models against other runtimes: each in its own process, same frames and threads, rounds alternating."""
    from edgelstm.bench import bench as run_bench

    contestants = [name.strip() for name in against.split(",") if name.strip()]
    with _progress("measuring", None) as tick:
        result = run_bench(
            models,
            contestants,
            module=module,
            weights=weights,
            rounds=rounds,
            steps=steps,
            threads=threads,
            progress=tick,
        )
    if as_json:
        _print_json(result.to_json())
    else:
        out.print(result.table())
    if any(entry.status == "failed" for model in result.models for entry in model.entries):
        raise typer.Exit(1)


@app.command(epilog="Example: `edgelstm doctor --json`")
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, and what to install for what is missing."""
    from edgelstm.doctor import doctor as examine

    report = examine()
    if as_json:
        return _print_json(report.to_json())
    out.print(report.table())


@app.command(epilog="Examples: `edgelstm demo` · `edgelstm demo --radar knmi/ -o build/radar`")
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for report.html and report.json.")
    ] = Path("build/demo"),
    radar: Annotated[
        Path | None, typer.Option(help="Folder of KNMI radar files: show the radar nowcast instead.")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Export, verify and stream the example models, and write a report to look at in a browser."""
    from edgelstm.demo import run_demo

    result = run_demo(output, radar=radar, threads=threads, progress=_progress)
    if as_json:
        return _print_json(result.to_json())
    out.print(result.table())
    out.print(f"report: {result.report}", highlight=False)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"edgelstm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script: a clear line and exit code 2 on bad input, no traceback."""
    # NumPy only checks and copies here; its own thread pool would fight with ONNX Runtime's for the cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # A module named on the command line is looked for where the user stands.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 (sys.path holds strings)
    try:
        # Not standalone, so that wrong options end like all other bad input, in one line.
        code = app(prog_name="edgelstm", standalone_mode=False)
    except EdgeLstmError as error:
        _fail(str(error))
    except UsageError as error:
        if not error.format_message():  # no arguments at all: the help was printed
            sys.exit(2)
        command = error.ctx.command_path if error.ctx else "edgelstm"
        _fail(f"{error.format_message()} Try: {command} --help")
    except (KeyboardInterrupt, typer.Abort):
        err.print("edgelstm: interrupted", markup=False)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    err.print(f"edgelstm: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, so that --json on standard output stays clean."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def _print_comparison(result: Any) -> None:
    table = Table(title=escape(f"{result.b} against {result.a}, {result.frames} frames: relative error"))
    for column in ("kind", "tensor", "worst", "at frame", "last"):
        table.add_column(column, justify="left" if column in ("kind", "tensor") else "right")
    for t in result.tensors:
        style = "bold" if t is result.worst else None
        table.add_row(
            t.kind, escape(t.name), f"{t.worst:.2e}", str(t.worst_frame), f"{t.last:.2e}", style=style
        )
    out.print(table)


def _frame_shapes(texts: list[str] | None) -> Any:
    """'1,64,64' is the shape of the only input; 'a:3' and 'b:1,64,64' name several."""
    if not texts:
        return None
    named: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        named[name] = _ints("--frame", text, dims)
    return named[""] if set(named) == {""} else named


def _states(texts: list[str] | None) -> Any:
    """NAME=OUTPUT pairs of an ONNX file, or NAME=64,32,32 shapes for torch."""
    if not texts:
        return None
    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise EdgeLstmError(f"--state {text}", expected="INPUT=OUTPUT, or NAME=SHAPE such as h=64,32,32")
        is_shape = all(part.strip().isdigit() for part in value.split(","))
        pairs[name] = _ints("--state", text, value) if is_shape else value
    return pairs


def _ints(option: str, text: str, dims: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(d) for d in dims.split(","))
    except ValueError as error:
        raise EdgeLstmError(f"{option} {text}", expected="whole numbers such as 1,64,64") from error
    if any(d < 1 for d in shape):
        raise EdgeLstmError(f"{option} {text}", expected="sizes of at least 1")
    return shape


def _json_option(option: str, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EdgeLstmError(f"{option} {text}", found=str(error), expected="a JSON object") from error
    if not isinstance(value, dict):
        raise EdgeLstmError(f"{option} {text}", found=type(value).__name__, expected="a JSON object")
    return value


def _shape(shape: tuple[int | str, ...]) -> str:
    return " x ".join(map(str, shape))


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
