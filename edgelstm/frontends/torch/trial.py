"""Which form a torch module has, found by running it. README.md beside this file lists what is tried, in order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.torch.arguments import forms
from edgelstm.frontends.torch.at_the_door import at_the_door
from edgelstm.frontends.torch.conventions import (
    INSIDE,
    KEPT,
    LEFT_OUT,
    STARTERS,
    Candidate,
    candidates,
    made,
    maker_arguments,
    methods_called,
)
from edgelstm.frontends.torch.first_call import FirstCall
from edgelstm.frontends.torch.fitting import Mixed, fit
from edgelstm.frontends.torch.inner_states import Inside, find, initial
from edgelstm.frontends.torch.kept import Kept
from edgelstm.frontends.torch.memory import Call, Memory, recall
from edgelstm.frontends.torch.naming import make_step, starts_at_zero, stream_axis
from edgelstm.frontends.torch.refusal import Attempt, forgets, refusal, restarts
from edgelstm.frontends.torch.running import (
    FEW,
    MORE,
    Frames,
    NoNumbers,
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
            if (
                candidate.source == LEFT_OUT
                and states is None
                and not starts_at_zero(module, frames, form, candidate)
            ):
                module, form, candidate = _with_first_call(module, frames, form, candidate)
            made_step = make_step(module, frames, form, candidate, states, outputs)
            if states is None and candidate.maker and _begins_otherwise(module, frames, form, candidate):
                made_step.begun_by = candidate.maker
            return made_step
        assert memory is not None
        if not carry_state:
            raise forgets(module, memory, None)
        return make_step(kept, frames, form, candidate, states, outputs)
    if not any(isinstance(unfit, Windowed) for _, _, unfit in attempts):
        for inside, candidate in _inside(module, frames, batch_first):
            assert candidate.form is not None
            try:
                form = fit(inside, frames, candidate, candidate.form, None, None)
                _check_same(module, inside, frames, candidate)
            except Unfit as unfit:
                attempts.append((candidate, candidate.form, unfit))
                continue
            if not (carry_state or inside.gives_states):
                raise restarts(inside, window_that_works(module, frames))
            return make_step(inside, frames, form, candidate, states, outputs)
    if numbers := [unfit for _, _, unfit in attempts if isinstance(unfit, NoNumbers)]:
        raise numbers[0]
    if not any(isinstance(unfit, Windowed) for _, _, unfit in attempts):
        mixed = [unfit for _, _, unfit in attempts if isinstance(unfit, Mixed)]
        if mixed and (taken := _mixing(module, frames, mixed, states, outputs, carry_state)) is not None:
            return taken
    raise refusal(module, frames, attempts, states, partial(window_that_works, module, frames))


def _mixing(
    module: nn.Module,
    frames: Frames,
    mixed: Sequence[Mixed],
    states: Any,
    outputs: Sequence[str] | None,
    carry_state: bool,
) -> TorchStep | None:
    """A module whose streams see each other, where nothing else is wrong with it: what mixes them is told by its graph.

    None where it could be taken in more than one way.
    """
    if len({each.form.time for each in mixed}) > 1:
        return None
    first = mixed[0]
    if first.asks is not None:
        raise first.asks
    if isinstance(first.module, Inside):
        try:
            _check_same(module, first.module, frames, first.candidate)
        except Unfit:
            return None
        if not (carry_state or first.module.gives_states):
            raise restarts(first.module, window_that_works(module, frames))
    else:
        found = _remembering(module, frames, first.form, first.candidate)
        if found is not None:
            form, candidate, memory, kept = found
            assert memory is not None
            assert kept is not None
            if not carry_state:
                raise forgets(module, memory, None)
            return make_step(kept, frames, form, candidate, states, outputs)
    return make_step(first.module, frames, first.form, first.candidate, states, outputs)


def _begins_otherwise(module: nn.Module, frames: Frames, form: Form, candidate: Candidate) -> bool:
    """Whether a call without states is one, and begins with other states than the candidate's."""
    try:
        return not starts_at_zero(module, frames, form, candidate)
    except Unfit:
        return False
    except EdgeLstmError:  # draws them
        return True


