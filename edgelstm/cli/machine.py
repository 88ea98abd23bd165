"""Commands about this machine: bench, doctor, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgelstm.cli.shared import Json, Threads, Weights, app, err, out, print_json, progress_bar
from edgelstm.errors import EdgeLstmError


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
    with progress_bar("measuring", None) as tick:
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
        print_json(result.to_json())
    else:
        out.print(result.table())
    if any(entry.status == "failed" for model in result.models for entry in model.entries):
        raise typer.Exit(1)


@app.command(
    epilog="Examples: `edgelstm doctor` · `edgelstm doctor --check --device cuda` in a container's health check"
)
def doctor(
    check: Annotated[
        bool, typer.Option("--check", help="Exit with code 1 if no model could stream on this machine.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="With --check: cpu or cuda (default: any).")] = None,
    as_json: Json = False,
) -> None:
    """Say what this machine can do, and what to install for what is missing."""
    from edgelstm.workflows.doctor import DEVICES
    from edgelstm.workflows.doctor import doctor as examine

    if device is not None and not check:
        raise EdgeLstmError("--device", found="no --check", hint="It says which device --check is about")
    if device is not None and device not in DEVICES:
        raise EdgeLstmError("--device", found=device, expected=f"one of {', '.join(DEVICES)}")
    report = examine()
    if as_json:
        print_json(report.to_json())
    elif not check:
        out.print(report.table())
    if check:
        try:
            report.check(device)
        except EdgeLstmError as error:
            err.print(f"edgelstm: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error


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

    result = run_demo(output, radar=radar, threads=threads, progress=progress_bar)
    if as_json:
        return print_json(result.to_json())
    out.print(result.table())
    out.print(f"report: {result.report}", highlight=False)
