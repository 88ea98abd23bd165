"""Models in series, called as one: each takes what the one before gives, and a stream has a state in each of them.

A stream's states go by number and name, ``1.h0`` of the first model, ``2.h0`` of the second, so that whatever looks after states (the
guard, checkpoints, a swap) looks after all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.inputs import Inputs
from edgelstm.pipeline.outputs import Outputs, handed_on
from edgelstm.pipeline.sources.source import Frame
from edgelstm.pipeline.wording import at_export
from edgelstm.runtime.protocol import Array
from edgelstm.runtime.runner import Runner, Stream
from edgelstm.runtime.snapshot import Snapshot

Ranges = Mapping[str, tuple[float, float]]


@dataclass
class Link:
    """What is done to one model's outputs before the next takes them; of one stream, for it may remember."""

    outputs: Outputs
    inputs: Inputs

    @classmethod
    def between(cls, before: Signature, after: Signature, ops: Any = None) -> Link:
        """Raises EdgeLstmError, before any frame, where the second does not take what the first gives."""
        made = cls(Outputs(before, ops), Inputs(after, say=at_export))
        zeros = {t.name: np.zeros(t.frame_shape, np.float32) for t in made.outputs.signature.outputs}
        made.inputs(Frame(0, None, "what the model before gives", handed_on(zeros, after)))
        return made

    def forget(self, stream: str) -> None:
        """Begin anew."""
        self.outputs.forget(stream)


@dataclass
class Passage:
    """One frame on its way: what the first model takes, the frame as it came, and the links of its stream. Behind the step,
    ``raw`` is what the last model was handed."""

    arrays: Mapping[str, Array]
    raw: Any
    links: Sequence[Link] = field(default_factory=tuple)


class SeriesStream:
    """One stream: a place in every model."""

    def __init__(self, series: Series, name: str, parts: Sequence[Stream]) -> None:
        self.name, self.parts, self._series = name, tuple(parts), series

    @property
    def frames(self) -> int:
        """Frames that it advanced."""
        return self.parts[0].frames

    @frames.setter
    def frames(self, count: int) -> None:
        for part in self.parts:
            part.frames = count

    def step(self, passage: Passage, *, copy: bool | None = None) -> Mapping[str, Array]:
        """One frame through all models."""
        return self._series.step({self.name: passage}, copy=copy)[self.name]

    def reset(self) -> None:
        """All of its states go back to the initial ones."""
        for part in self.parts:
            part.reset()

    def snapshot(self) -> Snapshot:
        """All of its states."""
        return Snapshot(_joined([part.snapshot() for part in self.parts]), self._series.model)

    def values(self) -> dict[str, Array]:
        """What they are worth."""
        return _joined([part.values() for part in self.parts])

    def restore(self, states: Mapping[str, Array]) -> None:
        """Set all of them. Raises EdgeLstmError, and they stay what they were, when one does not fit."""
        model = getattr(states, "model", "")
        if model and model != self._series.model:
            raise EdgeLstmError(f"snapshot for stream {self.name!r}", found="the state of other models")
        split = parted(states, len(self.parts))
        before = [part.snapshot() for part in self.parts]
        for done, (part, own) in enumerate(zip(self.parts, split, strict=True)):
            try:
                part.restore(own)
            except EdgeLstmError:
                for other, old in zip(self.parts[:done], before, strict=False):
                    other.restore(old)
                raise

    def undo(self) -> bool:
        """Take the last step back in every model, or in none."""
        undone = [part.undo() for part in self.parts] if self._series.can_undo else [False]
        return all(undone)

    def close(self) -> None:
        """Free the places."""
        for part in self.parts:
            part.close()
        self._series.left(self)


