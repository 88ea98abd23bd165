"""A sequence module over many frames in one call: that has to be what it gives frame by frame, or it knows which frame it is at.

A recurrence does not care where a call begins. Code that does (zeros for the first five outputs, its own forecasts in place of frames
from the eleventh on, a table of positions, a scale by the largest of the call) looks like a recurrence over two frames, and is a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.frontends.torch.double import in_double
from edgelstm.frontends.torch.running import FEW, Frames, NoNumbers, close, raised, returned, run, sample
from edgelstm.frontends.torch.snapshot import put_back
from edgelstm.frontends.torch.torch_step import PAIRED, Form, Unfit, Windowed
from edgelstm.frontends.torch.tree import tensors_in

#: Frames of the calls; the longer ones only while a call holds no more numbers than this, since all of it is computed at once.
LENGTHS = (6, 24, 96)
MOST_NUMBERS = 4_000_000


def check_longer(module: nn.Module, frames: Frames, form: Form, make: Callable[[int], Any]) -> None:
    """Raise Windowed where a call of many frames gives other results than these frames one by one."""
    if form.time is None:
        return
    numbers = FEW * sum(frame.numel() for frame in frames.values())
    lengths = [n for n in LENGTHS if n == LENGTHS[0] or n * numbers <= MOST_NUMBERS]
    many = [sample(frames, FEW, seed=300 + k) for k in range(lengths[-1])]
    start = tensors_in(run(make, FEW))
    try:
        _compare(module, form, many, start, lengths)
    except Windowed:
        # What amplifies rounding differs as well, in float32.
        with in_double(module) as exact:
            widened = [[_double(t) for t in each] for each in many]
            _compare(exact, form, widened, [_double(t) for t in start], lengths)
    finally:
        put_back(module)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _compare(
    module: nn.Module,
    form: Form,
    many: Sequence[Sequence[Tensor]],
    start: Sequence[Tensor],
    lengths: Sequence[int],
) -> None:
    assert form.time is not None
    time, states, singly = form.time, list(start), []
    put_back(module)  # what it keeps besides goes on from frame to frame
    for frames in many:
        try:
            one = form.call(module, frames, states)
        except Exception as error:  # whatever a user's module raises
            raise Unfit(raised(error), got=PAIRED) from error
        states = [t.clone() for t in one.states]
        singly.append(([y.clone() for y in one.outputs], states))
    for length in lengths:
        frames = [torch.stack(each, dim=time) for each in zip(*many[:length], strict=True)]
        try:
            back = returned(module, form, frames, list(start))
        except NoNumbers:
            raise
        except Unfit:  # it takes so many frames at most: then of longer calls there is nothing to say
            return
        whole = form.read(back)
        for k in range(length):
            for y, timed, alone in zip(whole.outputs, form.timed, singly[k][0], strict=True):
                if timed and y.shape[time] != length:
                    raise Windowed(
                        f"gave {y.shape[time]} outputs for {length} frames in one call", got=PAIRED
                    )
                if (timed and not close(alone, y.select(time, k))) or (
                    not timed and k == length - 1 and not close(alone, y)
                ):
                    raise _other(length, k)
        if not all(close(a, b) for a, b in zip(singly[length - 1][1], whole.states, strict=True)):
            raise _other(length, length - 1)


def _other(length: int, k: int) -> Windowed:
    return Windowed(
        f"gives other results for {length} frames in one call than for one after the other, from frame {k + 1} on",
        got=PAIRED,
    )
