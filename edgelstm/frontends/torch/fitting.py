"""Whether a guess is borne out: a form in which a module may be called, completed by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.torch.conventions import INSIDE, Candidate
from edgelstm.frontends.torch.longer import check_longer
from edgelstm.frontends.torch.memory import Call, check_repeats
from edgelstm.frontends.torch.naming import keys_of, stream_axis
from edgelstm.frontends.torch.pairing import (
    Ambiguous,
    check_numbers_stay,
    choices,
    depends,
    is_whole,
    reordered,
    settle,
)
from edgelstm.frontends.torch.running import (
    FEW,
    MORE,
    Frames,
    check_numbers,
    close,
    returned,
    run,
    sample,
    step,
)
from edgelstm.frontends.torch.snapshot import put_back
from edgelstm.frontends.torch.torch_step import PAIRED, Form, Picked, Result, Unfit, Windowed, called
from edgelstm.frontends.torch.tree import flatten, tensors_in


def fit(
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
    form = replace(form, keys=tuple(keys))
    left = [form.picked] if form.picked is not None else choices(form, given, back, keys, results)
    check_repeats(Call(module, form, frames, lambda n: tensors_in(run(candidate.make, n))), FEW)
    found = _borne_out(module, frames, candidate, form, left)
    example = sample(frames, FEW, time=form.time)
    if isinstance(found.failed, Windowed) and form.picked is None and results is None:
        put_back(module)
        others = reordered(module, form, example, given, back, left)
        again = _borne_out(module, frames, candidate, replace(form, reordered=True), others)
        found = again if again.fitting or again.mixing else found
    fitting = found.fitting or found.mixing
    if not fitting:
        assert found.failed is not None
        raise found.failed
    put_back(module)
    if not depends(module, fitting[0], example, given[0]):
        raise Unfit("gave the same whatever states it was given", got=PAIRED)
    put_back(module)
    chosen = fitting[0]
    if len(fitting) > 1:
        choices_left = [each.picked for each in fitting if each.picked is not None]
        try:
            picked = settle(module, chosen, example, given[0], choices_left, keys, called(module))
        except Ambiguous as error:
            if found.fitting:
                raise
            raise Mixed(module, chosen, candidate, error) from error
        chosen = next(each for each in fitting if each.picked == picked)
    chosen = replace(chosen, whole=is_whole(back[0], chosen))
    put_back(module)
    check_numbers_stay(module, chosen, back[0])
    _check_counts(module, chosen, example, given[0])
    check_longer(module, frames, chosen, candidate.make)
    if not found.fitting:
        raise Mixed(module, chosen, candidate)
    return chosen


#: What an argument that counts frames or streams is given instead, to see that it does no more than count.
_OTHER_COUNTS = (0, 2, 3, 7, 100)


def _check_counts(module: nn.Module, form: Form, frames: Sequence[Tensor], states: Sequence[Tensor]) -> None:
    """Raise Unfit where a number taken for that of frames or streams is another: a step's index, how often something is repeated.

    Of a wrong count a module raises, or gives other shapes.
    """
    counts = [*(form.lengths if form.time is None else ()), *form.batches]
    if not counts:
        return
    args, kwargs = form.bound(frames, states)
    before = tensors_in(run(module, *args, **kwargs))
    for name in counts:
        for number in _OTHER_COUNTS:
            try:
                after = tensors_in(run(module, *args, **{**kwargs, name: number}))
            except Unfit:
                continue
            same_shapes = [y.shape for y in after] == [y.shape for y in before]
            if same_shapes and not all(map(close, before, after)):
                raise Unfit(
                    f"needs {name!r}, a number that its results depend on, and it is neither how many frames nor how many streams",
                    got=PAIRED,
                )


class Mixed(Unfit):
    """All fits but that streams see each other: what is right of such a module is one stream a call.

    asks: what would have to be asked of its results.
    """

    def __init__(
        self, module: nn.Module, form: Form, candidate: Candidate, asks: EdgeLstmError | None = None
    ) -> None:
        super().__init__("gave one stream other results when the frame of another changed", got=PAIRED)
        self.module, self.form, self.candidate, self.asks = module, form, candidate, asks


@dataclass
class _Found:
    """Of several ways to read what came back: those that hold; those that hold but that streams mix; why the first failed."""

    fitting: list[Form] = field(default_factory=list)
    mixing: list[Form] = field(default_factory=list)
    failed: Unfit | None = None


def _borne_out(
    module: nn.Module, frames: Frames, candidate: Candidate, form: Form, left: Sequence[Picked]
) -> _Found:
    found = _Found()
    for picked in left:
        each = replace(form, picked=picked, timed=())
        try:
            if each.time is not None:
                each = _with_timed_outputs(module, frames, each, candidate)
            results = {
                n: step(module, each, sample(frames, n), tensors_in(run(candidate.make, n)))
                for n in (FEW, MORE)
            }
            if _separate(module, frames, each, candidate, results):
                found.fitting.append(each)
            else:
                found.mixing.append(each)
        except Unfit as unfit:
            found.failed = found.failed or unfit
    return found


def all_of(outputs: int, states: int) -> Picked:
    """So many outputs, then so many next states."""
    return Picked(tuple(range(outputs)), tuple(range(outputs, outputs + states)))


def _noise(tensor: Tensor, seed: int) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.rand(tensor.shape, generator=generator).to(tensor.dtype)


def _separate(
    module: nn.Module, frames: Frames, form: Form, candidate: Candidate, results: Mapping[int, Result]
) -> bool:
    """Whether no stream sees another. Raises Unfit where a state has no axis for streams, or an output not its first.

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
        return True
    changed = [
        torch.stack([y[0], x[1]]) if x.is_floating_point() else x
        for x, y in zip(sample(frames, FEW), sample(frames, FEW, seed=1), strict=True)
    ]
    other = step(module, form, changed, tensors_in(run(candidate.make, FEW)))
    return all(close(a[1], b[1]) for a, b in zip(few.outputs, other.outputs, strict=True)) and all(
        close(a.select(axis, 1), b.select(axis, 1))
        for a, b, axis in zip(few.states, other.states, axes, strict=True)
    )


