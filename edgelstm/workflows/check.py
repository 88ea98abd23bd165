"""What quantising did to a model's outputs: both run over the ends of the calibration's sequences, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.step import StepModel
from edgelstm.quantize.calibration import Calibration
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Array, Outputs
from edgelstm.verify.compare import compare
from edgelstm.verify.series import json_number
from edgelstm.workflows.frames import single_frames
from edgelstm.workflows.held_back import frames_of

#: An output that is further off is warned of: 20 dB of signal to noise, a hundredth of its power. Networks that take
#: eight bits well stay below a third of it (docs/quantisation.md), and what is above is seen or heard.
THRESHOLD = 0.1
#: The same of an output that hardly varies beside what it is (a temperature in kelvin): half of what varies is lost. Below
#: ``CONSTANT`` of its size it is taken to be constant.
VARIATION, CONSTANT = 0.5, 1e-3
_LOUD = 1e3


@dataclass
class OutputError:
    """One output. error: ||b - a|| / ||a|| over the frames that count; of_variation: beside what varies in time of a."""

    name: str
    error: float
    of_variation: float
    worst: float
    worst_frame: int

    @property
    def lost(self) -> bool:
        """Whether what varies of it is lost in the error, though that is small beside the whole."""
        return VARIATION < self.of_variation < self.error / CONSTANT

    @property
    def decibels(self) -> float:
        """Signal to noise."""
        if not 0 < self.error < math.inf:
            return math.inf if self.error == 0 else -math.inf
        return -20 * math.log10(self.error)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "error": json_number(self.error),
            "snr_db": json_number(self.decibels),
            "error_of_variation": json_number(self.of_variation),
            "worst": json_number(self.worst),
            "worst_frame": self.worst_frame,
        }


@dataclass
class Check:
    """What :func:`check` found. frames: those that count, of which ``held_back`` were not seen by the calibration.

    why_not: why nothing was measured. remedies: what to do, where an output is more than :data:`THRESHOLD` off.
    """

    outputs: list[OutputError] = field(default_factory=list)
    frames: int = 0
    held_back: int = 0
    sequences: int = 0
    why_not: str | None = None
    remedies: list[str] = field(default_factory=list)

    @property
    def worst(self) -> OutputError | None:
        """The output that is furthest off."""
        return max(self.outputs, key=lambda o: o.error, default=None)

    @property
    def warning(self) -> str | None:
        """What to say where an output is too far off."""
        off = [o for o in self.outputs if not o.error <= THRESHOLD]
        if not off:
            lost = [o for o in self.outputs if o.lost]
            said = [f"{o.name} is off by {o.of_variation:.0%} of what varies of it" for o in lost[:5]]
            return ", ".join(said) or None
        said = [f"{o.name} is {o.error:.0%} off ({o.decibels:.0f} dB)" for o in off[:5]]
        more = f" and {len(off) - 5} more" if len(off) > 5 else ""
        return f"{', '.join(said)}{more}, more than {THRESHOLD:.0%}"

    def text(self) -> list[str]:
        """It in lines."""
        if self.why_not is not None:
            return [f"not verified: {self.why_not}"]
        which = f"{count_of(self.frames, 'frame')} that the calibration did not see"
        if not self.held_back:
            which = f"{count_of(self.frames, 'frame')} of the calibration (its sequences are too short to hold any back)"
        lines = [f"verified on {which}, the state carried:"]
        for o in self.outputs:
            lines.append(
                f"  {o.name}: {o.error:.2g} of its size off ({o.decibels:.0f} dB), {o.of_variation:.2g} of what varies; "
                f"worst {o.worst:.2g} at frame {o.worst_frame}"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "frames": self.frames,
            "held_back": self.held_back,
            "sequences": self.sequences,
            "threshold": THRESHOLD,
            "outputs": [o.to_json() for o in self.outputs],
            "why_not": self.why_not,
            "warning": self.warning,
            "remedies": self.remedies,
        }


class Checker:
    """A float step, open, and the frames to compare others with it on."""

    def __init__(
        self,
        step: StepModel,
        calibration: Calibration,
        threads: int | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._step, self._threads, self._progress = step, threads, progress
        self._entries = [dict(d["check"]) for d in calibration.data if isinstance(d.get("check"), dict)]
        self._ops = calibration.preprocessing
        self._program: OrtProgram | None = None

    def __call__(self, made: StepModel) -> Check:
        """How far ``made`` is off. What can't be measured is said, not raised."""
        if not self._entries:
            return Check(why_not="the calibration does not say where its frames are: calibrate again")
        if not self._step.signature.outputs:
            return Check(why_not="the model has no outputs: `edgelstm verify` compares its states")
        try:
            return self._compare(made)
        except (EdgeLstmError, KeyError, ValueError, TypeError) as error:
            return Check(why_not=str(error))

    def close(self) -> None:
        """Free the float step."""
        if self._program is not None:
            self._program.close()

    def _compare(self, made: StepModel) -> Check:
        if self._program is None:
            self._program = OrtProgram(self._step.to_bytes(), threads=self._threads, spin=False)
        other = OrtProgram(made.to_bytes(), threads=self._threads, spin=False)
        names = [t.name for t in self._step.signature.outputs]
        sums = {name: _Sums() for name in names}
        done = Check(sequences=len(self._entries))
        try:
            for entry in self._entries:
                total, held = (_compared(self._step, entry, key) for key in ("frames", "held_back"))
                first = total - held if held else 0
                seen = 0

                def observe(a: Outputs, b: Outputs, first: int = first) -> None:
                    nonlocal seen
                    if seen >= first:
                        for name, s in sums.items():
                            s.add(seen - first, a[name], b[name])
                    seen += 1

                window = self._step.signature.window
                frames = (
                    single
                    for arrays in frames_of(self._step, entry, self._ops)
                    for single in single_frames(arrays, window)
                )
                compare(self._program, other, frames, observe=observe, progress=self._progress)
                done.frames += seen - first
                done.held_back += held
        finally:
            other.close()
        done.outputs = [s.result(name) for name, s in sums.items()]
        return done


