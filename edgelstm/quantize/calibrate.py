"""StepModel + sequences -> Calibration: the ordinary Runner carries the state while ``tap`` shows what is inside.

Sequences run side by side, one a stream, each from the initial state. In a second round a quantised Program drives: its
state, not that of the float graph, is what every frame meets, since that is what the quantised graph will meet.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgelstm.dtypes import CODED, np_dtype
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.gates import GateVariant, is_fused_gates
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph, attribute
from edgelstm.passes.products import Product, Products, Site, find_products
from edgelstm.passes.tap import PREFIX, tap
from edgelstm.quantize.calibration import Calibration, InputRange, StateGrowth, TensorRange
from edgelstm.quantize.correlation import LARGEST, Correlation, Window, spread
from edgelstm.quantize.movement import BYTES, FRAMES, SEQUENCES, Movement, judge
from edgelstm.quantize.observer import Observer
from edgelstm.quantize.qdq import default_weights
from edgelstm.quantize.qdq.plan import make_plan
from edgelstm.quantize.ranges import check_method, check_overrides, choose, overrides
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Array, Frame, Outputs, Program
from edgelstm.runtime.runner import Runner, Stream

#: Fewer frames than this say too little of a state: it takes a while to leave its initial value.
MIN_FRAMES = 24
#: Points kept of a state's largest value over time.
POINTS = 512


@dataclass
class Recording:
    """One recording: its frames as the model takes them, in order, and what to call it."""

    name: str
    frames: Iterable[Frame]


def calibrate(
    step: StepModel,
    sequences: Sequence[Recording],
    *,
    method: str = "recurrent",
    percentile: float = 99.99,
    tensors: Mapping[str, Mapping[str, Any]] | None = None,
    streams: int = 8,
    least: int = MIN_FRAMES,
    preprocessing: Mapping[str, Any] | None = None,
    driver: Callable[[int], Program] | None = None,
    driven_by: str | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Observe every tensor that may be quantised while ``sequences`` run through the float graph ``step``.

    method, percentile: how ranges are chosen (``edgelstm.quantize.ranges``); ``tensors`` maps patterns of tensor names to
    ``{"method": ..., "percentile": ...}`` of their own. streams: sequences that run side by side. driver: opens a quantised
    Program of the same model for so many streams; its state then drives the float graph.

    Memory does not grow with the number of frames. Raises EdgeLstmError when there is nothing to quantise, when a
    sequence is empty, when all of them together have fewer than ``least`` frames, and for ranges of no use.
    """
    default = {"method": method, "percentile": percentile}
    check_method(method, percentile)
    check_overrides(tensors or {}, default)
    if any(n.op_type in ("QuantizeLinear", "DequantizeLinear") for n in step.model.graph.node):
        raise EdgeLstmError(
            "the model is quantised already", expected="the float step graph it was made from"
        )
    found = find_products(step)
    if not found.products:
        raise EdgeLstmError(
            "nothing to quantise in this model",
            found=f"operators {', '.join(sorted(set(step.op_types())))}",
            expected="Conv, Gemm or MatMul with float32 weights",
        )
    inner = [m for site in found.sites.values() for m in site.members if _is_inside(step, m)]
    states = [s.output for s in step.signature.states]
    met = _met_by_weights(found)
    tapped = tap(step, [*inner, *states, *(name for names in met.values() for name in names)])
    fixed = tapped.signature.stream_axis
    places = fixed if isinstance(fixed, int) else min(streams, max(1, len(sequences)))
    watch = _Watch(step, tapped, found, met)
    with ExitStack() as stack:
        runner = stack.enter_context(Runner(OrtProgram(tapped.to_bytes(), streams=places, threads=threads)))
        driven = None if driver is None else stack.enter_context(Runner(driver(places)))
        data = _run(runner, driven, sequences, places, watch, progress)
    frames = sum(d["frames"] for d in data)
    if frames < least:
        raise EdgeLstmError(
            "too few frames to calibrate on",
            found=f"{count_of(frames, 'frame')} in {count_of(len(data), 'sequence')}",
            expected=f"at least {least}",
            hint="A state needs some frames to leave its initial value, and its range shows only then: record more",
        )
    ranges = {
        site.name: watch.range(site, overrides(tensors or {}, site.name, default))
        for site in found.sites.values()
    }
    for r in ranges.values():
        r.check()
    recorded = dict(default, tensors={k: dict(v) for k, v in (tensors or {}).items()})
    result = Calibration(
        model=step.graph_hash(),
        preprocessing=step.signature.preprocessing if preprocessing is None else preprocessing,
        data=tuple(data),
        method=recorded,
        tensors=ranges,
        states={name: growth.result(name) for name, growth in watch.states.items()},
        streams=places,
        driven_by=driven_by,
        weights={name: c.matrix for name, c in watch.correlations.items()},
        inputs={name: i.result() for name, i in watch.inputs.items()},
    )
    if driver is None:
        rounding = judge(
            step,
            watch.movements,
            _code_scales(step, found, result),
            watch.axes,
            watch.kept,
            threads=threads,
        )
        moved = {n: replace(s, rounding=rounding.get(n, {})) for n, s in result.states.items()}
        result = replace(result, states=moved)
    # The file holds fewer digits: what is made of either must be the same.
    return Calibration.from_json(result.to_json())


