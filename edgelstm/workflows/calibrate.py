"""calibrate: whole sequences through a float step graph, every range that quantising needs recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, refuse_overwrite
from edgelstm.graph.step import StepModel
from edgelstm.passes.placement import Target, check_target
from edgelstm.pipeline import parse_preprocess
from edgelstm.quantize.calibrate import MIN_FRAMES, Recording
from edgelstm.quantize.calibrate import calibrate as observe
from edgelstm.quantize.calibration import Calibration, changes, growing_states, slow_notes, still_notes
from edgelstm.quantize.correlation import spread
from edgelstm.quantize.qdq import quantize as place
from edgelstm.quantize.recipe import Recipe, Span, load_recipe
from edgelstm.renamed import renamed
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Array, Frame, Program
from edgelstm.workflows.frames import check_hop
from edgelstm.workflows.held_back import SEQUENCES as HELD
from edgelstm.workflows.held_back import HeldBack
from edgelstm.workflows.sequences import SpanFrames, cut_span, given, label, windows_of

Progress = Callable[[int], None]


@dataclass(repr=False)
class Calibrated:
    """What :func:`calibrate` made. ``moved``: how ranges changed in the second round, those that moved most first."""

    calibration: Calibration
    path: Path | None
    moved: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Calibrated({self.path or 'not written'}, {self.calibration})"

    @property
    def notes(self) -> list[str]:
        """What the calibration saw that quantising will have to mind, a line each."""
        return [*still_notes(self.calibration), *slow_notes(self.calibration)]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: a summary, not the file."""
        c = self.calibration
        return {
            "path": None if self.path is None else str(self.path),
            "model": c.model,
            "frames": c.frames,
            "streams": c.streams,
            "data": [_without_arrays(d) for d in c.data],
            "method": dict(c.method),
            "tensors": [
                {
                    "name": t.name,
                    "role": t.role,
                    "channels": t.channels,
                    "minimum": float(t.minimum.min()),
                    "maximum": float(t.maximum.max()),
                    "low": t.tensor_low,
                    "high": t.tensor_high,
                }
                for t in c.tensors.values()
            ],
            "growing_states": growing_states(c),
            "notes": self.notes,
            "moved": self.moved,
        }


