"""The memory of a program on a GPU: states, frames and outputs, one stream, and a CUDA graph for each call on them.

A step is one graph: frames to the GPU, the engine, outputs to the host. It is captured for each run of rows and side,
since a graph freezes addresses. The engine reads one side and writes the other, never the same pointer.

On a GPU that shares the processor's memory (a Jetson) the engine reads frames and writes outputs where the host has them,
and nothing is copied but outputs that are states too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.runtime.buffers import buffer_bytes, check_memory, granule, row_bytes, row_of, rows_of, stride
from edgelstm.runtime.cuda import Cuda
from edgelstm.runtime.device import OutputPlace
from edgelstm.runtime.device_array import DeviceArray, device_output
from edgelstm.runtime.protocol import Array, Frame, Outputs
from edgelstm.runtime.rows import CallSize

#: Graphs kept, and steps after which an unused one makes room for another.
MAX_GRAPHS = 32
IDLE_STEPS = 1000

log = logging.getLogger(__name__)
Buffers = dict[str, int]  # by state name: address of row 0


class Engine(Protocol):
    """A model opened on a GPU: puts work on a stream.

    Addresses come by graph tensor name (those of states: ``StateSpec.input`` and ``.output``) for ``rows`` rows.
    """

    #: Whether its work can be captured in a CUDA graph.
    captures: bool

    def bind(self, rows: int, addresses: Mapping[str, int]) -> Callable[[int], None]:
        """A function that puts the step on a stream, given by its handle."""

    def dedicate(self, rows: int, addresses: Mapping[str, int]) -> Callable[[int], None] | None:
        """As :meth:`bind`, with whatever is worth keeping for these addresses alone; None if there is no such thing."""

    def close(self) -> None:
        """Free it; calling it again does nothing."""


@dataclass(slots=True)
class _Copy:
    target: int
    source: int
    size: int


@dataclass(slots=True)
class _Call:
    """An engine call on a run of rows.

    load, store: copies of the frames before it and of the outputs after it. saved: states it reads, as (address, bytes).
    graphs: by whether they hold ``load``. used: the step it was last run in.
    """

    rows: int
    addresses: dict[str, int]
    enqueue: Callable[[int], None]
    load: list[_Copy]
    store: list[_Copy]
    saved: list[tuple[int, int]]
    outputs: list[Outputs]
    first: int = 0
    together: Outputs | None = None  # the outputs of all rows, [rows, ...] each, once somebody asked for them
    runs: int = 0
    dedicated: bool = False
    graphs: dict[bool, Any] = field(default_factory=dict)
    used: int = 0


class DeviceMemory:
    """Buffers on the GPU and the calls bound to them. See :class:`edgelstm.runtime.rows.Memory`."""

    def __init__(
        self,
        signature: Signature,
        rows: int,
        size: CallSize,
        cuda: Cuda,
        engine: Engine,
        outputs: OutputPlace,
    ) -> None:
        self._signature = signature
        self._cuda = cuda
        self._engine = engine
        self._rows = rows
        self._on_host = outputs == "host"
        # Alone in a call, every row must lie on a boundary; else rows lie side by side, and runs begin at some of them.
        self._alone = size.most == 1
        self.size = CallSize(size.least, size.most, granule(signature, self._alone), size.overwrites)
        check_memory(cuda, {"states and buffers": buffer_bytes(signature, rows, self._alone)})
        self._inputs = {t.name: self._buffer(t) for t in signature.inputs}
        states = {s.output: s for s in signature.states}
        made = [t for t in signature.outputs if t.name not in states]
        self._outputs = {t.name: self._buffer(t) if self._on_host else self._unseen(t) for t in made}
        #: Where the host reads outputs that are states.
        self._state_outputs = {
            t.name: self._locked(t) for t in signature.outputs if t.name in states and self._on_host
        }
        self._slots = [
            tuple((name, row_of(buffer.array, row, self._stride(signature.input(name)), signature.input(name)))
                  for name, buffer in self._inputs.items())
            for row in range(rows)
        ]  # fmt: skip
        self._state_rows = [(s.name, self._stride(s), row_bytes(s)) for s in signature.states]
        self._pending: list[tuple[int, Frame]] = []
        self._any_on_device = False
        self._calls: list[_Call] = []  # those that hold graphs
        self._captures = engine.captures
        self._steps = 0

    def allocate(self) -> Buffers:
        return {s.name: self._cuda.allocate(self._rows * self._stride(s)) for s in self._signature.states}

    @property
    def warm_calls(self) -> int:
        """Half of the graphs: the others are for runs of rows that nobody foresaw."""
        return max(2, MAX_GRAPHS // 2)

    def begin(self) -> None:
        """Before a step's frames: forget those that were laid ready for one that failed on its way."""
        if self._pending:
            self._pending.clear()
        self._any_on_device = False

    def put(self, slot: int, frame: Frame) -> None:
        self._pending.append((slot, frame))
        for name, target in self._slots[slot]:
            value = frame[name]
            if isinstance(value, DeviceArray):
                self._put_on_device(name, slot, value)
            else:
                target[...] = value

    def put_one(self, slot: int, frame: Any) -> None:
        name, target = self._slots[slot][0]
        if isinstance(frame, DeviceArray):
            self._put_on_device(name, slot, frame)
        else:
            target[...] = frame

    def put_rows(self, first: int, frames: Mapping[str, Any]) -> None:
        host: dict[str, Any] = {}
        for name, array in frames.items():
            if isinstance(array, DeviceArray):
                self._put_on_device(name, first, array)
            else:
                spec = self._signature.input(name)
                rows_of(self._inputs[name].array, first, len(array), spec)[...] = array
                host[name] = array
        if self._any_on_device:
            # Beside some that are there already, each other one is copied by itself.
            for name, array in host.items():
                buffer, spec = self._inputs[name], self._signature.input(name)
                if not buffer.shared:
                    size = row_bytes(spec)
                    offset = first * size
                    self._cuda.copy(buffer.address + offset, buffer.host + offset, len(array) * size)

    def _put_on_device(self, name: str, slot: int, value: DeviceArray) -> None:
        self._any_on_device = True
        offset = slot * self._stride(self._signature.input(name))
        self._cuda.copy(self._inputs[name].address + offset, value.pointer, value.nbytes)

    def rows_of(self, call: _Call) -> Outputs:
        if call.together is None:
            call.together = {t.name: self._rows_view(t, call) for t in self._signature.outputs}
        return call.together

    def _rows_view(self, spec: TensorSpec, call: _Call) -> Any:
        if not self._on_host:
            shape = (call.rows, *spec.frame_shape)
            return device_output(self._cuda, call.addresses[spec.name], shape, spec.dtype)
        buffer = self._state_outputs.get(spec.name) or self._outputs[spec.name]
        view = rows_of(buffer.array, call.first, call.rows, spec)
        view.flags.writeable = False
        return view

    def bind(self, first: int, count: int, before: Buffers, after: Buffers) -> _Call:
        signature = self._signature
        addresses: dict[str, int] = {}
        load: list[_Copy] = []
        store: list[_Copy] = []
        saved: list[tuple[int, int]] = []
        for t in signature.inputs:
            buffer, offset, size = self._inputs[t.name], first * self._stride(t), count * self._stride(t)
            addresses[t.name] = buffer.address + offset
            if not buffer.shared:
                load.append(_Copy(buffer.address + offset, buffer.host + offset, size))
        for s in signature.states:
            offset, size = first * self._stride(s), count * self._stride(s)
            addresses[s.input] = before[s.name] + offset
            addresses[s.output] = after[s.name] + offset
            saved.append((before[s.name] + offset, size))
            if s.output in self._state_outputs:
                host = self._state_outputs[s.output].host
                store.append(_Copy(host + offset, after[s.name] + offset, size))
        for name, buffer in self._outputs.items():
            t = signature.output(name)
            offset, size = first * self._stride(t), count * self._stride(t)
            addresses[name] = buffer.address + offset
            if self._on_host and not buffer.shared:
                store.append(_Copy(buffer.host + offset, buffer.address + offset, size))
        outputs: list[Outputs] = [
            {
                t.name: self._view(t, first + j, addresses[t.name] + j * self._stride(t))
                for t in signature.outputs
            }
            for j in range(count)
        ]
        enqueue = self._engine.bind(count, addresses)
        return _Call(count, addresses, enqueue, load, store, saved, outputs, first)

    def run(self, call: _Call) -> list[Outputs]:
        load = not self._any_on_device
        if not load:
            self._load_host_frames()
        call.runs += 1
        call.used = self._steps
        graph = call.graphs.get(load)
        if graph is None and call.runs > 1 and (self._captures or not call.dedicated):
            graph = self._settle(call, load)
        if graph is not None:
            self._cuda.launch(graph)
            return call.outputs
        if load:
            self._copy(call.load)
        call.enqueue(self._cuda.stream)
        self._copy(call.store)
        return call.outputs

    def warm(self, call: _Call) -> None:
        # With outputs on the GPU frames are likely to come from there, too, and then the graph leaves out their copy.
        for on_device in (False,) if self._on_host else (False, True):
            for _ in range(2):
                self._any_on_device = on_device
                self.run(call)
                self.wait()
        call.used -= IDLE_STEPS  # one that no stream ever needs makes room at once

    def wait(self) -> None:
        self.begin()  # nor are those of this step held any longer
        self._steps += 1
        self._cuda.wait()

    def move(self, source: Buffers, row: int, target: Buffers, to: int) -> None:
        copy = self._cuda.copy
        for name, step, size in self._state_rows:
            copy(target[name] + to * step, source[name] + row * step, size)

    def read(self, buffers: Buffers, row: int) -> dict[str, Array]:
        values = {s.name: np.empty(s.frame_shape, np_dtype(s.dtype)) for s in self._signature.states}
        for s in self._signature.states:
            source = buffers[s.name] + row * self._stride(s)
            self._cuda.copy(values[s.name].ctypes.data, source, row_bytes(s))
        self._cuda.wait()
        return values

    def write(self, buffers: Buffers, row: int, values: Mapping[str, Array]) -> None:
        for s in self._signature.states:
            value = np.ascontiguousarray(values[s.name], np_dtype(s.dtype))
            self._cuda.copy(buffers[s.name] + row * self._stride(s), value.ctypes.data, row_bytes(s))
            self._cuda.wait()

    def close(self) -> None:
        if self._cuda.closed:
            return
        with self._cuda:
            for call in self._calls:
                self._drop_graphs(call)
            self._calls.clear()
            self._engine.close()
        self._cuda.close()

    def _settle(self, call: _Call, load: bool) -> Any:
        """For a call that comes again: resources of its own, and a graph where that works."""
        saved: list[_Copy] = []
        try:
            if not call.dedicated:
                if not self._make_room():
                    return None
                call.enqueue = self._engine.dedicate(call.rows, call.addresses) or call.enqueue
                call.dedicated = True
                self._calls.append(call)
            if not self._captures:
                return None
            # Capturing needs a run before it, and may be one: each would advance a state that is updated in place, or
            # spoil one that the engine writes over. So what is read is put back after either.
            for address, size in call.saved:
                saved.append(_Copy(self._cuda.allocate(size), address, size))
            self._copy(saved)
            call.enqueue(self._cuda.stream)
            self._restore(saved)
            with self._cuda.capture() as capture:
                for copy in call.load if load else ():
                    capture.copy(copy.target, copy.source, copy.size)
                call.enqueue(capture.stream)
                for copy in call.store:
                    capture.copy(copy.target, copy.source, copy.size)
            call.graphs[load] = capture.graph
            self._restore(saved)
        except EdgeLstmError as error:
            log.warning("no CUDA graphs, so a step takes longer to start: %s", error)
            self._captures = False
            if len(saved) == len(call.saved):
                self._restore(saved)
        finally:
            for copy in saved:
                self._cuda.free(copy.target)
        return call.graphs.get(load)

    def _restore(self, saved: Sequence[_Copy]) -> None:
        for copy in saved:
            self._cuda.copy(copy.source, copy.target, copy.size)
        self._cuda.wait()

    def _make_room(self) -> bool:
        """Whether one more call may have resources of its own."""
        if len(self._calls) < MAX_GRAPHS:
            return True
        oldest = min(self._calls, key=lambda call: call.used)
        if self._steps - oldest.used < IDLE_STEPS:
            return False
        self._cuda.wait()
        self._calls.remove(oldest)
        self._drop_graphs(oldest)
        oldest.enqueue = self._engine.bind(oldest.rows, oldest.addresses)
        oldest.dedicated, oldest.runs = False, 0
        return True

    def _drop_graphs(self, call: _Call) -> None:
        for graph in call.graphs.values():
            self._cuda.destroy(graph)
        call.graphs.clear()

    def _load_host_frames(self) -> None:
        """Where some frames of a step are on the GPU, each other one is copied by itself."""
        for slot, frame in self._pending:
            for name, buffer in self._inputs.items():
                if not isinstance(frame[name], DeviceArray) and not buffer.shared:
                    t = self._signature.input(name)
                    offset = slot * self._stride(t)
                    self._cuda.copy(buffer.address + offset, buffer.host + offset, row_bytes(t))
        self._pending.clear()

    def _copy(self, copies: Sequence[_Copy]) -> None:
        for copy in copies:
            self._cuda.copy(copy.target, copy.source, copy.size)

    def _stride(self, spec: TensorSpec | StateSpec) -> int:
        """Bytes from row to row."""
        return stride(spec, self._alone)

    def _buffer(self, spec: TensorSpec) -> _Buffer:
        """Rows that the engine reads or writes and the host sees."""
        locked = self._locked(spec)
        if locked.shared:
            return locked
        return _Buffer(self._cuda.allocate(self._rows * self._stride(spec)), locked.host, locked.array, False)

    def _unseen(self, spec: TensorSpec) -> _Buffer:
        """Rows that stay on the GPU."""
        address = self._cuda.allocate(self._rows * self._stride(spec))
        return _Buffer(address, 0, np.empty(0, np.uint8), False)

    def _locked(self, spec: TensorSpec) -> _Buffer:
        memory = self._cuda.allocate_host(self._rows * self._stride(spec))
        return _Buffer(memory.mapped, memory.pointer, memory.array, self._cuda.integrated)

    def _view(self, spec: TensorSpec, row: int, address: int) -> Any:
        """What a stream gets: one row of an output."""
        if not self._on_host:
            return device_output(self._cuda, address, spec.frame_shape, spec.dtype)
        buffer = self._state_outputs.get(spec.name) or self._outputs[spec.name]
        view = row_of(buffer.array, row, self._stride(spec), spec)
        view.flags.writeable = False
        return view


@dataclass(frozen=True)
class _Buffer:
    """address: for the engine. host: for the host; both are one memory where it is ``shared``. array: its bytes."""

    address: int
    host: int
    array: Array
    shared: bool
