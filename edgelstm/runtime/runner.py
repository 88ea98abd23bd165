"""Runner: the named streams of a Program. They join, advance frame by frame, and leave; each has a state of its own."""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError, count_of, some
from edgelstm.files import PathLike
from edgelstm.graph.signature import Signature
from edgelstm.runtime.device import OutputPlace
from edgelstm.runtime.frames import BadFrame, FrameCheck
from edgelstm.runtime.identity import ModelStamp, model_identity
from edgelstm.runtime.open import open_program
from edgelstm.runtime.outside import Outside, OutsideRange
from edgelstm.runtime.protocol import Array, Frame, Outputs, Program
from edgelstm.runtime.snapshot import Snapshot

_ROW = operator.itemgetter(0)
#: Stands where a stream's outputs will.
_NONE: Outputs = {}


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

    def step(self, frame: Array | Frame, *, copy: bool | None = None) -> Outputs:
        """Advance by one frame (one window of T frames if the model is a window) and give its outputs by name.

        ``frame``: the array of a model with one input, or a mapping of input name to array; shape and dtype as in
        the Signature, without the stream axis. The outputs are yours to keep. ``copy=False`` spares their copy: read-only
        views, which the runner's next step writes over. Those that stay on the GPU are such views anyway; ``copy=True`` brings
        them to the host. Empty when the frame was skipped.
        Raises EdgeLstmError for a wrong frame; the state is then what it was.
        """
        return self._runner._advance_one(self, frame, copy)

    def reset(self) -> None:
        """Go back to the initial state."""
        self._runner._reset(self)

    def snapshot(self) -> Snapshot:
        """A copy of the state, arrays by state name; good for :meth:`restore` on any stream of any runner of this model.

        ``snapshot().save("north.npz")`` and ``edgelstm.Snapshot.load("north.npz")`` keep it in a file.
        """
        return self._runner._snapshot(self)

    def values(self) -> dict[str, Array]:
        """What the state is worth, by state name: as :meth:`snapshot`, quantised states as float32."""
        specs = {s.name: s for s in self._runner.signature.states}
        return {name: specs[name].values(stored) for name, stored in self.snapshot().items()}

    def restore(self, snapshot: Mapping[str, Array], *, any_model: bool = False) -> None:
        """Set the state. Values may come in any floating-point dtype, for a quantised state too.

        any_model: take the state of another model's file, as of one that was quantised or trained again: then what the numbers
        mean is yours to know. Plain arrays don't say of which model they are, and are taken.
        Raises EdgeLstmError, and the state stays, for a snapshot of another model or of other states.
        """
        self._runner._restore(self, snapshot, any_model)

    def undo(self) -> bool:
        """Take this stream's last step back: the state is what it was before it, and what the step gave is no longer good.

        False, and nothing is done, where the backend does not keep that state, or when the stream has not advanced in the
        runner's last step or was set since.
        """
        return self._runner._undo(self)

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


def _handed(outputs: Outputs, copy: bool | None) -> Outputs:
    """What the caller gets of views that the next step writes over: by default, copies of all that lies on the host."""
    if copy is None:
        return {n: a.copy() if isinstance(a, np.ndarray) else a for n, a in outputs.items()}
    return {n: a.copy() for n, a in outputs.items()} if copy else dict(outputs)


#: How often a file is opened that is replaced at that very moment.
TRIES = 3


