"""Torch modules that compute windows, as they stand: T frames in, outputs out, nothing carried from call to call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.torch.arguments import forms
from edgelstm.frontends.torch.memory import Call, recall
from edgelstm.frontends.torch.naming import dtype_of, output_names, stream_axis
from edgelstm.frontends.torch.running import (
    FEW,
    MORE,
    Frames,
    check_numbers,
    close,
    returned,
    sample,
    with_numbers,
)
from edgelstm.frontends.torch.snapshot import remember
from edgelstm.frontends.torch.torch_step import RETURNED, Form, Unfit, called, in_float32, names_of
from edgelstm.frontends.torch.tree import children, describe, leaves
from edgelstm.graph.signature import Signature, TensorSpec

#: Lengths of windows that are tried before one is proposed.
LENGTHS = (10, 16, 8, 5, 4, 20, 12, 6, 3, 2)


@dataclass(frozen=True)
class Taken:
    """One output: its place among the tensors that come back, and its axes of streams and of time (None: it has none)."""

    place: int
    streams: int
    time: int | None

    def take(self, found: Sequence[Tensor], timed: bool) -> Tensor:
        """The output, [N, ...], or [N, T, ...] if it is ``timed``."""
        y = found[self.place].movedim(self.streams, 0)
        return y.movedim(self.time + (self.time < self.streams), 1) if timed and self.time is not None else y


class TorchWindow(nn.Module):
    """T frames of a torch module in one call: ``window(*frames) -> (outputs, ())``.

    Frames are [N, T, ...]. Outputs are [N, T, ...] where all of them have a time axis: the Signature then is that of a
    window. Otherwise a whole window is what the Signature calls a frame.
    """

    def __init__(self, module: nn.Module, form: Form, taken: Sequence[Taken], signature: Signature) -> None:
        super().__init__()
        self.module, self.form, self.taken, self.signature = module, form, tuple(taken), signature

    def around(self, module: nn.Module) -> TorchWindow:
        """The same window of another module."""
        return TorchWindow(module, self.form, self.taken, self.signature)

    def forward(self, *frames: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        laid = [_laid(frame, self.form.time) for frame in in_float32(self.signature, frames)]
        found, _ = _outputs(self.module, self.form.run(self.module, laid, ()))
        timed = self.signature.window is not None
        return tuple(t.take(found, timed) for t in self.taken), ()


def as_window(
    module: nn.Module,
    frames: Frames,
    length: int,
    batch_first: bool | None = None,
    outputs: Sequence[str] | None = None,
) -> TorchWindow:
    """``module``, a copy in evaluation mode, as a window of ``length`` frames.

    Where its streams and its time are is found by running it. Of what it gives back, a second thing that is a tuple
    or list is taken for its states and left out. Raises EdgeLstmError when it can't take such a window.
    """
    attempts: list[tuple[Form, Unfit]] = []
    mixed: list[MixedWindow] = []
    with torch.no_grad(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        remember(module)
        for form in forms(module, tuple(frames), 0, (), batch_first):
            if form.time is None:
                continue
            try:
                window = with_numbers(partial(_fit, module, frames, length, form, outputs))
            except Unfit as unfit:
                attempts.append((form, unfit))
                mixed += [unfit] if isinstance(unfit, MixedWindow) else []
                continue
            _check_forgets_nothing(module, frames, length, form)
            return window
        if mixed:
            window = _of_one_stream(module, frames, mixed)
            _check_forgets_nothing(module, frames, length, window.form)
            return window
    tried = sorted(attempts, key=lambda each: -each[1].got)[:2]
    raise EdgeLstmError(
        f"{called(module)} can't take a window of {count_of(length, 'frame')}",
        found="; ".join(f"called as {form.text} it {unfit}" for form, unfit in tried)
        or "a forward that takes no frames",
        expected="forward(x[B, T, ...]) -> y, or forward(x[T, B, ...]) -> y",
        hint="Check the shape of the frame (without streams and time) and the length of the window",
    )


class MixedWindow(Unfit):
    """All fits but that streams see each other. like_a_set: put in another order, streams give the same in that order."""

    def __init__(self, window: TorchWindow, like_a_set: bool) -> None:
        super().__init__("gave one stream other results when the frames of another changed", got=RETURNED)
        self.window, self.like_a_set = window, like_a_set


class MixedStreams(EdgeLstmError):
    """A module whose streams see each other, and it can't be told which axis of its frames is theirs; see ``crossed``."""

    def __init__(self, name: str, readings: Sequence[TorchWindow]) -> None:
        self.readings = tuple(readings)
        super().__init__(
            f"the streams of {name} see each other",
            found="one stream with other results when the frames of another changed",
            expected="rows that have nothing to do with each other, one a stream",
            hint="Where they mix by intent, give the module an attribute batch_first, True for x[B, T, ...] and False for "
            "x[T, B, ...]: then it is written for one stream",
        )


def _of_one_stream(module: nn.Module, frames: Frames, mixed: Sequence[MixedWindow]) -> TorchWindow:
    """The window whose streams mix, if it is beyond doubt which axis is theirs: what mixes them is told by its graph.

    Time taken for streams mixes as well, but not in any order: a mean over the batch does.
    """
    said = getattr(module, "batch_first", None)
    sets = [each for each in mixed if each.like_a_set]
    if len(sets) != 1 and (said is None or len(mixed) != 1):
        raise MixedStreams(called(module), [each.window for each in mixed])
    return (sets if len(sets) == 1 else mixed)[0].window


