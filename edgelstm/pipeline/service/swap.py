"""Another file for a running model: it takes over between two frames, and the streams' states with it.

What a state is worth is carried: another precision, or another scale of quantised states, takes the nearest that it can hold. Everything is
made ready and tried beside the old one; where anything is wrong, the old one goes on and nothing has changed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
#: The same of one stream's states, and of one state or output of all streams. Of six models in int8, one to eight streams at a time, at most 3.4% and 1.1% of the frames are
#: above; an output whose weights have the other sign is in 81% to 100%.
ALIKE_STREAM, ALIKE_TENSOR = 0.4, 0.5
#: One number, as a share of the largest of that state or output. Above 0.7 are at most 1.7% of the frames in int8.
ALIKE_NUMBER = 1.0
#: Smaller root mean squares and numbers count as so much: a probability of 0.001 may become 0.002.
LEAST_STATE, LEAST_OUTPUT = 1e-3, 0.05
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


@dataclass
class Difference:
    """How far one more step of each stream's last frame differs between the old model and the new. pairs: of each stream that it was tried
    with, by kind and name, what the old one gives and the new one."""

    pairs: list[dict[tuple[str, str], tuple[Array, Array]]] = field(default_factory=list)

    def share(self) -> float:
        """Root mean square by which the states differ, as a share of theirs."""
        return self._share((pair for one in self.pairs for pair in self._states(one)), LEAST_STATE)

    def trouble(self) -> str | None:
        """What differs by more than another precision of the same weights does; None if nothing."""
        if (share := self.share()) > ALIKE:
            return f"states that differ by {share:.3g} of their root mean square after one step"
        for one in self.pairs:
            if (share := self._share(self._states(one), LEAST_STATE)) > ALIKE_STREAM:
                return f"a stream whose states differ by {share:.3g} of their root mean square after one step"
        for kind, name in {key: None for one in self.pairs for key in one}:
            least = LEAST_STATE if kind == "state" else LEAST_OUTPUT
            found = [one[kind, name] for one in self.pairs if (kind, name) in one]
            if (share := self._share(found, least)) > ALIKE_TENSOR:
                return f"{kind} {name}: it differs by {share:.3g} of its root mean square after one step"
            most = max(least, *(float(np.abs(old).max(initial=0.0)) for old, _ in found))
            far = max(float(np.abs(new - old).max(initial=0.0)) for old, new in found)
            if not far <= ALIKE_NUMBER * most:
                return f"{kind} {name}: a number that differs by {far:.3g} after one step, where they reach {most:.3g}"
        return None

    @staticmethod
    def _states(one: Mapping[tuple[str, str], tuple[Array, Array]]) -> list[tuple[Array, Array]]:
        return [pair for (kind, _), pair in one.items() if kind == "state"]

    @staticmethod
    def _share(pairs: Iterable[tuple[Array, Array]], least: float) -> float:
        size, apart, count = 0.0, 0.0, 0
        for old, new in pairs:
            size += float(np.square(old).sum())
            with np.errstate(invalid="ignore"):
                apart += float(np.square(new - old).sum())
            count += old.size
        share = math.sqrt(apart / max(size, count * least**2)) if apart else 0.0
        return share if math.isfinite(share) else math.inf


def difference(loop: Loop, runner: Caller, carry: Carry) -> Difference | None:
    """What one more step of each stream's last frame gives by the old model and by the new; None before any frame. Nothing moves. For
    the loop's thread."""
    found = Difference()
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
            old = _numbers("output", stream.step(frame(), copy=True)) | _numbers("state", stream.values())
        finally:
            stream.restore(before)
            stream.frames = frames
        trial = runner.stream(_TRIAL)
        try:
            trial.restore(carry(before))
            new = _numbers("output", trial.step(frame(), copy=True)) | _numbers("state", trial.values())
        finally:
            trial.close()
        found.pairs.append({key: _pair(value, new[key]) for key, value in old.items() if key in new})
        if len(found.pairs) == TRIED:
            break
    return found if found.pairs else None


def _numbers(kind: str, values: Mapping[str, Array]) -> dict[tuple[str, str], Array]:
    """Copies, in float64, of what is no whole number and no code."""
    return {(kind, n): v.astype(np.float64) for n, v in values.items() if v.dtype.kind == "f"}


def _pair(old: Array, new: Array) -> tuple[Array, Array]:
    """Both with 0 where they have the same NaN or infinity."""
    odd = ~np.isfinite(old) & ((old == new) | (np.isnan(old) & np.isnan(new)))
    return np.where(odd, 0.0, old), np.where(odd, 0.0, new)


def take_over(
    loop: Loop, channels: Sequence[Channel], runner: Caller, digest: str, compatible: bool
) -> float | None:
    """Let ``runner`` take over the loop's streams, between two calls; for :meth:`Loop.ask`. Gives :meth:`Difference.share`; None before
    any frame.

    Raises EdgeLstmError, and nothing has changed, where it doesn't fit. compatible: it was said that states of the old one
    mean the same to the new one; else a first step has to show it.
    """
    old = loop.runner.signature
    for one, other in zip(stages(loop.runner), stages(runner), strict=True):
        check_signature(one, other)
    carry = Carry(old, runner.signature)
    found = difference(loop, runner, carry)
    trouble = "no frame so far to try it with" if found is None else found.trouble()
    has_state = any(m.stream is not None or m.is_resumed for m in loop.members)
    if not compatible and digest != loop.digest and has_state and trouble is not None:
        raise EdgeLstmError(
            "its states may mean something else",
            found=trouble,
            expected="little more than the same weights in another precision give: states that differ by at most "
            f"{ALIKE:g}, no output by {ALIKE_TENSOR:g}",
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
    return None if found is None else found.share()
