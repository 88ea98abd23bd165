"""Two Programs over the same frames: how far apart are their outputs and states, frame by frame, and where does it lead?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgelstm.dtypes import CODED, from_float32, np_dtype, to_float32
from edgelstm.errors import EdgeLstmError, count_of, some
from edgelstm.files import PathLike
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.runtime.protocol import Array, Frame, Outputs, Program
from edgelstm.verify.forecast import ForecastScores
from edgelstm.verify.series import StateRange, TensorError, json_number

__all__ = ["Comparison", "StateRange", "TensorError", "check_comparable", "compare"]


@dataclass(repr=False)
class Comparison:
    """What :func:`compare` found. ``asked``: frames that were asked for, if fewer were compared.
    ``left``: frames at the end that fill no window. ``said``: of the frames."""

    a: str
    b: str
    frames: int
    tensors: list[TensorError]
    states: list[StateRange] = field(default_factory=list)
    asked: int | None = None
    left: int = 0
    forecast: ForecastScores | None = None
    said: list[str] = field(default_factory=list)

    @property
    def worst(self) -> TensorError:
        """The tensor with the largest error."""
        return max(self.tensors, key=lambda t: t.worst)

    def __repr__(self) -> str:
        return f"Comparison({self.b} against {self.a}, {count_of(self.frames, 'frame')}, worst: {self.worst})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; infinite errors become null."""
        return {
            "a": self.a,
            "b": self.b,
            "frames": self.frames,
            "asked": self.asked,
            "worst": {
                "tensor": self.worst.name,
                "kind": self.worst.kind,
                "frame": self.worst.worst_frame,
                "error": json_number(self.worst.worst),
            },
            "tensors": [t.to_json() for t in self.tensors],
            "states": [s.to_json() for s in self.states],
            "forecast": None if self.forecast is None else self.forecast.to_json(),
            "said": list(self.said),
        }

    def plot(self, path: PathLike) -> None:
        """Draw errors and ranges over time (.png, .svg or .pdf). Raises EdgeLstmError without matplotlib."""
        from edgelstm.verify.plot import draw

        draw(self, path)


