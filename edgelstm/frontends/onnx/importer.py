"""Somebody else's ONNX file becomes a StepModel: borders, control flow, states named, proposed or kept inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError, some
from edgelstm.files import PathLike
from edgelstm.frontends.door import Source
from edgelstm.frontends.onnx.advice import advise, needs_of
from edgelstm.frontends.onnx.borders import HOLD, Borders, Fix, open_borders, resolve, to_front
from edgelstm.frontends.onnx.file import declare
from edgelstm.frontends.onnx.first_values import Pairs, as_text, read_pairs, take_defaults, with_first
from edgelstm.frontends.onnx.no_batch import with_stream_axis
from edgelstm.frontends.onnx.old_opsets import upgraded
from edgelstm.frontends.onnx.program import DeclaredProgram, OnnxProgram
from edgelstm.frontends.onnx.source import read_onnx
from edgelstm.frontends.onnx.state_pairs import Pair, at_odds, propose_pairs
from edgelstm.graph.signature import Signature, StateSpec
from edgelstm.graph.step import StepModel, value_shape
from edgelstm.passes.carry_state import carry_state
from edgelstm.passes.control_flow import BEFORE, DOMAIN
from edgelstm.passes.drawn import learns
from edgelstm.passes.graph import Array, Graph
from edgelstm.passes.rnn_operator import is_rnn
from edgelstm.passes.shapes import element_types, note_shapes
from edgelstm.passes.stream_axis import find_mixing
from edgelstm.runtime.onnxruntime import OrtProgram

#: Asked with the proposed pairs; True takes them.
Confirm = Callable[[Sequence[Pair]], bool]


@dataclass(frozen=True)
class Imported:
    """A file's step graph, what it is compared with, and what the user has to know of it."""

    step: StepModel
    reference: Source
    notes: tuple[str, ...] = ()


def import_onnx(
    path: PathLike,
    states: Pairs | None,
    *,
    fix: Fix | None = None,
    confirm: Confirm | None = None,
) -> Imported:
    """The file's step graph, and the file itself as a Program to compare it with.

    states: graph input -> the output that is fed back into it, or that with what the state starts at
        (:func:`~edgelstm.frontends.onnx.first_values.read_pairs`); zeros where nothing is said. Without it, pairs are
        proposed and ``confirm`` decides. A state of several layers in one tensor stays one state.
    fix: input -> its value for good, or dynamic dimension -> its size.

    Streams come to axis 0, wherever the file has them. Recurrent operators that start anew in each call get their
    state as a pair h0, c0, ... of the Signature.

    Raises EdgeLstmError for all that ``read_onnx``, ``open_borders``, ``resolve`` and ``declare`` refuse, for pairs that
    were proposed and not confirmed, and for a graph without any recurrence.
    """
    where, fix = str(path), fix or {}
    model = read_onnx(path)
    answers: list[bool] = []

    def ask(pairs: Sequence[Pair]) -> bool:
        if not answers:
            answers.append(confirm is not None and confirm(pairs))
        return answers[0]

    def attempt(fixed: Fix) -> Sequence[Pair]:
        shown: list[Pair] = []

        def take(pairs: Sequence[Pair]) -> bool:
            shown.extend(pairs)
            return True

        found = _guarded(model, where, states, fixed, take)
        try:
            _run_once(found)
        finally:
            found.reference.close()
        return shown

    try:
        return _guarded(model, where, states, fix, ask)
    except EdgeLstmError as error:
        open_ = needs_of(model, fix, states or ())
        if not open_.numbers and not open_.sizes and open_.streams and not answers:
            # Nothing is open but the number of streams, and for any number there is no step.
            ones = dict.fromkeys(open_.streams, 1)
            try:
                found = _guarded(model, where, states, {**fix, **ones}, ask)
            except EdgeLstmError:
                pass
            else:
                sizes = " = ".join([*open_.streams, "1"])
                note = f"written for one stream, since the file's shapes allow no more: {sizes}"
                return replace(found, notes=(note, *found.notes))
        said = {name: as_text(value) for name, value in (states or {}).items()}
        raise advise(error, model, where, said, fix, attempt) from error


