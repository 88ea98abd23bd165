"""One function per command, for people who script: export, verify, run, inspect.

Each returns a small result object with ``to_json()``; the command line prints what these hold and adds nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.frontends import is_factory
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Array, Frame, Program
from edgelstm.runtime.runner import BadFrame, Runner
from edgelstm.signature import Signature, TensorSpec
from edgelstm.verify import Comparison, check_comparable, compare

if TYPE_CHECKING:
    from edgelstm.frontends import Loaded
    from edgelstm.frontends.onnx_import import Confirm
    from edgelstm.pipeline import View
    from edgelstm.step import StepModel

log = logging.getLogger(__name__)

#: Largest relative error of any output or state that export lets pass, in float32.
TOLERANCE = 1e-5
#: The same where weights, frames or states are in float16: about ten of its roundings.
HALF_TOLERANCE = 1e-2
#: Frames for which export streams source and result side by side.
STEPS = 200

Progress = Callable[[int], None]
#: Operations by input name, or text as ``--preprocess`` takes it.
Preprocessing = Mapping[str, Sequence[Mapping[str, Any]]] | Sequence[str]


@dataclass
class Exported:
    """What :func:`export` made: the model, how it compares with its source, and the file if one was written."""

    step: StepModel
    comparison: Comparison
    path: Path | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": None if self.path is None else str(self.path),
            "sha256": self.step.sha256(),
            "bytes": len(self.step.to_bytes()),
            "signature": self.step.signature.to_json(),
            "comparison": self.comparison.to_json(),
            "notes": list(self.notes),
        }


def export(
    source: Any,
    output: PathLike | None = None,
    *,
    weights: PathLike | None = None,
    frame: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    states: Any = None,
    fix: Mapping[str, int | float | bool] | None = None,
    confirm: Confirm | None = None,
    frames: str | Iterable[Array | Frame] | None = None,
    window: int | None = None,
    carry_state: bool = False,
    gate_order: str | None = None,
    preprocess: Preprocessing | None = None,
    kwargs: Mapping[str, Any] | None = None,
    steps: int = STEPS,
    tolerance: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Turn a trained model into an ONNX step graph (or, with ``window``, an unrolled window) and prove it equal.

    Parameters
    ----------
    source: a ``.safetensors`` file of one of our own modules; a Keras model (``.keras``, ``.h5``); a torch module;
        ``"package.module:factory"`` or ``"file.py:factory"`` (called with ``kwargs``); or an ``.onnx`` file whose state
        pairs ``states`` names.
    output: the ``.onnx`` file to write; None writes nothing.
    weights: ``.safetensors``, ``.pt`` or ``.pth`` for a module from a factory.
    frame: shape of one frame without the stream axis, for torch modules: ``(1, 64, 64)``, or a mapping by input name.
    states: torch modules: shapes of the states when they can't be found; ONNX files: ``{input name: output name}``.
    fix: ONNX files: name of an input -> the value it always has, or of a dynamic dimension -> its size.
    confirm: ONNX files without ``states``: called with the state pairs that the graph suggests; True takes them. Without
        it they are an error that lists them.
    frames: what source and result are compared on: a source as :func:`run` takes it, or arrays, one a frame. Without
        it, seeded normal noise.
    window: frames T of an unrolled window. A torch module that starts anew at every call is exported as such windows.
    carry_state: carry the states that such a module keeps to itself from frame to frame instead.
    gate_order: order of the gates in a checkpoint that does not tell it, such as ``"ifog"``.
    preprocess: operations by input name (or as text), kept in the Signature for ``run``.
    steps, tolerance: length of the comparison, and the largest relative error that passes (default: 1e-5, or 1e-2 for
        models in float16).

    Raises EdgeLstmError, and writes nothing, when the source can't be read or is not step-shaped, or when any output
    or state differs by more than ``tolerance``.
    """
    from edgelstm.frontends import load
    from edgelstm.passes.unroll import unroll

    if steps < 1:
        raise EdgeLstmError("steps", found=steps, expected="at least 1")
    if output is not None and Path(output).suffix.lower() != ".onnx":
        raise EdgeLstmError(
            f"output {output}", found=Path(output).suffix, expected="a path ending with .onnx"
        )
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise EdgeLstmError(f"can't write {output}", found="no such folder", hint="Create the folder first")
    loaded: Loaded = load(
        source,
        weights=weights,
        frame=frame,
        states=states,
        kwargs=kwargs,
        fix=fix,
        confirm=confirm,
        window=window,
        carry_state=carry_state,
        gate_order=gate_order,
    )
    step = loaded.step
    if preprocess:
        step = _with_preprocessing(step, preprocess)
    if window is not None and not loaded.windowed:
        step = unroll(step, window)
    if (length := step.signature.window) is not None:
        steps = -(-steps // length) * length
    step.check()
    if tolerance is None:
        tolerance = HALF_TOLERANCE if _is_half(step) else TOLERANCE
    comparison, notes = _proved(loaded, step, frames, steps, tolerance, threads, progress)
    if output is not None:
        step.save(output)
    return Exported(step, comparison, None if output is None else Path(output), (*loaded.notes, *notes))


def _proved(
    loaded: Loaded,
    step: StepModel,
    frames: str | Iterable[Array | Frame] | None,
    steps: int,
    tolerance: float,
    threads: int | None,
    progress: Progress | None,
) -> tuple[Comparison, tuple[str, ...]]:
    """``step`` beside its source over the same frames, and what is to be said of it. Raises EdgeLstmError if they differ.

    Some models amplify rounding: two correct runs of one drift apart. So where the free run differs by more than
    ``tolerance``, every step is compared by itself, from the source's own states; if those agree, it is the same function.
    """
    if frames is not None and not isinstance(frames, str):
        frames = list(frames)  # they may be needed twice
    # The source computes between two steps of the result: threads that spin meanwhile would slow it down.
    program = OrtProgram(step.to_bytes(), threads=threads, spin=False)

    def run(together: bool) -> Comparison:
        return compare(
            loaded.reference,
            program,
            _frames(step.signature, frames, steps),
            names=(loaded.description, "export"),
            together=together,
            progress=None if together else progress,
        )

    try:
        comparison = run(together=False)
        worst = max(comparison.tensors, key=lambda t: t.held)
        if worst.held <= tolerance:
            return comparison, ()
        single = worst
        if {s.name for s in loaded.reference.signature.states} == {s.name for s in step.signature.states}:
            single = max(run(together=True).tensors, key=lambda t: t.held)
    finally:
        program.close()
        loaded.reference.close()
    if not single.held <= tolerance:
        raise EdgeLstmError(
            f"the export of {loaded.description} does not match its source, so nothing was written",
            found=f"relative error {single.worst:.3g} of {single.kind} {single.name!r} at frame {single.worst_frame}",
            expected=f"at most {tolerance:g} over {comparison.frames} frames",
        )
    return comparison, (
        f"this model amplifies rounding: left alone, {worst.kind} {worst.name!r} is {worst.worst:.2g} from the source at frame "
        f"{worst.worst_frame}; from equal states every step is within {single.held:.1g}",
    )


def verify(
    a: str | Program,
    b: str | Program,
    source: str | Iterable[Array | Frame] | None = None,
    *,
    steps: int = STEPS,
    weights: PathLike | None = None,
    kwargs: Mapping[str, Any] | None = None,
    preprocess: Preprocessing | None = None,
    threshold: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Stream the same frames through two runnables and report how far apart every output and state is, and the drift.

    ``a`` (the reference) and ``b`` are ``.onnx`` step graphs or windows, described ``.safetensors`` files, torch
    factories ``"package.module:factory"`` (called with ``kwargs``; ``weights`` loads into them), or Programs. At least one of them must
    state its Signature. ``source`` as :func:`run` takes it; without it, seeded normal noise. Where an output is a forecast
    of the input, [K, *shape of a frame], both are scored against the frames that came: mean absolute error, and CSI of
    ``threshold`` (default: :func:`edgelstm.pipeline.units.usual_threshold`).
    """
    from edgelstm.pipeline.units import forecast_scorer

    if threshold is not None and not math.isfinite(threshold):
        raise EdgeLstmError("threshold", found=threshold, expected="a finite number")
    runnables = (a, b)
    if (weights is not None or kwargs is not None) and not any(map(is_factory, runnables)):
        raise EdgeLstmError(
            f"weights or arguments given for {a} and {b}",
            expected="a torch factory, package.module:factory, that they are for",
        )
    with ExitStack() as stack:
        opened: list[Program | None] = [None, None]
        # A torch factory does not say what a frame looks like: open it last, by the other one's Signature.
        for place in sorted((0, 1), key=lambda i: is_factory(runnables[i])):
            item = runnables[place]
            if isinstance(item, str | Path):
                other = opened[1 - place]
                like = None if other is None else other.signature
                program = _open(str(item), weights, kwargs, like, threads)
                stack.callback(program.close)
                opened[place] = program
            else:
                opened[place] = item
        first, second = opened
        assert first is not None
        assert second is not None
        names = tuple(str(r) if isinstance(r, str | Path) else type(r).__name__ for r in runnables)
        # A torch factory or a described file says nothing of raw frames; the export beside it may.
        told = next((p.signature for p in (first, second) if p.signature.preprocessing), first.signature)
        check_comparable(first.signature, second.signature, (names[0], names[1]))
        signature = replace(first.signature, preprocessing=told.preprocessing)
        scorer = (
            None
            if source is None
            else forecast_scorer(signature, second.signature, _operations(signature, preprocess), threshold)
        )
        if threshold is not None and scorer is None:
            raise EdgeLstmError(
                "a threshold, and no forecast to score",
                found="noise instead of a source" if source is None else "no such output",
                expected="a source, one input, and an output [K, *shape of a frame]",
            )
        frames = _frames(signature, source, steps, preprocess, None if scorer is None else scorer.arrived)
        result = compare(
            first,
            second,
            frames,
            names=(names[0], names[1]),
            observe=None if scorer is None else scorer.observe,
            progress=progress,
        )
        result.asked = steps if result.frames < steps else None
        result.forecast = None if scorer is None else scorer.result()
        return result


@dataclass
class RunReport:
    """What :func:`run` did. Times are of the step alone, in milliseconds."""

    model: str
    source: str
    out: str | None
    frames: int = 0
    skipped: int = 0
    gaps: tuple[str, ...] = ()
    milliseconds: list[float] = field(default_factory=list, repr=False)

    def percentile(self, q: float) -> float:
        """Time of a step, in milliseconds, at percentile ``q``."""
        return float(np.percentile(self.milliseconds, q)) if self.milliseconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": self.model,
            "source": self.source,
            "out": self.out,
            "frames": self.frames,
            "skipped": self.skipped,
            "gaps": list(self.gaps),
            "p50_ms": self.percentile(50),
            "p99_ms": self.percentile(99),
            "max_ms": self.percentile(100),
        }


def run(
    model: PathLike,
    source: str,
    out: PathLike | None = None,
    *,
    device: str | None = None,
    threads: int | None = None,
    limit: int | None = None,
    preprocess: Preprocessing | None = None,
    on_bad_frame: BadFrame = "error",
    view: View | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Stream ``source`` through ``model`` frame by frame, the state carried, and write the outputs to ``out``.

    device: see :func:`edgelstm.runtime.open_program`; default: the CPU for a step graph, the first GPU for an engine.
    See :func:`edgelstm.pipeline.open_source` for sources and :func:`edgelstm.pipeline.open_sink` for outputs; frames
    go through the preprocessing the Signature declares, unless ``preprocess`` replaces it. Nothing is left behind
    when it fails.
    """
    from edgelstm.pipeline import Inputs, open_sink, open_source

    with ExitStack() as stack:
        runner = stack.enter_context(Runner.open(model, device, threads=threads, on_bad_frame=on_bad_frame))
        frames = stack.enter_context(open_source(source, limit=limit))
        report = RunReport(
            str(model), frames.description, None if out is None else str(out), gaps=frames.gaps
        )
        inputs = Inputs(runner.signature, _operations(runner.signature, preprocess))
        sink = None
        if out is not None:
            sink = stack.enter_context(open_sink(out, runner.signature, fps=frames.fps, view=view))
        stream = runner.stream("main")
        for frame, arrays in inputs.steps(frames):
            started = time.perf_counter()
            outputs = stream.step(arrays)
            seconds = time.perf_counter() - started
            if stream.skipped > report.skipped:
                report.skipped = stream.skipped
            else:
                report.frames += 1
                report.milliseconds.append(seconds * 1e3)
                if sink is not None:
                    sink.write(frame, outputs, seconds)
            if progress is not None:
                progress(1)
    return report


@dataclass
class Inspection:
    """What :func:`inspect` read."""

    path: str
    bytes: int
    sha256: str
    opset: int
    parameters: int
    operators: dict[str, int]
    signature: Signature

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": self.path,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "opset": self.opset,
            "parameters": self.parameters,
            "operators": self.operators,
            "signature": self.signature.to_json(),
        }


def inspect(path: PathLike) -> Inspection:
    """Read a step graph: Signature, operators, parameters, size."""
    from edgelstm.step import StepModel

    step = StepModel.load(path)
    graph = step.model.graph
    return Inspection(
        path=str(path),
        bytes=Path(path).stat().st_size,
        sha256=step.sha256(),
        opset=step.opset,
        parameters=sum(int(np.prod(t.dims)) for t in graph.initializer),
        operators=dict(Counter(step.op_types()).most_common()),
        signature=step.signature,
    )


def _is_half(step: StepModel) -> bool:
    """Whether a weight, a frame or a state is in float16."""
    import onnx

    s = step.signature
    return "float16" in {t.dtype for t in (*s.inputs, *s.outputs)} | {x.dtype for x in s.states} or any(
        t.data_type == onnx.TensorProto.FLOAT16 for t in step.model.graph.initializer
    )


def _operations(
    signature: Signature, preprocess: Preprocessing | None
) -> Mapping[str, Sequence[Mapping[str, Any]]] | None:
    if preprocess is None or isinstance(preprocess, Mapping):
        return preprocess
    from edgelstm.pipeline import parse_preprocess

    return parse_preprocess(preprocess, signature)


def _with_preprocessing(step: StepModel, preprocess: Preprocessing) -> StepModel:
    from edgelstm.pipeline import Inputs

    chosen = _operations(step.signature, preprocess) or {}
    ops = {name: tuple(dict(op) for op in items) for name, items in chosen.items()}
    signature = replace(step.signature, preprocessing={**step.signature.preprocessing, **ops})
    Inputs(signature)  # a wrong operation shows here, not at the first frame of a run
    return replace(step, signature=signature)


def _open(
    spec: str,
    weights: PathLike | None,
    kwargs: Mapping[str, Any] | None,
    like: Signature | None,
    threads: int | None,
) -> Program:
    """A Program for a runnable of ``verify``."""
    from edgelstm.runtime.device import ENGINE_SUFFIXES, open_program

    suffix = "" if is_factory(spec) else Path(spec).suffix.lower()
    if suffix == ".onnx" or suffix in ENGINE_SUFFIXES:
        return open_program(spec, threads=threads if suffix == ".onnx" else None)
    from edgelstm.frontends import open_reference

    return open_reference(spec, weights=weights, kwargs=kwargs, like=like)


def _frames(
    signature: Signature,
    frames: str | Iterable[Array | Frame] | None,
    steps: int,
    preprocess: Preprocessing | None = None,
    arrived: Callable[[Frame, Any], None] | None = None,
) -> Iterator[Frame]:
    """At most ``steps`` single frames (never windows), ready for the model; ``arrived`` gets them with the raw ones."""
    if isinstance(frames, str):
        from edgelstm.pipeline import Inputs, open_source

        inputs = Inputs(signature, _operations(signature, preprocess))
        with open_source(frames, limit=steps) as source:
            for raw in source:
                ready: Frame = inputs(raw)
                if arrived is not None:
                    arrived(ready, raw.data)
                yield ready
    elif frames is not None:
        for k, frame in zip(range(steps), frames, strict=False):
            ready = _checked(signature, k, frame)
            if arrived is not None:
                arrived(ready, None)
            yield ready
    else:
        rng = np.random.default_rng(0)
        for _ in range(steps):
            yield {t.name: _noise(rng, _frame_shape(signature, t), t.dtype) for t in signature.inputs}


def _checked(signature: Signature, index: int, frame: Array | Frame) -> Frame:
    """A user's frame by input name: Programs take what they are given, so a wrong one has to be refused here."""
    names = [t.name for t in signature.inputs]
    named = frame if isinstance(frame, Mapping) else {names[0]: frame}
    if set(named) != set(names):
        raise EdgeLstmError(f"frame {index}", found=f"inputs {', '.join(named)}", expected=", ".join(names))
    for t in signature.inputs:
        array, shape, dtype = named[t.name], _frame_shape(signature, t), np_dtype(t.dtype)
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            what = (
                f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            )
            raise EdgeLstmError(
                f"frame {index}, input {t.name!r}",
                found=what,
                expected=f"a NumPy array {t.dtype}{list(shape)}",
            )
    return named


def _frame_shape(signature: Signature, spec: TensorSpec) -> tuple[int, ...]:
    """Shape of a single frame, for a window too."""
    return spec.frame_shape[1:] if signature.window else spec.frame_shape


def _noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    kind = np_dtype(dtype)
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind)
    return rng.integers(0, 2, shape).astype(kind)