class Series:
    """Runners in series, as one that takes :class:`Passage` for a frame. Raises EdgeLstmError for windows: behind one, a frame
    has no output of its own."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        self.runners = tuple(runners)
        for runner in runners:
            if runner.signature.window is not None:
                raise EdgeLstmError(
                    "models in series",
                    found=f"a window of {count_of(runner.signature.window, 'frame')}",
                    expected="step graphs",
                    hint="Export without --window",
                )
        self.signature = _signature([r.signature for r in runners])
        self.model = " ".join(r.model for r in runners)
        #: Whether every model takes its last step back by itself; what does not is copied before.
        self.can_undo = all(hasattr(r._program, "undo") for r in runners)
        self._streams: dict[str, SeriesStream] = {}
        self._notes: list[str] = []
        self._noted = [0] * len(runners)

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of those that joined."""
        return tuple(self._streams)

    @property
    def notes(self) -> list[str]:
        """What is to be said of the frames of all of them, in the order in which it came."""
        for k, runner in enumerate(self.runners):
            self._notes += runner.notes[self._noted[k] :]
            self._noted[k] = len(runner.notes)
        return self._notes

    def stream(self, name: str) -> SeriesStream:
        """The stream of that name; it joins all models if there is none."""
        found = self._streams.get(name)
        if found is None:
            parts: list[Stream] = []
            try:
                parts.extend(runner.stream(name) for runner in self.runners)
            except EdgeLstmError:
                for part in parts:
                    part.close()
                raise
            found = self._streams[name] = SeriesStream(self, name, parts)
        return found

    def left(self, stream: SeriesStream) -> None:
        """It is gone."""
        self._streams.pop(stream.name, None)

    def step(
        self, passages: Mapping[str, Passage], *, copy: bool | None = None
    ) -> dict[str, Mapping[str, Array]]:
        """One frame of each stream through all models; when anything is wrong, no state has moved."""
        streams = [self._streams[name] for name in passages]
        before = [] if self.can_undo else [stream.snapshot() for stream in streams]
        done = 0
        try:
            made: dict[str, Any] = dict(
                self.runners[0].step({n: p.arrays for n, p in passages.items()}, copy=False)
            )
            for k, runner in enumerate(self.runners[1:]):
                done = k + 1
                ready = {}
                for name, passage in passages.items():
                    link = passage.links[k]
                    passage.raw = handed_on(link.outputs(made[name], passage.raw, name), runner.signature)
                    ready[name] = link.inputs(Frame(0, None, name, passage.raw))
                made = dict(runner.step(ready, copy=copy if runner is self.runners[-1] else False))
        except BaseException:
            for place, stream in enumerate(streams):
                if before:
                    stream.restore(before[place])
                else:
                    for part in stream.parts[:done]:
                        part.undo()
                for link in passages[stream.name].links:
                    link.forget(stream.name)  # what it remembers is of the frame that failed
            raise
        return made

    def glance(self, ranges: Ranges | None = None) -> Callable[[], bool] | None:
        """As :meth:`Runner.glance`, of all of them."""
        looks = [
            r.glance(own)
            for r, own in zip(self.runners, parted(ranges or {}, len(self.runners)), strict=True)
        ]
        if any(look is None for look in looks):
            return None
        return lambda: all(look() for look in looks if look is not None)

    def close(self) -> None:
        """Free the devices."""
        for runner in self.runners:
            with suppress(EdgeLstmError):
                runner.close()


#: What a loop calls, and a stream's place in it.
Caller = Runner | Series
Place = Stream | SeriesStream


def stages(caller: Caller) -> tuple[Signature, ...]:
    """The Signatures of its models, in their order."""
    return tuple(r.signature for r in caller.runners) if isinstance(caller, Series) else (caller.signature,)


def links(signatures: Sequence[Signature], ops: Any = None) -> list[Link]:
    """What lies between the models; ops: preprocessing of the first in place of what it declares."""
    return [Link.between(a, b, None if k else ops) for k, (a, b) in enumerate(pairwise(signatures))]


def numbered(ranges: Sequence[Ranges]) -> dict[str, tuple[float, float]]:
    """Ranges of the states of several models, by number and name; of one, by name."""
    return dict(ranges[0]) if len(ranges) == 1 else _joined(ranges)


def _joined(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{k}.{name}": value for k, own in enumerate(each, 1) for name, value in own.items()}


def parted(together: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The inverse of numbering by model. Raises EdgeLstmError for what has no such number."""
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    for key, value in together.items():
        number, _, name = key.partition(".")
        if not number.isdecimal() or not 1 <= int(number) <= count:
            raise EdgeLstmError(
                "states of models in series", found=key, expected=f"1.NAME to {count}.NAME, by model"
            )
        found[int(number) - 1][name] = value
    return found


def _signature(each: Sequence[Signature]) -> Signature:
    """Frames of the first, outputs of the last, states of all."""
    first, last, axis = each[0], each[-1], each[0].stream_axis
    states = tuple(
        replace(
            s,
            name=f"{k}.{s.name}",
            input=f"{k}.{s.input}",
            output=f"{k}.{s.output}",
            shape=(axis, *s.shape[1:]),
        )
        for k, own in enumerate(each, 1)
        for s in own.states
    )
    taken = {t.name for t in first.inputs}
    outputs = tuple(replace(t, shape=(axis, *t.shape[1:])) for t in last.outputs if t.name not in taken)
    return Signature(first.inputs, outputs, states, preprocessing=first.preprocessing)