def _run_once(found: Imported) -> None:
    """One frame through the step, to see that it runs. Raises EdgeLstmError where it does not."""
    frame = {t.name: np.zeros(t.frame_shape, np_dtype(t.dtype)) for t in found.step.signature.inputs}
    program = OrtProgram(found.step.to_bytes(), threads=1, spin=False, streams=found.step.signature.rows)
    try:
        program.step([frame], program.new_state(), [0])
    finally:
        program.close()
    found.reference.step([frame], found.reference.new_state(), [0])


def _guarded(
    model: onnx.ModelProto, where: str, states: Pairs | None, fix: Fix, confirm: Confirm
) -> Imported:
    try:
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        wide, left, added = with_stream_axis(copied, fix, states or ())
        found = _imported(wide, where, states, left, confirm)
        if not added:
            return found
        shown = ", ".join(added[:5]) + (", ..." if len(added) > 5 else "")
        note = f"written for one stream, since the file has no axis of one for it: {shown} got one"
        return replace(found, notes=(note, *found.notes))
    except EdgeLstmError:
        raise
    except Exception as error:
        # Valid by the checker's lights is not yet consistent, and inference and reference raise what they like.
        text = (str(error).strip().splitlines() or [""])[0]
        raise EdgeLstmError(
            f"{where}: no step graph could be made of it",
            found=f"{type(error).__name__} {text}".strip(),
            expected="a graph that ONNX's shape inference and ONNX Runtime can work with",
        ) from error


def _imported(
    model: onnx.ModelProto,
    where: str,
    states: Pairs | None,
    fix: Fix,
    confirm: Confirm,
) -> Imported:
    defaults = {} if states is None else take_defaults(model, states)
    borders, held = open_borders(upgraded(model, where), where, fix)
    step = resolve(borders, held, where)
    if learning := learns(step):
        raise EdgeLstmError(
            f"{where} changes with every frame it sees",
            found=f"{learning}: it normalises by the frames at hand, and goes on counting them",
            expected="the statistics it was trained with",
            hint="Export it as it is used, not as in training: model.eval(), training=TrainingMode.EVAL of torch.onnx.export",
        )
    held_values = next(n for n in step.model.graph.node if n.op_type == HOLD).input
    values = dict(zip(borders.outputs, held_values, strict=False))
    rest = held_values[len(borders.outputs) :]
    loops = list(zip(rest[::2], rest[1::2], strict=True))
    first: Mapping[str, Array] = {}
    proposed = propose_pairs(borders, step, values)
    notes: tuple[str, ...] = ()
    if states is not None:
        said = read_pairs(states, borders.outputs, where)
        pairs, first = said.pairs, {**defaults, **said.first}
        notes = at_odds(pairs, proposed)
    else:
        pairs = _confirmed(proposed, where, confirm)
    carried = carry_state(step, where, loops)
    inside = carried.signature.states
    if not pairs and not inside:
        raise EdgeLstmError(
            f"{where}: no recurrence found",
            found=_without_states(step, borders),
            expected="a state that goes in and comes out, or a recurrent operator over one frame",
            hint=f"If there is one, name it: edgelstm export {where} --state INPUT=OUTPUT",
        )
    shown = _shown(carried, borders, pairs, where)
    declared = declare(
        shown.model.SerializeToString(), where, {**pairs, **{s.input: s.output for s in inside}}
    )
    named = {s.input: s for s in inside}
    signature = replace(
        declared.signature,
        states=tuple(
            with_first(_like(named.get(s.input), s), first.get(s.input), borders, where)
            for s in declared.signature.states
        ),
    )
    declared = replace(declared, signature=signature)
    if not inside:
        return Imported(declared, OnnxProgram(model, borders, signature, whole=False), notes)
    names = ", ".join(s.name for s in inside)
    if any(i.freed for i in borders.inputs) and 1 in borders.freed.values():
        kept = replace(signature, states=tuple(s for s in signature.states if s.input not in named))
        note = f"the file starts anew in each call; here its state is carried from frame to frame: {names}"
        return Imported(declared, OnnxProgram(model, borders, kept, whole=True), (note, *notes))
    kept = replace(signature, states=tuple(s for s in signature.states if s.input not in named))
    if (whole := _along_the_streams(model, borders, kept, declared, where)) is not None:
        note = f"the file starts anew in each call; here its state is carried from frame to frame: {names}"
        return Imported(declared, whole, (note, *notes))
    # Called frame by frame the file forgets: what carries its state on is the graph as it was declared.
    note = (
        f"the file takes one frame and starts anew in each call; here its state is carried: {names}. "
        "Compared is the graph before the passes, with the state carried, since the file itself can't tell"
    )
    return Imported(declared, DeclaredProgram(declared), (note, *notes))


