"""Runner: the named streams of a Program. They join, advance frame by frame, and leave; each has a state of its own."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.runtime.device import OutputPlace
from edgelstm.runtime.open import open_program
from edgelstm.runtime.protocol import Array, Frame, Outputs, Program

if TYPE_CHECKING:
    from edgelstm.runtime.device_array import DeviceArray

BadFrame = Literal["error", "skip", "zero", "pass"]
#: Elements of a frame up to which BLAS works in the calling thread.
SMALL = 8192


class Stream:
    """One named stream of a Runner; made by :meth:`Runner.stream`.

    Its state starts at the model's initial value and moves on with every :meth:`step`.
    """

    def __init__(self, runner: Runner, name: str, row: int) -> None:
        self.name = name
        self._runner = runner
        self._row = row
        #: Frames this stream advanced since it joined or was reset.
        self.frames = 0
        #: Frames dropped because they held NaN or infinity (policy "skip").
        self.skipped = 0

    def step(self, frame: Array | Frame, *, copy: bool = False) -> Outputs:
        """Advance by one frame (one window of T frames if the model is a window) and give its outputs by name.

        ``frame``: the array of a model with one input, or a mapping of input name to array; shape and dtype as in
        the Signature, without the stream axis. The outputs are read-only views that stay valid until this
        runner's next step; ``copy=True`` gives arrays to keep. Empty when the frame was skipped.
        Raises EdgeLstmError for a wrong frame; the state is then what it was.
        """
        return self._runner._advance(((self, frame),), copy)[0]

    def reset(self) -> None:
        """Go back to the initial state."""
        self._runner._reset(self)

    def snapshot(self) -> dict[str, Array]:
        """A copy of the state, by state name; good for :meth:`restore` on any stream of any runner of this model."""
        return self._runner._snapshot(self)

    def values(self) -> dict[str, Array]:
        """What the state is worth, by state name: as :meth:`snapshot`, quantised states as float32."""
        specs = {s.name: s for s in self._runner.signature.states}
        return {name: specs[name].values(stored) for name, stored in self.snapshot().items()}

    def restore(self, snapshot: Mapping[str, Array]) -> None:
        """Set the state. Values may come in any floating-point dtype, for a quantised state too."""
        self._runner._restore(self, snapshot)

    def close(self) -> None:
        """Leave the runner and free the place; calling it again does nothing."""
        self._runner._leave(self)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, frames={self.frames})"


class Runner:
    """Streams of one model on one device.

    >>> with Runner.open("model.onnx", streams=2) as runner:
    ...     front, rear = runner.stream("front"), runner.stream("rear")
    ...     y = front.step(frame)["y"]
    ...     both = runner.step({"front": frame, "rear": other})

    Calls from several threads are safe: they take turns. But outputs last only until the next step, whoever makes it:
    with several threads use ``copy=True``.

    ``on_bad_frame`` says what to do with a frame that holds NaN or infinity: ``error`` (default), ``skip`` it (the
    state stays, no outputs), ``zero`` (every non-finite value becomes 0), or ``pass`` it on without a look. Frames that are
    on the GPU already (PyTorch, CuPy: whatever has ``__cuda_array_interface__`` or DLPack) can't be looked at: they need
    ``pass``.
    """

    def __init__(self, program: Program, *, on_bad_frame: BadFrame = "error") -> None:
        if on_bad_frame not in get_args(BadFrame):
            raise EdgeLstmError("on_bad_frame", found=on_bad_frame, expected=" or ".join(get_args(BadFrame)))
        self._program = program
        self._state: Any = program.new_state()
        self._policy = on_bad_frame
        self._finite = on_bad_frame != "pass"
        #: Takes frames that are on the GPU, where the program can.
        self._device_frame = getattr(program, "device_frame", None)
        self._streams: dict[str, Stream] = {}
        self._free = list(range(program.streams - 1, -1, -1))
        self._initial = {s.name: s.initial_value() for s in program.signature.states}
        self._inputs = tuple(_Input(spec) for spec in program.signature.inputs)
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(
        cls,
        path: PathLike,
        device: str | None = None,
        streams: int = 1,
        *,
        threads: int | None = None,
        on_bad_frame: BadFrame = "error",
        outputs: OutputPlace = "host",
    ) -> Runner:
        """Open a model file with room for ``streams`` streams; ``threads`` defaults to all processors.

        device: "cpu", "cuda" or "cuda:N"; default: "cpu" for a step graph, "cuda" for an engine. outputs: "device"
        leaves them on the GPU (:class:`edgelstm.runtime.device_array.DeviceArray`).

        Raises EdgeLstmError for a file that is missing, corrupt, or has no Signature, for an unknown device, and for what
        the device lacks.
        """
        program = open_program(path, device, streams=streams, threads=threads, outputs=outputs)
        try:
            return cls(program, on_bad_frame=on_bad_frame)
        except BaseException:
            program.close()
            raise

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self._program.signature

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams, in the order in which they joined."""
        return tuple(self._streams)

    def stream(self, name: str) -> Stream:
        """The stream called ``name``; it joins, in the initial state, if there is none.

        Raises EdgeLstmError when all places are taken.
        """
        with self._lock:
            self._check_open()
            if name not in self._streams:
                if not self._free:
                    raise EdgeLstmError(
                        f"no place for stream {name!r}",
                        found=f"{len(self._streams)} streams: {', '.join(self._streams)}",
                        hint="Close one, or open the runner with streams=N larger",
                    )
                row = self._free.pop()
                self._program.write_state(self._state, row, self._initial)
                self._streams[name] = Stream(self, name, row)
            return self._streams[name]

    def step(self, frames: Mapping[str, Array | Frame], *, copy: bool = False) -> dict[str, Outputs]:
        """Advance the named streams by one frame each, in one engine call; all others keep their state bit for bit.

        Returns outputs by stream name, in the order given; see :meth:`Stream.step`. When any frame is wrong, no
        stream advances. Skipped streams have no outputs.
        """
        if not frames:
            return {}
        pairs = [(self._stream_named(name), frame) for name, frame in frames.items()]
        return dict(zip(frames, self._advance(pairs, copy), strict=True))

    def close(self) -> None:
        """Free the device; calling it again does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._streams.clear()
                self._state = None
                self._program.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _advance(self, pairs: Sequence[tuple[Stream, Array | Frame]], copy: bool) -> list[Outputs]:
        """Check every frame before any stream moves, then advance them together.

        Copies are made here, before another thread's turn writes over the views.
        """
        with self._lock:
            jobs = []
            skipped = []
            for place, (stream, frame) in enumerate(pairs):
                self._check_member(stream)
                checked = self._checked(stream, frame)
                if checked is None:
                    skipped.append(stream)
                else:
                    jobs.append((stream._row, place, stream, checked))
            if len(jobs) > 1:
                jobs.sort(key=_row)
            results: list[Outputs] = [{} for _ in pairs]
            if jobs:
                outputs = self._program.step([j[3] for j in jobs], self._state, [j[0] for j in jobs])
                for (_, place, stream, _), output in zip(jobs, outputs, strict=True):
                    stream.frames += 1
                    results[place] = {n: a.copy() for n, a in output.items()} if copy else dict(output)
            for stream in skipped:
                stream.skipped += 1
            return results

    def _checked(self, stream: Stream, frame: Array | Frame) -> Frame | None:
        """The frame by input name; None when the policy skips it."""
        if not isinstance(frame, Mapping):
            if len(self._inputs) > 1:
                raise EdgeLstmError(
                    f"frame of stream {stream.name!r}",
                    found="one array",
                    expected=f"a mapping with the inputs {', '.join(i.name for i in self._inputs)}",
                )
            frame = {self._inputs[0].name: frame}
        elif len(frame) != len(self._inputs) or any(i.name not in frame for i in self._inputs):
            raise EdgeLstmError(
                f"frame of stream {stream.name!r}",
                found=f"inputs {', '.join(map(str, frame))}",
                expected=", ".join(i.name for i in self._inputs),
            )
        for spec in self._inputs:
            array = frame[spec.name]
            if not isinstance(array, np.ndarray) and self._device_frame is not None:
                on_device = self._device_frame(array)
                if on_device is not None:
                    frame = {**frame, spec.name: self._checked_on_device(stream, spec, on_device)}
                    continue
            if not isinstance(array, np.ndarray) or array.shape != spec.shape or array.dtype != spec.dtype:
                raise _wrong_frame(stream, spec, array)
            if spec.floating and self._finite and not _all_finite(array):
                if self._policy == "skip":
                    return None
                if self._policy == "error":
                    raise EdgeLstmError(
                        f"frame {stream.frames} of stream {stream.name!r}, input {spec.name!r}",
                        found=f"{int(np.size(array) - np.isfinite(array).sum())} values that are NaN or infinite",
                        expected="finite values",
                        hint="The state is untouched; on_bad_frame='skip' or 'zero' goes on without stopping",
                    )
                frame = {**frame, spec.name: np.where(np.isfinite(array), array, 0)}
        return frame

    def _checked_on_device(self, stream: Stream, spec: _Input, array: DeviceArray) -> Any:
        if array.shape != spec.shape or array.dtype != spec.dtype:
            raise _wrong_frame(stream, spec, array, on_device=True)
        if spec.floating and self._finite:
            raise EdgeLstmError(
                f"frame of stream {stream.name!r}, input {spec.name!r}, is on the GPU, where it is not looked at for NaN",
                found=f"on_bad_frame={self._policy!r}",
                expected="on_bad_frame='pass'",
                hint="Open the runner with that, or pass NumPy arrays",
            )
        return array

    def _stream_named(self, name: str) -> Stream:
        try:
            return self._streams[name]
        except KeyError:
            self._check_open()
            raise EdgeLstmError(
                f"unknown stream {name!r}",
                found=f"streams {', '.join(self._streams) or '(none)'}",
                hint=f"Join it first: runner.stream({name!r})",
            ) from None

    def _check_open(self) -> None:
        if self._closed:
            raise EdgeLstmError("this runner is closed", hint="Open it again with Runner.open")

    def _check_member(self, stream: Stream) -> None:
        if self._streams.get(stream.name) is not stream:
            self._check_open()
            raise EdgeLstmError(
                f"stream {stream.name!r} has left the runner",
                hint=f"Join again: runner.stream({stream.name!r})",
            )

    def _reset(self, stream: Stream) -> None:
        with self._lock:
            self._check_member(stream)
            self._program.write_state(self._state, stream._row, self._initial)
            stream.frames = 0

    def _snapshot(self, stream: Stream) -> dict[str, Array]:
        with self._lock:
            self._check_member(stream)
            return self._program.read_state(self._state, stream._row)

    def _restore(self, stream: Stream, snapshot: Mapping[str, Array]) -> None:
        specs = {s.name: s for s in self.signature.states}
        if set(snapshot) != set(specs):
            raise EdgeLstmError(
                f"snapshot for stream {stream.name!r}",
                found=f"states {sorted(snapshot)}",
                expected=f"{sorted(specs)}",
                hint="It was taken from another model",
            )
        values = {}
        for name, spec in specs.items():
            value = np.asarray(snapshot[name])
            wanted = np_dtype(spec.dtype)
            # What a state is worth may come from a model that keeps it in another type.
            is_worth = value.dtype.kind == "f" and (wanted.kind == "f" or spec.is_coded)
            if value.shape != spec.frame_shape or (value.dtype != wanted and not is_worth):
                raise EdgeLstmError(
                    f"snapshot for stream {stream.name!r}, state {name!r}",
                    found=f"{value.dtype}{list(value.shape)}",
                    expected=f"{spec.dtype}{list(spec.frame_shape)}",
                    hint="It was taken from another model",
                )
            coded = spec.is_coded and value.dtype != wanted
            values[name] = spec.stored(value) if coded else value.astype(wanted, copy=False)
        with self._lock:
            self._check_member(stream)
            self._program.write_state(self._state, stream._row, values)

    def _leave(self, stream: Stream) -> None:
        with self._lock:
            if self._streams.get(stream.name) is stream:
                del self._streams[stream.name]
                self._free.append(stream._row)


class _Input:
    """What a frame is compared with, worked out once."""

    __slots__ = ("dtype", "floating", "name", "shape")

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self.shape = spec.frame_shape
        self.dtype = np_dtype(spec.dtype)
        self.floating = self.dtype.kind == "f"


def _row(job: Any) -> int:
    row: int = job[0]
    return row


def _all_finite(array: Array) -> bool:
    """Whether no value is NaN or infinite, without a temporary array."""
    if array.size > SMALL:
        # Both pass NaN on; between them they see either infinity.
        return math.isfinite(array.max()) and math.isfinite(array.min())
    # For a small frame the call is what costs, and this is the cheapest; for a large one BLAS would wake threads.
    # The sum may overflow though every value is finite.
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def _wrong_frame(stream: Stream, spec: _Input, array: Any, *, on_device: bool = False) -> EdgeLstmError:
    is_array = isinstance(array, np.ndarray) or on_device
    found = f"{array.dtype}{list(array.shape)}" if is_array else type(array).__name__
    hint = None
    if is_array:
        if array.shape == spec.shape:
            hint = f"Convert it: frame.astype(np.{spec.dtype})"
        elif array.shape == (1, *spec.shape):
            hint = "Leave the stream axis out: frame[0]"
    return EdgeLstmError(
        f"frame of stream {stream.name!r}, input {spec.name!r}",
        found=found,
        expected=f"a NumPy array {spec.dtype}{list(spec.shape)}",
        hint=hint,
    )
