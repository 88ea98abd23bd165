"""quantize: a step graph in fewer bits, its states stored as they are computed with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, refuse_overwrite
from edgelstm.graph.step import StepModel
from edgelstm.passes.placement import Target, check_target
from edgelstm.passes.products import find_products
from edgelstm.passes.split_joined import INPUT, STATE
from edgelstm.quantize.calibration import Calibration, growing_states
from edgelstm.quantize.caution import caution
from edgelstm.quantize.mix import check_budget, search
from edgelstm.quantize.qdq import check_calibration, default_weights, is_quantized
from edgelstm.quantize.qdq import quantize as place
from edgelstm.quantize.recipe import Span
from edgelstm.quantize.weights_only import matrices, weights_only
from edgelstm.renamed import renamed
from edgelstm.runtime.protocol import Array, Frame
from edgelstm.verify.streams import CALLS, check_separate
from edgelstm.workflows.calibrate import calibrate
from edgelstm.workflows.check import THRESHOLD, Check, Checker
from edgelstm.workflows.frames import check_hop, ready_frames, single_frames
from edgelstm.workflows.pace import milliseconds, slower
from edgelstm.workflows.sequences import SpanFrames, given

Progress = Callable[[int], None]
#: With more weights than this, which to keep in float is not tried one by one.
_TRIED = 12


@dataclass(repr=False)
class Quantized:
    """What :func:`quantize` made, product by product, and how large it is."""

    step: StepModel
    path: Path | None
    target: str
    precision: str
    float_bytes: int
    products: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    search: Any = None
    check: Check = field(default_factory=lambda: Check(why_not="nobody asked for it"))
    #: Of a step before and after, on this machine's CPU: a quick look, None where nobody looked.
    milliseconds: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return f"Quantized({self.path or 'not written'}, {self.precision} for {self.target}, {count_of(len(self.products), 'product')})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        size = len(self.step.to_bytes())
        return {
            "path": None if self.path is None else str(self.path),
            "sha256": self.step.sha256(),
            "target": self.target,
            "precision": self.precision,
            "bytes": size,
            "float_bytes": self.float_bytes,
            "ratio": size / self.float_bytes,
            "products": self.products,
            "states": [{"name": s.name, "dtype": s.dtype} for s in self.step.signature.states],
            "notes": self.notes,
            "search": None if self.search is None else self.search.to_json(),
            "verification": self.check.to_json(),
            "milliseconds": None
            if self.milliseconds is None
            else dict(zip(("float", "quantised"), self.milliseconds, strict=True)),
        }


@renamed(target="runtime", steps="limit")
def quantize(
    model: PathLike | StepModel,
    calibration: PathLike | Calibration | None = None,
    output: PathLike | None = None,
    *,
    runtime: Target = "onnxruntime",
    precision: str = "int8",
    gpu: str | None = None,
    rest: str = "fp32",
    cell_state: str = "fp32",
    keep: Sequence[str] = (),
    budget: float | None = None,
    source: str | Sequence[str] | Sequence[Iterable[Array | Frame]] = (),
    limit: int = 200,
    hop: int | None = None,
    verify: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Write a step graph or window in fewer bits, its states stored as they are computed with.

    Parameters
    ----------
    calibration: what :func:`calibrate` wrote for this model; int8 and fp8 need it, fp16 and bf16 use it to tell whether
        a state grows, int8-weights to round weights together and to verify.
    precision: "int8", "fp8" (TensorRT only), "fp16", "bf16"; "int8-weights" or "bf16-weights": weights of matrix products alone,
        without calibration, everything else in float32 (``edgelstm.quantize.weights_only``); or "auto": the cheapest mix whose outputs err at most ``budget``
        (relative, in the 2-norm) over the last quarter of ``limit`` frames of ``source`` (``edgelstm.quantize.mix``).
    runtime: what the model is for, "onnxruntime" or "tensorrt". hop: of windows of ``source``, see :class:`edgelstm.Inputs`.
    gpu: architecture that is meant ("orin", "ada", ...): refuses what it lacks.
    rest: for int8 and fp8: the type of what is not quantised, "fp32", "fp16" or "bf16".
    cell_state: type of the cell states c with fp16 and bf16: "fp32", or theirs.
    keep: patterns of weight names whose products stay as they are.
    verify: run model and result over the ends of the calibration's sequences and say how far every output is off
        (``Quantized.check``), and for ONNX Runtime whether a step takes longer than in float on this CPU; where one is more than ``edgelstm.workflows.check.THRESHOLD`` off, what to do is looked for.

    Raises EdgeLstmError, and writes nothing, when the calibration does not fit, or target or GPU lack the precision.
    """
    refuse_overwrite(output, (model, calibration, *([source] if isinstance(source, str) else source)))
    if budget is not None:
        check_budget(budget)
    step = model if isinstance(model, StepModel) else StepModel.load(model)
    target = runtime
    if precision == "auto":
        _check_auto(target, gpu, budget, source, {"rest": rest, "cell_state": cell_state, "keep": keep})
    elif budget is not None or source or hop is not None:
        raise EdgeLstmError(
            "budget, source or hop given", found=f"precision {precision}", expected="precision auto"
        )
    else:
        _check_precision(target, precision, gpu, rest, cell_state)
    if output is not None:
        _check_output(output)
    _check_float(step)
    ranges = calibration if isinstance(calibration, Calibration | None) else Calibration.load(calibration)
    notes: list[str] = []
    if precision == "auto":
        assert budget is not None
        return _auto(step, ranges, output, target, budget, source, limit, hop, verify, threads, progress)
    found = find_products(step)
    kept = _kept({p.weight for p in found.products}, keep)
    result = step
    chosen: list[str] = []
    barred: set[str] = set()
    if precision in ("int8", "fp8"):
        if ranges is None:
            raise EdgeLstmError(
                f"precision {precision} needs a calibration",
                hint="edgelstm calibrate MODEL --source S -o model.calib.json",
            )
        careful = caution(step, ranges, "int8" if precision == "int8" else "float8e4m3fn")
        chosen = [w for w in default_weights(found) if w not in kept | careful.weights]
        _add_notes(notes, careful.notes, {w for w in default_weights(found) if w not in kept})
        if not chosen:
            raise EdgeLstmError("nothing is left to quantise", found="; ".join(notes) or f"keep {list(keep)}")
        result = place(result, ranges, target, precision, weights=chosen)

    elif precision in ("int8-weights", "bf16-weights"):
        if ranges is not None:
            check_calibration(step, ranges)
        chosen = [w for w in matrices(found) if w not in kept]
        barred = {p.weight for p in found.products} - set(chosen)
        result = _weights_only(step, precision, barred, ranges)

    def without(weight: str) -> StepModel:
        if precision.endswith("-weights"):
            return _weights_only(step, precision, barred | {weight}, ranges)
        assert ranges is not None
        return place(step, ranges, target, precision, weights=[w for w in chosen if w != weight])

    half = precision if precision in ("fp16", "bf16") else rest
    if half != "fp32":
        from edgelstm.quantize.precision import to_half

        cells = cell_state != "fp32"
        if cell_state == "fp16" and ranges is not None:
            _check_cell_states(step, growing_states(ranges))
        floats: set[str] = set()
        barred |= kept
        if ranges is None:
            notes.append(
                f"no calibration was given, so whether a state grows, or moves by less than {half} resolves, is not known: "
                "`edgelstm calibrate`, then --calibration, tells"
            )
        else:
            check_calibration(step, ranges)
            careful = caution(step, ranges, {"fp16": "float16", "bf16": "bfloat16"}[half], cells=cells)
            floats |= careful.states
            barred |= careful.weights
            notes += [n for n in careful.notes if n not in notes]
        result = to_half(result, half, target, cell_state=cell_state, keep=barred, float_states=floats)  # type: ignore[arg-type]
    result = _with_ranges(result, ranges)
    result.check()
    some = ready_frames(result.signature, None, CALLS * (result.signature.window or 1))
    check_separate(result, some if target == "onnxruntime" else (), "the quantised model")
    done = Quantized(
        result,
        None if output is None else Path(output),
        target,
        precision,
        len(step.to_bytes()),
        _table(found, set(chosen), precision, half, barred),
        notes,
    )
    if verify and ranges is None:
        done.check = Check(why_not="no calibration was given, which says what frames to run")
    elif verify:
        assert ranges is not None
        done.check = _checked(
            step, result, ranges, precision, without if len(chosen) > 1 else None, threads, progress
        )
        _look_at_pace(done, step, threads)
    if output is not None:
        result.save(output)
    return done