Made = tuple[Form, Candidate, Memory | None, nn.Module | None]


def _started(module: nn.Module, frames: Frames, states: Any) -> Iterator[None]:
    """The module as it is; then after each method that makes what it lacks before its first frame."""
    remember(module)
    yield
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        for _, method in methods_called(part, STARTERS):
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
        for form in _in_place_too(
            module, frames, candidate, candidate.forms(module, frames, len(given), keys, batch_first)
        ):
            try:
                fitting = fit(module, frames, candidate, form, states, results)
                found = _remembering(module, frames, fitting, candidate)
                zero = candidate.source != LEFT_OUT or states is not None
                if found and not (zero or starts_at_zero(module, frames, fitting, candidate)):
                    raise EdgeLstmError(
                        f"{called(module)} starts from a state of its own, and keeps others",
                        found="a first step without a state that differs from one that starts from zeros",
                        expected="states=, arrays of its initial values without the stream axis",
                    )
            except Unfit as unfit:
                attempts.append((candidate, form, unfit))
                continue
            return found or (fitting, candidate, None, None)
    return None


def _in_place_too(
    module: nn.Module, frames: Frames, candidate: Candidate, given: Iterator[Form]
) -> Iterator[Form]:
    """Each form; then, where such a call writes into all the states it was given, as one whose next states these are."""
    for form in given:
        yield form
        states, nesting = flatten(run(candidate.make, FEW))
        left = replace(form, nesting=nesting, in_place=True)
        try:
            _, after = returned(module, left, sample(frames, FEW, seed=1, time=form.time), states)
        except Unfit:
            continue
        found = tensors_in(after)
        if len(found) == len(states) > 0 and all(
            a.shape == b.shape and not torch.equal(a, b) for a, b in zip(found, states, strict=True)
        ):
            yield replace(form, in_place=True)


def _keeping(
    module: nn.Module, frames: Frames, batch_first: bool | None, attempts: list[Attempt]
) -> Made | None:
    """The module as one that takes frames alone and keeps its states to itself."""
    of_one: Made | None = None
    for form in forms(module, tuple(frames), 0, (), batch_first):
        if form.nones:
            continue
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
    # A window in the right form must not pass as a frame of one stream in a form that happens to run.
    return None if any(isinstance(unfit, Windowed) for _, _, unfit in attempts) else of_one


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
    fitting = kept.form if kept.one_stream else fit(kept, frames, outer, kept.form, None, None)
    return fitting, outer, memory, kept


def _with_first_call(
    module: nn.Module, frames: Frames, form: Form, candidate: Candidate
) -> tuple[nn.Module, Form, Candidate]:
    """A module that starts from more than zeros, its first call computed as it computes it. Raises EdgeLstmError."""
    few, more = (
        step(module, form, sample(frames, n), tensors_in(run(candidate.make, n))) for n in (FEW, MORE)
    )
    axes = [
        stream_axis(f"state {k}", a, b) for k, (a, b) in enumerate(zip(few.states, more.states, strict=True))
    ]
    assert candidate.form is not None
    first = FirstCall(module, form, candidate.form, tuple(axes))

    def make(n: int) -> list[Tensor]:
        return [*tensors_in(run(candidate.make, n)), torch.zeros(n, dtype=torch.bool)]

    outer = Candidate(make, KEPT, first.form)
    try:
        return first, fit(first, frames, outer, first.form, None, None), outer
    except Unfit as unfit:
        raise EdgeLstmError(
            f"{called(module)} starts from a state of its own",
            found=f"a first step without a state that differs from one that starts from zeros; computed beside the others it {unfit}",
            expected="states=, arrays of its initial values without the stream axis",
        ) from unfit


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
