"""ONNX Runtime on the CPU: buffers preallocated and bound once by address, so a step allocates and copies nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike
from edgelstm.graph.signature import Signature
from edgelstm.runtime.finite import SMALL, all_of, is_looked_at, look
from edgelstm.runtime.native.prepare import Native
from edgelstm.runtime.native.session import IS_BAD, NOT_FINITE, Bound, NativeSession, Steps
from edgelstm.runtime.native.watch import Watch
from edgelstm.runtime.protocol import Array, Frame, Outputs
from edgelstm.runtime.rows import RowProgram, RowState, call_size, capacity
from edgelstm.runtime.session import (
    available_cpus,
    check_counts,
    first_line,
    open_native,
    open_session,
    read_signature,
)

ALIGNMENT = 64  # bytes: a cache line, and what AVX-512 loads at once
#: TensorProto's numbers of the types that NumPy lacks: the binding takes them in place of a dtype.
NUMBERS = {"bfloat16": 16, "float8e4m3fn": 17}


class Buffers(dict[str, Array]):
    """By state name, [rows, ...]. ``arena``: what the float32 states lie in, side by side, [elements]; None where it is large."""

    arena: Array | None = None


@dataclass(slots=True)
class _Call:
    """A bound engine call, and the outputs it fills: one dictionary of read-only views per row. finite: what tells whether
    the states that it writes are finite; states: these, [rows, ...] each.

    run: raises what ONNX Runtime raises, or gives a number other than 0 when a session of ours failed; run_watched: that of a
    session of ours, which looks at the frames first. steps: what both are of, for such a session; tell: called where it says that it
    wrote a bad state.
    """

    run: Callable[[], Any]
    run_watched: Callable[[], int]
    outputs: list[Outputs]
    rows: Outputs
    finite: Callable[[], bool]
    states: dict[str, Array]
    steps: Steps | None
    tell: Callable[[], None] = lambda: None


class OrtProgram(RowProgram):
    """A StepModel, a file or its bytes, opened by ONNX Runtime on the CPU. See :class:`edgelstm.runtime.protocol.Program`.

    ``threads`` is the size of the thread pool (default: the processors this process may use). ``spin`` keeps idle
    threads of the pool awake between operators, which is fastest for one program but takes time from others. ``native``: cells as
    our own operators (see :func:`edgelstm.runtime.native.prepare.prepare`); :attr:`native` tells which there are.
    """

    def __init__(
        self,
        model: PathLike | bytes,
        *,
        streams: int = 1,
        threads: int | None = None,
        spin: bool = True,
        native: bool | None = False,
    ) -> None:
        check_counts(streams, threads)
        where = "model" if isinstance(model, bytes) else str(model)
        threads = threads or available_cpus()
        self._session: Any
        self.native: Native | None
        opened = open_native(model, threads, spin, streams, native)
        if opened is not None:
            self._session, signature, self.native = opened
        else:
            self._session, self.native = open_session(model, threads, spin), None
            signature = read_signature(self._session, where)
        size = call_size(signature, streams, where)
        memory = _Memory(signature, capacity(streams, size), self._session)
        super().__init__(signature, streams, size, memory)
        self._put_one, self._check = memory.put_one, memory.check
        if memory.watches and size.least == 1:
            self.step_watched = self._step_watched

    def _step_watched(self, frame: Array, state: RowState, row: int) -> Outputs | None:
        """:meth:`step_row`, but None, and nothing is done, where the frame holds NaN or infinity: with a session of ours that look
        costs next to nothing."""
        side = state.side[row]
        call: _Call = state.calls.get((row, 1, side)) or self._call(state, row, 1)
        if self._session is None:
            raise _closed()
        self._put_one(row, frame)
        failed = call.run_watched()
        if failed == NOT_FINITE:
            return None
        if state.written:
            state.written.clear()
        state.moved = ()
        state.ran[:] = (call,)
        if failed:
            self._check(call, failed)
        state.side[row] = 1 - side
        state.moved = (row,)
        return call.outputs[0]

    def close(self) -> None:
        """Free the session and its thread pool."""
        super().close()
        self._session = None


class _Memory:
    """NumPy buffers and the calls bound to them. See :class:`edgelstm.runtime.rows.Memory`."""

    warm_calls = 0

    def __init__(self, signature: Signature, rows: int, session: Any) -> None:
        self._signature = signature
        self._rows = rows
        self._session = session
        #: Whether calls of one row can look at its frame themselves.
        self.watches = isinstance(session, NativeSession) and [t.dtype for t in signature.inputs] == [
            "float32"
        ]
        self._inputs = {t.name: _allocate(t.frame_shape, t.dtype, rows) for t in signature.inputs}
        shared = {s.output for s in signature.states}
        self._outputs = {
            t.name: _allocate(t.frame_shape, t.dtype, rows) for t in signature.outputs if t.name not in shared
        }
        # [row, ...] is a view even where a row is a single number.
        self._looked_at = [s for s in signature.states if is_looked_at(s)]
        self._slots = [
            tuple((name, array[row, ...]) for name, array in self._inputs.items()) for row in range(rows)
        ]

    def allocate(self) -> Buffers:
        """States that are looked at lie side by side where they are small: one look then sees all of them."""
        together = [s for s in self._looked_at if s.dtype == "float32"]
        sizes = [-(-math.prod((self._rows, *s.frame_shape)) * 4 // ALIGNMENT) * ALIGNMENT for s in together]
        buffers = Buffers()
        if 0 < sum(sizes) <= SMALL * 4:
            buffers.arena = _allocate((sum(sizes) // 4,), "float32", 1)[0]
            begin = 0
            for s, size in zip(together, sizes, strict=True):
                count = math.prod((self._rows, *s.frame_shape))
                buffers[s.name] = buffers.arena[begin : begin + count].reshape(self._rows, *s.frame_shape)
                begin += size // 4
        for s in self._signature.states:
            if s.name not in buffers:
                buffers[s.name] = _allocate(s.frame_shape, s.dtype, self._rows)
        return buffers

    def put(self, slot: int, frame: Frame) -> None:
        for name, target in self._slots[slot]:
            np.copyto(target, frame[name])

    def put_one(self, slot: int, frame: Array) -> None:
        self._slots[slot][0][1][...] = frame

    def put_rows(self, first: int, frames: Mapping[str, Array]) -> None:
        for name, array in frames.items():
            self._inputs[name][first : first + len(array)] = array

    def rows_of(self, call: _Call) -> Outputs:
        return call.rows

    def bind(self, first: int, count: int, before: Buffers, after: Buffers) -> _Call:
        rows = slice(first, first + count)
        if self._session is None:
            raise _closed()
        inputs = [(t.name, t.dtype, self._inputs[t.name][rows]) for t in self._signature.inputs]
        inputs += [(s.input, s.dtype, before[s.name][rows]) for s in self._signature.states]
        written = [(s.output, s.dtype, after[s.name][rows]) for s in self._signature.states]
        written += [
            (name, self._signature.output(name).dtype, array[rows]) for name, array in self._outputs.items()
        ]
        run, run_watched, steps = _bind(
            self._session, inputs, written, inputs[0][2] if self.watches else None
        )
        outputs = {name: array for name, _, array in written}
        views = {t.name: _read_only(outputs[t.name]) for t in self._signature.outputs}
        rows_alone = [{name: view[j, ...] for name, view in views.items()} for j in range(count)]
        found = [] if after.arena is None else [look(after.arena, "float32")]
        for s in self._looked_at:
            if after.arena is None or s.dtype != "float32":
                found.append(look(after[s.name][rows].reshape(-1), s.dtype))
        states = {s.name: after[s.name][rows] for s in self._signature.states}
        return _Call(run, run_watched, rows_alone, views, all_of(found), states, steps)

    def watch(self, ranges: Mapping[str, tuple[float, float]]) -> Watch | None:
        """See :class:`Watch`; None where calls can't look for themselves: without a session of ours, and at states in other types."""
        looked_at = [s.name for s in self._looked_at if s.dtype == "float32"]
        if len(looked_at) < len(self._looked_at) or set(ranges).difference(looked_at):
            return None
        can = isinstance(self._session, NativeSession) and self._session.can_look
        return Watch(looked_at, ranges) if can else None

    def is_good(self, call: _Call, ranges: Mapping[str, tuple[float, float]]) -> bool:
        """Whether the states that the call wrote are finite, as far as they are looked at, and within ``ranges``."""
        if not call.finite():
            return False
        for name, (low, high) in ranges.items():
            if not (low <= call.states[name].min() and call.states[name].max() <= high):
                return False
        return True

    def run(self, call: _Call) -> list[Outputs]:
        if self._session is None:
            raise _closed()
        try:
            failed = call.run()
        except Exception as error:  # ONNX Runtime raises several unrelated classes
            raise EdgeLstmError("ONNX Runtime failed in a step", found=first_line(error)) from error
        if failed:
            self.check(call, failed)
        return call.outputs

    def check(self, call: _Call, said: int) -> None:
        """What a call of a session of ours gave that is not 0: raises where it failed."""
        if said != IS_BAD:
            raise EdgeLstmError("ONNX Runtime failed in a step", found=self._session.failure())
        call.tell()

    def warm(self, call: _Call) -> None:
        """Nothing is prepared."""

    def wait(self) -> None:
        """A call is done when it returns."""

    def move(self, source: Buffers, row: int, target: Buffers, to: int) -> None:
        for name, array in source.items():
            target[name][to] = array[row]

    def read(self, buffers: Buffers, row: int) -> dict[str, Array]:
        # In the order of the Signature, so a snapshot's file does not tell how many streams there were.
        return {s.name: buffers[s.name][row, ...].copy() for s in self._signature.states}

    def write(self, buffers: Buffers, row: int, values: Mapping[str, Array]) -> None:
        for name, array in buffers.items():
            array[row] = values[name]

    def close(self) -> None:
        self._session = None


