"""Which form a torch module has, found by running it. README.md beside this file lists what is tried, in order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.frontends.torch.arguments import forms
from edgelstm.frontends.torch.conventions import (
    INSIDE,
    KEPT,
    STARTERS,
    Candidate,
    candidates,
    made,
    maker_arguments,
)
from edgelstm.frontends.torch.inner_states import Inside, find, initial
from edgelstm.frontends.torch.kept import Kept
from edgelstm.frontends.torch.memory import Call, Memory, at_the_door, check_repeats, recall
from edgelstm.frontends.torch.naming import keys_of, make_step, stream_axis
from edgelstm.frontends.torch.pairing import choices, depends, settle
from edgelstm.frontends.torch.refusal import Attempt, forgets, refusal, restarts
from edgelstm.frontends.torch.running import (
    FEW,
    MORE,
    Frames,
    NoNumbers,
    check_numbers,
    close,
    returned,
    run,
    sample,
    step,
    with_numbers,
)
from edgelstm.frontends.torch.snapshot import Snapshot, put_back, remember
from edgelstm.frontends.torch.torch_step import (
    PAIRED,
    RETURNED,
    Form,
    Picked,
    Result,
    TorchStep,
    Unfit,
    Windowed,
    called,
)
from edgelstm.frontends.torch.tree import describe, flatten, leaves, tensors_in
from edgelstm.frontends.torch.windows import window_that_works


def probe(
    module: nn.Module,
    frames: Frames,
    states: Any,
    batch_first: bool | None,
    outputs: Sequence[str] | None,
    carry_state: bool,
    results: Sequence[str] | None = None,
) -> TorchStep:
    """See :func:`edgelstm.frontends.torch.recognise.as_step`; ``module`` is a copy in evaluation mode."""
    attempts: list[Attempt] = []

    def once() -> TorchStep:
        del attempts[:]
        with torch.no_grad(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            return _probe(module, frames, states, batch_first, outputs, carry_state, results, attempts)

    try:
        return with_numbers(once)
    except NoNumbers:
        raise refusal(module, frames, attempts, states, partial(window_that_works, module, frames)) from None


def _probe(
    module: nn.Module,
    frames: Frames,
    states: Any,
    batch_first: bool | None,
    outputs: Sequence[str] | None,
    carry_state: bool,
    results: Sequence[str] | None,
    attempts: list[Attempt],
) -> TorchStep:
    """Raises NoNumbers where other frames may tell more, EdgeLstmError where nothing will."""
    for _ in _started(module, frames, states):
        found = _taking(module, frames, states, batch_first, results, attempts)
        found = found or _keeping(module, frames, batch_first, attempts)
        if found is None:
            continue
        form, candidate, memory, kept = found
        if kept is None:
            return make_step(module, frames, form, candidate, states, outputs)
        assert memory is not None
        if not carry_state:
            raise forgets(module, memory, None)
        return make_step(kept, frames, form, candidate, states, outputs)
    if not any(isinstance(unfit, Windowed) for _, _, unfit in attempts):
        for inside, candidate in _inside(module, frames, batch_first):
            assert candidate.form is not None
            try:
                form = _fit(inside, frames, candidate, candidate.form, None, None)
                _check_same(module, inside, frames, candidate)
            except Unfit as unfit:
                attempts.append((candidate, candidate.form, unfit))
                continue
            if not (carry_state or inside.gives_states):
                raise restarts(inside, window_that_works(module, frames))
            return make_step(inside, frames, form, candidate, states, outputs)
    if numbers := [unfit for _, _, unfit in attempts if isinstance(unfit, NoNumbers)]:
        raise numbers[0]
    raise refusal(module, frames, attempts, states, partial(window_that_works, module, frames))


Made = tuple[Form, Candidate, Memory | None, nn.Module | None]


def _started(module: nn.Module, frames: Frames, states: Any) -> Iterator[None]:
    """The module as it is; then after each method that makes what it lacks before its first frame."""
    remember(module)
    yield
    for part in module.modules():
        for name in STARTERS:
            method = getattr(part, name, None)
            if isinstance(part, torch.jit.ScriptModule) or not callable(method):
                continue
            for arguments in maker_arguments(method, frames, part, states):
                put_back(module)
                before = Snapshot(module)
                try:
                    made(method, arguments, 1)
                except Unfit:
                    continue
                if Snapshot(module).changed(before):
                    remember(module)
                    yield


def _taking(
    module: nn.Module,
    frames: Frames,
    states: Any,
    batch_first: bool | None,
    results: Sequence[str] | None,
    attempts: list[Attempt],
) -> Made | None:
    """The module as one that takes states, and perhaps keeps others besides."""
    for candidate in candidates(module, frames, states, batch_first):
        try:
            given, _ = flatten(run(candidate.make, FEW))
        except Unfit as unfit:
            attempts.append((candidate, candidate.form, unfit))
            continue
        keys = tuple(map(str, states)) if isinstance(states, Mapping) else ()
        for form in candidate.forms(module, frames, len(given), keys, batch_first):
            try:
                fitting = _fit(module, frames, candidate, form, states, results)
                found = _remembering(module, frames, fitting, candidate)
            except Unfit as unfit:
                attempts.append((candidate, form, unfit))
                continue
            return found or (fitting, candidate, None, None)
    return None


def _keeping(
    module: nn.Module, frames: Frames, batch_first: bool | None, attempts: list[Attempt]
) -> Made | None:
    """The module as one that takes frames alone and keeps its states to itself."""
    of_one: Made | None = None
    for form in forms(module, tuple(frames), 0, (), batch_first):
        candidate = Candidate(_nothing, KEPT, form)
        try:
            back = returned(module, form, sample(frames, 1, time=form.time), ())
        except Unfit as unfit:
            attempts.append((candidate, form, unfit))
            continue
        count = len(leaves(back))
        form = replace(form, picked=Picked(tuple(range(count)), ()), timed=(False,) * count)
        if not count:
            continue
        try:
            found = _remembering(module, frames, form, candidate)
        except Unfit as unfit:
            attempts.append((candidate, form, unfit))
            continue
        if found is None:
            attempts.append((candidate, form, Unfit(f"returned {describe(back)}", got=RETURNED)))
            continue
        if not (isinstance(found[3], Kept) and found[3].one_stream):
            return found
        # Another form may tell streams apart: a sequence without streams looks like a frame of several.
        of_one = of_one or found
    return of_one


def _nothing(n: int) -> tuple[Any, ...]:
    return ()


def _remembering(module: nn.Module, frames: Frames, form: Form, candidate: Candidate) -> Made | None:
    """With what it keeps besides, if it keeps anything. Raises Unfit, or EdgeLstmError where that can't be carried."""
    call = Call(module, form, frames, lambda n: tensors_in(run(candidate.make, n)))
    memory = recall(call)
    if memory is None:
        return None
    if memory.branches:
        raise forgets(module, memory, Unfit("is a number that decides what runs", got=PAIRED))
    try:
        kept = at_the_door(call, memory)
    except Unfit as unfit:
        raise forgets(module, memory, unfit) from unfit

    def make(n: int) -> list[Tensor]:
        return [*call.states(n), *kept.first(n)]

    outer = Candidate(make, KEPT, kept.form)
    fitting = kept.form if kept.one_stream else _fit(kept, frames, outer, kept.form, None, None)
    return fitting, outer, memory, kept


