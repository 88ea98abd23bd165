"""Two Programs over the same frames: how far apart are their outputs and states, frame by frame?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, atomic_path
from edgelstm.runtime.protocol import Array, Frame, Program
from edgelstm.signature import Signature

#: A frame's values may all but vanish; its error is then taken relative to this part of the largest value so far.
FLOOR = 1e-3


@dataclass
class TensorError:
    """Relative error of one output or state, one number per comparison.

    Each is max|b - a| / max|a| over the tensor at that frame, where max|a| counts as at least ``FLOOR`` times the
    largest |a| so far. ``frames`` holds the frame after which each was taken (a window gives its states only at its
    end).
    """

    name: str
    kind: str
    frames: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    _largest: float = 0.0

    def add(self, frame: int, reference: Array, other: Array) -> None:
        """Compare the tensors at ``frame``."""
        if reference.shape != other.shape:
            raise EdgeLstmError(
                f"{self.kind} {self.name!r} at frame {frame}",
                found=f"shapes {list(reference.shape)} and {list(other.shape)}",
                expected="one shape",
            )
        a, b = reference.astype(np.float64), other.astype(np.float64)
        size = float(np.abs(a).max(initial=0.0))
        self._largest = max(self._largest, size)
        scale = max(size, FLOOR * self._largest)
        difference = float(np.abs(b - a).max(initial=0.0))
        # Not a number on either side is as wrong as can be, and must not hide behind a comparison that is False.
        error = math.inf if math.isnan(difference) else difference / scale if scale else difference
        self.frames.append(frame)
        self.errors.append(error)

    @property
    def worst(self) -> float:
        """Largest error."""
        return max(self.errors)

    @property
    def worst_frame(self) -> int:
        """Frame of the largest error."""
        return self.frames[self.errors.index(self.worst)]

    @property
    def last(self) -> float:
        """Error at the last comparison."""
        return self.errors[-1]


@dataclass
class Comparison:
    """What :func:`compare` found."""

    a: str
    b: str
    frames: int
    tensors: list[TensorError]

    @property
    def worst(self) -> TensorError:
        """The tensor with the largest error."""
        return max(self.tensors, key=lambda t: t.worst)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; infinite errors become null."""
        return {
            "a": self.a,
            "b": self.b,
            "frames": self.frames,
            "worst": {
                "tensor": self.worst.name,
                "kind": self.worst.kind,
                "frame": self.worst.worst_frame,
                "error": _json_number(self.worst.worst),
            },
            "tensors": [
                {
                    "name": t.name,
                    "kind": t.kind,
                    "worst": _json_number(t.worst),
                    "worst_frame": t.worst_frame,
                    "last": _json_number(t.last),
                    "frames": t.frames,
                    "errors": [_json_number(e) for e in t.errors],
                }
                for t in self.tensors
            ],
        }

    def plot(self, path: PathLike) -> None:
        """Draw error against frame (.png, .svg or .pdf). Raises EdgeLstmError without matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise EdgeLstmError(
                "plots need matplotlib", hint="pip install 'edgelstm[bench]', or leave --plot out"
            ) from error
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.subplots()
        for t in self.tensors:
            axes.plot(
                t.frames,
                [max(e, 1e-12) for e in t.errors],
                label=f"{t.kind} {t.name}",
                linestyle="-" if t.kind == "output" else "--",
            )
        axes.set(xlabel="frame", ylabel="relative error", yscale="log", title=f"{self.b} against {self.a}")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        with atomic_path(path) as temporary:
            try:
                figure.savefig(temporary)
            except ValueError as error:
                raise EdgeLstmError(f"can't draw {path}", found=str(error)) from error


def compare(
    a: Program,
    b: Program,
    frames: Iterable[Frame],
    *,
    names: tuple[str, str] = ("a", "b"),
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Stream ``frames`` (single frames, one array per input) through row 0 of both, from the initial state.

    ``a`` is the reference. A window of T frames may be compared with a step or with another window: each takes its
    frames as it wants them; frames that do not fill a block are left out. Outputs and states are paired by name.
    Raises EdgeLstmError when the two share no output and no state, differ in inputs, or there is no full block.
    """
    _check_comparable(a.signature, b.signature, names)
    block = math.lcm(a.signature.window or 1, b.signature.window or 1)
    outputs = _shared([t.name for t in a.signature.outputs], [t.name for t in b.signature.outputs])
    states = _shared([s.name for s in a.signature.states], [s.name for s in b.signature.states])
    output_errors = {n: TensorError(n, "output") for n in outputs}
    state_errors = {n: TensorError(n, "state") for n in states}
    state_a, state_b = a.new_state(), b.new_state()
    done = 0
    pending: list[Frame] = []
    for frame in frames:
        pending.append({name: np.array(value) for name, value in frame.items()} if block > 1 else frame)
        if len(pending) < block:
            continue
        for offset, (out_a, out_b) in enumerate(
            zip(_advance(a, state_a, pending), _advance(b, state_b, pending), strict=True)
        ):
            for name, tensor in output_errors.items():
                tensor.add(done + offset, out_a[name], out_b[name])
        done += block
        pending.clear()
        values_a, values_b = a.read_state(state_a, 0), b.read_state(state_b, 0)
        for name, tensor in state_errors.items():
            tensor.add(done - 1, values_a[name], values_b[name])
        if progress is not None:
            progress(block)
    if not done:
        raise EdgeLstmError(
            "nothing to compare", found=f"{len(pending)} frames", expected=f"at least {block} frames"
        )
    return Comparison(*names, done, [*output_errors.values(), *state_errors.values()])


def _advance(program: Program, state: Any, frames: list[Frame]) -> list[dict[str, Array]]:
    """Outputs frame by frame, however many frames the program takes in a call."""
    window = program.signature.window
    if window is None:
        steps = (program.step([frame], state, [0])[0] for frame in frames)
        return [{name: value.copy() for name, value in outputs.items()} for outputs in steps]
    results = []
    for start in range(0, len(frames), window):
        chunk = frames[start : start + window]
        stacked = {name: np.stack([f[name] for f in chunk]) for name in chunk[0]}
        outputs = {n: v.copy() for n, v in program.step([stacked], state, [0])[0].items()}
        results += [{n: v[t] for n, v in outputs.items()} for t in range(window)]
    return results


def _check_comparable(a: Signature, b: Signature, names: tuple[str, str]) -> None:
    inputs_a, inputs_b = ({t.name: _frame(s, t.frame_shape) for t in s.inputs} for s in (a, b))
    if inputs_a != inputs_b:
        raise EdgeLstmError(
            f"{names[0]} and {names[1]} take different frames",
            found=f"{inputs_a} and {inputs_b}",
            expected="the same input names and shapes",
        )
    named_a, named_b = (
        {f"output {t.name}" for t in s.outputs} | {f"state {x.name}" for x in s.states} for s in (a, b)
    )
    if not named_a & named_b:
        raise EdgeLstmError(
            f"{names[0]} and {names[1]} share no output and no state",
            found=f"{', '.join(sorted(named_a))} and {', '.join(sorted(named_b))}",
            expected="some names in common",
        )


def _frame(signature: Signature, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if signature.window else shape


def _shared(a: list[str], b: list[str]) -> list[str]:
    return [name for name in a if name in b]


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
