"""Streams never see each other: every finished graph is looked through for operators that mix rows, and run to see.

Two tests of what runs, beside the one of the graph (``passes.stream_axis``):

    others differ   a stream beside two that carry other data, 100 times larger or NaN, gives the same bits, whatever they
                    are: one call of one size computes a row in one way, so any difference is a leak
    alone           beside others and alone a stream gives the same within ``ALONE``: kernels sum in another order for
                    another number of rows, but what is divided by that number shows
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.signature import Signature
from edgelstm.graph.step import StepModel
from edgelstm.passes.one_stream import for_one_stream
from edgelstm.passes.stream_axis import find_mixing
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Array, Frame, Program

#: Calls of each run, of the cheapest graphs.
CALLS = 4
#: Seconds that a call of one stream may take so that everything is run; one call and every pair of data; two streams, one
#: call, two kinds of data. Above the last a stream runs beside one that is NaN, once.
EVERYTHING, ONE_CALL, TWO_STREAMS = 0.05, 0.25, 1.0
#: Streams of a graph that takes any number of them, or one in a call.
ROWS = 3
SLOW = 0.5
#: Relative difference between alone and beside others that counts as another order of summing: the square root of the
#: dtype's rounding, which a few steps of a model that amplifies rounding stay under. Codes may round to their neighbour.
ALONE = {"float16": 3e-2, "bfloat16": 0.1, "coded": 0.1}
ALONE_FLOAT32 = 3.5e-4


@dataclass(frozen=True)
class Leak:
    """What a stream gave otherwise because of its neighbours."""

    tensor: str
    call: int
    what: str

    def __str__(self) -> str:
        return f"{self.tensor} of call {self.call} {self.what}"


def separate(
    step: StepModel, frames: Iterable[Frame], source: Program, where: str = "model"
) -> tuple[StepModel, tuple[str, ...]]:
    """Guarantees: in the graph that comes back no stream sees another; it is ``step`` itself, or takes one stream in a call.

    frames: single frames that the model can take; a few are enough, and they may be fewer than are needed. source: what
    ``step`` was made of, which messages call ``where``.

    Also what is to be said of it. Raises EdgeLstmError, naming the operator, where rows mix in a graph that fixes their
    number, where the source can't do with one row, and where even a graph for one stream lets them mix.
    """
    frames = list(islice(frames, CALLS * (step.signature.window or 1)))
    axis = step.signature.stream_axis
    mixing = find_mixing(step)
    if mixing is not None:
        why = f"{mixing} mixes their rows, as {mixing.tensor!r} shows"
    else:
        try:
            leak = find_leak(step, frames)
        except EdgeLstmError as error:  # a graph that says any number, and can't
            if isinstance(axis, int) or not _judged(for_one_stream(step), frames):
                return (
                    step,
                    (),
                )  # not with these frames, or never twice alike: that is for the comparison to say
            why = f"more than one in a call can't be computed ({error.found or error.what})"
        else:
            if leak is None:
                return step, ()
            why = str(leak)

    def refused(hint: str) -> EdgeLstmError:
        expected = "rows that have nothing to do with each other, one a stream"
        return EdgeLstmError(
            f"the streams of {where} see each other", found=why, expected=expected, hint=hint
        )

    if isinstance(axis, int):
        raise refused(f"It takes {count_of(axis, 'row')} in every call; export the model with a batch of one")
    try:
        for call in _calls(source.signature, frames, 1):
            source.step([call], source.new_state(), [0])
    except Exception as error:  # whatever a user's module raises
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise refused(
            f"The model can't take one row alone either: {said}. Give it statistics that were kept in training "
            "(track_running_stats=True), or of each row by itself"
            if "more than 1 value per channel" in said
            else f"The model can't take one row alone either: {said}"
        ) from error
    alone = for_one_stream(step)
    if find_leak(alone, frames) is not None:
        raise refused("Export a model that treats the rows of its batch alike")
    return alone, (f"written for one stream (several take one call each): {why}",)


def check_separate(step: StepModel, frames: Iterable[Frame], where: str = "model") -> None:
    """Raise EdgeLstmError where :func:`separate` would change the graph: it was made of one that keeps streams apart."""
    frames = list(islice(frames, CALLS * (step.signature.window or 1)))
    found: object = find_mixing(step)
    if found is None and _runs(step, frames):  # what the CPU can't run may be meant for a GPU
        found = find_leak(step, frames)
    if found is not None:
        raise EdgeLstmError(
            f"the streams of {where} see each other",
            found=str(found),
            expected="rows that have nothing to do with each other",
        )


def find_leak(step: StepModel, frames: Iterable[Frame]) -> Leak | None:
    """Run ``step`` with several streams, one of them idle in turn, and each alone; None where neighbours change nothing."""
    signature = step.signature
    axis = signature.stream_axis
    fixed = isinstance(axis, int) and axis > 1
    rows = axis if isinstance(axis, int) and axis > 1 else ROWS
    calls = _calls(signature, frames, CALLS)
    if not calls:
        return None
    program = OrtProgram(step.to_bytes(), streams=rows, threads=1, spin=False)
    try:
        start = perf_counter()
        first = calls[0]
        alone = _run(program, {0: calls[:1]}, rows)
        took = perf_counter() - start
        if not all(np.isfinite(v).all() for v in alone[0][0].values()):  # a logarithm, a root
            calls = [{n: np.abs(v) if v.dtype.kind == "f" else v for n, v in c.items()} for c in calls]
        if took > EVERYTHING:
            calls = calls[:1]
        taking = rows if took <= ONE_CALL or fixed else 2
        once, alone = alone, _run(program, {0: calls}, rows)
        if calls[0] is first and _different(once[0], alone[0][:1], 0.0, "") is not None:
            raise EdgeLstmError(
                "the graph gives other results for the same frames",
                found=f"{_different(once[0], alone[0][:1], 0.0, 'differs')}",
                expected="no random numbers in it, and no operator in training mode",
            )
        loud = [_scaled(c, 100.0) for c in reversed(calls)]
        quiet = [_scaled(c, -0.01 if k % 2 else 0.01) for k, c in enumerate(calls)]
        lost = [_scaled(c, np.nan) for c in calls]
        kinds = [(lost, loud), (loud, quiet), (quiet, lost)]
        kinds = kinds if took <= ONE_CALL else kinds[:2] if took <= TWO_STREAMS else kinds[:1]
        for place in dict.fromkeys((0, taking - 1) if took <= ONE_CALL else (0,)):
            others = [row for row in range(taking) if row != place]
            runs = [
                _run(program, {place: calls} | {r: data[k % 2] for k, r in enumerate(others)}, rows, place)[
                    place
                ]
                for data in kinds
            ]
            for other in runs:
                leak = _different(runs[0], other, 0.0, "changes with what other streams are fed")
                leak = leak or _different(alone[0], other, _bound(step), "is not what the stream gives alone")
                if leak is not None:
                    return leak
    finally:
        program.close()
    return None


def _judged(step: StepModel, frames: Iterable[Frame]) -> bool:
    """Whether it can be told of ``step`` if neighbours change anything."""
    try:
        find_leak(step, frames)
    except EdgeLstmError:
        return False
    return True


def _runs(step: StepModel, frames: Iterable[Frame]) -> bool:
    """Whether one stream of one call can be computed here."""
    axis = step.signature.stream_axis
    try:
        program = OrtProgram(
            step.to_bytes(), streams=axis if isinstance(axis, int) else 1, threads=1, spin=False
        )
    except EdgeLstmError:
        return False
    try:
        for call in _calls(step.signature, frames, 1):
            program.step([call], program.new_state(), [0])
    except EdgeLstmError:
        return False
    finally:
        program.close()
    return True


Results = list[dict[str, Array]]


def _run(
    program: Program, frames: Mapping[int, Sequence[Frame]], rows: int, place: int | None = None
) -> dict[int, Results]:
    """Outputs and states by row and call. With ``place`` every other row is idle in one call of three."""
    signature = program.signature
    state = program.new_state()
    results: dict[int, Results] = {row: [] for row in frames}
    worth = {s.name: s for s in signature.states}
    for k in range(len(next(iter(frames.values())))):
        active = sorted(r for r in frames if place is None or r == place or (k + r) % 3 or len(frames) == 2)
        before = {r: program.read_state(state, r) for r in range(rows) if r not in active}
        outputs = program.step([frames[r][k] for r in active], state, active)
        for row, given in zip(active, outputs, strict=True):
            kept = {f"output {n!r}": np.array(v) for n, v in given.items()}
            after = program.read_state(state, row)
            results[row].append(kept | {f"state {n!r}": worth[n].values(v) for n, v in after.items()})
        for row, values in before.items():
            now = program.read_state(state, row)
            if any(now[n].tobytes() != v.tobytes() for n, v in values.items()):
                raise EdgeLstmError("a stream that was idle changed", found=f"row {row} in call {k}")
    return results


def _different(a: Results, b: Results, bound: float, what: str) -> Leak | None:
    largest: dict[str, float] = {}
    for k, (one, other) in enumerate(zip(a, b, strict=True)):
        for name, value in one.items():
            if value.tobytes() == other[name].tobytes():
                continue
            x, y = value.astype(np.float64), other[name].astype(np.float64)
            if bound:
                finite = np.isfinite(x)
                size = float(np.abs(x[finite]).max(initial=0.0))
                largest[name] = size = max(size, largest.get(name, 0.0))
                apart = float(np.abs(x - y)[finite & np.isfinite(y)].max(initial=0.0))
                if bool((finite == np.isfinite(y)).all()) and apart <= bound * size:
                    continue
                what = f"{what} (relative difference {apart / size if size else np.inf:.2g})"
            return Leak(name, k, what)
    return None


def _bound(step: StepModel) -> float:
    s = step.signature
    types = {t.dtype for t in (*s.inputs, *s.outputs)} | {x.dtype for x in s.states}
    types |= {"coded"} if any("QuantizeLinear" in op for op in step.op_types()) else set()
    names = {1: "float32", 10: "float16", 16: "bfloat16"}
    types |= {names[t.data_type] for t in step.model.graph.initializer if t.data_type in names}
    return max((ALONE.get(t, ALONE_FLOAT32) for t in types), default=ALONE_FLOAT32)


def _calls(signature: Signature, frames: Iterable[Frame], count: int) -> list[Frame]:
    """What goes into ``count`` calls: frames, or windows of them; frames come round again where they are too few."""
    length = signature.window or 1
    taken = [{n: np.array(v) for n, v in f.items()} for f in islice(frames, count * length)]
    if not taken:
        return []
    every = [taken[k % len(taken)] for k in range(count * length)]
    if signature.window is None:
        return list(every)
    return [
        {n: np.stack([f[n] for f in every[k : k + length]]) for n in every[0]}
        for k in range(0, len(every), length)
    ]


def _scaled(frame: Frame, factor: float) -> Frame:
    """Floating-point frames times ``factor``; whole numbers, which may be ids, stay what the model can take."""
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            n: (v * factor).astype(v.dtype) if v.dtype.kind == "f" else np.roll(v, 1)
            for n, v in frame.items()
        }