def _weights_only(
    step: StepModel, precision: str, keep: Collection[str], ranges: Calibration | None
) -> StepModel:
    moments = None if ranges is None else ranges.weights
    return weights_only(step, precision, keep=keep, moments=moments)  # type: ignore[arg-type]


def _auto(
    step: StepModel,
    ranges: Calibration | None,
    output: PathLike | None,
    target: Target,
    budget: float,
    source: str | Sequence[str] | Sequence[Iterable[Array | Frame]],
    limit: int,
    hop: int | None,
    verify: bool,
    threads: int | None,
    progress: Progress | None,
) -> Quantized:
    sequences = [source] if isinstance(source, str) else list(source)
    if not isinstance(sequences[0], str):
        check_hop(hop, sequences)
        first: Iterable[Frame] = islice(given(step, 0, sequences[0]).frames, limit)  # type: ignore[arg-type]
    else:
        first = SpanFrames(step, Span(sequences[0], 0, limit, at_most=True, hop=hop), None)
    given_frames = [{name: np.array(value) for name, value in frame.items()} for frame in first]
    frames = [one for frame in given_frames for one in single_frames(frame, step.signature.window)]

    def calibrated(form: StepModel) -> Calibration:
        named = [s for s in sequences if isinstance(s, str)]
        if named:
            return calibrate(form, named, threads=threads, limit=limit, hop=hop).calibration
        return calibrate(form, [given_frames], threads=threads).calibration

    joined = calibrated(step) if ranges is None else ranges
    careful = caution(step, joined, "int8")
    notes = list(careful.notes)
    if target == "tensorrt":
        half = caution(step, joined, "float16", cells=False)
        careful.states |= half.states
        careful.weights |= half.weights
        notes += [n for n in half.notes if n not in notes]
    mix = search(
        step,
        joined,
        calibrated,
        frames,
        budget,
        target,
        pinned=careful.weights,
        float_states=careful.states,
        threads=threads,
        progress=progress,
    )
    mix.step = _with_ranges(mix.step, joined)
    mix.step.check()
    levels = {u.name: u.level for u in mix.units}
    table = _table(find_products(step), set(), "", "fp32")
    for row in table:
        halves = [
            levels[n] for n in (row["weight"], row["weight"] + INPUT, row["weight"] + STATE) if n in levels
        ]
        row["precision"] = " + ".join(dict.fromkeys(halves))
    done = Quantized(
        mix.step,
        None if output is None else Path(output),
        target,
        "auto",
        len(step.to_bytes()),
        table,
        notes,
        search=mix,
    )
    if verify:
        done.check = _checked(step, mix.step, joined, "auto", None, threads, progress)
        _look_at_pace(done, step, threads)
    if output is not None:
        mix.step.save(output)
    return done


