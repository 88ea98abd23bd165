"""ONNX Runtime backend: state in preallocated buffers that swap roles, bound once, never copied on the way.

Every state has two buffers of ``streams`` rows, and every row remembers on which *side* its current value lies. A call
binds a run of rows: the engine reads them on one side and writes the other, and only the rows that took part change
sides. So an idle row inside the run keeps its bits (what was written over there is never looked at), and nothing is
copied. Only when few rows of a long run take part are they gathered into scratch buffers instead.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, check_file
from edgelstm.runtime.protocol import Array, Frame, Outputs
from edgelstm.signature import Dim, Signature

METADATA_KEY = "edgelstm.signature"
ALIGNMENT = 64  # bytes: a cache line, and what AVX-512 loads at once
#: Rows that take part / rows computed, below which gathering is cheaper than computing idle rows too.
DENSE = 0.75
#: Bound calls kept; each holds some pointers only.
MAX_BINDINGS = 512
_ELEMENTS = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(float8e4m3fn)": "float8e4m3fn",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
#: TensorProto's numbers of the types that NumPy lacks: the binding takes them in place of a dtype.
_NUMBERS = {"bfloat16": 16, "float8e4m3fn": 17}

_Key = tuple[int, int, int]  # first row (-1: scratch), rows, side


@dataclass(slots=True)
class OrtState:
    """State of all rows: ``buffers[side][state name]`` [streams, ...]; ``side[row]`` says which one is current.

    ``written``: rows set since the last step. ``calls``: bound engine calls by rows and side.
    """

    buffers: tuple[dict[str, Array], dict[str, Array]]
    side: list[int]
    scratch: tuple[dict[str, Array], dict[str, Array]] | None = None
    calls: dict[_Key, _Call] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Call:
    """A bound engine call, and the outputs it fills: one dictionary of read-only views per row."""

    binding: Any
    outputs: list[Outputs]


class OrtProgram:
    """A StepModel, a file or its bytes, opened by ONNX Runtime on the CPU. See :class:`edgelstm.runtime.protocol.Program`.

    ``threads`` is the size of the thread pool (default: the processors this process may use). ``spin`` keeps idle
    threads of the pool awake between operators, which is fastest for one program but takes time from others.
    """

    def __init__(
        self,
        model: PathLike | bytes,
        *,
        streams: int = 1,
        threads: int | None = None,
        spin: bool = True,
    ) -> None:
        if streams < 1:
            raise EdgeLstmError("streams", found=streams, expected="at least 1")
        if threads is not None and threads < 1:
            raise EdgeLstmError("threads", found=threads, expected="at least 1")
        self.streams = streams
        where = "model" if isinstance(model, bytes) else str(model)
        self._session: Any = open_session(model, threads or available_cpus(), spin)
        self.signature = _read_signature(self._session, where)
        axis = self.signature.stream_axis
        #: Rows one call takes: any number (None), or what the graph fixes.
        self._rows: int | None = axis if isinstance(axis, int) else None
        if self._rows not in (None, 1, streams):
            raise EdgeLstmError(
                f"{where} takes {self._rows} streams in every call",
                found=f"streams={streams}",
                expected=f"streams={self._rows}",
            )
        self._inputs = {t.name: _allocate(t.frame_shape, t.dtype, streams) for t in self.signature.inputs}
        shared = {s.output for s in self.signature.states}
        self._outputs = {
            t.name: _allocate(t.frame_shape, t.dtype, streams)
            for t in self.signature.outputs
            if t.name not in shared
        }
        # [row, ...] is a view even where a row is a single number.
        self._frame_rows = [
            {name: array[row, ...] for name, array in self._inputs.items()} for row in range(streams)
        ]

    def new_state(self) -> OrtState:
        """All rows at their initial value."""
        state = OrtState((self._state_buffers(), self._state_buffers()), [0] * self.streams)
        for spec in self.signature.states:
            state.buffers[0][spec.name][:] = spec.initial_value()
        return state

    def step(self, frames: Sequence[Frame], state: OrtState, active: Sequence[int]) -> list[Outputs]:
        """Advance rows ``active``; see the protocol."""
        state.written.clear()
        first, last = active[0], active[-1]
        count = last - first + 1
        if self._rows is None and len(active) < DENSE * count:
            return self._step_gathered(frames, state, active)
        for frame, row in zip(frames, active, strict=True):
            for name, target in self._frame_rows[row].items():
                np.copyto(target, frame[name])
        if self._rows == 1:
            outputs = [self._run(state, row, 1).outputs[0] for row in active]
        else:
            if self._rows is not None:
                first, count = 0, self._rows
            if count > 1:
                self._align(state, range(first, first + count), state.side[active[0]])
            done = self._run(state, first, count).outputs
            outputs = [done[row - first] for row in active]
        for row in active:
            state.side[row] ^= 1
        return outputs

    def read_state(self, state: OrtState, row: int) -> dict[str, Array]:
        """A copy of one row's state by name."""
        return {name: array[row, ...].copy() for name, array in state.buffers[state.side[row]].items()}

    def write_state(self, state: OrtState, row: int, values: Mapping[str, Array]) -> None:
        """Set one row's state.

        An output may be a view of the current side and has to last until the next step, so the first write
        after a step goes to the other side.
        """
        if row not in state.written:
            state.written.add(row)
            state.side[row] ^= 1
        for name, array in state.buffers[state.side[row]].items():
            array[row] = values[name]

    def close(self) -> None:
        """Free the session and its thread pool."""
        self._session = None

    def _run(self, state: OrtState, first: int, count: int) -> _Call:
        """Run rows [first, first + count), whose current values lie on one side; the other side is written."""
        side = state.side[first]
        call = state.calls.get((first, count, side))
        if call is None:
            rows = slice(first, first + count)
            call = self._bind(rows, state.buffers[side], state.buffers[1 - side])
            _remember(state.calls, (first, count, side), call)
        self._execute(call)
        return call

    def _step_gathered(
        self, frames: Sequence[Frame], state: OrtState, active: Sequence[int]
    ) -> list[Outputs]:
        """Few rows, far apart: copy their state together, run them as one call, copy it back."""
        if state.scratch is None:
            state.scratch = (self._state_buffers(), self._state_buffers())
        before, after = state.scratch
        count = len(active)
        for j, (frame, row) in enumerate(zip(frames, active, strict=True)):
            for name, target in self._frame_rows[j].items():
                np.copyto(target, frame[name])
            for name, array in state.buffers[state.side[row]].items():
                before[name][j] = array[row]
        call = state.calls.get((-1, count, 0))
        if call is None:
            call = self._bind(slice(0, count), before, after)
            _remember(state.calls, (-1, count, 0), call)
        self._execute(call)
        for j, row in enumerate(active):
            for name, array in state.buffers[state.side[row]].items():
                array[row] = after[name][j]
        return call.outputs

    def _execute(self, call: _Call) -> None:
        if self._session is None:
            raise EdgeLstmError("this program is closed", hint="Open it again")
        try:
            self._session.run_with_iobinding(call.binding)
        except Exception as error:  # ONNX Runtime raises several unrelated classes
            raise EdgeLstmError("ONNX Runtime failed in a step", found=_first_line(error)) from error

    def _bind(self, rows: slice, before: dict[str, Array], after: dict[str, Array]) -> _Call:
        """Bind ``rows`` of the frame and output buffers and of the two state buffers, once, by address."""
        binding = self._session.io_binding()
        for t in self.signature.inputs:
            _bind(binding.bind_input, t.name, t.dtype, self._inputs[t.name][rows])
        outputs = {}
        for s in self.signature.states:
            _bind(binding.bind_input, s.input, s.dtype, before[s.name][rows])
            _bind(binding.bind_output, s.output, s.dtype, after[s.name][rows])
            outputs[s.output] = after[s.name][rows]
        for name, array in self._outputs.items():
            _bind(binding.bind_output, name, self.signature.output(name).dtype, array[rows])
            outputs[name] = array[rows]
        views = {t.name: _read_only(outputs[t.name]) for t in self.signature.outputs}
        count = rows.stop - rows.start
        return _Call(binding, [{name: view[j, ...] for name, view in views.items()} for j in range(count)])

    def _align(self, state: OrtState, rows: range, side: int) -> None:
        """Bring the rows' current values to one side (needed only after a step in which some of them were idle)."""
        for row in rows:
            if state.side[row] != side:
                for name, array in state.buffers[state.side[row]].items():
                    state.buffers[side][name][row] = array[row]
                state.side[row] = side

    def _state_buffers(self) -> dict[str, Array]:
        return {s.name: _allocate(s.frame_shape, s.dtype, self.streams) for s in self.signature.states}


