"""How far states move in a frame, and what storing them more coarsely does to them.

A state that moves by less than half a step of the type that stores it stands still: every frame's change is rounded away,
however many frames add up (slow GRUs, leaky averages, integrators, counters). That shows only while the state is
carried. So movements are counted while the calibration runs, and states that are slow for a type are run once
more over some frames, rounded to that type after each, beside themselves in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.dtypes import LARGEST, from_float32, to_float32
from edgelstm.graph.gates import is_fused_gates
from edgelstm.graph.signature import StateSpec
from edgelstm.graph.step import StepModel
from edgelstm.passes.graph import Graph
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Frame
from edgelstm.runtime.runner import Runner

Array = npt.NDArray[Any]

#: Types a state may be stored in, and the bits of their mantissas, the hidden one among them; int8 has a scale instead.
TYPES: dict[str, int | None] = {"int8": None, "float8e4m3fn": 4, "float16": 11, "bfloat16": 8}
#: Of a larger state, so many numbers are watched.
SAMPLES = 1 << 14
#: Exponents of a movement that are told apart: 2**-64 to 2**63.
_BINS = 128
#: A channel is slow when more than this share of its movements are smaller than half a step.
SLOW = 0.25
#: It is stuck when rounding it every frame errs so many times as much as rounding it once ...
TIMES = 4.0
#: ... and by so much of what the channel holds. Below, it does not show beside the rounding of weights.
ERROR = 0.02
#: Frames of a sequence that are kept to run slow states again, of how many sequences, and how many bytes they may have.
FRAMES, SEQUENCES, BYTES = 512, 2, 32 << 20
#: Steps that running them again may take in all, as far as each is left this many frames.
STEPS, LEAST = 8192, 64


@dataclass(frozen=True)
class Rounding:
    """What a type does to a state that it stores.

    slow: share of the movements that are smaller than half a step. error: relative error (2-norm) of the state when it is rounded
    every frame, times: that beside rounding it once; both 0 where no channel is slow. stuck: channels that stand still.
    """

    slow: float
    error: float = 0.0
    times: float = 0.0
    stuck: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "slow": float(f"{self.slow:.4g}"),
            "error": float(f"{self.error:.4g}"),
            "times": float(f"{self.times:.4g}"),
            "stuck": self.stuck,
        }


class Movement:
    """Movements of one state: a histogram of their binary exponents for each channel, absolute and beside the value."""

    def __init__(self, channels: int, axis: int) -> None:
        self._axis = axis
        self._absolute = np.zeros((channels, _BINS), np.int64)
        self._relative = np.zeros((channels, _BINS), np.int64)

    def sample(self, state: Array) -> Array:
        """The numbers of a state that are watched, [channels, samples], copied."""
        flat = np.moveaxis(state, self._axis, 0).reshape(len(self._absolute), -1)
        return flat[:, :: max(1, -(-flat.size // SAMPLES))].astype(np.float64)

    def add(self, before: Array, after: Array) -> None:
        """One frame: what :meth:`sample` gave before and after it."""
        moved = np.abs(after - before)
        channel, place = np.nonzero(moved)
        if not channel.size:
            return
        exponent = np.frexp(moved[channel, place])[1]
        beside = exponent - np.frexp(after[channel, place])[1]
        for counts, kind in ((self._absolute, exponent), (self._relative, beside)):
            index = channel * _BINS + np.clip(kind + _BINS // 2, 0, _BINS - 1)
            counts += np.bincount(index, minlength=counts.size).reshape(counts.shape)

    def below(self, half_step: Array) -> tuple[Array, Array]:
        """(movements smaller than ``half_step`` [channels], all movements), by channel."""
        edges = np.exp2(np.arange(_BINS) - _BINS // 2 - 0.5)  # a movement of exponent e is about 2**(e - 0.5)
        return np.where(edges < half_step[:, None], self._absolute, 0).sum(1), self._absolute.sum(1)

    def below_half_unit(self, mantissa: int) -> tuple[Array, Array]:
        """The same for half a unit in the last place of a floating type."""
        last = _BINS // 2 - 1 - mantissa
        return self._relative[:, : last + 1].sum(1), self._relative.sum(1)


Rounder = Callable[[Array], Array]


def judge(
    step: StepModel,
    movements: Mapping[str, Movement],
    scales: Mapping[str, Array],
    axes: Mapping[str, int],
    sequences: Sequence[Sequence[Frame]],
    *,
    threads: int | None = None,
) -> dict[str, dict[str, Rounding]]:
    """By state and type, what storing it in that type does. ``scales``: of int8 codes, by channel, of the states that have some.

    sequences: frames from the initial state on that slow states are run over.
    """
    specs = {s.name: s for s in step.signature.states}
    bounded = _bounded(step)
    found: dict[str, dict[str, Rounding]] = {}
    jobs: list[tuple[str, str, Array, Rounder]] = []
    for name, movement in movements.items():
        for dtype, mantissa in TYPES.items():
            if dtype in ("int8", "float8e4m3fn") and name not in scales:
                continue
            below, total = (
                movement.below(scales[name] / 2) if mantissa is None else movement.below_half_unit(mantissa)
            )
            slow = (below > SLOW * total) & (total > 0)
            share = float(below.sum() / max(1, total.sum()))
            found.setdefault(name, {})[dtype] = Rounding(share)
            # What gates of a cell give is bounded and made anew every frame: its rounding adds up nowhere.
            if slow.any() and name not in bounded:
                rounder = _rounder(dtype, specs[name], scales.get(name), axes[name], sequences)
                jobs.append((name, dtype, slow, rounder))
    length = max(LEAST, STEPS // max(1, len(jobs)))
    axis = step.signature.stream_axis
    program = _Opener(step.to_bytes() if jobs else b"", axis if isinstance(axis, int) else 1, threads)
    for name, dtype, slow, rounder in jobs:
        share = found[name][dtype].slow
        result = _run(program, name, axes[name], slow, rounder, sequences, length)
        found[name][dtype] = Rounding(share, *result)
    return found


def only_through_products(step: StepModel, state: StateSpec) -> bool:
    """Whether a state reaches its next value through products only: what they read is then all that is kept of it."""
    graph = Graph(step)
    waiting, seen = [state.input], {state.input}
    while waiting:
        for node in graph.consumers(waiting.pop()):
            if node.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose"):
                continue
            for name in node.output:
                if name == state.output:
                    return False
                if name and name not in seen:
                    seen.add(name)
                    waiting.append(name)
    return True


def _bounded(step: StepModel) -> set[str]:
    """States that FusedGates make as h."""
    made = {n.output[0] for n in step.model.graph.node if is_fused_gates(n)}
    return {s.name for s in step.signature.states if s.output in made}


def _rounder(
    dtype: str, spec: StateSpec, scale: Array | None, axis: int, sequences: Sequence[Sequence[Frame]]
) -> Rounder:
    if dtype == "int8":
        assert scale is not None
        shape = [1] * len(spec.frame_shape)
        shape[axis] = -1
        along = scale.reshape(shape).astype(np.float32)
        return lambda value: np.clip(np.rint(value / along), -128, 127).astype(np.float32) * along
    if dtype == "float8e4m3fn":
        # One scale for all of it, as TensorRT has.
        largest = 0.0

        def eight(value: Array) -> Array:
            nonlocal largest
            largest = max(largest, float(np.abs(value).max(initial=0.0)))
            one = np.float32(max(largest, 1e-30) / LARGEST[dtype])
            worth: Array = to_float32(from_float32(value / one, dtype), dtype) * one
            return worth

        return eight

    def sixteen(value: Array) -> Array:
        return to_float32(from_float32(value, dtype), dtype)

    return sixteen


@dataclass(frozen=True)
class _Opener:
    data: bytes
    streams: int
    threads: int | None

    def __call__(self) -> OrtProgram:
        return OrtProgram(self.data, streams=self.streams, threads=self.threads, spin=False)


def _run(
    program: _Opener,
    name: str,
    axis: int,
    slow: Array,
    rounder: Rounder,
    sequences: Sequence[Sequence[Frame]],
    length: int,
) -> tuple[float, float, int]:
    """(error, times, stuck channels) of the state ``name``, rounded after every frame."""
    sums = np.zeros((3, len(slow)))
    with Runner(program()) as plain, Runner(program()) as rounded:
        for index, frames in enumerate(sequences):
            a, b = plain.stream(str(index)), rounded.stream(str(index))
            for frame in frames[:length]:
                a.step(frame, copy=False)
                b.step(frame, copy=False)
                true, state = a.snapshot()[name], b.snapshot()
                state[name] = rounder(state[name].astype(np.float32)).astype(true.dtype)
                b.restore(state)
                once = rounder(true.astype(np.float32))
                for row, value in zip(sums, (state[name] - true, once - true, true), strict=True):
                    square = value.astype(np.float64) ** 2
                    row += np.moveaxis(square, axis, 0).reshape(len(slow), -1).sum(1)
            a.close()
            b.close()
    far, near, size = sums
    # A channel that is next to nothing beside the others can't be far off.
    size = np.maximum(size, 1e-6 * size.mean())
    stuck = slow & (far > TIMES**2 * near) & (far > ERROR**2 * size)
    tiny = np.finfo(float).tiny
    error = float(np.sqrt(far.sum() / max(float(size.sum()), tiny)))
    return error, float(np.sqrt(far.sum() / max(float(near.sum()), tiny))), int(stuck.sum())