def _look_at_pace(done: Quantized, step: StepModel, threads: int | None) -> None:
    """Note where the result is slower than what it was made of, on this CPU."""
    if done.target == "onnxruntime" and (done.precision == "auto" or done.precision == "int8"):
        done.milliseconds = milliseconds(step, done.step, threads)
        if (said := slower(done.precision, *done.milliseconds)) is not None:
            done.notes.append(said)


def _with_ranges(step: StepModel, calibration: Calibration | None) -> StepModel:
    """``step``, whose Signature tells what values its inputs had in the calibration."""
    if calibration is None or not calibration.inputs:
        return step
    seen = {n: (i.low, i.high) for n, i in calibration.inputs.items()}
    return replace(step, signature=replace(step.signature, ranges=seen))


def _checked(
    step: StepModel,
    made: StepModel,
    calibration: Calibration,
    precision: str,
    without: Callable[[str], StepModel] | None,
    threads: int | None,
    progress: Progress | None,
) -> Check:
    """How far ``made`` is off, and if that is too far, what to do. ``without``: the same with one weight less quantised."""
    checker = Checker(step, calibration, threads, progress)
    try:
        check = checker(made)
        if check.warning is None:
            return check
        if without is not None:
            check.remedies += _weights_to_keep(step, checker, check, without)
    finally:
        checker.close()
    if precision == "auto":
        check.remedies.append("a smaller --budget, or --source frames more like those of the calibration")
        return check
    if precision == "bf16":
        check.remedies.append("--precision fp16 resolves eight times as much")
    named = [d["check"]["source"] for d in calibration.data if "source" in d.get("check", {})]
    source = " ".join(f"--source {s}" for s in dict.fromkeys(named)) or "--source FRAMES"
    check.remedies.append(
        f"--precision auto --budget {THRESHOLD:g} {source} finds the cheapest mix that stays within it"
    )
    return check


def _weights_to_keep(
    step: StepModel, checker: Checker, check: Check, without: Callable[[str], StepModel]
) -> list[str]:
    """The single weight that is best left alone, if that helps: tried, not guessed."""
    weights = default_weights(find_products(step))
    worst = check.worst
    if worst is None or not 1 < len(weights) <= _TRIED:
        return []
    errors = {}
    for weight in weights:
        found = checker(without(weight)).worst
        if found is not None:
            errors[weight] = found.error
    best = min(errors, key=lambda w: errors[w], default=None)
    if best is None or not errors[best] < 0.7 * worst.error:
        return []
    return [f"--keep '{best}' leaves {errors[best]:.2g} of error"]


