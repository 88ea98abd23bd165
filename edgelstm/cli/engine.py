"""Commands for what runs models faster than a runtime does alone: build-plugin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from edgelstm.cli.shared import Json, app, out, phases, print_json, size_text
from edgelstm.errors import EdgeLstmError


@app.command(
    epilog="Examples: `edgelstm build-plugin --ort` · `edgelstm build-plugin --c` · `edgelstm build-plugin --gst` · `edgelstm build-plugin` · `edgelstm build-plugin --tensorrt-include /usr/include/aarch64-linux-gnu --gpu 8.7` "
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
    plugins: Annotated[
        Path | None, typer.Option(help="The folder plugins/ of edgelstm's sources (default: the checkout's).")
    ] = None,
    ort: Annotated[
        bool,
        typer.Option(
            "--ort", help="For ONNX Runtime on the CPU instead: needs a C++ compiler, nothing else."
        ),
    ] = False,
    c: Annotated[
        bool,
        typer.Option(
            "--c",
            help="The C library instead, on Linux: needs a C++ compiler, nothing else. -o names a folder. With --tensorrt-include it opens engines too.",
        ),
    ] = False,
    gst: Annotated[
        bool,
        typer.Option(
            "--gst",
            help="The GStreamer element and the C library, on Linux: needs a C++ compiler and GStreamer's headers. -o names a folder.",
        ),
    ] = False,
    cxx: Annotated[
        Path | None,
        typer.Option(
            help="With --ort, --c or --gst: the C++ compiler (default: $CXX, else c++, g++, clang++)."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile the FusedGates kernels as a plugin that TensorRT loads. Needs nvcc, cmake and TensorRT's headers.

    With --ort: whole LSTM and GRU cells for ONNX Runtime on the CPU. Runners take the library from where it is put by themselves.
    With --c: libedgelstm, which steps models in C and C++ programs without Python; see `edgelstm config`.
    With --gst: the element `edgelstm` for gst-launch-1.0 and programs that use GStreamer, beside libedgelstm.
    """
    kinds = [name for name, wanted in (("--c", c), ("--ort", ort), ("--gst", gst)) if wanted]
    if len(kinds) > 1:
        raise EdgeLstmError(" with ".join(kinds), expected="one of them")
    if kinds:
        foreign = {
            "--gpu": gpu, "--tensorrt-include": None if c else tensorrt_include, "--cuda": cuda, "--cuda-target": cuda_target,
            "--machine": machine if gst else None,
        }  # fmt: skip
        if given := [name for name, value in foreign.items() if value is not None]:
            raise EdgeLstmError(
                f"{' and '.join(given)} with {kinds[0]}", expected="options of a library for the CPU"
            )
        build = partial(_c_library, headers=tensorrt_include) if c else _FOR_THE_CPU[kinds[0]]
        with phases() as show:
            told, lines = build(output, cxx, machine, plugins, show)
        if as_json:
            return print_json(told)
        for line in lines:
            out.print(line, markup=False, highlight=False)
        return None
    if cxx is not None:
        raise EdgeLstmError(
            "--cxx", found="no --ort, --c or --gst", expected="one of them, whose library it compiles"
        )
    from edgelstm.engine import plugin_build
    from edgelstm.engine.capability import capabilities

    with phases() as show:
        library = plugin_build.build_plugin(
            output,
            tensorrt_include=tensorrt_include,
            nvcc=cuda,
            architectures=capabilities(gpu) if gpu else None,
            source=plugins,
            target_machine=machine,
            cuda_target=cuda_target,
            progress=show,
        )
    if as_json:
        return print_json(library.to_json())
    out.print(f"{_wrote(library.path)}, {library.summary()}", markup=False, highlight=False)


#: What is told of a library: as JSON, and in lines.
Told = tuple[dict[str, Any], list[str]]
Progress = Callable[[str, int, int], None]


def _operators(
    output: Path | None, cxx: Path | None, machine: str | None, source: Path | None, show: Progress
) -> Told:
    from edgelstm.engine.native_build import build_native
    from edgelstm.runtime.native.library import machine_name

    library = build_native(output, compiler=cxx, target_machine=machine, source=source, progress=show)
    kernels = library.instructions() if library.machine == machine_name() else None
    said = f"{_wrote(library.path)}, {library.machine}, kernels {kernels or 'not for this machine'}"
    return {**library.to_json(), "instructions": kernels}, [said]


