"""Which form a torch module has, found by running it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgelstm.dtypes import DTYPES
from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.torch.conventions import (
    DOCUMENTED,
    GIVEN,
    INSIDE,
    LEFT_OUT,
    Candidate,
    Frames,
    NoNumbers,
    call,
    candidates,
    check_numbers,
    examples,
    sample,
    takes_states,
    with_numbers,
)
from edgelstm.frontends.torch.inner_states import Inside, find, initial
from edgelstm.frontends.torch.torch_step import (
    FORMS,
    Form,
    Place,
    Result,
    TorchStep,
    Unfit,
    Windowed,
    argument_names,
    called,
    describe,
)
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec

#: Two numbers of streams; the axis of a tensor that follows them is the stream axis.
FEW, MORE = 2, 3
#: More layers than this in one stacked tensor stay one state.
MAX_LAYERS = 64
#: How far two frames at once may be from the same two one by one, relative to the largest value.
TOLERANCE = 1e-3


def probe(
    module: nn.Module,
    frames: Frames,
    states: Any,
    batch_first: bool | None,
    outputs: Sequence[str] | None,
    carry_state: bool,
) -> TorchStep:
    """See :func:`edgelstm.frontends.torch.recognise.as_step`; ``module`` is a copy in evaluation mode."""
    attempts: list[tuple[Candidate, Unfit]] = []
    try:
        return with_numbers(
            lambda: _probe(module, frames, states, batch_first, outputs, carry_state, attempts)
        )
    except NoNumbers:
        raise _refusal(module, frames, attempts, states, carry_state) from None


def _probe(
    module: nn.Module,
    frames: Frames,
    states: Any,
    batch_first: bool | None,
    outputs: Sequence[str] | None,
    carry_state: bool,
    attempts: list[tuple[Candidate, Unfit]],
) -> TorchStep:
    """Raises NoNumbers where other frames may tell more, EdgeLstmError where nothing will."""
    del attempts[:]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for candidate in candidates(module, frames, states, batch_first):
            try:
                form, results = _fit(module, frames, candidate)
            except Unfit as unfit:
                attempts.append((candidate, unfit))
                continue
            return _step(module, frames, form, candidate, results, states, outputs)
        if not any(isinstance(unfit, Windowed) for _, unfit in attempts):
            for inside, candidate in _inside(module, frames, batch_first):
                try:
                    form, results = _fit(inside, frames, candidate)
                    _check_same(module, inside, frames, candidate)
                except Unfit as unfit:
                    attempts.append((candidate, unfit))
                    continue
                if not (carry_state or inside.gives_states):
                    raise _restarts(inside)
                return _step(inside, frames, form, candidate, results, states, outputs)
    if numbers := [unfit for _, unfit in attempts if isinstance(unfit, NoNumbers)]:
        raise numbers[0]
    raise _refusal(module, frames, attempts, states, carry_state)


def _inside(
    module: nn.Module, frames: Frames, batch_first: bool | None
) -> Iterator[tuple[Inside, Candidate]]:
    """The module with the states of its cells at the door, for either axis of time."""
    for time in (1, 0):
        try:
            found = find(module, frames, time) if batch_first in (None, time == 1) else None
        except Unfit:
            continue
        if found is not None:
            make = partial(initial, module, found, frames, time)
            yield found, Candidate(Form("sequence", "nested", "pair", time), make, INSIDE)


def _check_same(module: nn.Module, inside: Inside, frames: Frames, candidate: Candidate) -> None:
    """What it starts from is what the module itself starts from. Raises Unfit."""
    pairs = zip(sample(frames, FEW, seed=1), sample(frames, FEW, seed=2), strict=True)
    time = candidate.form.time or 0
    both = [torch.stack(pair, dim=time) for pair in pairs]
    whole = call(module, *both)
    told = call(inside, *both, candidate.make(FEW))[0]
    leaves = pytree.tree_leaves(whole[0] if inside.gives_states else whole)
    if not all(close(a, b) for a, b in zip(leaves, pytree.tree_leaves(told), strict=True)):
        raise Unfit("gave other results when its cells start from their first state", returned=True)


def _restarts(inside: Inside) -> EdgeLstmError:
    paths = inside.paths
    some = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return EdgeLstmError(
        f"{inside.called} is a window: it starts anew at every call",
        found=f"states inside ({some}) that forward neither takes nor gives back",
        expected="a word on what is wanted",
        hint="window=10 (--window 10) exports windows of 10 frames, as it stands; carry_state=True (--carry-state) "
        "a step whose state is carried on from frame to frame, longer than it may have been trained for",
    )


# -- whether a candidate is borne out -----------------------------------------------------------------------------


def _fit(module: nn.Module, frames: Frames, candidate: Candidate) -> tuple[Form, dict[int, Result]]:
    """The module's form and the results of one step for FEW and for MORE streams. Raises Unfit."""
    results = {}
    form = None
    for n in (FEW, MORE):
        leaves, nesting = pytree.tree_flatten(call(candidate.make, n))
        form = replace(candidate.form, nesting=nesting)
        result = call(form.call, module, sample(frames, n), leaves)
        before, after = ([(tuple(t.shape), t.dtype) for t in group] for group in (leaves, result.states))
        if before != after:
            raise Unfit(
                f"given states {describe(leaves)}, returned {describe(result.states)} as the next ones",
                returned=True,
            )
        check_numbers([*result.outputs, *result.states])
        results[n] = result
    assert form is not None
    if form.time is not None:
        form = _with_timed_outputs(module, frames, form, candidate)
        results = {
            n: form.call(module, sample(frames, n), pytree.tree_leaves(candidate.make(n))) for n in results
        }
    _check_streams(module, frames, form, candidate, results)
    return form, results


