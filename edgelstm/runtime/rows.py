"""Rows and sides: where the current state of each stream lies. Every backend with buffers of its own is built on this.

Every state has two buffers of ``capacity`` rows, and every row remembers on which *side* its current value lies. A call
takes a run of rows: the engine reads them on one side and writes the other, and only the rows that took part change
sides. So an idle row inside the run keeps its bits (what was written over there is never looked at), and nothing is
copied. Only when few rows of a long run take part are they gathered into scratch buffers instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Array, Frame, Outputs

#: Rows that take part / rows computed, below which gathering is cheaper than computing idle rows too.
DENSE = 0.75
#: Bound calls kept; each holds some pointers only.
MAX_CALLS = 512

_Key = tuple[int, int, int]  # first row (-1: scratch), rows, side


@dataclass(frozen=True)
class CallSize:
    """Which runs of rows an engine takes in a call.

    least, most: rows (most None: any number). granule: a run begins at a multiple of so many rows, where its address
    is aligned. overwrites: the engine may write over the states it reads, so no idle row may lie in a run.
    """

    least: int = 1
    most: int | None = None
    granule: int = 1
    overwrites: bool = False


class Memory(Protocol):
    """Buffers of one backend, and the engine calls bound to them. One whose states can be looked at where they lie has ``is_good(call, ranges)``,
    and its calls ``finite()``; one whose calls may do so themselves has ``watch(ranges)`` too, which gives a
    :class:`edgelstm.runtime.native.watch.Watch`, or None. ``buffers`` are what :meth:`allocate` gave.

    warm_calls: how many calls are worth to be run before the first step; 0 where nothing is prepared.
    """

    @property
    def warm_calls(self) -> int: ...

    def allocate(self) -> Any:
        """Buffers for the states of all rows; what they hold has no meaning yet."""

    def put(self, slot: int, frame: Frame) -> None:
        """Lay a frame into row ``slot`` of the inputs."""

    def put_one(self, slot: int, frame: Array) -> None:
        """:meth:`put` for a model with one input."""

    def put_rows(self, first: int, frames: Mapping[str, Array]) -> None:
        """Lay [rows, ...] frames into rows ``first`` and following of the inputs, which lie side by side."""

    def rows_of(self, call: Any) -> Outputs:
        """The outputs of all rows of a call, [rows, ...] each."""

    def bind(self, first: int, count: int, before: Any, after: Any) -> Any:
        """An engine call that reads rows [first, first + count) of ``before`` and of the inputs, and writes ``after``."""

    def run(self, call: Any) -> list[Outputs]:
        """Begin a call; outputs by row of the run, good once :meth:`wait` is back."""

    def warm(self, call: Any) -> None:
        """Run a call as often as it takes until nothing is left to prepare for it."""

    def wait(self) -> None:
        """Return when everything begun is done."""

    def move(self, source: Any, row: int, target: Any, to: int) -> None:
        """Copy the states of one row."""

    def read(self, buffers: Any, row: int) -> dict[str, Array]:
        """A copy of the states of one row, by name."""

    def write(self, buffers: Any, row: int, values: Mapping[str, Array]) -> None:
        """Set the states of one row."""

    def close(self) -> None:
        """Free everything; calling it again does nothing."""


@dataclass(slots=True)
class RowState:
    """State of all rows: ``buffers[side]``; ``side[row]`` says which one is current.

    ``written``: rows set since the last step. ``calls``: bound engine calls by rows and side. ``moved``: rows that the last
    step advanced, whose state before it lies on the other side; ``ran``: the engine calls that it made. ``watch``: what calls
    that look at states themselves report to, once somebody wants to know.
    """

    buffers: tuple[Any, Any]
    side: list[int]
    scratch: tuple[Any, Any] | None = None
    calls: dict[_Key, Any] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)
    moved: Sequence[int] = ()
    ran: list[Any] = field(default_factory=list)
    watch: Any = None


class RowProgram:
    """The part of a Program (see :class:`edgelstm.runtime.protocol.Program`) that does not depend on the backend.

    memory: the backend's buffers, of :func:`capacity` rows.
    """

    def __init__(self, signature: Signature, streams: int, size: CallSize, memory: Memory) -> None:
        self.signature = signature
        self.streams = streams
        self._size = size
        self._memory = memory
        self._good: Callable[[Any, Mapping[str, tuple[float, float]]], bool] | None = getattr(
            memory, "is_good", None
        )
        #: The engine leaves what it reads, and states can be looked at where they lie.
        self._looks = self._good is not None and not size.overwrites
        self._watch: Callable[[Mapping[str, tuple[float, float]]], Any] = getattr(
            memory, "watch", lambda _: None
        )

    def new_state(self) -> RowState:
        """All rows at their initial value."""
        memory, rows = self._memory, capacity(self.streams, self._size)
        state = RowState((memory.allocate(), memory.allocate()), [0] * rows)
        self._initialise(state.buffers[0], rows)
        return state

    def _initialise(self, buffers: Any, rows: int) -> None:
        """Set the states of rows 0 to ``rows`` to their initial value."""
        values = {s.name: s.initial_value() for s in self.signature.states}
        for row in range(rows):
            self._memory.write(buffers, row, values)

    def step(self, frames: Sequence[Frame], state: RowState, active: Sequence[int]) -> list[Outputs]:
        """Advance rows ``active``; see the protocol."""
        return self._put_and_run(frames, state, active, self._memory.put)

    def step_arrays(self, frames: Sequence[Array], state: RowState, active: Sequence[int]) -> list[Outputs]:
        """:meth:`step` of a model with one input, without dictionaries."""
        return self._put_and_run(frames, state, active, self._memory.put_one)

    def _put_and_run(
        self, frames: Sequence[Any], state: RowState, active: Sequence[int], put: Callable[[int, Any], None]
    ) -> list[Outputs]:
        memory = self._memory
        if state.written:
            state.written.clear()
        state.ran.clear()
        state.moved = ()
        if self._size.most == 1 or len(active) == 1 == self._size.least == self._size.granule:
            for frame, row in zip(frames, active, strict=True):
                put(row, frame)
            outputs = [self._run(state, row, 1)[0] for row in active]
        else:
            first, count = self._span(active)
            fewest = max(len(active), self._size.least)
            if fewest < DENSE * count or (self._size.overwrites and len(active) < count):
                return self._step_gathered(frames, state, active, fewest, put)
            for frame, row in zip(frames, active, strict=True):
                put(row, frame)
            if count > 1:
                self._align(state, first, count, state.side[active[0]])
            done = self._run(state, first, count)
            outputs = done if count == len(active) else [done[row - first] for row in active]
        memory.wait()
        side = state.side
        for row in active:
            side[row] ^= 1
        state.moved = active
        return outputs

    def step_row(self, frame: Array, state: RowState, row: int) -> Outputs:
        """Advance one row of a model with one input: :meth:`step` without its lists and dictionaries."""
        memory, side = self._memory, state.side[row]
        call = state.calls.get((row, 1, side))  # bound already: so the engine takes that run of rows
        if call is None:
            size = self._size
            if size.most != 1 and (size.least != 1 or row % size.granule):
                return self.step([{self.signature.inputs[0].name: frame}], state, [row])[0]
            call = self._call(state, row, 1)
        if state.written:
            state.written.clear()
        state.moved = ()
        memory.put_one(row, frame)
        state.ran[:] = (call,)
        outputs = memory.run(call)[0]
        memory.wait()
        state.side[row] = 1 - side
        state.moved = (row,)
        return outputs

    def step_rows(
        self, frames: Mapping[str, Array], state: RowState, first: int, count: int
    ) -> Outputs | None:
        """Advance rows [first, first + count) by [count, ...] frames in one call; their outputs, [count, ...] each.

        None, and nothing is done, where the engine does not take that run of rows as it is.
        """
        size, memory = self._size, self._memory
        if size.most == 1 or count < size.least or first % size.granule:
            return None
        if state.written:
            state.written.clear()
        state.moved = ()
        memory.put_rows(first, frames)
        side = state.side[first]
        self._align(state, first, count, side)
        call = self._call(state, first, count)
        state.ran[:] = (call,)
        memory.run(call)
        memory.wait()
        state.side[first : first + count] = [1 - side] * count
        state.moved = range(first, first + count)
        return memory.rows_of(call)

    def warm_up(self, state: RowState) -> None:
        """Do what the first steps would have to do before they can run, so that no live one is late.

        For a state of :meth:`new_state` that no step has run on; it is at its initial value again after it. What runs here are
        the usual calls: of all rows, and of the first few, as streams join.
        """
        if not self._memory.warm_calls:
            return
        rows = capacity(self.streams, self._size)
        if self._size.most == 1:
            runs = [(row, 1) for row in range(rows)]
        else:
            counts = dict.fromkeys((self.streams, *range(1, self.streams)))
            runs = list(dict.fromkeys(self._span(range(n)) for n in counts))
        # A call that reads the other side reads what no step has written yet: numbers that mean nothing to the engine, and that it
        # may take for places.
        self._initialise(state.buffers[1], rows)
        for first, count in runs[: self._memory.warm_calls // 2]:
            for side in (0, 1):
                state.side[first] = side
                self._memory.warm(self._call(state, first, count))
        state.side[:] = [0] * len(state.side)
        self._initialise(state.buffers[0], rows)

    def read_state(self, state: RowState, row: int) -> dict[str, Array]:
        """A copy of one row's state by name."""
        return self._memory.read(state.buffers[state.side[row]], row)

    def write_state(self, state: RowState, row: int, values: Mapping[str, Array]) -> None:
        """Set one row's state.

        An output may be a view of the current side and has to last until the next step, so the first write
        after a step goes to the other side.
        """
        if row not in state.written:
            state.written.add(row)
            state.side[row] ^= 1
        self._memory.write(state.buffers[state.side[row]], row, values)

    def glance(self, state: RowState, ranges: Mapping[str, tuple[float, float]]) -> Callable[[], bool] | None:
        """What tells after a step of ``state`` whether what it wrote holds no NaN and no infinity, in states that don't begin with them,
        and lies within ``ranges`` of stored numbers, by state name; None where states can't be looked at where they lie.

        Rows beside those that advanced may be looked at too, so False says that a closer look is due. A call that looks by itself
        does so for the newest glance alone: older ones then give False.
        """
        good, ran = self._good, state.ran
        if good is None or not self._looks:
            return None
        watch = self._watch(ranges)
        if watch is not None:
            if state.watch is not None:
                state.watch.retire()
            state.watch = watch
            for call in state.calls.values():
                watch.add(call)
            made: Callable[[], bool] = watch.good
            return made
        if ranges:
            return lambda: all(good(call, ranges) for call in ran)
        # After every step: the fewest calls that do it.
        return lambda: ran[0].finite() if len(ran) == 1 else all(call.finite() for call in ran)

    def undo(self, state: RowState, row: int) -> bool:
        """Take the row's last step back; False, and nothing is done, if the state before it is no longer there.

        What the step gave is then gone, its outputs too: a bad number left there would be met by every later look.
        """
        if not self._looks or row not in state.moved or row in state.written:
            return False
        state.moved = [r for r in state.moved if r != row]
        self._memory.write(
            state.buffers[state.side[row]], row, {s.name: s.initial_value() for s in self.signature.states}
        )
        state.side[row] ^= 1
        return True

    def close(self) -> None:
        """Free the engine and its buffers; calling it again does nothing."""
        self._memory.close()

    def _span(self, active: Sequence[int]) -> tuple[int, int]:
        """(First row, rows) of the shortest run the engine takes that holds all of ``active``."""
        size = self._size
        first = active[0] - active[0] % size.granule
        end = active[-1] + 1
        if end - first < size.least:
            first = min(first, capacity(self.streams, size) - size.least)
            first -= first % size.granule
        return first, max(end - first, size.least)

    def _run(self, state: RowState, first: int, count: int) -> list[Outputs]:
        """Run rows [first, first + count), whose current values lie on one side; the other side is written."""
        call = self._call(state, first, count)
        state.ran.append(call)
        return self._memory.run(call)

    def _call(self, state: RowState, first: int, count: int) -> Any:
        side = state.side[first]
        call = state.calls.get((first, count, side))
        if call is None:
            call = self._memory.bind(first, count, state.buffers[side], state.buffers[1 - side])
            _remember(state, (first, count, side), call)
        return call

    def _step_gathered(
        self,
        frames: Sequence[Any],
        state: RowState,
        active: Sequence[int],
        count: int,
        put: Callable[[int, Any], None],
    ) -> list[Outputs]:
        """Few rows, far apart: copy their state together, run them as one call, copy it back."""
        memory = self._memory
        if state.scratch is None:
            state.scratch = (memory.allocate(), memory.allocate())
            # Slots that no row fills are computed too where the engine takes no fewer: from numbers that mean something.
            self._initialise(state.scratch[0], self._size.least)
        before, after = state.scratch
        for slot, (frame, row) in enumerate(zip(frames, active, strict=True)):
            put(slot, frame)
            memory.move(state.buffers[state.side[row]], row, before, slot)
        call = state.calls.get((-1, count, 0))
        if call is None:
            call = memory.bind(0, count, before, after)
            _remember(state, (-1, count, 0), call)
        state.ran.append(call)
        outputs = memory.run(call)[: len(active)]
        for slot, row in enumerate(active):
            # To the other side, as a step that is not gathered: the state before it stays.
            memory.move(after, slot, state.buffers[1 - state.side[row]], row)
        memory.wait()
        for row in active:
            state.side[row] ^= 1
        state.moved = active
        return outputs

    def _align(self, state: RowState, first: int, count: int, side: int) -> None:
        """Bring the rows' current values to one side (needed only after a step in which some of them were idle)."""
        if state.side[first : first + count].count(side) == count:
            return
        for row in range(first, first + count):
            if state.side[row] != side:
                self._memory.move(state.buffers[1 - side], row, state.buffers[side], row)
                state.side[row] = side


