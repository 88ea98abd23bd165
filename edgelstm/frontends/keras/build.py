"""From a model's layers to its graph: a step where it can be streamed, a window of fixed length where it can't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgelstm.errors import EdgeLstmError, count_of, some
from edgelstm.frontends.frame_shapes import read_shapes
from edgelstm.frontends.keras.builder import STREAM_AXIS, Builder, NeedsWindow, Time, Value
from edgelstm.frontends.keras.layers.layer import Layer
from edgelstm.frontends.keras.layers.recurrent import Recurrent
from edgelstm.frontends.keras.names import clean
from edgelstm.frontends.keras.network import Input, Network
from edgelstm.graph.signature import TensorSpec
from edgelstm.graph.step import StepModel

Shapes = Mapping[str, Sequence[int]] | Sequence[int] | None


@dataclass(frozen=True)
class Built:
    """A graph and how it takes its model.

    streamed: which inputs are sequences that come frame by frame. lengths: of the sequences, where the file says it.
    window: frames of one call, None for a step. notes: what a user should know.
    """

    step: StepModel
    streamed: tuple[bool, ...]
    lengths: tuple[int | None, ...]
    window: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """An input of the model under its name in the graph; ``frame`` without time where ``temporal``."""

    name: str
    frame: tuple[int | None, ...]
    temporal: bool
    length: int | None
    dtype: str


def build(
    network: Network, *, frame: Shapes = None, window: int | None = None, carry_state: bool = False
) -> Built:
    """The graph of ``network``.

    frame: shape of one frame, by input name if several, for sizes the file leaves open. window: length of the sequence
    for models that need one and do not say. carry_state: stream a model that gives only its last output and starts
    each of its windows from zero.
    """
    entries = _entries(network, frame)
    lengths = {e.length for e in entries if e.temporal and e.length is not None}
    length = lengths.pop() if len(lengths) == 1 else None
    try:
        if not carry_state:
            _keep_windows(network, entries, length)
        return _step(network, entries)
    except NeedsWindow as reason:
        if carry_state:
            raise EdgeLstmError(
                f"{network.options.source.where} can't carry its state from frame to frame",
                found=str(reason),
                expected="layers that need no more than the frames so far",
                hint="Leave out --carry-state: the model is exported as a window",
            ) from reason
        return _window(network, entries, length, window, str(reason))


def _entries(network: Network, frame: Shapes) -> list[_Entry]:
    many = len(network.inputs) > 1
    names = [clean(i.name) if many else "x" for i in network.inputs]
    given = {}
    if frame is not None:
        given = read_shapes(frame)
        unknown = set(given) - set(names)
        if unknown:
            raise EdgeLstmError(
                "frame for inputs the model does not have", found=some(sorted(unknown)), expected=some(names)
            )
    entries = []
    for k, (name, source) in enumerate(zip(names, network.inputs, strict=True)):
        dtype = _dtype(network, source)
        if network.takes_numbers(k) and dtype == "float32":
            dtype = "int32"  # what Keras casts it to
        temporal = len(source.shape) >= 1 and network.reaches_time(k)
        shape = source.shape[1:] if temporal else source.shape
        length = source.shape[0] if temporal else None
        shape = _filled(network, name, shape, given.get(name))
        entries.append(_Entry(name, shape, temporal, length, dtype))
    return entries


def _dtype(network: Network, source: Input) -> str:
    """An input's type in the graph."""
    if source.dtype in ("float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"):
        return "float32"
    if source.dtype in ("int32", "int64", "uint8"):
        return source.dtype
    if source.dtype in ("int8", "int16", "uint16"):
        return "int32"
    raise EdgeLstmError(
        f"{network.what}: input {source.name!r}", found=source.dtype, expected="float32 or whole numbers"
    )


def _filled(
    network: Network, name: str, shape: tuple[int | None, ...], given: tuple[int, ...] | None
) -> tuple[int | None, ...]:
    if given is not None:
        fits = len(given) == len(shape) and all(s in (None, n) for s, n in zip(shape, given, strict=True))
        if not fits:
            raise EdgeLstmError(
                f"frame of input {name!r}",
                found=list(given),
                expected=f"{[n or 'any' for n in shape]} as {network.options.source.where} says",
            )
        return given
    if None in shape:
        raise EdgeLstmError(
            f"{network.options.source.where}: the size of a frame is open",
            found=f"input {name!r} {[n or 'any' for n in shape]}",
            expected="fixed sizes",
            hint="Give it: --frame " + ",".join(str(n or "64") for n in shape),
        )
    return shape