def available_cpus() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_session(model: PathLike | bytes, threads: int, spin: bool = True) -> Any:
    """An ONNX Runtime session with the options every step graph here runs under.

    Raises EdgeLstmError when ONNX Runtime is missing, or the file is missing or refused.
    """
    where = "model" if isinstance(model, bytes) else str(model)
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EdgeLstmError(
            "ONNX Runtime is not installed", hint="pip install 'edgelstm[cpu]' (or 'edgelstm[gpu]')"
        ) from error
    # Opened from its bytes, a session keeps them, beside the weights it made of them, for as long as it lives.
    source = model if isinstance(model, bytes) else str(check_file(model))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    try:
        try:
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises several unrelated classes
            if "float8" not in str(error):
                raise
            # It fuses Q/DQ pairs of fp8 into operators that have no fp8 (seen in 1.31). Unfused it computes in float32.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if "NOT_IMPLEMENTED" in str(error):
            raise EdgeLstmError(
                f"ONNX Runtime can't run {where} on the CPU",
                found=_first_line(error),
                expected="operators and types that its CPU provider has",
                hint="A graph for TensorRT in bf16 runs there only; quantize --target onnxruntime for the CPU",
            ) from error
        raise EdgeLstmError(
            f"ONNX Runtime can't open {where}",
            found=_first_line(error),
            expected="a valid ONNX file",
            hint="If the file was cut short or edited, export it again",
        ) from error


