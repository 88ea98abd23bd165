"""Calibration: the ranges of a step graph's tensors, observed while real sequences ran with the state carried. JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.dtypes import LARGEST
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, read_bytes, write_text
from edgelstm.quantize import correlation
from edgelstm.quantize.movement import TYPES, Rounding
from edgelstm.verify.drift import growth

Array = npt.NDArray[Any]

SCHEMA = 1
KIND = "edgelstm.calibration"
#: A calibration file larger than this is none.
MAX_BYTES = 256 << 20
#: More frames than anyone will record; a larger number is a mistake.
MAX_FRAMES = 1 << 40
_CHANNEL_KEYS = ("minimum", "maximum", "mean", "mean_square", "low", "high")


@dataclass(frozen=True)
class TensorRange:
    """What was seen of one site (see ``passes.products``), channel by channel, and the range that was chosen for it.

    minimum, maximum, mean, mean_square, low, high: [channels], float64. ``low`` and ``high`` are what the method chose
    for each channel, ``tensor_low`` and ``tensor_high`` for all channels together. ``counts``: a histogram over
    [-span, span] of what was sampled.
    """

    name: str
    role: str
    samples: int
    minimum: Array
    maximum: Array
    mean: Array
    mean_square: Array
    low: Array
    high: Array
    tensor_low: float
    tensor_high: float
    span: float = 0.0
    counts: tuple[int, ...] = field(default=(), repr=False)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.low)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        data: dict[str, Any] = {"role": self.role, "samples": self.samples}
        data |= {key: [_short(v) for v in getattr(self, key)] for key in _CHANNEL_KEYS}
        data["tensor_low"], data["tensor_high"] = _short(self.tensor_low), _short(self.tensor_high)
        data["histogram"] = {"span": _short(self.span), "counts": list(self.counts)}
        return data

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any]) -> TensorRange:
        """Read what ``to_json`` wrote. Raises EdgeLstmError for ranges that can't be used, naming the tensor."""
        arrays = {}
        for key in _CHANNEL_KEYS:
            values = data[key]
            if values is None or any(v is None for v in values):
                raise EdgeLstmError(
                    f"range of tensor {name!r}",
                    found=f"no {key}: one-sided",
                    expected="a low and a high end",
                    hint="Calibrate again",
                )
            arrays[key] = np.array(values, np.float64)
        ends = {key: data[key] for key in ("tensor_low", "tensor_high")}
        missing = [key for key, value in ends.items() if value is None]
        if missing:
            raise EdgeLstmError(
                f"range of tensor {name!r}",
                found=f"no {missing[0]}: one-sided",
                expected="a low and a high end",
                hint="Calibrate again",
            )
        histogram = data.get("histogram", {})
        found = cls(
            name,
            str(data["role"]),
            int(data["samples"]),
            **arrays,
            tensor_low=float(ends["tensor_low"]),
            tensor_high=float(ends["tensor_high"]),
            span=float(histogram.get("span", 0.0)),
            counts=tuple(int(c) for c in histogram.get("counts", ())),
        )
        found.check()
        return found

    def check(self) -> None:
        """Raise EdgeLstmError for a range that is not finite, reversed, or zero."""
        seen = [*self.low, *self.high, *self.minimum, *self.maximum, *self.mean]
        seen += [self.tensor_low, self.tensor_high, self.span / 2]
        largest = LARGEST["float32"]
        squares = all(0 <= v <= largest**2 for v in self.mean_square)
        if not squares or not all(abs(v) <= largest for v in seen):
            raise EdgeLstmError(
                f"range of tensor {self.name!r}",
                found="a value that is infinite or not a number",
                expected="finite ranges",
                hint="The sequences made the model overflow: look at them, then calibrate again",
            )
        if len({len(getattr(self, key)) for key in _CHANNEL_KEYS}) != 1 or not self.channels:
            raise EdgeLstmError(
                f"range of tensor {self.name!r}",
                found=", ".join(f"{key}: {len(getattr(self, key))}" for key in _CHANNEL_KEYS),
                expected="one number for each channel in each",
            )
        lows, highs = (*self.low, self.tensor_low), (*self.high, self.tensor_high)
        odd = next((pair for pair in zip(lows, highs, strict=True) if not pair[0] <= 0 <= pair[1]), None)
        if odd is not None:
            raise EdgeLstmError(
                f"range of tensor {self.name!r}",
                found=f"[{odd[0]:g}, {odd[1]:g}]" + (": one-sided" if odd[0] <= odd[1] else ": reversed"),
                expected="a low end of at most 0 and a high end of at least 0, since 0 needs a code",
                hint="Calibrate again",
            )
        if max(abs(self.tensor_low), abs(self.tensor_high)) == 0:
            raise EdgeLstmError(
                f"range of tensor {self.name!r}",
                found="0 in every frame",
                expected="values that vary",
                hint="Calibrate on real frames; blank ones say nothing of the ranges",
            )