def _keep_windows(network: Network, entries: Sequence[_Entry], length: int | None) -> None:
    """Raise NeedsWindow for a model of fixed length that gives its last output only and starts every window from zero, in some layers or all."""
    if length is None:
        return
    direct = _direct(network)
    recurrent = [layer for layer in direct if isinstance(layer, Recurrent) and not layer.stateful]
    going_on = [layer for layer in direct if isinstance(layer, Recurrent) and layer.stateful]
    if recurrent and going_on:  # no reset of a stream is one of some layers
        raise NeedsWindow(
            f"{recurrent[0].what} starts every window of {count_of(length, 'frame')} from zero, and {going_on[0].what} goes on "
            "where it was (--carry-state carries both)"
        )
    for layer in direct:
        if layer.takes_last and recurrent:
            raise NeedsWindow(
                f"{recurrent[0].what} starts every window of {count_of(length, 'frame')} from zero, and {layer.what} takes the last "
                "output only (--carry-state streams it all the same)"
            )
        if isinstance(layer, Recurrent) and not layer.sequences and not layer.stateful:
            raise NeedsWindow(
                f"{layer.what} starts every window of {count_of(length, 'frame')} from zero and gives its last output only "
                "(--carry-state streams it all the same)"
            )


def _direct(network: Network) -> list[Layer]:
    """Layers on the time of the model itself: those before the first that ends it."""
    found: list[Layer] = []
    temporal = {(i.name, 0, 0) for k, i in enumerate(network.inputs) if network.reaches_time(k)}
    for call in network.calls:
        if not temporal.intersection(call.inputs):
            continue
        layer = call.layer
        found += _direct(layer) if isinstance(layer, Network) else [layer]
        ends = isinstance(layer, Recurrent) and not layer.sequences
        if layer.keeps_time and not ends:
            temporal |= {(*call.outputs, n) for n in range(8)}
    return found


def _step(network: Network, entries: Sequence[_Entry]) -> Built:
    g = Builder()
    inputs, values = [], []
    for e in entries:
        shape = tuple(int(n) for n in e.frame if n is not None)
        inputs.append(TensorSpec(e.name, e.dtype, (STREAM_AXIS, *shape)))
        values.append(Value(e.name, shape, Time(length=e.length) if e.temporal else None, dtype=e.dtype))
    outputs = _emit(g, network, values)
    step = g.finish(inputs, outputs, None, "keras")
    anew = any(isinstance(layer, Recurrent) and not layer.stateful for layer in _direct(network))
    notes = _step_notes(entries, outputs, anew)
    streamed = tuple(e.temporal for e in entries)
    return Built(step, streamed, tuple(e.length for e in entries), None, notes)


def _window(
    network: Network, entries: Sequence[_Entry], length: int | None, window: int | None, reason: str
) -> Built:
    where = network.options.source.where
    if length is not None and window not in (None, length):
        raise EdgeLstmError(f"{where}: --window", found=window, expected=f"{length}, the model's own length")
    frames = length or window
    if frames is None:
        raise EdgeLstmError(
            f"{where} can't be streamed frame by frame, and does not say how long its sequences are",
            found=reason,
            expected="the number of frames",
            hint="Give it: --window 30 for sequences of 30 frames",
        )
    g = Builder()
    inputs, values = [], []
    for e in entries:
        shape = tuple(int(n) for n in e.frame if n is not None)
        if e.temporal:
            shape = (e.length or frames, *shape)
        inputs.append(TensorSpec(e.name, e.dtype, (STREAM_AXIS, *shape)))
        values.append(Value(e.name, shape, sequence=e.temporal, dtype=e.dtype))
    try:
        outputs = _emit(g, network, values)
    except NeedsWindow as error:  # no value here is a frame
        raise EdgeLstmError(f"{where} can't be exported", found=str(error)) from error
    aligned = all(e.temporal for e in entries) and all(
        v.sequence and v.shape[0] == frames for v in outputs.values()
    )
    whole = frames if aligned and len({e.length or frames for e in entries}) == 1 else None
    step = g.finish(inputs, outputs, whole, "keras")
    note = f"exported as a window of {count_of(frames, 'frame')}, not as a step: {reason}"
    return Built(step, (False,) * len(entries), tuple(e.length for e in entries), frames, (note,))


def _emit(g: Builder, network: Network, values: Sequence[Value]) -> dict[str, Value]:
    names = ["y"] if len(network.outputs) == 1 else [clean(name) for name, _ in network.outputs]
    g.reserve([v.name for v in values])
    unique = []
    for name in names:
        unique.append(g.name(name))
    g.reserve(f"{name}_ready" for name in unique)
    return dict(zip(unique, network.emit(g, values, ""), strict=True))


def _step_notes(entries: Sequence[_Entry], outputs: Mapping[str, Value], anew: bool) -> tuple[str, ...]:
    notes = []
    if not any(e.temporal for e in entries):
        notes.append("no layer works along time: every call stands alone, and there is no state")
    for name, value in outputs.items():
        delay, every = (value.time.delay, value.time.every) if value.time else (value.ready, 1)
        if every > 1:
            notes.append(
                f"{name} comes with every {every}th frame, first with frame {delay}; {name}_ready says so"
            )
        elif delay:
            notes.append(
                f"{name} comes {count_of(delay, 'frame')} late: it is zero, and {name}_ready False, until then"
            )
    lengths = {e.length for e in entries if e.temporal and e.length}
    if lengths and anew:
        notes.append(
            f"Keras starts from zero every {count_of(max(lengths), 'frame')}; the stream goes on: reset it to do the same"
        )
    return tuple(notes)