def _read_signature(session: Any, where: str) -> Signature:
    """The Signature in the file's metadata, checked against what the session says of the graph."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    inputs = {v.name: v for v in session.get_inputs()}
    outputs = {v.name: v for v in session.get_outputs()}
    if text is None:
        raise EdgeLstmError(
            f"{where} has no Signature: nothing tells which of its tensors are states",
            found=f"inputs {', '.join(inputs)}; outputs {', '.join(outputs)}",
            hint=f"Declare the state pairs: edgelstm export {where} --state INPUT=OUTPUT -o step.onnx",
        )
    signature = Signature.loads(text, where)
    wanted_in = {t.name: (t.dtype, t.shape) for t in signature.inputs}
    wanted_in |= {s.input: (s.dtype, s.shape) for s in signature.states}
    wanted_out = {t.name: (t.dtype, t.shape) for t in signature.outputs}
    wanted_out |= {s.output: (s.dtype, s.shape) for s in signature.states}
    for kind, have, want in (("inputs", inputs, wanted_in), ("outputs", outputs, wanted_out)):
        if set(have) != set(want):
            raise EdgeLstmError(
                f"{where}: the graph's {kind} and its Signature disagree",
                found=f"graph {sorted(have)}",
                expected=f"{sorted(want)} as the Signature says",
                hint="The file was edited after export: export it again",
            )
        for name, (dtype, shape) in want.items():
            found = (_ELEMENTS.get(have[name].type, have[name].type), have[name].shape)
            if found[0] != dtype or not _same_shape(found[1], shape):
                raise EdgeLstmError(
                    f"{where}: tensor {name!r} of the graph and its Signature disagree",
                    found=f"{found[0]}{list(found[1])}",
                    expected=f"{dtype}{list(shape)} as the Signature says",
                    hint="The file was edited after export: export it again",
                )
    return signature


def _same_shape(found: Sequence[Any], wanted: tuple[Dim, ...]) -> bool:
    return len(found) == len(wanted) and all(
        have == want if isinstance(want, int) else not isinstance(have, int)
        for have, want in zip(found, wanted, strict=True)
    )


def _allocate(shape: tuple[int, ...], dtype: str, rows: int) -> Array:
    """A zeroed, aligned buffer [rows, *shape]."""
    kind = np_dtype(dtype)
    size = math.prod((rows, *shape)) * kind.itemsize
    try:
        raw = np.zeros(size + ALIGNMENT, np.uint8)
    except MemoryError as error:
        raise EdgeLstmError(
            f"buffer for {rows} streams of {dtype}{list(shape)}",
            found=f"{size} bytes",
            hint="Use fewer streams",
        ) from error
    start = -raw.ctypes.data % ALIGNMENT
    buffer: Array = raw[start : start + size].view(kind).reshape(rows, *shape)
    return buffer


def _bind(bind: Any, name: str, dtype: str, array: Array) -> None:
    element: Any = _NUMBERS.get(dtype, array.dtype)
    bind(name, "cpu", 0, element, list(array.shape), array.ctypes.data)


def _read_only(array: Array) -> Array:
    view: Array = array.view()
    view.flags.writeable = False
    return view


def _remember(calls: dict[_Key, _Call], key: _Key, call: _Call) -> None:
    if len(calls) >= MAX_BINDINGS:
        calls.pop(next(iter(calls)))
    calls[key] = call


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