class Runner:
    """Streams of one model on one device.

    >>> with Runner.open("model.onnx", streams=2) as runner:
    ...     front, rear = runner.stream("front"), runner.stream("rear")
    ...     y = front.step(frame)["y"]
    ...     both = runner.step({"front": frame, "rear": other})

    Calls from several threads are safe: they take turns.

    ``on_bad_frame`` says what to do with a frame that holds NaN or infinity: ``error`` (default), ``skip`` it (the
    state stays, no outputs), ``zero`` (every non-finite value becomes 0), or ``pass`` it on without a look. Frames that are
    on the GPU already (PyTorch, CuPy: whatever has ``__cuda_array_interface__`` or DLPack) can't be looked at: they need
    ``pass``.
    """

    def __init__(self, program: Program, *, on_bad_frame: BadFrame = "error", model: str = "") -> None:
        self._frames = FrameCheck(program.signature, on_bad_frame, getattr(program, "device_frame", None))
        self._program = program
        #: Which model its states are of; empty where nobody knows: ``Runner.open`` does.
        self.model = model
        self._state: Any = program.new_state()
        self._streams: dict[str, Stream] = {}
        self._free = list(range(program.streams - 1, -1, -1))
        self._initial = {s.name: s.initial_value() for s in program.signature.states}
        #: How the program takes a frame without a dictionary, if the model has one input; and all frames in one array.
        self._step_row = None if self._frames.only is None else getattr(program, "step_row", None)
        self._step_rows = getattr(program, "step_rows", None)
        #: How it takes frames of several streams, and the name of the only input where they go in without dictionaries.
        self._step: Callable[[Sequence[Any], Any, Sequence[int]], Sequence[Outputs]] = program.step
        self._only: str | None = None
        if self._frames.only is not None and hasattr(program, "step_arrays"):
            self._step, self._only = program.step_arrays, self._frames.only.name
        self._step_watched = (
            None
            if self._frames.only is None or on_bad_frame == "pass"
            else getattr(program, "step_watched", None)
        )
        warm_up = getattr(program, "warm_up", None)
        if warm_up is not None:
            warm_up(self._state)
        self._lock = threading.Lock()
        self._closed = False
        #: What is to be said of the frames: that they lie far outside what the model was made with. Said once.
        self.notes: list[str] = []
        self._outside: Outside | None = Outside(program.signature.ranges)
        if self._outside.done:
            self._outside = None

    def __repr__(self) -> str:
        if self._closed:
            return "Runner(closed)"
        return (
            f"Runner(streams {some(self._streams) or '(none)'} of {self._program.streams}, {self.signature})"
        )

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
        native: bool | None = None,
    ) -> Runner:
        """Open a model file with room for ``streams`` streams; ``threads`` defaults to all processors.

        device: "cpu", "cuda" or "cuda:N"; default: "cpu" for a step graph, "cuda" for an engine. outputs: "device"
        leaves them on the GPU (:class:`edgelstm.runtime.device_array.DeviceArray`). native: cells as our own operators on the CPU:
        False never, True or an error, default where their library is built (`edgelstm build-plugin --ort`).

        Raises EdgeLstmError for a file that is missing, corrupt, or has no Signature, for an unknown device, and for what
        the device lacks.
        """
        for _ in range(TRIES):
            stamp = ModelStamp(path)
            before = stamp()
            program = open_program(
                path, device, streams=streams, threads=threads, outputs=outputs, native=native
            )
            try:
                model = model_identity(path)
                if stamp() == before:  # else the hash may be of another file than what was opened
                    return cls(program, on_bad_frame=on_bad_frame, model=model)
            except BaseException:
                program.close()
                raise
            program.close()
        raise EdgeLstmError(f"{path} is being written", hint="Write another file, then rename it")

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

        Raises EdgeLstmError when all places are taken, and for a name that is no text: 1 and "1" would be two streams.
        """
        if not isinstance(name, str):
            raise EdgeLstmError(
                f"stream {name!r}", found=type(name).__name__, expected="a name, such as str(1)"
            )
        with self._lock:
            self._check_open()
            if name not in self._streams:
                if not self._free:
                    raise EdgeLstmError(
                        f"no place for stream {name!r}",
                        found=f"{count_of(len(self._streams), 'stream')}: {', '.join(self._streams)}",
                        hint="Close one, or open the runner with streams=N larger",
                    )
                row = self._free.pop()
                self._program.write_state(self._state, row, self._initial)
                self._streams[name] = Stream(self, name, row)
            return self._streams[name]

    def step_all(self, frames: Any, *, copy: bool | None = None) -> Outputs:
        """Advance every stream by one frame, all frames in one array: the cheapest way to step many streams.

        ``frames``: [streams, ...] in the order of :attr:`streams`, a NumPy array or one on the GPU; for a model with several
        inputs a tuple of them, in the order of the Signature. Outputs by name, [streams, ...] each, copied or not as by
        :meth:`step`; copies on the host where the streams left a gap when one left.
        Raises EdgeLstmError, and no stream moves, for a wrong array, and for NaN or infinity where those are errors or skipped.
        """
        return self._advance_all(frames, copy)

    def step(self, frames: Mapping[str, Array | Frame], *, copy: bool | None = None) -> dict[str, Outputs]:
        """Advance the named streams by one frame each, in one engine call; all others keep their state bit for bit.

        Returns outputs by stream name, in the order given; see :meth:`Stream.step`. When any frame is wrong, no
        stream advances. Skipped streams have no outputs.
        """
        if not frames:
            return {}
        with self._lock:
            streams = self._streams
            pairs = [(streams.get(name) or self._stream_named(name), frame) for name, frame in frames.items()]
            return dict(zip(frames, self._advance(pairs, copy), strict=True))

    def glance(self, ranges: Mapping[str, tuple[float, float]] | None = None) -> Callable[[], bool] | None:
        """What tells after a step whether it left the states finite and, by name, within ``ranges`` of stored numbers: one look at
        all of them together, where they lie. States that begin with NaN or infinity by design, and integers, need not be finite.

        False says that a look at each stream's is due: those of others may be seen too. It is for the thread that steps. None where
        the backend can't tell; elsewhere :meth:`Stream.undo` works.
        """
        with self._lock:
            self._check_open()
            glance = getattr(self._program, "glance", None)
            made: Callable[[], bool] | None = None if glance is None else glance(self._state, ranges or {})
            return made

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

    def _advance_one(self, stream: Stream, frame: Array | Frame, copy: bool | None) -> Outputs:
        """:meth:`_advance` for one stream; an array of a model with one input goes straight to the program."""
        only = self._frames.only
        if self._step_row is None or only is None:
            with self._lock:
                self._check_member(stream)
                return self._advance(((stream, frame),), copy)[0]
        with self._lock:
            if self._streams.get(stream.name) is not stream:
                self._check_member(stream)
            if self._step_watched is not None and self._outside is None and self._frames.fits(frame, only):
                # The program looks for NaN itself; where it finds any, nothing has happened yet.
                found: Outputs | None = self._step_watched(frame, self._state, stream._row)
                if found is not None:
                    stream.frames += 1
                    return _handed(found, copy)
            if not self._frames.is_good(frame, only):
                checked = self._frames.one(stream, frame)
                if checked is None:
                    stream.skipped += 1
                    return {}
                frame = checked[only.name]
            if self._outside is not None:
                self._look(self._outside, [{only.name: frame}])  # type: ignore[dict-item]
            outputs: Outputs = self._step_row(frame, self._state, stream._row)
            stream.frames += 1
            return _handed(outputs, copy)

    def _advance_all(self, frames: Any, copy: bool | None) -> Outputs:
        """All streams by one frame each, [streams, ...] arrays in the order in which they joined."""
        with self._lock:
            self._check_open()
            streams = tuple(self._streams.values())
            arrays = self._frames.rows(frames, streams)
            if self._outside is not None:
                self._look(self._outside, [arrays])
            rows = [s._row for s in streams]
            first, count = rows[0], len(rows)
            outputs: Outputs | None = None
            if self._step_rows is not None and rows == list(range(first, first + count)):
                outputs = self._step_rows(arrays, self._state, first, count)
            if outputs is None:
                outputs, copy = self._gathered(arrays, rows), False
            for stream in streams:
                stream.frames += 1
            return _handed(outputs, copy)

    def _gathered(self, arrays: Mapping[str, Any], rows: Sequence[int]) -> Outputs:
        """For streams whose rows do not lie side by side in the order in which they joined: one by one in and out."""
        order = sorted(range(len(rows)), key=rows.__getitem__)

        def one(array: Any, k: int) -> Any:
            return array[k] if isinstance(array, np.ndarray) else array.row(k)

        split = [{name: one(array, k) for name, array in arrays.items()} for k in order]
        found = self._program.step(split, self._state, [rows[k] for k in order])
        place = {k: n for n, k in enumerate(order)}
        return {
            t.name: np.stack([np.asarray(found[place[k]][t.name].copy()) for k in range(len(rows))])
            for t in self.signature.outputs
        }

    def _advance(self, pairs: Sequence[tuple[Stream, Array | Frame]], copy: bool | None) -> list[Outputs]:
        """Check every frame before any stream moves, then advance them together; for who holds the lock.

        Copies are made here, before another thread's turn writes over the views.
        """
        jobs: list[tuple[int, int, Stream, Any]] = []
        skipped = []
        check, name = self._frames, self._only
        only = check.only
        for place, (stream, frame) in enumerate(pairs):
            if name is not None and only is not None and check.is_good(frame, only):
                jobs.append((stream._row, place, stream, frame))
            elif (checked := check.one(stream, frame)) is None:
                skipped.append((place, stream))
            else:
                jobs.append((stream._row, place, stream, checked if name is None else checked[name]))
        if len(jobs) > 1:
            jobs.sort(key=_ROW)
        if self._outside is not None:
            self._look(self._outside, [j[3] if name is None else {name: j[3]} for j in jobs])
        results: list[Outputs] = [_NONE] * len(pairs)
        if jobs:
            outputs = self._step([j[3] for j in jobs], self._state, [j[0] for j in jobs])
            for (_, place, stream, _), output in zip(jobs, outputs, strict=True):
                stream.frames += 1
                results[place] = dict(output) if copy is False else _handed(output, copy)
        for place, stream in skipped:
            stream.skipped += 1
            results[place] = {}
        return results

    def _look(self, outside: Outside, frames: Sequence[Mapping[str, Any]]) -> None:
        """Say once where frames lie far outside what the model was made with; after the first ones nobody looks."""
        note = next((note for frame in frames if (note := outside.look(frame)) is not None), None)
        if outside.done:
            self._outside = None
        if note is not None:
            self.notes.append(note)
            warnings.warn(note, OutsideRange, stacklevel=4)

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

    def _undo(self, stream: Stream) -> bool:
        undo = getattr(self._program, "undo", None)
        with self._lock:
            self._check_member(stream)
            if undo is None or not undo(self._state, stream._row):
                return False
            stream.frames -= 1
            return True

    def _snapshot(self, stream: Stream) -> Snapshot:
        with self._lock:
            self._check_member(stream)
            return Snapshot(self._program.read_state(self._state, stream._row), self.model)

    def _restore(self, stream: Stream, given: Mapping[str, Array], any_model: bool) -> None:
        snapshot = Snapshot.of(given, f"snapshot for stream {stream.name!r}")
        if snapshot.model and self.model and snapshot.model != self.model and not any_model:
            raise EdgeLstmError(
                f"snapshot for stream {stream.name!r}",
                found=f"the state of another model, {snapshot.model[:12]}",
                expected=f"of this one, {self.model[:12]} (SHA-256 of its file)",
                hint="If this is the same model quantised or trained again, and its states mean the same: restore(snapshot, "
                "any_model=True)",
            )
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
            with np.errstate(over="ignore"):
                values[name] = spec.stored(value) if coded else value.astype(wanted, copy=False)
            if is_worth and not coded and np.isinf(values[name]).sum() > np.isinf(value).sum():
                raise EdgeLstmError(
                    f"snapshot for stream {stream.name!r}, state {name!r}",
                    found=f"values up to {np.max(np.abs(value[np.isfinite(value)])):.4g}",
                    expected=f"values that {spec.dtype} holds",
                )
        with self._lock:
            self._check_member(stream)
            self._program.write_state(self._state, stream._row, values)

    def _leave(self, stream: Stream) -> None:
        with self._lock:
            if self._streams.get(stream.name) is stream:
                del self._streams[stream.name]
                self._free.append(stream._row)
