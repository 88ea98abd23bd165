"""Starts one worker a contestant, compares their outputs, then gives them the machine in turn."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgelstm import machine
from edgelstm.bench.contestants import CONTESTANTS, OURS
from edgelstm.bench.job import FRAMES, Job
from edgelstm.bench.process import Failed, Worker
from edgelstm.bench.result import BenchResult, Entry, ModelResult, measured
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.signature import Signature

Result = TypeVar("Result")

#: Seconds between two turns: long enough for thread pools of the last worker to fall asleep.
SETTLE = 0.05
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

    A contestant whose package is missing, or that can't run a model, is reported as such. Raises EdgeLstmError for an
    unknown contestant, a torch contestant without a module, and a model that our own Runner can't run.
    """
    from edgelstm.runtime.onnxruntime import available_cpus

    names = [OURS, *dict.fromkeys(name for name in against if name != OURS)]
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
            with _Race(str(path), job, names) as race:
                results.append(race.run(rounds, steps, progress or (lambda _: None)))
    return BenchResult(
        tuple(results), threads, streams, rounds, steps, seed, machine.cpu().model, dict(_versions())
    )


class _Race:
    """The contestants on one model. One that fails leaves the race; when ours fails there is none."""

    def __init__(self, model: str, job: Job, names: Sequence[str]) -> None:
        self._model = model
        self._job = job
        self._names = names
        self._stack = ExitStack()
        self._workers: dict[str, Worker] = {}
        self._out: dict[str, Entry] = {}

    def __enter__(self) -> _Race:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, rounds: int, steps: int, progress: Callable[[int], None]) -> ModelResult:
        """Open, compare, warm up, and let them take turns."""
        for name in self._names:
            contestant = CONTESTANTS[name]
            if contestant.installed:
                self._workers[name] = self._stack.enter_context(Worker(replace(self._job, contestant=name)))
            else:
                hint = f"pip install 'edgelstm[{contestant.extra}]'"
                self._out[name] = Entry(name, "missing", hint)
        self._each(Worker.open)
        folder = Path(self._job.folder)
        outputs = self._each(lambda worker: worker.check(folder))
        errors = {name: _difference(outputs[OURS], theirs) for name, theirs in outputs.items()}
        # For caches, clocks and just-in-time compilers.
        self._each(lambda worker: worker.turn(max(FRAMES, steps // 5)))
        taken: list[dict[str, list[int]]] = []
        for _ in range(rounds):
            taken.append(self._each(lambda worker: worker.turn(steps), progress))
        for name, worker in self._workers.items():
            self._out[name] = measured(
                name,
                [turn[name] for turn in taken],
                [turn[OURS] for turn in taken],
                error=errors[name],
                peak_memory=worker.peak,
                memory=worker.memory,
                idle=worker.idle,
            )
        window = Signature.loads(self._job.signature).window
        return ModelResult(self._model, window or 1, tuple(self._out[name] for name in self._names))

    def _each(
        self, action: Callable[[Worker], Result], progress: Callable[[int], None] | None = None
    ) -> dict[str, Result]:
        """Do it in every worker still in the race, one after the other."""
        results = {}
        for name, worker in list(self._workers.items()):
            time.sleep(SETTLE)
            try:
                results[name] = action(worker)
            except Failed as error:
                if name == OURS:
                    raise EdgeLstmError(f"{self._model} does not run", found=_one_line(str(error))) from error
                self._out[name] = Entry(name, "failed", _one_line(str(error)))
                del self._workers[name]
            if progress is not None:
                progress(1)
        return results


def _job(path: Path, folder: Path, plain: PathLike | None) -> Job:
    """The model as a step graph and as standard operators, in ``folder`` where it is not so already."""
    from edgelstm.frontends.described import load_described, to_step
    from edgelstm.passes.lower import lower
    from edgelstm.step import StepModel

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


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Largest difference of any output, relative to the largest value of ours."""
    return max(
        float(np.abs(y - theirs[name]).max() / max(float(np.abs(y).max()), 1e-30)) for name, y in ours.items()
    )


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


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