class FixedRows(EdgeLstmError):
    """A graph that takes another number of streams in every call than it was opened with; ``rows`` is its own."""

    def __init__(self, where: str, rows: int, streams: int) -> None:
        self.rows = rows
        super().__init__(
            f"{where} takes {count_of(rows, 'stream')} in every call",
            found=f"streams={streams}",
            expected=f"streams={rows}",
            hint=f"Give it {count_of(rows, 'stream')} side by side (run: --source {rows} times), or export the model anew with one "
            "row in a call, or with any number",
        )


def call_size(signature: Signature, streams: int, where: str) -> CallSize:
    """Runs of rows that a graph with this Signature takes.

    Raises EdgeLstmError when a fixed stream axis does not fit ``streams``.
    """
    if streams < 1:
        raise EdgeLstmError("streams", found=streams, expected="at least 1")
    axis = signature.stream_axis
    if not isinstance(axis, int):
        return CallSize()
    if axis not in (1, streams):
        raise FixedRows(where, axis, streams)
    return CallSize(axis, axis)


def capacity(streams: int, size: CallSize) -> int:
    """Rows the buffers need: no fewer than a call takes."""
    return max(streams, size.least)


def _remember(state: RowState, key: _Key, call: Any) -> None:
    calls = state.calls
    if len(calls) >= MAX_CALLS:
        calls.pop(next(iter(calls)))
    if state.watch is not None:
        state.watch.add(call)
    calls[key] = call