def _along_the_streams(
    model: onnx.ModelProto, borders: Borders, kept: Signature, declared: StepModel, where: str
) -> OnnxProgram | None:
    """The file over all frames so far, where the size that was fixed to 1 and taken for the streams is time: x [T, 1, X].

    A file that forgets says so itself: three frames in one call give at the last what the carried state gives. None where
    they give what each gives alone, or where it takes no such call: that size was streams. Raises EdgeLstmError where they
    give something else: such a file knows which frame of the call it is at.
    """
    free = {
        v.name
        for v in model.graph.input
        for k, d in enumerate(v.type.tensor_type.shape.dim)
        if not d.HasField("dim_value")
        and borders.freed.get(d.dim_param, borders.freed.get(f"{v.name}.{k}")) == 1
        and (i := next((i for i in borders.inputs if i.name == v.name), None)) is not None
        and k == i.axis
    }
    if not free:
        return None
    inputs = tuple(replace(i, freed=(i.axis,)) if i.name in free else i for i in borders.inputs)
    rng = np.random.default_rng(0)
    frames = [
        {t.name: rng.random(t.frame_shape).astype(np_dtype(t.dtype)) for t in kept.inputs} for _ in range(3)
    ]
    ours = DeclaredProgram(declared)
    try:
        whole = OnnxProgram(model, replace(borders, inputs=inputs), kept, whole=True)
        before, after = whole.new_state(), ours.new_state()
        for frame in frames:
            theirs, made = whole.step([frame], before, [0])[0], ours.step([frame], after, [0])[0]
        same = all(
            np.allclose(theirs[t.name], made[t.name], rtol=1e-3, atol=1e-5, equal_nan=True)
            for t in kept.outputs
        )
        alone = whole.step([frames[-1]], whole.new_state(), [0])[0]
        streams = all(
            np.allclose(theirs[t.name], alone[t.name], rtol=1e-3, atol=1e-5, equal_nan=True)
            for t in kept.outputs
        )
    except (EdgeLstmError, ValueError):
        return None
    finally:
        ours.close()
    if not (same or streams) and find_mixing(declared) is None:
        raise EdgeLstmError(
            f"{where}: three frames in one call give other results than one after the other with the state carried",
            found="a file that knows which frame of a call it is at, as by the number of a Loop's iteration or a table of positions",
            expected="a recurrence that does the same at every frame",
            hint="A step has no such number. If the file needs it, give it a door: export the model with the position as an input",
        )
    return whole if same else None