def _check_streams(
    module: nn.Module, frames: Frames, form: Form, candidate: Candidate, results: Mapping[int, Result]
) -> None:
    """Every state has an axis for streams, every output has it first, and no stream sees another. Raises Unfit.

    Time on the other axis, and a sequence without a batch taken for frames, show as streams that see each other.
    """
    few, more = results[FEW], results[MORE]
    for k, (a, b) in enumerate(zip(few.outputs, more.outputs, strict=True)):
        if a.dim() == 0 or a.shape[:1] != (FEW,) or b.shape[:1] != (MORE,) or a.shape[1:] != b.shape[1:]:
            raise Unfit(
                f"gave output {k} as {list(a.shape)} for {FEW} streams and {list(b.shape)} for {MORE}, whose first "
                "axis is not the streams",
                returned=True,
            )
    axes = [
        stream_axis(f"state {k}", a, b) for k, (a, b) in enumerate(zip(few.states, more.states, strict=True))
    ]
    if form.time is None and (form.arguments == "leaves" or form.kind == "cell"):
        return
    changed = [
        torch.stack([y[0], x[1]]) if x.is_floating_point() else x
        for x, y in zip(sample(frames, FEW), sample(frames, FEW, seed=1), strict=True)
    ]
    other = call(form.call, module, changed, pytree.tree_leaves(candidate.make(FEW)))
    same = all(close(a[1], b[1]) for a, b in zip(few.outputs, other.outputs, strict=True)) and all(
        close(a.select(axis, 1), b.select(axis, 1))
        for a, b, axis in zip(few.states, other.states, axes, strict=True)
    )
    if not same:
        raise Unfit("gave one stream other results when the frame of another changed", returned=True)


def stream_axis(name: str, few: Tensor, more: Tensor) -> int:
    """The axis that follows the number of streams. Raises Unfit."""
    for axis, sizes in enumerate(zip(few.shape, more.shape, strict=True)):
        if sizes == (FEW, MORE):
            return axis
    raise Unfit(
        f"gave {name} as {list(few.shape)} for {FEW} streams and {list(more.shape)} for {MORE}, without an axis "
        "of that size",
        returned=True,
    )