@renamed(frames="limit", target="runtime", sources="source")
def calibrate(
    model: PathLike | StepModel,
    source: str | Sequence[str] | Sequence[Iterable[Array | Frame]] = (),
    output: PathLike | None = None,
    *,
    recipe: PathLike | Recipe | None = None,
    method: str | None = None,
    percentile: float | None = None,
    streams: int | None = None,
    limit: int | None = None,
    sequence: int | None = None,
    preprocess: Sequence[str] | None = None,
    hop: int | None = None,
    on_bad_frame: Literal["error", "skip"] = "error",
    rounds: int = 1,
    runtime: Target = "onnxruntime",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Stream whole sequences through a float step graph, the state carried, and record every range that quantising needs.

    Parameters
    ----------
    source: one or several sources as :func:`edgelstm.run` takes them, each a sequence; or sequences of arrays, one a
        frame. They take the place of the recipe's.
    recipe: a ``.toml`` file (``edgelstm.quantize.recipe``); ``method``, ``percentile``, ``streams``, ``preprocess`` and ``hop`` go
        before it.
    limit: at most so many frames of each source. sequence: cut each source into sequences of so many frames, each from the
        initial state; what is left over at the end is not used.
    hop: for models whose step takes several frames together, see :class:`edgelstm.Inputs`; of sound, in samples.
    on_bad_frame: of sources' frames that can't be read, or hold NaN or infinity: ``skip`` leaves them out, and the state goes on over them.
    rounds: 2 calibrates again while the graph quantised for ``runtime`` drives the state; ``moved`` tells what changed.

    Raises EdgeLstmError, and writes nothing, for sources that are none or too short, and for ranges of no use.
    """
    refuse_overwrite(output, (model, recipe, *([source] if isinstance(source, str) else source)))
    step = model if isinstance(model, StepModel) else StepModel.load(model)
    if rounds not in (1, 2):
        raise EdgeLstmError("rounds", found=rounds, expected="1 or 2")
    if on_bad_frame not in ("error", "skip"):
        raise EdgeLstmError("on_bad_frame", found=on_bad_frame, expected="error or skip")
    check_target(runtime, "int8")
    if limit is not None and limit < 1:
        raise EdgeLstmError("limit", found=limit, expected="at least 1 frame")
    if output is not None and Path(output).suffix.lower() != ".json":
        raise EdgeLstmError(f"output {output}", expected="a .json file, such as model.calib.json")
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise EdgeLstmError(f"can't write {output}", found="no such folder", hint="Create the folder first")
    plan = _plan(
        recipe, method=method, percentile=percentile, streams=streams, preprocess=preprocess, hop=hop
    )
    ops = None if plan.preprocess is None else parse_preprocess(list(plan.preprocess), step.signature)

    def recordings() -> list[Recording]:
        if not source:
            spans = plan.sequences
        elif isinstance(source, str):
            spans = (Span(source, 0, limit, at_most=True),)
        elif all(isinstance(s, str) for s in source):
            spans = tuple(Span(str(s), 0, limit, at_most=True) for s in source)
        else:
            check_hop(hop, source)
            arrays = [given(step, k, islice(s, limit)) for k, s in enumerate(source)]  # type: ignore[arg-type]
            return hold_back(arrays, [None] * len(arrays))
        spans = tuple(replace(span, hop=plan.hop, skip=on_bad_frame == "skip") for span in spans)
        if not spans:
            raise EdgeLstmError(
                "no sequences to calibrate on", expected="--source, or a recipe with [[sequence]]"
            )
        if sequence is not None:
            spans = tuple(cut for span in spans for cut in cut_span(step, span, sequence, ops))
        return hold_back([Recording(label(s), SpanFrames(step, s, ops)) for s in spans], spans)

    held: dict[int, HeldBack] = {}

    def hold_back(items: list[Recording], spans: Sequence[Span | None]) -> list[Recording]:
        """``items``, some of which keep their ends to themselves."""
        for k in spread(range(len(items)), HELD):
            held[k] = HeldBack(items[k].frames, spans[k], *windows_of(step, spans[k], ops))
            items[k] = Recording(items[k].name, held[k])
        return items

    def one_round(driver: StepModel | None) -> Calibration:
        opened: Callable[[int], Program] | None = None
        if driver is not None:
            data = driver.to_bytes()
            opened = lambda places: OrtProgram(data, streams=places, threads=threads)  # noqa: E731
        return observe(
            step,
            recordings(),
            method=plan.method,
            percentile=plan.percentile,
            tensors=plan.tensors,
            streams=plan.streams,
            least=MIN_FRAMES,
            preprocessing=ops,
            driver=opened,
            driven_by=None if driver is None else driver.sha256(),
            threads=threads,
            progress=progress,
        )

    result = Calibrated(one_round(None), None if output is None else Path(output))
    if rounds == 2:
        first = result.calibration
        # The graph that drives is run by ONNX Runtime whatever it is for: its own codes are rounded as those are.
        result.calibration = one_round(
            place(step, replace(first, preprocessing=step.signature.preprocessing), runtime)
        )
        # What storing a state does was found in the first round.
        states = {
            n: replace(s, rounding=first.states[n].rounding) for n, s in result.calibration.states.items()
        }
        result.calibration = replace(result.calibration, states=states)
        result.moved = changes(first, result.calibration)
    data = [dict(d, check=held[k].entry()) if k in held else d for k, d in enumerate(result.calibration.data)]
    result.calibration = replace(result.calibration, data=tuple(data))
    if output is not None:
        result.calibration.save(output)
    return result


def _without_arrays(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of a calibration's data for people: the frames it holds are left out."""
    check = {k: v for k, v in entry.get("check", {}).items() if k != "arrays"}
    return {k: v for k, v in entry.items() if k != "check"} | ({"check": check} if check else {})


def _plan(recipe: PathLike | Recipe | None, *, preprocess: Sequence[str] | None, **given: Any) -> Recipe:
    """The recipe, and what is given before it."""
    plan = recipe if isinstance(recipe, Recipe) else Recipe() if recipe is None else load_recipe(recipe)
    given["preprocess"] = None if preprocess is None else tuple(preprocess)
    return replace(plan, **{k: v for k, v in given.items() if v is not None})