def _code_scales(step: StepModel, found: Products, calibration: Calibration) -> dict[str, Array]:
    """What a code is worth, by channel, of each state that would be stored in int8."""
    scales = make_plan(
        Graph(step), found, calibration, "onnxruntime", "int8", default_weights(found), True
    ).scales
    return {
        state: scales[site.name]
        for site in found.sites.values()
        for state in site.states
        if site.name in scales
    }


def _run(
    runner: Runner,
    driven: Runner | None,
    sequences: Sequence[Recording],
    places: int,
    watch: _Watch,
    progress: Callable[[int], None] | None,
) -> list[dict[str, Any]]:
    waiting = iter(sequences)
    playing: dict[str, _Playing] = {}
    data: list[dict[str, Any]] = []
    while True:
        while len(playing) < places and (sequence := next(waiting, None)) is not None:
            stream = runner.stream(f"sequence {len(data)}")
            entry = {"name": sequence.name, "frames": 0, "sha256": ""}
            data.append(entry)
            other = None if driven is None else driven.stream(stream.name)
            kept = watch.keep() if driven is None and len(data) <= SEQUENCES else None
            playing[stream.name] = _Playing(
                stream, other, iter(sequence.frames), entry, watch.initial(), kept
            )
        frames: dict[str, Frame] = {}
        for name, item in list(playing.items()):
            frame = next(item.frames, None)
            if frame is None:
                item.end()
                del playing[name]
            else:
                item.take(frame, watch.each)
                frames[name] = frame
        if frames:
            for name in frames:
                playing[name].follow()
            outputs = runner.step(frames, copy=False)
            if driven is not None:
                driven.step(frames, copy=False)
            for name, frame in frames.items():
                watch.see(frame, outputs[name], playing[name].entry["frames"] - 1)
                if driven is None:
                    watch.follow(playing[name].before, outputs[name])
            if progress is not None:
                progress(len(frames) * watch.each)
        elif not playing and len(data) == len(sequences):
            return data