@dataclass(frozen=True)
class StateGrowth:
    """Largest |value| of a state over the calibration: ``largest[k]`` among frames k*every to (k+1)*every - 1.

    ``rounding``: by type (int8, float8e4m3fn, float16, bfloat16), what storing the state in it does; empty where that was
    not looked at.
    """

    name: str
    every: int
    largest: tuple[float, ...]
    rounding: Mapping[str, Rounding] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        data: dict[str, Any] = {"every": self.every, "largest": [_short(v) for v in self.largest]}
        if self.rounding:
            data["rounding"] = {dtype: r.to_json() for dtype, r in self.rounding.items()}
        return data

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any]) -> StateGrowth:
        """Read what ``to_json`` wrote. Raises EdgeLstmError for a series that can't be one."""
        rounding = {str(t): _rounding(name, str(t), r) for t, r in data.get("rounding", {}).items()}
        found = cls(name, int(data["every"]), tuple(float(v) for v in data["largest"]), rounding)
        finite = all(0 <= v < math.inf for v in found.largest)
        if not (1 <= found.every <= MAX_FRAMES and found.largest and finite):
            raise EdgeLstmError(
                f"growth of state {name!r}",
                found=f"every {count_of(found.every, 'frame')}: {', '.join(map(str, found.largest[:3])) or 'nothing'}",
                expected="finite sizes, one every so many frames",
            )
        return found


@dataclass(frozen=True)
class InputRange:
    """The values an input had, and which of its numbers never moved where a frame is a vector of ``channels``."""

    low: float
    high: float
    channels: int = 0
    still: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "low": _short(self.low),
            "high": _short(self.high),
            "channels": self.channels,
            "still": list(self.still),
        }

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any]) -> InputRange:
        """Read what ``to_json`` wrote. Raises EdgeLstmError for a range that is none."""
        low, high = float(data["low"]), float(data["high"])
        if not -math.inf < low <= high < math.inf:
            raise EdgeLstmError(
                f"range of input {name!r}", found=f"{low} to {high}", expected="finite, low first"
            )
        return cls(low, high, int(data.get("channels", 0)), tuple(int(k) for k in data.get("still", ())))


def _rounding(state: str, dtype: str, data: Mapping[str, Any]) -> Rounding:
    slow, error, times = (float(data[key]) for key in ("slow", "error", "times"))
    found = Rounding(slow, error, times, int(data["stuck"]))
    if dtype not in TYPES or not all(0 <= v < math.inf for v in vars(found).values()):
        raise EdgeLstmError(
            f"rounding of state {state!r}",
            found=f"{dtype}: {vars(found)}",
            expected=f"numbers of at least 0 for {', '.join(TYPES)}",
        )
    return found