def _kept(weights: set[str], patterns: Sequence[str]) -> set[str]:
    """The weights that one of ``patterns`` matches."""
    kept = set()
    for pattern in patterns:
        matched = {w for w in weights if fnmatchcase(w, pattern)}
        if not matched:
            shown = ", ".join(sorted(weights)[:8]) + (", ..." if len(weights) > 8 else "")
            raise EdgeLstmError(
                f"keep {pattern!r}", found="no weight of that name", expected=f"one of {shown}"
            )
        kept |= matched
    return kept


def _add_notes(notes: list[str], careful: Sequence[str], wanted: set[str]) -> None:
    """``careful`` without what it says of weights that nobody wanted to quantise."""
    for note in careful:
        weight, _, said = note.partition(" stays in float: ")
        if not said or weight in wanted:
            notes.append(note)


def _check_cell_states(step: StepModel, growing: dict[str, dict[str, Any]]) -> None:
    for name, seen in growing.items():
        overflow = seen["fp16_overflows_at"]
        raise EdgeLstmError(
            f"state {name!r} can't be kept in fp16: it grows for as long as the stream runs",
            found=f"largest value {seen['largest']:.4g}"
            + ("" if overflow is None else f", beyond fp16 after about {count_of(overflow, 'frame')}"),
            expected="a state that settles",
            hint="Leave --cell-state at fp32",
        )


def _table(
    found: Any, chosen: set[str], precision: str, half: str, barred: Collection[str] = ()
) -> list[dict[str, Any]]:
    total = sum(p.macs for p in found.products) or 1
    rows = []
    for weight, products in found.by_weight().items():
        rows.append(
            {
                "weight": weight,
                "kind": products[0].kind,
                "reads": [part.value for part in products[0].parts],
                "times": len(products),
                "work": sum(p.macs for p in products) / total,
                "precision": precision if weight in chosen else "fp32" if weight in barred else half,
            }
        )
    return rows


def _check_precision(target: Target, precision: str, gpu: str | None, rest: str, cell_state: str) -> None:
    if precision == "fp32":
        raise EdgeLstmError(
            "precision",
            found="fp32, what the model has",
            expected="int8, fp8, fp16, bf16, int8-weights, bf16-weights or auto",
        )
    check_target(target, precision, gpu)
    if precision.endswith("-weights") and (rest, cell_state) != ("fp32", "fp32"):
        raise EdgeLstmError(
            "rest or cell state",
            found=f"{rest}, {cell_state} with precision {precision}",
            expected="fp32: weights alone change",
        )
    if rest not in ("fp32", "fp16", "bf16"):
        raise EdgeLstmError("rest", found=rest, expected="fp32, fp16 or bf16")
    check_target(target, rest, gpu)
    whole = precision in ("fp16", "bf16")
    if whole and rest != "fp32":
        raise EdgeLstmError(
            "rest", found=f"{rest} with precision {precision}", expected="precision int8 or fp8"
        )
    if cell_state != "fp32" and not whole and rest == "fp32":
        raise EdgeLstmError(
            "type of the cell state",
            found=f"{cell_state} with precision {precision}",
            expected="fp32, or --rest in 16 bits",
        )


def _check_auto(
    target: Target, gpu: str | None, budget: float | None, source: Any, others: Mapping[str, Any]
) -> None:
    if budget is None or not source:
        raise EdgeLstmError(
            "precision auto", found="no budget or no source", expected="both: --budget 0.01 --source FRAMES"
        )
    check_budget(budget)
    check_target(target, "int8", gpu)
    for name, value in others.items():
        if value not in ("fp32", (), []):
            raise EdgeLstmError(
                f"{name} given", found="precision auto, which finds it", expected="another one"
            )


def _check_float(step: StepModel) -> None:
    """Raise EdgeLstmError for a graph that is in fewer than 32 bits already."""
    codes = sorted({t for t in step.op_types() if t.lower().endswith("quantizelinear")})
    types = {t.data_type for t in step.model.graph.initializer} & {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    if is_quantized(step) or types:
        raise EdgeLstmError(
            "the model is quantised already",
            found=", ".join(codes) or f"weights in {TensorProto.DataType.Name(types.pop()).lower()}",
            expected="the float step graph it was made from",
        )


def _check_output(output: PathLike) -> None:
    path = Path(output)
    if path.suffix.lower() != ".onnx":
        raise EdgeLstmError(
            f"output {output}", found=path.suffix or "no suffix", expected="a path ending with .onnx"
        )
    if not path.absolute().parent.is_dir():
        raise EdgeLstmError(f"can't write {output}", found="no such folder", hint="Create the folder first")