def _compared(step: StepModel, entry: Mapping[str, Any], key: str) -> int:
    """How many frames are compared of so many of an entry's; windows that a hop cuts count as one."""
    frames = int(entry[key])
    if "every" not in entry:
        return frames
    windows = (frames - int(entry["each"])) // int(entry["every"]) + 1 if frames else 0
    return windows * (step.signature.window or 1)


class _Sums:
    """Powers of an output, of its error, and of what of it varies."""

    def __init__(self) -> None:
        self._count = 0
        self._error = self._power = 0.0
        self._sum: Array | None = None
        self._frames: list[tuple[int, float, float]] = []

    def add(self, frame: int, a: Array, b: Array) -> None:
        true = np.asarray(a, np.float64)
        square = float(((np.asarray(b, np.float64) - true) ** 2).sum())
        power = float((true**2).sum())
        self._error += square
        self._power += power
        self._sum = true if self._sum is None else self._sum + true
        self._count += 1
        self._frames.append((frame, square, power))

    def result(self, name: str) -> OutputError:
        assert self._sum is not None
        # The mean's own power, taken from all power, leaves that of what varies.
        varies = max(self._power - float((self._sum**2).sum()) / self._count, 0.0)
        loudest = max(power for _, _, power in self._frames)
        ratios = [
            (_ratio(square, max(power, loudest / _LOUD)), frame) for frame, square, power in self._frames
        ]
        worst, frame = max(ratios)
        return OutputError(name, _ratio(self._error, self._power), _ratio(self._error, varies), worst, frame)


def _ratio(error: float, power: float) -> float:
    if not math.isfinite(error):
        return math.inf
    return math.sqrt(error / power) if power > 0 else (0.0 if error == 0 else math.inf)
