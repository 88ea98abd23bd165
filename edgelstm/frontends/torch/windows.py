"""Torch modules that compute windows, as they stand: T frames in, outputs out, nothing carried from call to call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.torch.conventions import Frames, call, check_numbers, sample, with_numbers
from edgelstm.frontends.torch.torch_step import Unfit, called, tensors
from edgelstm.frontends.torch.trial import FEW, MORE, close, dtype_of, output_names, stream_axis
from edgelstm.graph.signature import Signature, TensorSpec


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

    def __init__(self, module: nn.Module, time: int, taken: Sequence[Taken], signature: Signature) -> None:
        super().__init__()
        self.module, self.time, self.taken, self.signature = module, time, tuple(taken), signature

    def around(self, module: nn.Module) -> TorchWindow:
        """The same window of another module."""
        return TorchWindow(module, self.time, self.taken, self.signature)

    def forward(self, *frames: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        found, _ = _outputs(self.module, self.module(*(_laid(frame, self.time) for frame in frames)))
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
    attempts = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for time in (1, 0):
            if batch_first in (None, time == 1):
                try:
                    return with_numbers(partial(_fit, module, frames, length, time, outputs))
                except Unfit as unfit:
                    attempts.append(f"with time on axis {time} it {unfit}")
    raise EdgeLstmError(
        f"{called(module)} can't take a window of {length} frames",
        found="; ".join(attempts),
        expected="forward(x[B, T, ...]) -> y, or forward(x[T, B, ...]) -> y",
        hint="Check the shape of the frame (without streams and time) and the length of the window",
    )


def _fit(
    module: nn.Module, frames: Frames, length: int, time: int, outputs: Sequence[str] | None
) -> TorchWindow:
    def run(streams: int, *, frames_of: int = length, seed: int = 0) -> tuple[list[Tensor], Any]:
        return _outputs(module, call(module, *_windows(frames, streams, frames_of, time, seed)))

    few, names = run(FEW)
    check_numbers(few)
    more, _ = run(MORE)
    if len(few) != len(more):
        raise Unfit("gave more outputs for more streams", returned=True)
    axes = [stream_axis(f"output {k}", a, b) for k, (a, b) in enumerate(zip(few, more, strict=True))]
    # The first stream's, since time taken for streams shows in what comes later only.
    first, other = (_windows(frames, FEW, length, time, seed) for seed in (0, 1))
    for a, b in zip(first, other, strict=True):
        if a.is_floating_point():
            a.select(1 - time, 0).copy_(b.select(1 - time, 0))
    changed, _ = _outputs(module, call(module, *first))
    if not all(
        close(a.select(axis, 1), b.select(axis, 1)) for a, b, axis in zip(few, changed, axes, strict=True)
    ):
        raise Unfit("gave one stream other results when the frames of another changed", returned=True)
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
    return TorchWindow(module, time, taken, signature)


def _outputs(module: nn.Module, returned: Any) -> tuple[list[Tensor], Any]:
    """The tensors that are outputs, and their names if the module names them."""
    pair = isinstance(returned, tuple | list) and len(returned) == 2
    if pair and (isinstance(returned[1], tuple | list) or isinstance(module, nn.RNNBase)):
        returned = returned[0]
    return tensors(returned), tuple(map(str, returned)) if isinstance(returned, Mapping) else None


def _laid(frame: Tensor, time: int) -> Tensor:
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
