"""Commands for what engines need: build-plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgelstm.cli.shared import Json, app, out, phases, print_json, size_text


@app.command(
    epilog="Examples: `edgelstm build-plugin` · `edgelstm build-plugin --tensorrt-include /usr/include/aarch64-linux-gnu --gpu 8.7` "
    "· `edgelstm build-plugin --machine aarch64 --cuda-target cuda-arm --gpu 8.7 --gpu 11.0 -o libedgelstm_plugin.so`"
)
def build_plugin(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write (default: the cache, where it is found)."),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="8.7 or orin; repeatable (default: the GPU here, else all)."),
    ] = None,
    tensorrt_include: Annotated[
        Path | None, typer.Option(help="Folder with TensorRT's headers (default: looked for).")
    ] = None,
    cuda: Annotated[
        Path | None, typer.Option(help="CUDA's folder, or its nvcc (default: looked for).")
    ] = None,
    machine: Annotated[
        str | None, typer.Option(help="aarch64: cross-compile for a Jetson (default: this machine).")
    ] = None,
    cuda_target: Annotated[
        Path | None, typer.Option(help="With --machine: that machine's CUDA runtime, include/ and lib/.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="The folder plugins/ of edgelstm's sources (default: the checkout's).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile the FusedGates kernels as a plugin that TensorRT loads. Needs nvcc, cmake and TensorRT's headers."""
    from edgelstm.engine import plugin_build
    from edgelstm.engine.capability import capabilities

    with phases() as show:
        library = plugin_build.build_plugin(
            output,
            tensorrt_include=tensorrt_include,
            nvcc=cuda,
            architectures=capabilities(gpu) if gpu else None,
            source=source,
            target_machine=machine,
            cuda_target=cuda_target,
            progress=show,
        )
    if as_json:
        return print_json(library.to_json())
    size = library.path.stat().st_size
    out.print(f"wrote {library.path}: {size_text(size)}, {library.summary()}", markup=False, highlight=False)