def _confirmed(pairs: list[Pair], where: str, confirm: Confirm) -> dict[str, str]:
    """The proposed pairs, if somebody says yes."""
    if not pairs:
        return {}
    if confirm(pairs):
        return {pair.input: pair.output for pair in pairs}
    doubtful = any(pair.doubt for pair in pairs)
    raise EdgeLstmError(
        f"{where}: no state pairs are named",
        found="inputs and outputs that look like pairs: " + "; ".join(map(str, pairs)),
        expected="them named, since not all are beyond doubt" if doubtful else "them confirmed",
        hint=f"If they are right: {' '.join(pair.option for pair in pairs)}"
        + ("" if doubtful else ", or --yes"),
    )


def _without_states(step: StepModel, borders: Borders) -> str:
    names = f"inputs {some(i.name for i in borders.inputs)}; outputs {some(borders.outputs)}"
    operators = [n for n in step.model.graph.node if is_rnn(n)]
    if not operators:
        return f"{names}; no recurrent operator"
    return f"{names}; {operators[0].op_type} over a whole sequence in each call: a window"


def _shown(step: StepModel, borders: Borders, pairs: Mapping[str, str], where: str) -> StepModel:
    """The file's outputs in place of what held them, their streams in front."""
    noted = note_shapes(step).model.graph
    shapes = {v.name: value_shape(v) for v in (*noted.input, *noted.value_info)}
    types = element_types(step)
    graph = Graph(step)
    hold = next(n for n in graph.nodes if n.op_type == HOLD)
    sources = list(hold.input)
    places = {i.name: i.axis for i in borders.inputs}
    fed = {output: places[name] for name, output in pairs.items() if name in places}
    shown = []
    graph.remove([hold])
    for node in [n for n in graph.nodes if n.op_type == BEFORE and n.domain == DOMAIN]:
        graph.remove([node])
        graph.node("Identity", node.input, node.output)
    moved: dict[
        str, str
    ] = {}  # what made way for an output of its name; another output may be the same value
    for output, source in zip(borders.outputs, sources, strict=False):
        shape, kind = shapes.get(source), types.get(source, onnx.TensorProto.FLOAT)
        source = moved.get(source, source)
        axis = fed.get(output)
        if axis is None:
            axis = _axis_of_streams(shape, borders, output, where)
        if source != output and graph.producer(output) is not None:
            moved[output] = graph.fresh(f"{output}_inner")
            graph.rename(output, moved[output])
        if shape is not None and 0 < axis < len(shape):
            inner = source
            if source == output:
                inner = moved[output] = graph.fresh(f"{output}_in_file")
                graph.rename(output, inner)
            graph.node("Transpose", [inner], [output], perm=to_front(len(shape), axis))
            shape = [shape[axis], *shape[:axis], *shape[axis + 1 :]]
        elif source != output:
            graph.node("Identity", [source], [output])
        shown.append(helper.make_tensor_value_info(output, kind, shape))
    carried = {s.output for s in step.signature.states}
    shown += [v for v in graph.model.graph.output if v.name in carried]
    copies = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in shown]
    del graph.model.graph.output[:]
    graph.model.graph.output.extend(copies)
    graph.outputs = [v.name for v in copies]
    done = graph.finish()
    model = done.copy_model()
    kept = [o for o in done.model.opset_import if o.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    functions = [f for f in done.model.functions if f.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(functions)
    return StepModel(model, step.signature)


def _axis_of_streams(shape: list[Any] | None, borders: Borders, output: str, where: str) -> int:
    """The axis of an output that has the streams."""
    if shape is None:
        return 0
    stream = borders.stream_axis
    if stream in shape:
        return shape.index(stream)
    if borders.streams is None:
        raise EdgeLstmError(
            f"{where}: output {output!r} has no axis for the streams",
            found=str(shape),
            expected=f"an axis of {stream}",
            hint="Fix the number of streams to 1 (--fix, with the name of that dimension)",
        )
    return 0


def _like(inside: StateSpec | None, state: StateSpec) -> StateSpec:
    """A state with the initial value it had where the operator kept it."""
    return state if inside is None else replace(state, initial=inside.initial)
