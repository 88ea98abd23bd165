"""The state guard: a state that turned to NaN or infinity, or left its range, is caught within that frame.

After every call a :func:`glance` looks at the states of all streams at once; only when it sees something does each stream's
:class:`Guard` look at its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgelstm.errors import count_of
from edgelstm.graph.signature import Signature, StateSpec
from edgelstm.pipeline.service.policies import Bad
from edgelstm.runtime.finite import all_finite
from edgelstm.runtime.protocol import Array

if TYPE_CHECKING:
    from edgelstm.pipeline.service.series import Caller, Place

Ranges = Mapping[str, tuple[float, float]]
State = dict[str, Array]

#: After so many frames in a row that spoilt the state, what it goes back to is no good either.
TRIES = 8


def glance(runner: Caller, ranges: Ranges | None = None) -> Callable[[], bool]:
    """What tells whether the last call left every state good, at a fraction of what a closer look costs: one reduction over states that
    lie side by side, in place, and for each range that is declared a smallest and a largest value. It gives False where the
    backend can't tell."""
    coded = {s.name for s in runner.signature.states if s.is_coded}
    found = None if coded & set(ranges or {}) else runner.glance(ranges)
    return found or (lambda: False)


class Guard:
    """Looks at the state of one stream after every step, and sets it back when it is bad.

    bad: ``skip`` goes back to the state before the frame, ``rollback`` to the last of those kept every ``keep`` frames,
    ``reset`` to the initial state. Eight bad frames in a row go to the initial state, whatever the policy. ranges: lowest and
    highest value by state name, of what the state is worth.

    A state that begins with NaN or infinity is meant to hold them and is not looked at.
    """

    def __init__(self, signature: Signature, bad: Bad, keep: int, ranges: Ranges | None = None) -> None:
        self._bad, self._keep = bad, keep
        self._signature = signature
        self._ranges = dict(ranges or {})
        self._specs = [s for s in signature.states if _is_looked_at(s, self._ranges)]
        #: The state after the last good frame, and an older one to roll back to; None is the initial state.
        self.last: State | None = None
        self._kept: State | None = None
        self._since = 0
        self._in_a_row = 0

    def passed(self, stream: Place) -> None:
        """After a step that a :func:`glance` found good: the states before a step are with the backend, so none is kept here."""
        self.last, self._in_a_row = None, 0
        if self._bad == "rollback":
            self._since += 1
            if self._since >= self._keep:
                self._kept, self._since = stream.snapshot(), 0

    def look(self, stream: Place) -> tuple[str, str] | None:
        """After a step: None, or what was wrong with the state (``state`` or ``range``, and in words); it is then set back."""
        if not self._specs:
            return None
        state = stream.snapshot()
        found = next((p for s in self._specs if (p := self._problem(s, state[s.name])) is not None), None)
        if found is not None:
            self._in_a_row += 1
            self.set_back(stream)
            return found
        self.last, self._in_a_row, self._since = state, 0, self._since + 1
        if self._since >= self._keep:
            self._kept, self._since = state, 0
        return None

    def set_back(self, stream: Place) -> str:
        """Set the state back as the policy says; gives where to: ``before``, ``kept`` or ``initial``."""
        if self._bad == "reset" or self._in_a_row >= TRIES:
            self.forget()
            stream.reset()
            return "initial"
        if self._bad == "rollback":
            self.last, self._since = self._kept, 0
        elif stream.undo():
            return "before"
        if self.last is None:
            stream.reset()
            return "initial"
        stream.restore(self.last)
        return "kept" if self._bad == "rollback" else "before"

    def follow(self, bad: Bad, keep: int, ranges: Ranges) -> None:
        """Look by other rules from here on."""
        self._bad, self._keep, self._ranges = bad, keep, dict(ranges)
        self._specs = [s for s in self._signature.states if _is_looked_at(s, self._ranges)]

    def moved(
        self, signature: Signature, carry: Callable[[Mapping[str, Array]], State]
    ) -> Callable[[], None]:
        """What makes it look at the states of another model; ``carry``: a kept state as that stores it."""
        last, kept = (None if s is None else carry(s) for s in (self.last, self._kept))
        specs = [s for s in signature.states if _is_looked_at(s, self._ranges)]

        def move() -> None:
            self._signature, self._specs, self.last, self._kept = signature, specs, last, kept

        return move

    def forget(self) -> None:
        """The stream was reset: nothing older is gone back to."""
        self.last = self._kept = None
        self._since = self._in_a_row = 0

    def initial(self) -> State:
        """The state at the start, as the model stores it."""
        return {s.name: s.initial_value() for s in self._signature.states}

    def resume(self, state: State) -> None:
        """The stream begins at ``state``."""
        self.last = self._kept = state
        self._since = self._in_a_row = 0

    def _problem(self, spec: StateSpec, stored: Array) -> tuple[str, str] | None:
        values = spec.values(stored)
        if values.dtype.kind == "f" and not all_finite(values, str(values.dtype)):
            bad = values.size - int(np.isfinite(values).sum())
            return (
                "state",
                f"state {spec.name}: {bad} of {count_of(values.size, 'value')} are NaN or infinite",
            )
        if spec.name in self._ranges:
            low, high = self._ranges[spec.name]
            least, most = float(values.min()), float(values.max())
            if least < low or most > high:
                return (
                    "range",
                    f"state {spec.name}: {least:.6g} to {most:.6g} is outside {low:.6g} to {high:.6g}",
                )
        return None


def _is_looked_at(spec: StateSpec, ranges: Ranges) -> bool:
    values = spec.values(spec.initial_value())
    if values.dtype.kind != "f":
        return spec.name in ranges
    return bool(np.isfinite(values).all())