@dataclass
class _Playing:
    """A sequence on its stream; ``other`` is its stream in the quantised Runner that drives.

    before: samples of its states before the frame. kept: its first frames, copied.
    """

    stream: Stream
    other: Stream | None
    frames: Iterator[Frame]
    entry: dict[str, Any]
    before: dict[str, Array]
    kept: list[Frame] | None = None
    _hash: Any = field(default_factory=hashlib.sha256)

    def take(self, frame: Frame, count: int) -> None:
        """``count``: how many frames that is, more than one for a window."""
        self.entry["frames"] += count
        for name in sorted(frame):
            self._hash.update(np.ascontiguousarray(frame[name]).data)
        size = sum(array.nbytes for array in frame.values())
        if self.kept is not None and len(self.kept) < min(FRAMES, BYTES // (SEQUENCES * max(1, size))):
            self.kept.append({name: np.array(array) for name, array in frame.items()})

    def follow(self) -> None:
        """Take on the state of the stream that drives."""
        if self.other is not None:
            self.stream.restore(self.other.values())

    def end(self) -> None:
        if not self.entry["frames"]:
            raise EdgeLstmError(
                f"sequence {self.entry['name']} is empty",
                expected="at least one frame (of a window: one window of them)",
            )
        self.entry["sha256"] = self._hash.hexdigest()
        self.stream.close()
        if self.other is not None:
            self.other.close()


class _Watch:
    """The observers of all sites, and of the states' size over time."""

    def __init__(
        self, step: StepModel, tapped: StepModel, found: Products, met: Mapping[str, list[str]]
    ) -> None:
        by_weight = found.by_weight()
        self.correlations = {w: _correlation(by_weight[w][0], found) for w in met}
        self._met = [(w, PREFIX + name) for w, names in met.items() for name in names]
        self._sites = found.sites
        self._seen = {name: Observer(site.channels) for name, site in found.sites.items()}
        shown = {t.name: t for t in tapped.signature.outputs}
        frame_names = {t.name for t in step.signature.inputs}
        old_states = {s.input for s in step.signature.states}
        self._views: list[tuple[str, str, int, bool]] = []
        for site in found.sites.values():
            for member in site.members:
                rank = len(found.shapes[member])
                # Counted from the end, the axis is right with or without the stream axis before it.
                axis = site.axis - rank
                if member in old_states:
                    continue  # seen when it was new
                if PREFIX + member in shown:
                    self._views.append((site.name, PREFIX + member, axis, False))
                elif member in frame_names:
                    self._views.append((site.name, member, axis, True))
        self._start(step)
        self.inputs = {
            t.name: _Extremes(len(t.frame_shape) == (1 if step.signature.window is None else 2))
            for t in step.signature.inputs
            if t.dtype not in CODED
        }
        self._gates = _gates(step)
        #: Frames a call takes.
        self.each = step.signature.window or 1
        self.states = {s.name: _Growth() for s in step.signature.states}
        self._state_outputs = [(s.name, PREFIX + s.output) for s in step.signature.states]
        #: Where the channels of each floating state are, without the stream axis, and how it moves.
        self.axes: dict[str, int] = {}
        self.movements: dict[str, Movement] = {}
        for spec in step.signature.states:
            if np_dtype(spec.dtype).kind == "f" and spec.frame_shape and not spec.is_coded:
                own = next((s for s in found.sites.values() if spec.name in s.states), None)
                axis = 0 if own is None else own.axis - 1
                self.axes[spec.name] = axis
                self.movements[spec.name] = Movement(spec.frame_shape[axis], axis - len(spec.frame_shape))
        self._starts = {s.name: s.initial_value() for s in step.signature.states}
        #: The first frames of some sequences.
        self.kept: list[list[Frame]] = []

    def keep(self) -> list[Frame]:
        """A list for the first frames of one more sequence."""
        self.kept.append([])
        return self.kept[-1]

    def initial(self) -> dict[str, Array]:
        """Samples of the states at the start of a sequence."""
        return {name: m.sample(self._starts[name]) for name, m in self.movements.items()}

    def follow(self, before: dict[str, Array], outputs: Outputs) -> None:
        """Count how far the states moved, and leave in ``before`` what they are now."""
        for name, source in self._state_outputs:
            if name in self.movements:
                after = self.movements[name].sample(np.asarray(outputs[source]))
                self.movements[name].add(before[name], after)
                before[name] = after

    def _start(self, step: StepModel) -> None:
        for spec in step.signature.states:
            for site in self._sites.values():
                if spec.name in site.states:
                    self._seen[site.name].add(
                        spec.initial_value().astype(np.float32), site.axis - len(spec.shape)
                    )

    def see(self, frame: Frame, outputs: Outputs, index: int) -> None:
        for name, seen in self.inputs.items():
            seen.add(np.asarray(frame[name]))
        for name, source, axis, is_frame in self._views:
            self._seen[name].add(np.asarray(frame[source] if is_frame else outputs[source]), axis)
        for weight, source in self._met:
            self.correlations[weight].add(np.asarray(outputs[source]))
        for name, source in self._state_outputs:
            largest = float(np.abs(outputs[source]).max(initial=0))
            if not math.isfinite(largest):
                raise _overflow(
                    f"state {name!r}", f"a value that is infinite or not a number at frame {index}"
                )
            self.states[name].add(index, largest)

    def range(self, site: Site, settings: Mapping[str, Any]) -> TensorRange:
        seen = self._seen[site.name]
        gates = next((self._gates[m] for m in site.members if m in self._gates), None)
        if not np.isfinite(seen.sum_square).all():
            raise _overflow(f"tensor {site.name!r}", "values that are infinite or not a number")
        low, high, tensor_low, tensor_high = choose(
            seen, settings["method"], percentile=settings["percentile"], gates=gates
        )
        span, counts = seen.whole()
        return TensorRange(
            site.name, site.role, seen.samples, seen.minimum, seen.maximum, seen.mean, seen.mean_square,
            low, high, tensor_low, tensor_high, span, tuple(int(c) for c in counts),
        )  # fmt: skip


def _overflow(what: str, found: str) -> EdgeLstmError:
    return EdgeLstmError(
        what,
        found=found,
        expected="finite values",
        hint="The sequences make the float model overflow: look at them first",
    )


@dataclass
class _Extremes:
    """Smallest and largest value of an input: of each number, if it is a vector (of a window: in the last axis)."""

    vector: bool
    low: Array | None = None
    high: Array | None = None

    def add(self, value: Array) -> None:
        rows = value.reshape(-1, value.shape[-1]) if self.vector else value.reshape(-1, 1)
        low, high = rows.min(0), rows.max(0)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)

    def result(self) -> InputRange:
        assert self.low is not None
        assert self.high is not None
        still = [int(k) for k in np.flatnonzero(self.low == self.high)] if self.vector else []
        channels = len(self.low) if self.vector else 0
        return InputRange(float(self.low.min()), float(self.high.max()), channels, tuple(still))


