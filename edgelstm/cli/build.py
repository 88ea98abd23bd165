"""Commands that make engines: build-engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgelstm.cli.shared import Json, app, out, phases, print_json, size_text


@app.command(
    epilog="Examples: `edgelstm build-engine model.onnx -o model.plan` · "
    "`edgelstm build-engine model.int8.onnx -o model.plan --streams 1:4:8 --gates auto` · "
    "`edgelstm build-engine model.onnx -o model.plan --runtime tensorrt-rtx --gpu 8.6 --gpu ada`"
)
def build_engine(
    model: Annotated[
        Path, typer.Argument(help="A step graph or window (.onnx); quantised: with --runtime tensorrt.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .plan file to write.")],
    runtime: Annotated[
        str | None, typer.Option(help="tensorrt or tensorrt-rtx (default: what the machine has).")
    ] = None,
    gates: Annotated[
        str, typer.Option(help="plugin, native, or auto: build both, time both, keep the faster.")
    ] = "auto",
    streams: Annotated[str, typer.Option(help="Streams of a call: N, or MIN:OPT:MAX.")] = "1",
    tune: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="A further number of streams to tune for, beside OPT; repeatable, costs build time only.",
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="tensorrt-rtx: what to compile for, 8.9 or ada; repeatable."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="What the model was quantised with; its hash is kept.")
    ] = None,
    dla_core: Annotated[int | None, typer.Option(min=0, help="DLA core to run on.")] = None,
    gpu_fallback: Annotated[
        bool, typer.Option("--gpu-fallback", help="With --dla-core: what it lacks runs on the GPU.")
    ] = False,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File that keeps measurements for the next build.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Runs in later TensorRT versions too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Runs on Ampere and every later GPU.")
    ] = False,
    workspace: Annotated[str | None, typer.Option(help="Memory for kernels, such as 512MiB.")] = None,
    optimization_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="5 searches longest (TensorRT's default: 3).")
    ] = None,
    tf32: Annotated[
        bool,
        typer.Option("--tf32", help="float32 products round their inputs to 10 bits: faster, less exact."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compile a step graph for TensorRT: a plan, and beside it a sidecar that tells what it is for."""
    from edgelstm.engine import build as engine
    from edgelstm.engine.capability import capabilities

    options = engine.BuildOptions(
        streams=engine.parse_streams(streams),
        also=tuple(tune or ()),
        workspace=None if workspace is None else engine.parse_size(workspace),
        optimization_level=optimization_level,
        tf32=tf32,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        dla_core=dla_core,
        gpu_fallback=gpu_fallback,
        targets=capabilities(gpu or ()),
    )
    with phases() as show:
        built = engine.build_engine(
            model,
            output,
            options,
            runtime=runtime,  # type: ignore[arg-type]
            gates=gates,  # type: ignore[arg-type]
            calibration=calibration,
            timing_cache=timing_cache,
            progress=show,
        )
    if as_json:
        return print_json(built.to_json())
    for note in built.notes:
        out.print(note, highlight=False, markup=False)
    s = built.sidecar
    where = ", ".join(s.targets) or "the GPUs its library compiles for"
    out.print(
        f"wrote {built.plan} and {built.plan.name}.json: {size_text(s.plan_bytes)} in {built.seconds:.1f} s; "
        f"{s.runtime} {s.version}, {', '.join(s.precision)}, gates {s.gates}, "
        f"streams {':'.join(map(str, s.streams))}, for {where}",
        markup=False,
        highlight=False,
    )
