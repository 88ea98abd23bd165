"""export: a trained model becomes a step graph or a window, proved equal to its source before it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, refuse_overwrite
from edgelstm.renamed import renamed
from edgelstm.runtime.outside import ranges
from edgelstm.runtime.protocol import Array, Frame
from edgelstm.verify.compare import Comparison
from edgelstm.verify.proof import Proof
from edgelstm.verify.streams import CALLS, separate
from edgelstm.workflows.frames import (
    STEPS,
    Preprocessing,
    Progress,
    check_hop,
    operations,
    ready_frames,
)
from edgelstm.workflows.lower import Form, lowered
from edgelstm.workflows.prove import proved

if TYPE_CHECKING:
    from edgelstm.frontends.onnx.importer import Confirm
    from edgelstm.graph.step import StepModel

#: Windows of large frames are compared over fewer: once so many numbers of frames were seen, further ones tell nothing new.
ENOUGH = 6_000_000
FEW_WINDOWS = 3


@dataclass(repr=False)
class Exported:
    """What :func:`export` made: the model, how far it is from its source in float64, and the file if one was written.

    proof: what it was judged by; None where no float64 of the source could be had, and ``comparison`` is with the source.
    """

    step: StepModel
    comparison: Comparison
    path: Path | None
    notes: tuple[str, ...] = ()
    proof: Proof | None = None

    def __repr__(self) -> str:
        how = self.comparison.worst if self.proof is None else self.proof
        return f"Exported({self.path or 'not written'}, {how})"

    @property
    def model(self) -> StepModel:
        """The model: another name of ``step``."""
        return self.step

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": None if self.path is None else str(self.path),
            "sha256": self.step.sha256(),
            "bytes": len(self.step.to_bytes()),
            "signature": self.step.signature.to_json(),
            "comparison": self.comparison.to_json(),
            "proof": None if self.proof is None else self.proof.to_json(),
            "notes": list(self.notes),
        }


@renamed(frames="source", steps="limit", kwargs="init", lower="runtime")
def export(
    model: Any,
    output: PathLike | None = None,
    *,
    weights: PathLike | None = None,
    frame: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    states: Any = None,
    fix: Mapping[str, int | float | bool] | None = None,
    confirm: Confirm | None = None,
    source: str | Iterable[Array | Frame] | None = None,
    hop: int | None = None,
    window: int | None = None,
    carry_state: bool = False,
    results: Sequence[str] | None = None,
    gate_order: str | None = None,
    preprocess: Preprocessing | None = None,
    postprocess: Preprocessing | None = None,
    init: Mapping[str, Any] | None = None,
    limit: int = STEPS,
    tolerance: float | None = None,
    runtime: Form | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    doing: Callable[[str], None] | None = None,
) -> Exported:
    """Turn a trained model into an ONNX step graph (or, with ``window``, an unrolled window) and prove it equal.

    Both are judged against the model in float64: the graph may be about as far from that as the model itself is.

    Parameters
    ----------
    model: a ``.safetensors`` file of one of our own modules; a Keras model (``.keras``, ``.h5``); a torch module;
        ``"package.module:factory"`` or ``"file.py:factory"`` (called with ``init``); or an ``.onnx`` file whose state
        pairs ``states`` names.
    output: the ``.onnx`` file to write; None writes nothing.
    weights: ``.safetensors``, ``.pt`` or ``.pth`` for a module from a factory.
    frame: shape of one frame without the stream axis, for torch modules: ``(1, 64, 64)``, or a mapping by input name.
    states: torch modules: shapes of the states when they can't be found; ONNX files: ``{input name: output name}``,
        or ``{input name: (output name, first value)}`` where a state does not start at zeros.
    fix: ONNX files: name of an input -> the value it always has, or of a dynamic dimension -> its size.
    confirm: ONNX files without ``states``: called with the state pairs that the graph suggests; True takes them. Without
        it they are an error that lists them.
    source: what model and result are compared on: a source as :func:`run` takes it, or arrays, one a frame. Without
        it, seeded noise: normal, or what the model gives numbers for.
    hop: for models whose step takes several frames together, see :class:`edgelstm.Inputs`; of sound, in samples.
    window: frames T of an unrolled window. A torch module that starts anew at every call is exported as such windows.
    carry_state: carry the states that such a module keeps to itself from frame to frame instead.
    results: torch modules: names of the tensors that forward gives back, in order, where it can't be found out which are
        the next states: a state's name marks its next value, ``_`` one that is left out.
    gate_order: order of the gates in a checkpoint that does not tell it, such as ``"ifog"``.
    preprocess, postprocess: operations by input or output name (or as text), kept in the Signature for ``run``.
    runtime: write the gates in standard operators ("plain", "openvino"), as :func:`lower` does.
    limit: frames of the comparison; where a whole window is a frame, as many windows as they make, fewer of large frames.
    tolerance: the largest relative error from float64 that passes, in place of the rule in :mod:`edgelstm.verify.proof`.
    progress, doing: called with the frames that were compared, and with what is being done.

    Raises EdgeLstmError, and writes nothing, when the model can't be read or is not step-shaped, when an output or
    state is farther from float64 than that, and when the model gives NaN or infinity for the frames.
    """
    from edgelstm.frontends import Request, load
    from edgelstm.passes.drawn import draws
    from edgelstm.passes.unroll import unroll

    if limit < 1:
        raise EdgeLstmError("limit", found=limit, expected="at least 1 frame")
    if tolerance is not None and not (tolerance >= 0 and isfinite(tolerance)):
        raise EdgeLstmError("tolerance", found=tolerance, expected="a relative error of at least 0")
    if window is not None and window < 1:
        raise EdgeLstmError("window", found=window, expected="at least 1 frame")
    check_hop(hop, source)
    refuse_overwrite(output, (model, weights, source))
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
        init=init,
        fix=fix,
        confirm=confirm,
        window=window,
        carry_state=carry_state,
        results=results,
        gate_order=gate_order,
        doing=doing,
    )
    request.say("reading")
    loaded = load(model, request)
    step = loaded.step
    if preprocess:
        step = _with_preprocessing(step, preprocess)
    if postprocess:
        step = _with_postprocessing(step, postprocess)
    if window is not None and not loaded.windowed:
        step = unroll(step, window)
    calls = None
    if (length := step.signature.window) is not None:
        limit = -(-limit // length) * length
    elif loaded.windowed:  # a whole window counts as one frame
        calls = max(FEW_WINDOWS, ENOUGH // sum(prod(t.frame_shape) for t in step.signature.inputs))
        if hop is None:
            limit = -(-limit // max(t.frame_shape[0] for t in step.signature.inputs if t.frame_shape))
    if runtime is not None:
        step = lowered(step, runtime)  # before the proof: what is written is what was proved
    step.check()
    if drawn := draws(step):
        raise EdgeLstmError(
            f"{loaded.description} draws random numbers in every call",
            found=drawn,
            expected="a graph that gives the same for the same frames",
            hint="Export it as it is used, not as in training: model.eval(), training=TrainingMode.EVAL of torch.onnx.export",
        )
    if source is not None and not isinstance(source, str):
        source = list(source)  # they are needed more than once
    request.say("keeping streams apart")
    some = ready_frames(step.signature, source, None, hop=hop, calls=CALLS)
    step, apart = separate(step, some, loaded.reference, loaded.description)
    request.say("proving")
    found = proved(
        loaded,
        step,
        source,
        limit,
        hop=hop,
        calls=calls,
        tolerance=tolerance,
        threads=threads,
        progress=progress,
    )
    if source is not None:
        again = ready_frames(step.signature, source, limit, hop=hop, calls=calls, quiet=True)
        step = replace(step, signature=replace(step.signature, ranges=ranges(step.signature, again)))
    if output is not None:
        step.save(output)
    path = None if output is None else Path(output)
    return Exported(step, found.comparison, path, (*loaded.notes, *apart, *found.notes), found.proof)


def _with_postprocessing(step: StepModel, postprocess: Preprocessing) -> StepModel:
    from edgelstm.pipeline import Outputs, parse_postprocess

    chosen = (
        postprocess if isinstance(postprocess, Mapping) else parse_postprocess(postprocess, step.signature)
    )
    ops = {name: tuple(dict(op) for op in items) for name, items in chosen.items()}
    signature = replace(step.signature, postprocessing={**step.signature.postprocessing, **ops})
    Outputs(signature)  # a wrong operation shows here
    return replace(step, signature=signature)


def _with_preprocessing(step: StepModel, preprocess: Preprocessing) -> StepModel:
    from edgelstm.pipeline import Inputs

    chosen = operations(step.signature, preprocess) or {}
    ops = {name: tuple(dict(op) for op in items) for name, items in chosen.items()}
    signature = replace(step.signature, preprocessing={**step.signature.preprocessing, **ops})
    Inputs(signature)  # a wrong operation shows here, not at the first frame of a run
    return replace(step, signature=signature)