def _allocate(shape: tuple[int, ...], dtype: str, rows: int) -> Array:
    """A zeroed, aligned buffer [rows, *shape]."""
    kind = np_dtype(dtype)
    size = math.prod((rows, *shape)) * kind.itemsize
    try:
        raw = np.zeros(size + ALIGNMENT, np.uint8)
    except MemoryError as error:
        raise EdgeLstmError(
            f"buffer for {count_of(rows, 'stream')} of {dtype}{list(shape)}",
            found=f"{count_of(size, 'byte')}",
            hint="Use fewer streams",
        ) from error
    start = -raw.ctypes.data % ALIGNMENT
    buffer: Array = raw[start : start + size].view(kind).reshape(rows, *shape)
    return buffer


def _bind(
    session: Any, inputs: Sequence[Bound], outputs: Sequence[Bound], watched: Array | None
) -> tuple[Callable[[], Any], Callable[[], int], Steps | None]:
    """A step over fixed memory, and, of a session of ours, one that looks at ``watched`` first, and what both are of."""
    if isinstance(session, NativeSession):
        steps = session.bind(inputs, outputs, watched)
        return steps.run, steps.run_watched, steps
    binding = session.io_binding()
    for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, dtype, array in tensors:
            element: Any = NUMBERS.get(dtype, array.dtype)
            bind(name, "cpu", 0, element, list(array.shape), array.ctypes.data)
    step = partial(session.run_with_iobinding, binding)
    return step, step, None


def _read_only(array: Array) -> Array:
    view: Array = array.view()
    view.flags.writeable = False
    return view


def _closed() -> EdgeLstmError:
    return EdgeLstmError("this program is closed", hint="Open it again")