@dataclass
class _Growth:
    """Largest |value| over time in at most POINTS numbers: when they are full, neighbours merge."""

    every: int = 1
    largest: list[float] = field(default_factory=list)

    def add(self, frame: int, value: float) -> None:
        place = frame // self.every
        while place >= POINTS:
            pairs = [self.largest[k : k + 2] for k in range(0, len(self.largest), 2)]
            self.largest = [max(pair) for pair in pairs]
            self.every *= 2
            place = frame // self.every
        if place < len(self.largest):
            self.largest[place] = max(self.largest[place], value)
        else:
            self.largest += [value] * (place + 1 - len(self.largest))

    def result(self, name: str) -> StateGrowth:
        return StateGrowth(name, self.every, tuple(self.largest))


def _gates(step: StepModel) -> dict[str, GateVariant]:
    """What each value that is a gate pre-activation goes through."""
    return {n.input[0]: GateVariant.of(n.op_type) for n in step.model.graph.node if is_fused_gates(n)}


def _met_by_weights(found: Products) -> dict[str, list[str]]:
    """The activations that each weight meets; of many copies of a cell, some. Weights with too long rows are left out."""
    met = {}
    for weight, products in found.by_weight().items():
        first = products[0]
        taps = math.prod(_window(first).kernel) if first.kind == "Conv" else 1
        if first.groups == 1 and sum(p.channels for p in first.parts) * taps <= LARGEST:
            met[weight] = spread(list(dict.fromkeys(p.activation for p in products)), 3)
    return met


def _correlation(product: Product, found: Products) -> Correlation:
    channels = sum(p.channels for p in product.parts)
    return Correlation(channels, _window(product) if product.kind == "Conv" else None)


def _window(product: Product) -> Window:
    """Attributes of a Conv, by the ONNX operator's defaults; padding by auto_pad is taken as none."""
    kernel = tuple(attribute(product.node, "kernel_shape", product.kernel))
    ones = [1] * len(kernel)
    return Window(
        kernel,
        tuple(attribute(product.node, "strides", ones)),
        tuple(attribute(product.node, "pads", [0, 0] * len(kernel))),
        tuple(attribute(product.node, "dilations", ones)),
    )


def _is_inside(step: StepModel, name: str) -> bool:
    """Whether a value is made in the graph: frames and old states are seen where they come from."""
    return all(v.name != name for v in step.model.graph.input)
