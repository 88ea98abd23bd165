"""Starts one worker a contestant, compares their outputs, then gives them the machine in turn."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from edgelstm import machine
from edgelstm.bench.contestants import CONTESTANTS, OURS, PLAIN
from edgelstm.bench.job import Job
from edgelstm.bench.race import Race
from edgelstm.bench.result import BenchResult
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.graph.signature import Signature

VERSIONS = ("edgelstm", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "numpy")


def bench(
    models: Sequence[PathLike],
    against: Sequence[str] = ("onnxruntime",),
    *,
    module: str | None = None,
    weights: PathLike | None = None,
    plain: Mapping[str, PathLike] | None = None,
    rounds: int = 5,
    steps: int = 100,
    threads: int | None = None,
    streams: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> BenchResult:
    """Time one step of each model in our Runner and in ``against``, in turn, each in its own process.

    Parameters
    ----------
    models: step graphs or windows (.onnx), or .safetensors files that state their architecture.
    against: names out of :data:`edgelstm.bench.contestants.CONTESTANTS`.
    module, weights: for the torch contestants of an .onnx model: the factory "package.module:name" of the torch module
        it came from, and the file with its weights. A described .safetensors file brings its own.
    plain: for the contestants "onnxruntime" and "openvino", by model path: another export of the same model with the
        same tensor names. By default our graph written out as standard operators.
    rounds, steps: every contestant has ``rounds`` turns of ``steps`` steps, after one turn to warm up.
    threads: of every contestant; default all processors this process may use.
    streams: streams that advance together in every step.
    progress: called with 1 after every turn.

    Where the library of our own operators is built, "edgelstm" runs with them and "edgelstm-plain" is measured too.
    A contestant whose package is missing, or that can't run a model, is reported as such. Raises EdgeLstmError for an
    unknown contestant, a torch contestant without a module, and a model that our own Runner can't run.
    """
    from edgelstm.runtime.session import available_cpus

    ours = [OURS, PLAIN] if _has_native() else [OURS]
    names = list(dict.fromkeys([*ours, *against]))
    _check_arguments(names, models, module, rounds=rounds, steps=steps, streams=streams)
    threads = threads or available_cpus()
    results = []
    with tempfile.TemporaryDirectory(prefix="edgelstm-bench-") as folder:
        for i, path in enumerate(map(Path, models)):
            job = _job(path, Path(folder, str(i)), (plain or {}).get(str(path)))
            job = replace(
                job,
                module=module,
                weights=None if weights is None else str(weights),
                threads=threads,
                streams=streams,
                seed=seed,
            )
            if module is not None and Signature.loads(job.signature).window is not None:
                raise EdgeLstmError(
                    f"{path} is a window: the torch module takes one frame at a time",
                    hint="Measure the step graph against torch, and the window against the step graph",
                )
            jobs = {name: replace(job, contestant=name) for name in names}
            with Race(str(path), jobs, OURS) as race:
                results.append(race.run(rounds, steps, progress or (lambda _: None)))
    return BenchResult(
        tuple(results), threads, streams, rounds, steps, seed, machine.cpu().model, dict(_versions())
    )


def _has_native() -> bool:
    """Whether a Runner takes our own operators by itself."""
    from edgelstm.runtime.native.prepare import available

    return available()


def _job(path: Path, folder: Path, plain: PathLike | None) -> Job:
    """The model as a step graph and as standard operators, in ``folder`` where it is not so already."""
    from edgelstm.frontends.described.graph import load_described, to_step
    from edgelstm.graph.step import StepModel
    from edgelstm.passes.lower import lower

    folder.mkdir()
    source = None
    if path.suffix.lower() == ".safetensors":
        source = str(path)
        step = to_step(load_described(path))
        path = folder / "model.onnx"
        step.save(path)
    else:
        step = StepModel.load(path)
    if plain is None:
        plain = folder / "plain.onnx"
        lower(step, "openvino").save(plain)
    return Job(OURS, str(path), str(plain), step.signature.dumps(), str(folder), source)


def _check_arguments(
    names: Sequence[str], models: Sequence[PathLike], module: str | None, **counts: int
) -> None:
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown:
        raise EdgeLstmError(
            "unknown contestant", found=", ".join(unknown), expected=", ".join(list(CONTESTANTS)[1:])
        )
    for label, count in counts.items():
        if count < 1:
            raise EdgeLstmError(label, found=count, expected="at least 1")
    if not models:
        raise EdgeLstmError("no model to measure", expected="at least one .onnx or .safetensors file")
    torch_names = [name for name in names if CONTESTANTS[name].needs_module]
    bare = [str(path) for path in models if Path(path).suffix.lower() != ".safetensors"]
    if torch_names and bare and module is None:
        raise EdgeLstmError(
            f"{bare[0]} holds a graph: for {', '.join(torch_names)} the torch module it came from is needed",
            hint="Give it: --module package.module:factory --weights FILE, or a .safetensors file that states its architecture",
        )


def _versions() -> Iterator[tuple[str, str]]:
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)
