"""What is kept of a tensor over time: the error of an output or a state, the range of a state. Numbers only, no tensors."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.dtypes import LARGEST
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.verify.drift import Drift, Growth, figure, fit, growth

Array = npt.NDArray[Any]

#: A frame's values may all but vanish; its error is then taken relative to this part of the largest value so far.
FLOOR = 1e-3
HELD_FLOOR = 0.1
#: Bits of the mantissa, the hidden one among them: how finely a type resolves what it holds.
MANTISSA = {"float16": 11, "bfloat16": 8}


def _numbers() -> array[float]:
    """One number a comparison, 8 bytes each: a stream may be long."""
    return array("d")


def _whole() -> array[int]:
    return array("q")


@dataclass(repr=False)
class TensorError:
    """Relative error of one output or state, one number per comparison.

    ``errors``: max|b - a| / max|a| over the tensor at that frame, where max|a| counts as at least ``FLOOR`` times the
    largest so far; ``norms``: the same with the 2-norm in place of the maximum. ``frames``: the frame after which each was
    taken (a window gives its states only at its end).
    """

    name: str
    kind: str
    frames: array[int] = field(default_factory=_whole)
    errors: array[float] = field(default_factory=_numbers)
    norms: array[float] = field(default_factory=_numbers)
    _largest: float = 0.0
    _longest: float = 0.0
    _sizes: array[float] = field(default_factory=_numbers)
    _differences: array[float] = field(default_factory=_numbers)

    def add(self, frame: int, reference: Array, other: Array) -> None:
        """Compare the tensors at ``frame``."""
        if reference.shape != other.shape:
            raise EdgeLstmError(
                f"{self.kind} {self.name!r} at frame {frame}",
                found=f"shapes {list(reference.shape)} and {list(other.shape)}",
                expected="one shape",
            )
        a = reference.astype(np.float64).ravel()
        difference = other.astype(np.float64).ravel() - a
        size, length = float(np.abs(a).max(initial=0.0)), float(np.linalg.norm(a))
        self._largest, self._longest = max(self._largest, size), max(self._longest, length)
        self.frames.append(frame)
        worst = float(np.abs(difference).max(initial=0.0))
        self.errors.append(_relative(worst, size, self._largest))
        self._sizes.append(size)
        self._differences.append(worst)
        self.norms.append(_relative(float(np.linalg.norm(difference)), length, self._longest))

    def __repr__(self) -> str:
        if not self.errors:
            return f"TensorError({self.kind} {self.name!r}: no frames)"
        return (
            f"TensorError({self.kind} {self.name!r}: {self.worst:.2e} at frame {self.worst_frame}, "
            f"{self.last:.2e} at the last of {len(self.errors)})"
        )

    @property
    def worst(self) -> float:
        """Largest error."""
        return max(self.errors)

    @property
    def held(self) -> float:
        """Largest error where max|a| counts as at least ``HELD_FLOOR`` times the largest of all frames.

        An output of one number passes through zero, and float32 rounds it by what it was summed up from, not by what is
        left of it: this is the error that a computation in float32 can be held to.
        """
        floor = HELD_FLOOR * self._largest
        pairs = zip(self._differences, self._sizes, strict=True)
        return max(_relative(difference, max(size, floor), self._largest) for difference, size in pairs)

    @property
    def worst_frame(self) -> int:
        """Frame of the largest error."""
        return self.frames[self.errors.index(self.worst)]

    @property
    def last(self) -> float:
        """Error at the last comparison."""
        return self.errors[-1]

    @property
    def drift(self) -> Drift:
        """What the error in the 2-norm does in the long run."""
        return fit(self.norms, self.frames)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; infinite errors become null."""
        return {
            "name": self.name,
            "kind": self.kind,
            "worst": json_number(self.worst),
            "worst_frame": self.worst_frame,
            "last": json_number(self.last),
            "drift": self.drift.to_json(),
            "frames": list(self.frames),
            "errors": [json_number(e) for e in self.errors],
            "norms": [json_number(e) for e in self.norms],
        }


@dataclass(repr=False)
class StateRange:
    """The range of one state of the reference over time: ``largest`` |value| of each comparison.

    ``changes`` holds by how much the largest value of that frame changed since the comparison before.
    """

    name: str
    frames: array[int] = field(default_factory=_whole)
    largest: array[float] = field(default_factory=_numbers)
    changes: array[float] = field(default_factory=_numbers)
    _before: Array | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"StateRange({self.name!r}: {max(self.largest, default=0.0):.3g} over {count_of(len(self.frames), 'frame')})"

    def add(self, frame: int, value: Array) -> None:
        """The state after ``frame``."""
        now = value.astype(np.float64).ravel()
        before = np.zeros_like(now) if self._before is None else self._before
        place = int(np.argmax(np.abs(now))) if now.size else 0
        self.frames.append(frame)
        self.largest.append(float(np.abs(now[place])) if now.size else 0.0)
        self.changes.append(float(np.abs(now[place] - before[place])) if now.size else 0.0)
        self._before = now

    @property
    def growth(self) -> Growth:
        """Whether a longer stream would show larger values."""
        return growth(self.largest, self.frames)

    def resolves(self, dtype: str) -> bool:
        """Whether ``dtype`` is fine enough at the largest value for the change of a frame (median of the last third).

        Smaller than half a step of the type, a change is lost in rounding, and the state stands still.
        """
        size = max(self.largest)
        if not 0 < size < math.inf:
            return size == 0
        step = 2.0 ** (math.floor(math.log2(size)) + 1 - MANTISSA[dtype])
        recent = self.changes[2 * len(self.changes) // 3 :]
        return float(np.median(recent)) >= step / 2

    def text(self) -> str:
        """What a growing state means for the types that might hold it."""
        found = self.growth
        parts = [f"state {self.name}: {found.drift.text}, {figure(found.largest)} at frame {found.frame:,}"]
        overflow = found.frame_reaching(LARGEST["float16"])
        if overflow is not None:
            parts.append(f"float16 ({LARGEST['float16']:,.0f} at most) overflows at frame {overflow:,}")
        coarse = [dtype for dtype in MANTISSA if not self.resolves(dtype)]
        if coarse:
            parts.append(f"{' and '.join(coarse)} no longer resolve{'s' * (len(coarse) == 1)} its changes")
        parts.append("no scale of an 8-bit type holds it for long: keep it in float32")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        found = self.growth
        return {
            "name": self.name,
            "largest": json_number(found.largest),
            "grows": found.grows,
            "drift": found.drift.to_json(),
            "overflow_frame": {
                d: found.frame_reaching(LARGEST[d]) for d in ("float16", "bfloat16", "float8e4m3fn")
            },
            "resolved_by": {dtype: self.resolves(dtype) for dtype in MANTISSA},
            "frames": list(self.frames),
            "largest_per_frame": [json_number(v) for v in self.largest],
        }


def _relative(difference: float, size: float, largest: float) -> float:
    """Not a number on either side is as wrong as can be, and must not hide behind a comparison that is False."""
    scale = max(size, FLOOR * largest)
    if math.isnan(difference):
        return math.inf
    return difference / scale if scale else difference


def json_number(value: float) -> float | None:
    """``value``, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None