def _with_timed_outputs(module: nn.Module, frames: Frames, form: Form, candidate: Candidate) -> Form:
    """Which outputs of a sequence module have a time axis; and is it a recurrence?

    Two frames in one call must give what they give one after the other. A module that looks at a window (a second
    direction, a convolution over time, attention) does not, and streaming it frame by frame would be wrong. What it keeps besides
    (a QRNN its last frame) is put back before the second frame, or goes on: either may be what a longer call is.
    """
    time = form.time
    assert time is not None
    first, second = sample(frames, FEW, seed=1), sample(frames, FEW, seed=2)
    start = tensors_in(run(candidate.make, FEW))
    both = [torch.stack(pair, dim=time) for pair in zip(first, second, strict=True)]
    at_once = form.read(returned(module, form, both, start))
    try:
        for fresh in (True, False):
            one = step(module, form, first, start)
            two = step(module, form, second, one.states, fresh=fresh)
            timed = tuple(
                y.dim() > time and y.shape[time] == 2 and each.dim() > time and each.shape[time] == 1
                for y, each in zip(at_once.outputs, two.outputs, strict=True)
            )
            whole = [y.select(time, 1) if t else y for y, t in zip(at_once.outputs, timed, strict=True)]
            steps = [y.squeeze(time) if t else y for y, t in zip(two.outputs, timed, strict=True)]
            if all(map(close, [*whole, *at_once.states], [*steps, *two.states])):
                return replace(form, timed=timed)
    finally:
        put_back(module)
    raise Windowed("gives other results for two frames in one call than for one after the other", got=PAIRED)