def _c_library(
    output: Path | None,
    cxx: Path | None,
    machine: str | None,
    source: Path | None,
    show: Progress,
    headers: Path | None,
) -> Told:
    from edgelstm.engine.c_build import build_c

    library = build_c(
        output,
        compiler=cxx,
        target_machine=machine,
        tensorrt_include=headers,
        source=source,
        progress=show,
    )
    return library.to_json(), [_wrote(library.path)]


def _element(
    output: Path | None, cxx: Path | None, _: str | None, source: Path | None, show: Progress
) -> Told:
    from edgelstm.engine.gst_build import build_gst

    plugin = build_gst(output, compiler=cxx, source=source, progress=show)
    return plugin.to_json(), [_wrote(plugin.path), f"export GST_PLUGIN_PATH={plugin.path.parent}"]


#: By the option that asks for it.
_FOR_THE_CPU = {"--ort": _operators, "--gst": _element}


def _wrote(path: Path) -> str:
    return f"wrote {path}: {size_text(path.stat().st_size)}"


@app.command(
    epilog="Examples: `cc program.c $(edgelstm config --cflags --libs)` · `export EDGELSTM_ONNXRUNTIME=$(edgelstm config --onnxruntime)`"
)
def config(
    cflags: Annotated[bool, typer.Option("--cflags", help="Flags for the compiler.")] = False,
    libs: Annotated[bool, typer.Option("--libs", help="Flags for the linker.")] = False,
    prefix: Annotated[
        bool,
        typer.Option("--prefix", help="Its folder, for CMAKE_PREFIX_PATH."),
    ] = False,
    pkgconfigdir: Annotated[
        bool, typer.Option("--pkgconfigdir", help="Folder of its pkg-config file, for PKG_CONFIG_PATH.")
    ] = False,
    cmakedir: Annotated[
        bool, typer.Option("--cmakedir", help="Folder of its CMake package, for edgelstm_DIR.")
    ] = False,
    onnxruntime: Annotated[
        bool, typer.Option("--onnxruntime", help="The library of ONNX Runtime in this Python's packages.")
    ] = False,
    operators: Annotated[
        bool,
        typer.Option("--operators", help="The library of our operators, for EDGELSTM_NATIVE_LIBRARY."),
    ] = False,
    gst: Annotated[
        bool, typer.Option("--gst", help="The folder of the GStreamer element, for GST_PLUGIN_PATH.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where build-plugin --c -o put it (default: the cache, then edgelstm-native)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how to compile with the C library that `build-plugin --c` built, or that the package edgelstm-native brought. Without an option: all of it, by name."""
    import shlex

    from edgelstm.engine.c_build import find_c_library, find_onnxruntime

    asked = cflags or libs or prefix or pkgconfigdir or cmakedir
    only = onnxruntime or operators or gst
    told: dict[str, str] = {}
    if asked or not only:
        library = find_c_library(folder)
        texts = {
            "prefix": (prefix, str(library.prefix)),
            "cflags": (cflags, shlex.join(library.cflags)),
            "libs": (libs, shlex.join(library.libs)),
            "pkgconfigdir": (pkgconfigdir, str(library.pkgconfig)),
            "cmakedir": (cmakedir, str(library.cmake)),
        }
        told |= {name: text for name, (wanted, text) in texts.items() if wanted or not asked}
    if onnxruntime or not (asked or only):
        told["onnxruntime"] = str(find_onnxruntime())
    if operators:
        from edgelstm.runtime.native.library import needed_native_library

        told["operators"] = str(needed_native_library().path)
    if gst or not (asked or only):
        from edgelstm.engine.gst_build import find_gst

        with nullcontext() if gst else suppress(EdgeLstmError):  # among all the rest only where it is
            told["gst"] = str(find_gst(folder).path.parent)
    if as_json:
        return print_json(told)
    if asked or only:
        return typer.echo(" ".join(told.values()))
    for name, text in told.items():
        typer.echo(f"{name} {text}")