def _with_timed_outputs(module: nn.Module, frames: Frames, form: Form, candidate: Candidate) -> Form:
    """Which outputs of a sequence module have a time axis; and is it a recurrence?

    Two frames in one call must give what they give one after the other. A module that looks at a window (a second
    direction, a convolution over time, attention) does not, and streaming it frame by frame would be wrong.
    """
    time = form.time
    assert time is not None
    first, second = sample(frames, FEW, seed=1), sample(frames, FEW, seed=2)
    leaves = pytree.tree_leaves(candidate.make(FEW))
    both = [torch.stack(pair, dim=time) for pair in zip(first, second, strict=True)]
    at_once = form.read(call(form.run, module, both, leaves))
    one = call(form.call, module, first, leaves)
    two = call(form.call, module, second, one.states)
    timed = tuple(
        y.dim() > time and y.shape[time] == 2 and step.shape[time] == 1
        for y, step in zip(at_once.outputs, two.outputs, strict=True)
    )
    whole = [y.select(time, 1) if t else y for y, t in zip(at_once.outputs, timed, strict=True)]
    steps = [y.squeeze(time) if t else y for y, t in zip(two.outputs, timed, strict=True)]
    for a, b in zip([*whole, *at_once.states], [*steps, *two.states], strict=True):
        if not close(a, b):
            raise Windowed(
                "gives other results for two frames in one call than for one after the other", returned=True
            )
    return replace(form, timed=timed)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results of one computation are the same."""
    if a.shape != b.shape:
        return False
    check_numbers([a, b])
    scale = float(a.abs().max()) if a.numel() else 0.0
    return torch.allclose(a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE * scale)


# -- what it becomes ----------------------------------------------------------------------------------------------


def _step(
    module: nn.Module,
    frames: Frames,
    form: Form,
    candidate: Candidate,
    results: Mapping[int, Result],
    states: Any,
    outputs: Sequence[str] | None,
) -> TorchStep:
    few, more = (results[n] for n in (FEW, MORE))
    places = _places(few.states, more.states)
    if candidate.source == LEFT_OUT and states is None:
        _check_starts_at_zero(module, frames, form, few)
    initial = [place.take(pytree.tree_leaves(candidate.make(FEW))) for place in places]
    names = list(states) if isinstance(states, Mapping) else []
    shapes = [tuple(t.shape[1:]) for t in initial]
    if states is not None and candidate.source != GIVEN:
        # The module told how it nests its states; what they start from is the user's word.
        given = _flat(states)
        if [tuple(t.shape) for t in given] != shapes:
            raise EdgeLstmError(
                f"the states of {called(module)}",
                found=f"{[tuple(t.shape) for t in given]} as given",
                expected=f"{shapes}",
            )
        initial = [torch.stack([t] * FEW).to(like.dtype) for t, like in zip(given, initial, strict=True)]
    if len(names) != len(places):
        names = _state_names(module, form, candidate.make(FEW), places, len(frames))
    taken = {*frames, *names}
    labels = [
        n if n not in taken else f"{n}_out"
        for n in output_names(module, len(few.outputs), few.names, outputs)
    ]
    signature = Signature(
        inputs=tuple(TensorSpec(n, dtype_of(n, f), ("N", *f.shape)) for n, f in frames.items()),
        outputs=tuple(
            TensorSpec(n, dtype_of(n, y), ("N", *y.shape[1:]))
            for n, y in zip(labels, few.outputs, strict=True)
        ),
        states=tuple(
            StateSpec(n, n, f"{n}_next", dtype_of(n, t), ("N", *t.shape[1:]), _initial(n, t))
            for n, t in zip(names, initial, strict=True)
        ),
    )
    return TorchStep(module, form, places, signature)


def _flat(states: Any) -> list[Tensor]:
    return pytree.tree_leaves(examples(tuple(states.values()) if isinstance(states, Mapping) else states))


def _places(few: Sequence[Tensor], more: Sequence[Tensor]) -> list[Place]:
    axes = [stream_axis(f"state {k}", a, b) for k, (a, b) in enumerate(zip(few, more, strict=True))]
    layers = {t.shape[0] if axis == 1 else None for t, axis in zip(few, axes, strict=True)}
    count = layers.pop() if len(layers) == 1 else None
    if count is not None and count <= MAX_LAYERS:
        return [Place(k, 1, part) for part in range(count) for k in range(len(few))]
    return [Place(k, axis) for k, axis in enumerate(axes)]


def _check_starts_at_zero(module: nn.Module, frames: Frames, form: Form, result: Result) -> None:
    untold = form.read(module(*sample(frames, FEW, time=form.time))).states
    if not all(close(a, b) for a, b in zip(untold, result.states, strict=True)):
        raise EdgeLstmError(
            f"{called(module)} starts from a state of its own",
            found="a first step without a state that differs from one that starts from zeros",
            expected="states=, arrays of its initial values without the stream axis",
        )


def _state_names(
    module: nn.Module, form: Form, nested: Any, places: Sequence[Place], frames: int
) -> list[str]:
    """h0, c0, h1, c1, ... (h1 alone for a GRU), if they come by layers; else forward's names; else state0, state1, ..."""
    count = len(places)
    if form.arguments == "leaves":
        positional = argument_names(module)[0][frames:]
        if len(positional) == count:
            return positional
        leaves = pytree.tree_leaves(nested)
        paired = count % 2 == 0 and all(
            a.shape == b.shape for a, b in zip(leaves[::2], leaves[1::2], strict=True)
        )
    elif isinstance(nested, Tensor):
        return [f"h{k}" for k in range(count)]
    elif _is_pair(nested):
        paired = True
    else:
        groups = [[item] if isinstance(item, Tensor) else item for item in nested]
        paired = all(map(_is_pair, groups))
        if not paired and all(len(group) == 1 or _is_pair(group) for group in groups):
            names = [f"{'hc'[k]}{number}" for number, group in enumerate(groups) for k in range(len(group))]
            if len(names) == count:
                return names
    if paired:
        return [f"{'hc'[k % 2]}{k // 2}" for k in range(count)]
    return [f"state{k}" for k in range(count)]


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(t, Tensor) for t in value)


