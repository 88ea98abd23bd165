"""Alarms: a threshold with hysteresis and a hold time on one number of an output; what happens is an event."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.files import sha256
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.service.policies import ROUNDING
from edgelstm.pipeline.sinks.panels import as_float
from edgelstm.runtime.protocol import Array

Event = Literal["fired", "cleared"]


@dataclass(frozen=True)
class Rule:
    """When an alarm fires and clears.

    output: whose number, of its largest, smallest or mean element, or of one (``of`` is its place). limit: it fires when the number is beyond that, for ``hold``
    seconds without a break; above: beyond is above, else below. clear: it clears when the number is there or on its good side, for ``hold_clear`` seconds.
    """

    output: str
    of: str | tuple[int, ...]
    above: bool
    limit: float
    clear: float
    hold: float = 0.0
    hold_clear: float = 0.0

    def check(self, signature: Signature) -> None:
        """Raises EdgeLstmError when the output or the element is not there."""
        names = [spec.name for spec in signature.outputs]
        if self.output not in names:
            raise EdgeLstmError("output of an alarm", found=self.output, expected=" or ".join(names))
        shape = signature.output(self.output).frame_shape
        if not isinstance(self.of, str) and (
            len(self.of) != len(shape) or not all(0 <= i < n for i, n in zip(self.of, shape, strict=True))
        ):
            raise EdgeLstmError(
                f"element of output {self.output!r}",
                found=list(self.of),
                expected=f"a place in {list(shape)}",
            )

    def number(self, array: Array, dtype: str) -> float | None:
        """Of an output [*frame_shape]. NaN elements are passed over; None where nothing is left."""
        values = as_float(array, dtype)
        picked = values.ravel() if isinstance(self.of, str) else values[self.of].reshape(1)
        picked = picked[~np.isnan(picked)]
        if not picked.size:
            return None
        if self.of == "mean":
            return float(picked.mean(dtype=np.float64))
        return float(picked.min() if self.of == "min" else picked.max())

    def is_beyond(self, number: float) -> bool:
        """Whether it is a number to fire for."""
        return number > self.limit if self.above else number < self.limit

    def is_good(self, number: float) -> bool:
        """Whether it is a number to clear for."""
        return number <= self.clear if self.above else number >= self.clear

    @property
    def digest(self) -> str:
        """Tells whether a state is of this rule."""
        return sha256(repr(asdict(self)).encode())


@dataclass
class Alarm:
    """A rule over one stream. since: when what would change it began, in its time. last: time of the last number."""

    rule: Rule
    fired: bool = False
    since: float | None = None
    last: float = -math.inf

    def step(self, number: float, now: float) -> Event | None:
        """A number came, at ``now`` seconds; gives what happens. A clock that goes back begins the hold time anew."""
        rule = self.rule
        wanted = rule.is_good(number) if self.fired else rule.is_beyond(number)
        if not wanted:
            self.since = None
        elif self.since is None or now < max(self.last, self.since):
            self.since = now
        self.last = now
        hold = rule.hold_clear if self.fired else rule.hold
        if self.since is None or now - self.since < hold - ROUNDING:
            return None
        self.fired, self.since = not self.fired, None
        return "fired" if self.fired else "cleared"


@dataclass
class Alarms:
    """A rule over all streams of a section; ``state`` is what a checkpoint keeps of it, JSON-ready. timed: times are the source's, which still hold
    when the process is another."""

    rule: Rule
    timed: bool = False
    streams: dict[str, Alarm] = field(default_factory=dict)

    def of(self, stream: str) -> Alarm:
        """That of one stream."""
        return self.streams.setdefault(stream, Alarm(self.rule))

    def state(self) -> dict[str, Any]:
        """Nothing of those that are as at the start."""
        known = {n: (a.fired, a.since if self.timed else None) for n, a in list(self.streams.items())}
        kept = {n: [fired, since] for n, (fired, since) in known.items() if fired or since is not None}
        return {"rule": self.rule.digest, "streams": kept}

    def resume(self, state: Mapping[str, Any], clocks: bool) -> bool:
        """Go on from a ``state``; without ``clocks``, which begin anew with a source, an alarm that had fired still has, and hold times begin anew.
        False when it is of another rule."""
        try:
            if state["rule"] != self.rule.digest:
                return False
            for name, (fired, since) in state["streams"].items():
                self.streams[str(name)] = Alarm(
                    self.rule, bool(fired), float(since) if clocks and since is not None else None
                )
                self.timed = self.timed or (
                    clocks and since is not None
                )  # so says a checkpoint before the first number too
        except (KeyError, TypeError, ValueError, AttributeError):
            return False
        return True