@dataclass(frozen=True, repr=False)
class Calibration:
    """Ranges of a model's sites, and what they came from.

    model: hash of the float graph (``StepModel.graph_hash``). preprocessing: what made frames of the raw ones. data:
    one entry a sequence: where it came from, its frames, the hash of the frames as the model took them. method: how
    low and high were chosen. inputs: the frames themselves. weights: E[a aT] of what each weight meets (``edgelstm.quantize.correlation``). driven_by: hash of the quantised model whose state drove this round, None in the first.
    """

    model: str
    preprocessing: Mapping[str, Any]
    data: tuple[Mapping[str, Any], ...]
    method: Mapping[str, Any]
    tensors: Mapping[str, TensorRange]
    states: Mapping[str, StateGrowth]
    streams: int = 1
    driven_by: str | None = None
    weights: Mapping[str, Array] = field(default_factory=dict, repr=False)
    inputs: Mapping[str, InputRange] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Calibration({count_of(len(self.tensors), 'tensor')}, {count_of(len(self.states), 'state')}, {count_of(self.frames, 'frame')})"

    @property
    def frames(self) -> int:
        """Frames in all."""
        return sum(int(d["frames"]) for d in self.data)

    def tensor(self, name: str) -> TensorRange:
        """The range of a site. Raises EdgeLstmError when it was not observed."""
        if name not in self.tensors:
            raise EdgeLstmError(
                f"the calibration has no range for tensor {name!r}",
                found=f"{len(self.tensors)} others",
                hint="Calibrate this model again",
            )
        return self.tensors[name]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; ``from_json`` is its inverse."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "model": self.model,
            "preprocessing": {k: [dict(op) for op in ops] for k, ops in self.preprocessing.items()},
            "data": [dict(d) for d in self.data],
            "frames": self.frames,
            "streams": self.streams,
            "method": dict(self.method),
            "driven_by": self.driven_by,
            "tensors": {name: t.to_json() for name, t in self.tensors.items()},
            "states": {name: s.to_json() for name, s in self.states.items()},
            "weights": {name: correlation.to_json(m) for name, m in self.weights.items()},
            "inputs": {name: i.to_json() for name, i in self.inputs.items()},
        }

    def save(self, path: PathLike) -> None:
        """Write the file."""
        write_text(path, json.dumps(self.to_json(), separators=(",", ":"), allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: PathLike) -> Calibration:
        """Read and check a calibration file. Raises EdgeLstmError for anything else."""
        try:
            data = json.loads(read_bytes(path, limit=MAX_BYTES))
        except (ValueError, RecursionError) as error:
            raise EdgeLstmError(
                f"{path} is not a calibration",
                found=str(error).splitlines()[0],
                expected="JSON as `edgelstm calibrate` writes it",
            ) from error
        return cls.from_json(data, str(path))

    @classmethod
    def from_json(cls, data: Any, where: str = "calibration") -> Calibration:
        """Read what ``to_json`` wrote."""
        if not isinstance(data, dict) or data.get("kind") != KIND:
            raise EdgeLstmError(
                f"{where} is not a calibration",
                found=data.get("kind") if isinstance(data, dict) else type(data).__name__,
                expected=f"JSON of kind {KIND}",
            )
        if data.get("schema") != SCHEMA:
            raise EdgeLstmError(
                f"{where}: schema of the calibration",
                found=data.get("schema"),
                expected=SCHEMA,
                hint="A newer edgelstm may have written it: upgrade, or calibrate again",
            )
        try:
            # What is only passed on must be fit to be written again.
            json.dumps([data["preprocessing"], data["data"], data["method"]], allow_nan=False)
            return cls(
                model=str(data["model"]),
                preprocessing={str(k): [dict(op) for op in ops] for k, ops in data["preprocessing"].items()},
                data=tuple(dict(d, frames=int(d["frames"])) for d in data["data"]),
                method=dict(data["method"]),
                tensors={str(n): TensorRange.from_json(str(n), t) for n, t in data["tensors"].items()},
                states={str(n): StateGrowth.from_json(str(n), s) for n, s in data["states"].items()},
                streams=int(data["streams"]),
                driven_by=None if data.get("driven_by") is None else str(data["driven_by"]),
                weights={str(n): correlation.from_json(m) for n, m in data.get("weights", {}).items()},
                inputs={str(n): InputRange.from_json(str(n), i) for n, i in data.get("inputs", {}).items()},
            )
        except EdgeLstmError as error:
            raise EdgeLstmError(
                f"{where}: {error.what}", found=error.found, expected=error.expected, hint=error.hint
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise EdgeLstmError(
                f"{where}: malformed calibration",
                found=f"{type(error).__name__} {error}",
                expected="JSON as `edgelstm calibrate` writes it",
            ) from error


def changes(before: Calibration, after: Calibration) -> list[dict[str, Any]]:
    """How ranges moved from one round to the next: one entry a tensor, those that moved most first.

    ``range``: width after / before. ``mean``: largest shift of a channel's mean, in parts of the tensor's range.
    """
    rows = []
    for name, a in before.tensors.items():
        b = after.tensor(name)
        width = a.tensor_high - a.tensor_low
        rows.append(
            {
                "tensor": name,
                "role": a.role,
                "range": (b.tensor_high - b.tensor_low) / width,
                "mean": float(np.abs(b.mean - a.mean).max()) / width,
            }
        )
    return sorted(rows, key=lambda r: -(abs(math.log(max(r["range"], 1e-9))) + r["mean"]))


def _short(value: float) -> float:
    return float(f"{float(value):.7g}")


def growing_states(calibration: Calibration) -> dict[str, dict[str, Any]]:
    """States that were still growing at the end of the calibration, with the frame at which float16 would overflow."""
    found = {}
    for name, seen in calibration.states.items():
        frames = np.arange(1, len(seen.largest) + 1) * seen.every - 1
        grown = growth(np.asarray(seen.largest), frames)
        if grown.grows:
            found[name] = {
                "largest": max(seen.largest),
                "fp16_overflows_at": grown.frame_reaching(65504.0),
            }
    return found


def still_notes(calibration: Calibration) -> list[str]:
    """A line for each input, state and activation of which channels never moved, up to five of them named."""
    lines = []
    told = set()
    for name, t in calibration.tensors.items():
        still = [int(k) for k in np.flatnonzero(t.maximum <= t.minimum)]
        if t.role == "preactivation" or not still:
            continue
        told.add(name)
        what = {"frame": "input", "state": "state"}.get(t.role, "tensor")
        lines.append(_still(f"{what} {name!r}", still, t.channels, t.role == "frame"))
    for name, i in calibration.inputs.items():
        if i.still and name not in told:
            lines.append(_still(f"input {name!r}", i.still, i.channels, True))
    return lines


def _still(what: str, still: Sequence[int], channels: int, is_input: bool) -> str:
    shown = ", ".join(map(str, still[:5])) + (f" and {len(still) - 5} more" if len(still) > 5 else "")
    do = (
        "calibrate on frames in which they do, else their range is taken to be that of the others"
        if is_input
        else "fine if they never do; else calibrate on frames that move them, or they are cut off when they move"
    )
    return f"{what}: {len(still)} of {count_of(channels, 'channel')} never moved ({shown}): {do}"


#: What types are called where a user chooses one.
PRECISIONS = {"int8": "int8", "float8e4m3fn": "fp8", "float16": "fp16", "bfloat16": "bf16"}


def slow_notes(calibration: Calibration) -> list[str]:
    """A line for each state that some type would not follow."""
    lines = []
    for name, seen in calibration.states.items():
        stuck = {t: r for t, r in seen.rounding.items() if r.stuck}
        if stuck:
            parts = [f"{PRECISIONS[t]} (it would be {r.error:.0%} off)" for t, r in stuck.items()]
            lines.append(
                f"state {name!r} moves by less than these resolve in a frame: {', '.join(parts)}; `quantize` keeps it in float32 there"
            )
    return lines


def stuck_states(calibration: Calibration, dtype: str) -> dict[str, Rounding]:
    """States that stand still, or nearly, where they are stored as ``dtype``."""
    return {
        name: seen.rounding[dtype]
        for name, seen in calibration.states.items()
        if dtype in seen.rounding and seen.rounding[dtype].stuck
    }
