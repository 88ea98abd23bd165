"""Another file for a running model: it takes over between two frames, and the streams' states with it.

What a state is worth is carried: another precision, or another scale of quantised states, takes the nearest that it can hold. Everything is
made ready and tried beside the old one; where anything is wrong, the old one goes on and nothing has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, StateSpec
from edgelstm.pipeline.service.channel import Channel
from edgelstm.pipeline.service.checkpoint import StreamPart
from edgelstm.pipeline.service.loop import Loop
from edgelstm.pipeline.service.member import Member
from edgelstm.pipeline.service.series import Caller, Place, stages
from edgelstm.runtime.protocol import Array

log = logging.getLogger("edgelstm.serve")

#: A first step from the same states may differ by so much, as a share of the states' root mean square, all together: int8 of a small LSTM with random weights
#: stays below 0.1 in 19 of 20 frames, other weights are above 0.4. Of so many streams.
ALIKE, TRIED = 0.2, 8
_TRIAL = "(trial)"


def check_signature(old: Signature, new: Signature) -> None:
    """Raise EdgeLstmError unless the two take and give the same and have the same states, whatever these are stored as."""
    for kind, have, want in (
        ("inputs", [(t.name, t.dtype, t.frame_shape) for t in new.inputs], [(t.name, t.dtype, t.frame_shape) for t in old.inputs]),
        ("outputs", sorted((t.name, t.dtype, t.frame_shape) for t in new.outputs), sorted((t.name, t.dtype, t.frame_shape) for t in old.outputs)),
        ("states", sorted((s.name, s.frame_shape) for s in new.states), sorted((s.name, s.frame_shape) for s in old.states)),
    ):  # fmt: skip
        if have != want:
            raise EdgeLstmError(f"its {kind} are others", found=have, expected=want)
    for what in ("window", "preprocessing", "postprocessing"):
        if getattr(old, what) != getattr(new, what):
            raise EdgeLstmError(
                f"its {what} is another", found=getattr(new, what), expected=getattr(old, what)
            )


class Carry:
    """States of the old model as the new one takes them. Raises EdgeLstmError where they can't be held."""

    def __init__(self, old: Signature, new: Signature) -> None:
        self._old = {s.name: s for s in old.states}
        self._new = {s.name: s for s in new.states}

    def __call__(self, states: Mapping[str, Array]) -> dict[str, Array]:
        """Stored values by state name; bit for bit where both store alike."""
        return {
            name: self._one(self._old[name], self._new[name], np.asarray(v)) for name, v in states.items()
        }

    def _one(self, old: StateSpec, new: StateSpec, stored: Array) -> Array:
        if (old.dtype, old.quantization) == (new.dtype, new.quantization):
            return stored
        with np.errstate(over="ignore", invalid="ignore"):
            worth = old.values(stored)
            if worth.dtype.kind != "f" and (new.is_coded or np.dtype(new.dtype) != worth.dtype):
                raise EdgeLstmError(f"state {old.name}", found=f"{old.dtype}", expected=f"{new.dtype}")
            made = new.stored(worth) if new.is_coded else worth.astype(new.dtype, copy=False)
            back = new.values(made)
        if back.dtype.kind == "f" and not bool(np.isfinite(back[np.isfinite(worth)]).all()):
            raise EdgeLstmError(
                f"state {old.name}",
                found=f"{float(np.abs(worth).max()):.6g}",
                expected=f"what {new.dtype} can hold",
            )
        return made

    def part(self, part: StreamPart) -> StreamPart:
        """The same for what a checkpoint keeps."""
        return replace(part, states=self(part.states))


def difference(loop: Loop, runner: Caller, carry: Carry) -> float | None:
    """How far the new model's states are from the old one's after one more step of each stream's last frame: root mean square, as a share of
    that of the states; None before any frame. Nothing moves. For the loop's thread."""
    apart, size, tried = 0.0, 0.0, 0
    for member in loop.members:
        last, stream = member.pulse.frame, member.stream
        if stream is None or last is None:
            continue
        try:
            frame = member.trial(last)
        except EdgeLstmError:
            continue
        if frame is None:
            continue
        before, frames = stream.snapshot(), stream.frames
        try:
            stream.step(frame(), copy=False)
            old = stream.values()
        finally:
            stream.restore(before)
            stream.frames = frames
        trial = runner.stream(_TRIAL)
        try:
            trial.restore(carry(before))
            trial.step(frame(), copy=False)
            new = trial.values()
        finally:
            trial.close()
        for name, value in old.items():
            if value.dtype.kind == "f":
                size += float(np.square(value, dtype=np.float64).sum())
                apart += float(np.square(new[name].astype(np.float64) - value).sum())
        tried += 1
        if tried == TRIED:
            break
    if not tried:
        return None
    share = (apart / max(size, 1e-12)) ** 0.5 if apart else 0.0
    return share if np.isfinite(share) else np.inf


def take_over(
    loop: Loop, channels: Sequence[Channel], runner: Caller, digest: str, compatible: bool
) -> float | None:
    """Let ``runner`` take over the loop's streams, between two calls; for :meth:`Loop.ask`. Gives :func:`difference`.

    Raises EdgeLstmError, and nothing has changed, where it doesn't fit. compatible: it was said that states of the old one
    mean the same to the new one; else a first step has to show it.
    """
    old = loop.runner.signature
    for one, other in zip(stages(loop.runner), stages(runner), strict=True):
        check_signature(one, other)
    carry = Carry(old, runner.signature)
    apart = difference(loop, runner, carry)
    has_state = any(m.stream is not None or m.is_resumed for m in loop.members)
    if not compatible and digest != loop.digest and has_state and (apart is None or apart > ALIKE):
        raise EdgeLstmError(
            "its states may mean something else",
            found="no frame so far to try it with"
            if apart is None
            else f"states that differ by {apart:.3g} of their root mean square after one step",
            expected=f"at most {ALIKE:g}, as of the same weights in another precision",
            hint="If they mean the same: compatible=True",
        )
    streams: list[tuple[Member, Place | None]] = [(m, None) for c in channels for m in c.those_that_left()]
    for member in loop.members:
        stream = None
        if member.stream is not None:
            stream = runner.stream(member.name)
            stream.restore(carry(member.stream.snapshot()))
            stream.frames = member.stream.frames
        streams.append((member, stream))
    moves = [member.moved(stream, runner.signature, carry, carry.part) for member, stream in streams]
    for move in moves:  # from here on nothing fails
        move()
    for channel in channels:
        channel.is_of(runner)
    loop.go_on_with(runner, digest)
    return apart