def window_that_works(module: nn.Module, frames: Frames) -> int | None:
    """A length of windows that :func:`as_window` takes, None where none was found."""
    for length in LENGTHS:
        try:
            as_window(module, frames, length)
        except EdgeLstmError:
            continue
        return length
    return None


def _check_forgets_nothing(module: nn.Module, frames: Frames, length: int, form: Form) -> None:
    """A window is all there is: nothing is kept from call to call, nothing is drawn. Raises EdgeLstmError."""
    windows = {name: torch.stack([frame] * length) for name, frame in frames.items()}
    call = Call(module, form, windows, lambda n: (), laid=True)
    memory = recall(call)
    if memory is not None:
        raise EdgeLstmError(
            f"{called(module)} keeps {memory.text()} from call to call, which a window would lose",
            expected="a step: carry_state=True (--carry-state) carries it from frame to frame as a state",
        )


def _fit(
    module: nn.Module, frames: Frames, length: int, form: Form, outputs: Sequence[str] | None
) -> TorchWindow:
    time = form.time
    assert time is not None

    def run(streams: int, *, frames_of: int = length, seed: int = 0) -> tuple[list[Tensor], Any]:
        windows = _windows(frames, streams, frames_of, time, seed)
        return _outputs(module, returned(module, form, windows, ()))

    few, names = run(FEW)
    check_numbers(few)
    more, _ = run(MORE)
    if len(few) != len(more):
        raise Unfit("gave more outputs for more streams", got=RETURNED)
    axes = [stream_axis(f"output {k}", a, b) for k, (a, b) in enumerate(zip(few, more, strict=True))]
    # The first stream's, since time taken for streams shows in what comes later only.
    first, other = (_windows(frames, FEW, length, time, seed) for seed in (0, 1))
    for a, b in zip(first, other, strict=True):
        if a.is_floating_point():
            a.select(1 - time, 0).copy_(b.select(1 - time, 0))
    changed, _ = _outputs(module, returned(module, form, first, ()))
    separate = all(
        close(a.select(axis, 1), b.select(axis, 1)) for a, b, axis in zip(few, changed, axes, strict=True)
    )
    try:
        longer, _ = run(FEW, frames_of=length + 1)
        times = [_time_axis(a, b, length) for a, b in zip(few, longer, strict=True)]
    except Unfit:  # it knows windows of one length only, and where their time went is not told
        times = [None] * len(few)
    timed = all(t is not None for t in times)
    taken = [Taken(k, axis, t) for k, (axis, t) in enumerate(zip(axes, times, strict=True))]
    labels = [n if n not in frames else f"{n}_out" for n in output_names(module, len(few), names, outputs)]
    made = zip(labels, (t.take(few, timed) for t in taken), strict=True)
    signature = Signature(
        inputs=tuple(TensorSpec(n, dtype_of(n, f), ("N", length, *f.shape)) for n, f in frames.items()),
        outputs=tuple(TensorSpec(n, dtype_of(n, y), ("N", *y.shape[1:])) for n, y in made),
        states=(),
        window=length if timed else None,
    )
    window = TorchWindow(module, form, taken, signature)
    if not separate:
        raise MixedWindow(window, _like_a_set(module, form, _windows(frames, MORE, length, time, 0), axes))
    return window


def _like_a_set(module: nn.Module, form: Form, windows: Sequence[Tensor], axes: Sequence[int]) -> bool:
    """Whether streams in another order give the same in that order."""
    assert form.time is not None
    before, _ = _outputs(module, returned(module, form, windows, ()))
    for order in ([2, 1, 0], [1, 0, 2]):
        index = torch.tensor(order)
        turned = [w.index_select(1 - form.time, index) for w in windows]
        after, _ = _outputs(module, returned(module, form, turned, ()))
        pairs = zip(before, after, axes, strict=True)
        if not all(close(a.index_select(axis, index), b) for a, b, axis in pairs):
            return False
    return True


def _outputs(module: nn.Module, back: Any) -> tuple[list[Tensor], Any]:
    """The tensors that are outputs, and their names if the module names them."""
    parts = children(back)
    if parts is not None and len(parts) == 2 and isinstance(back, tuple | list):
        second = parts[1][1]
        if isinstance(second, tuple | list) or isinstance(module, nn.RNNBase):
            back = parts[0][1]
    found = leaves(back)
    if not found:
        raise Unfit(f"returned {describe(back)} where tensors belong", got=RETURNED)
    return [leaf.tensor for leaf in found], names_of(found, range(len(found)))


def _laid(frame: Tensor, time: int | None) -> Tensor:
    """From [N, T, ...] to the module's layout, and back."""
    return frame if time == 1 else frame.transpose(0, 1)


def _windows(frames: Frames, streams: int, length: int, time: int, seed: int) -> list[Tensor]:
    def each() -> Iterator[Tensor]:
        many = [sample(frames, streams, seed=1000 * seed + k) for k in range(length)]
        for some in zip(*many, strict=True):
            yield torch.stack(some, dim=time)

    return list(each())


def _time_axis(window: Tensor, longer: Tensor, length: int) -> int | None:
    if window.dim() != longer.dim():
        return None
    pairs = enumerate(zip(window.shape, longer.shape, strict=True))
    return next((axis for axis, sizes in pairs if sizes == (length, length + 1)), None)