def compare(
    a: Program,
    b: Program,
    frames: Iterable[Frame],
    *,
    names: tuple[str, str] = ("a", "b"),
    observe: Callable[[Outputs, Outputs], None] | None = None,
    together: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Stream ``frames`` (single frames, one array per input, in a's dtypes) through row 0 of both, from the initial state.

    ``a`` is the reference. A window of T frames may be compared with a step or with another window: each takes its
    frames as it wants them; frames that do not fill a block are left out. Outputs and states are paired by name and
    compared by what they are worth, whatever type stores them. ``observe`` gets the outputs of both at each frame.
    together: after every step b's states are set to a's, so that errors are of single steps and none is fed back; both
    must have the same states then.
    Raises EdgeLstmError when the two share no output and no state, differ in inputs, or there is no full block.
    """
    check_comparable(a.signature, b.signature, names)
    block = math.lcm(a.signature.window or 1, b.signature.window or 1)
    outputs = shared_names([t.name for t in a.signature.outputs], [t.name for t in b.signature.outputs])
    states = shared_names([s.name for s in a.signature.states], [s.name for s in b.signature.states])
    output_errors = {n: TensorError(n, "output") for n in outputs}
    state_errors = {n: TensorError(n, "state") for n in states}
    ranges = {s.name: StateRange(s.name) for s in a.signature.states if not _counts(s)}
    state_a, state_b = a.new_state(), b.new_state()
    done = 0
    pending: list[Frame] = []
    for frame in frames:
        pending.append({name: np.array(value) for name, value in frame.items()} if block > 1 else frame)
        if len(pending) < block:
            continue
        theirs = [converted(f, a.signature, b.signature) for f in pending]
        for offset, (out_a, out_b) in enumerate(
            zip(advance(a, state_a, pending), advance(b, state_b, theirs), strict=True)
        ):
            for name, tensor in output_errors.items():
                tensor.add(done + offset, out_a[name], out_b[name])
            if observe is not None:
                observe(out_a, out_b)
        done += block
        pending.clear()
        values_a, values_b = state_values(a, state_a), state_values(b, state_b)
        for name, tensor in state_errors.items():
            tensor.add(done - 1, values_a[name], values_b[name])
        for name, known in ranges.items():
            known.add(done - 1, values_a[name])
        if together:
            b.write_state(state_b, 0, a.read_state(state_a, 0))
        if progress is not None:
            progress(block)
    if not done:
        raise EdgeLstmError(
            "nothing to compare",
            found=f"{count_of(len(pending), 'frame')}",
            expected=f"at least {count_of(block, 'frame')}",
        )
    tensors = [*output_errors.values(), *state_errors.values()]
    return Comparison(*names, done, tensors, [*ranges.values()], left=len(pending))


def advance(program: Program, state: Any, frames: list[Frame]) -> list[Outputs]:
    """What row 0's outputs are worth, frame by frame, however many frames the program takes in a call."""
    window = program.signature.window
    worth = {t.name: _worth(program.signature, t) for t in program.signature.outputs}
    if window is None:
        steps = (program.step([frame], state, [0])[0] for frame in frames)
        return [{name: worth[name](value) for name, value in outputs.items()} for outputs in steps]
    results = []
    for start in range(0, len(frames), window):
        chunk = frames[start : start + window]
        stacked = {name: np.stack([f[name] for f in chunk]) for name in chunk[0]}
        outputs = {n: worth[n](v) for n, v in program.step([stacked], state, [0])[0].items()}
        results += [{n: v[t] for n, v in outputs.items()} for t in range(window)]
    return results


def _worth(signature: Signature, output: TensorSpec) -> Callable[[Array], Array]:
    """From an output as stored to a copy of its values; one that is a state's tensor is stored as the state is."""
    for spec in signature.states:
        if spec.output == output.name and spec.is_coded:
            return spec.values
    if output.dtype in CODED:
        # What computes in float64 gives its results unrounded, whatever the graph stores them in.
        return lambda stored: stored if stored.dtype == np.float64 else to_float32(stored, output.dtype)
    return np.copy


def state_values(program: Program, state: Any) -> dict[str, Array]:
    """What row 0's states are worth."""
    stored = program.read_state(state, 0)
    return {s.name: s.values(stored[s.name]) for s in program.signature.states}


def _counts(spec: StateSpec) -> bool:
    """Whether a state holds whole numbers: a counter has no range to watch."""
    return spec.quantization is None and np_dtype(spec.dtype).kind in "iub" and not spec.is_coded


def converted(frame: Frame, given: Signature, wanted: Signature) -> Frame:
    """The frame in the dtypes that ``wanted`` takes."""
    pairs = {t.name: (given.input(t.name).dtype, t.dtype) for t in wanted.inputs}
    if all(have == want for have, want in pairs.values()):
        return frame
    return {n: from_float32(to_float32(v, pairs[n][0]), pairs[n][1]) for n, v in frame.items()}


def check_comparable(a: Signature, b: Signature, names: tuple[str, str]) -> None:
    """Raise EdgeLstmError when two models, ``names``, take different frames or have nothing in common."""
    inputs_a, inputs_b = ({t.name: _frame(s, t.frame_shape) for t in s.inputs} for s in (a, b))
    if inputs_a != inputs_b:
        raise EdgeLstmError(
            f"{names[0]} and {names[1]} take different frames",
            found=" and ".join(some(f"{n}{list(s)}" for n, s in x.items()) for x in (inputs_a, inputs_b)),
            expected="the same input names and shapes",
        )
    named_a, named_b = (
        {f"output {t.name}" for t in s.outputs} | {f"state {x.name}" for x in s.states} for s in (a, b)
    )
    if not named_a & named_b:
        raise EdgeLstmError(
            f"{names[0]} and {names[1]} share no output and no state",
            found=f"{some(sorted(named_a))} and {some(sorted(named_b))}",
            expected="some names in common",
        )


def _frame(signature: Signature, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if signature.window else shape


def shared_names(a: list[str], b: list[str]) -> list[str]:
    """What both have, in the order of ``a``."""
    return [name for name in a if name in b]