def output_names(
    module: nn.Module, count: int, own: Sequence[str] | None, outputs: Sequence[str] | None
) -> Sequence[str]:
    """Names of ``count`` outputs: as asked for, as the module says, as it ``own``s them, or y, y0, y1, ..."""
    names = outputs or getattr(module, "output_names", None) or own
    if names is None:
        return ["y"] if count == 1 else [f"y{k}" for k in range(count)]
    if len(names) != count:
        raise EdgeLstmError(
            f"names of the outputs of {called(module)}",
            found=list(names),
            expected=f"{count} names",
        )
    return list(names)


def dtype_of(name: str, tensor: Tensor) -> str:
    """A Signature's name for the dtype. Raises EdgeLstmError for others."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise EdgeLstmError(f"dtype of {name!r}", found=dtype, expected=f"one of {', '.join(DTYPES)}")
    return dtype


def _initial(name: str, value: Tensor) -> bytes | None:
    if not torch.equal(value[0], value[1]):
        raise EdgeLstmError(
            f"the initial value of state {name!r}", found="one that differs from stream to stream"
        )
    return bytes(value[0].contiguous().numpy().tobytes()) if bool(value.any()) else None


def _refusal(
    module: nn.Module,
    frames: Frames,
    attempts: Sequence[tuple[Candidate, Unfit]],
    states: Any,
    carry_state: bool,
) -> EdgeLstmError:
    """One message for all that was tried: the attempt that got furthest."""
    if any(isinstance(unfit, Windowed) for _, unfit in attempts):
        return EdgeLstmError(
            f"{called(module)} is a window, not a step",
            found="two frames in one call give other results than one after the other with the state carried",
            expected="a module whose state is all it knows of the past, and that needs no frames of the future",
            hint="window=10 (--window 10) exports windows of 10 frames, as it stands",
        )

    def distance(attempt: tuple[Candidate, Unfit]) -> int:
        # Something came back; or forward ran into a wall inside; or it did not even take the arguments.
        _, unfit = attempt
        return 0 if unfit.returned else 2 if "TypeError" in str(unfit) else 1

    name = called(module)
    candidate, unfit = min(attempts, key=distance)
    if candidate.source == DOCUMENTED:
        shapes = ", ".join(str(list(frame.shape)) for frame in frames.values())
        return EdgeLstmError(f"{name} can't take a frame of shape {shapes}", found=f"it {unfit}")
    form = FORMS[candidate.form.kind].split(",")[0]
    return EdgeLstmError(
        f"{name}.forward is not step-shaped",
        found=f"called as {form} ({candidate.source}) it {unfit}",
        expected="; or ".join(FORMS.values()),
        hint=_hint(module, len(frames), states, carry_state),
    )


def _hint(module: nn.Module, frames: int, states: Any, carry_state: bool) -> str:
    if states is not None:
        return "Check the shapes in states= (without the stream axis) and of the frame"
    if takes_states(module, frames):
        return "If only its states are unknown, give one stream's shapes: states={'h0': (64,), 'c0': (64,)}"
    text = (
        "It takes nothing but frames. window=10 (--window 10) exports windows of 10 frames, as it stands; for a step, "
        "let forward take its state and give the next one"
    )
    if carry_state:
        text = (
            f"No state inside it was found that could be carried: that needs cells which are modules. {text}"
        )
    return text