def _inside(
    module: nn.Module, frames: Frames, batch_first: bool | None
) -> Iterator[tuple[Inside, Candidate]]:
    """The module with the states of its cells at the door, for either axis of time, and for one frame a call."""
    for time in (1, 0, None):
        try:
            put_back(module)
            found = find(module, frames, time) if batch_first in (None, time == 1) else None
        except Unfit:
            continue
        if found is not None:
            make = partial(initial, module, found, frames, time)
            yield found, Candidate(make, INSIDE, Form("nested", time))


def _check_same(module: nn.Module, inside: Inside, frames: Frames, candidate: Candidate) -> None:
    """What it starts from is what the module itself starts from. Raises Unfit."""
    time = candidate.form.time if candidate.form else None
    both = sample(frames, FEW, seed=1)
    if time is not None:
        both = [torch.stack(pair, dim=time) for pair in zip(both, sample(frames, FEW, seed=2), strict=True)]
    whole = run(module, *both)
    told = run(inside, *both, candidate.make(FEW))[0]
    ours = tensors_in(told)
    theirs = tensors_in(whole[0] if inside.gives_states else whole)
    if len(ours) != len(theirs) or not all(close(a, b) for a, b in zip(theirs, ours, strict=True)):
        raise Unfit("gave other results when its cells start from their first state", got=PAIRED)


# -- whether a candidate is borne out -----------------------------------------------------------------------------


