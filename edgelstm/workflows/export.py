"""export: a trained model becomes a step graph or a window, proved equal to its source before it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Array, Frame
from edgelstm.verify.compare import Comparison, compare
from edgelstm.verify.streams import CALLS, separate
from edgelstm.workflows.frames import STEPS, Preprocessing, Progress, operations, ready_frames

if TYPE_CHECKING:
    from edgelstm.frontends import Loaded
    from edgelstm.frontends.onnx.importer import Confirm
    from edgelstm.graph.step import StepModel


#: Largest relative error of any output or state that export lets pass, in float32.
TOLERANCE = 1e-5


#: The same where weights, frames or states are in float16: about ten of its roundings.
HALF_TOLERANCE = 1e-2


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
    states: torch modules: shapes of the states when they can't be found; ONNX files: ``{input name: output name}``,
        or ``{input name: (output name, first value)}`` where a state does not start at zeros.
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
    from edgelstm.frontends import Request, load
    from edgelstm.passes.unroll import unroll

    if steps < 1:
        raise EdgeLstmError("steps", found=steps, expected="at least 1")
    if output is not None and Path(output).suffix.lower() != ".onnx":
        raise EdgeLstmError(
            f"output {output}", found=Path(output).suffix, expected="a path ending with .onnx"
        )
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise EdgeLstmError(f"can't write {output}", found="no such folder", hint="Create the folder first")
    request = Request(
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
    loaded = load(source, request)
    step = loaded.step
    if preprocess:
        step = _with_preprocessing(step, preprocess)
    if window is not None and not loaded.windowed:
        step = unroll(step, window)
    if (length := step.signature.window) is not None:
        steps = -(-steps // length) * length
    step.check()
    if frames is not None and not isinstance(frames, str):
        frames = list(frames)  # they are needed more than once
    some = ready_frames(step.signature, frames, CALLS * (step.signature.window or 1))
    step, apart = separate(step, some, loaded.reference, loaded.description)
    if tolerance is None:
        tolerance = HALF_TOLERANCE if _is_half(step) else TOLERANCE
    comparison, notes = _proved(loaded, step, frames, steps, tolerance, threads, progress)
    if output is not None:
        step.save(output)
    return Exported(
        step, comparison, None if output is None else Path(output), (*loaded.notes, *apart, *notes)
    )


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
    # The source computes between two steps of the result: threads that spin meanwhile would slow it down.
    program = OrtProgram(step.to_bytes(), threads=threads, spin=False)

    def run(together: bool) -> Comparison:
        return compare(
            loaded.reference,
            program,
            ready_frames(step.signature, frames, steps),
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


def _is_half(step: StepModel) -> bool:
    """Whether a weight, a frame or a state is in float16."""
    import onnx

    s = step.signature
    return "float16" in {t.dtype for t in (*s.inputs, *s.outputs)} | {x.dtype for x in s.states} or any(
        t.data_type == onnx.TensorProto.FLOAT16 for t in step.model.graph.initializer
    )


def _with_preprocessing(step: StepModel, preprocess: Preprocessing) -> StepModel:
    from edgelstm.pipeline import Inputs

    chosen = operations(step.signature, preprocess) or {}
    ops = {name: tuple(dict(op) for op in items) for name, items in chosen.items()}
    signature = replace(step.signature, preprocessing={**step.signature.preprocessing, **ops})
    Inputs(signature)  # a wrong operation shows here, not at the first frame of a run
    return replace(step, signature=signature)