def _fit(
    module: nn.Module,
    frames: Frames,
    candidate: Candidate,
    form: Form,
    states: Any,
    results: Sequence[str] | None,
) -> Form:
    """The form, complete: how states nest and what comes back. Raises Unfit, EdgeLstmError where the user has to be asked."""
    given, back = [], []
    keys: list[str] = []
    for n in (FEW, MORE):
        made = run(candidate.make, n)
        tensors, nesting = flatten(made)
        form = replace(form, nesting=nesting)
        # Not zeros: what differs may not look the same.
        given.append([_noise(t, k) for k, t in enumerate(tensors)])
        keys = keys_of(module, form, made, states, len(frames), len(tensors))
        back.append(returned(module, form, sample(frames, n, time=form.time), given[-1]))
        check_numbers(tensors_in(back[-1]))
    if candidate.source == INSIDE:
        outputs = len(tensors_in(back[0][0]))
        form = replace(form, picked=all_of(outputs, len(given[0])))
    left = [form.picked] if form.picked is not None else choices(form, given, back, keys, results)
    fitting: list[Form] = []
    failed: Unfit | None = None
    check_repeats(Call(module, form, frames, lambda n: tensors_in(run(candidate.make, n))), FEW)
    for picked in left:
        each = replace(form, picked=picked, timed=())
        try:
            if each.time is not None:
                each = _with_timed_outputs(module, frames, each, candidate)
            found = {
                n: step(module, each, sample(frames, n), tensors_in(run(candidate.make, n)))
                for n in (FEW, MORE)
            }
            _check_streams(module, frames, each, candidate, found)
        except Unfit as unfit:
            failed = failed or unfit
            continue
        fitting.append(each)
    if not fitting:
        assert failed is not None
        raise failed
    put_back(module)
    example = sample(frames, FEW, time=form.time)
    if not depends(module, fitting[0], example, given[0]):
        raise Unfit("gave the same whatever states it was given", got=PAIRED)
    if len(fitting) == 1:
        return fitting[0]
    put_back(module)
    left = [each.picked for each in fitting if each.picked is not None]
    chosen = settle(module, fitting[0], example, given[0], left, keys, called(module))
    return next(each for each in fitting if each.picked == chosen)


def all_of(outputs: int, states: int) -> Picked:
    """So many outputs, then so many next states."""
    return Picked(tuple(range(outputs)), tuple(range(outputs, outputs + states)))


def _noise(tensor: Tensor, seed: int) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.rand(tensor.shape, generator=generator).to(tensor.dtype)


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
                got=PAIRED,
            )
    axes = [
        stream_axis(f"state {k}", a, b) for k, (a, b) in enumerate(zip(few.states, more.states, strict=True))
    ]
    assert form.picked is not None
    cell = form.picked.outputs[0] in form.picked.states
    if form.time is None and (form.arguments == "leaves" or cell):
        return
    changed = [
        torch.stack([y[0], x[1]]) if x.is_floating_point() else x
        for x, y in zip(sample(frames, FEW), sample(frames, FEW, seed=1), strict=True)
    ]
    other = step(module, form, changed, tensors_in(run(candidate.make, FEW)))
    same = all(close(a[1], b[1]) for a, b in zip(few.outputs, other.outputs, strict=True)) and all(
        close(a.select(axis, 1), b.select(axis, 1))
        for a, b, axis in zip(few.states, other.states, axes, strict=True)
    )
    if not same:
        raise Unfit("gave one stream other results when the frame of another changed", got=PAIRED)


def _with_timed_outputs(module: nn.Module, frames: Frames, form: Form, candidate: Candidate) -> Form:
    """Which outputs of a sequence module have a time axis; and is it a recurrence?

    Two frames in one call must give what they give one after the other. A module that looks at a window (a second
    direction, a convolution over time, attention) does not, and streaming it frame by frame would be wrong.
    """
    time = form.time
    assert time is not None
    first, second = sample(frames, FEW, seed=1), sample(frames, FEW, seed=2)
    start = tensors_in(run(candidate.make, FEW))
    both = [torch.stack(pair, dim=time) for pair in zip(first, second, strict=True)]
    at_once = form.read(returned(module, form, both, start))
    one = step(module, form, first, start)
    two = step(module, form, second, one.states)
    timed = tuple(
        y.dim() > time and y.shape[time] == 2 and each.dim() > time and each.shape[time] == 1
        for y, each in zip(at_once.outputs, two.outputs, strict=True)
    )
    whole = [y.select(time, 1) if t else y for y, t in zip(at_once.outputs, timed, strict=True)]
    steps = [y.squeeze(time) if t else y for y, t in zip(two.outputs, timed, strict=True)]
    for a, b in zip([*whole, *at_once.states], [*steps, *two.states], strict=True):
        if not close(a, b):
            raise Windowed(
                "gives other results for two frames in one call than for one after the other", got=PAIRED
            )
    return replace(form, timed=timed)
