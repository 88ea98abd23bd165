"""The vocabulary of preprocessing: what each operation does to a frame, and what it may do it to.

An operation is a JSON object, ``{"op": "crop", "top": 0, "left": 0, "height": 256, "width": 256}``. ``OPERATIONS``
maps its name to its keys and to a function that, given the frame's layout and those keys, returns the layout that
comes out and the function that does it. Whatever depends on shapes alone (indices, weights) is computed there, once.
Arithmetic is in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError, count_of

Array = npt.NDArray[Any]
Transform = Callable[[Array], Array]

#: No operation may make a frame larger than this (elements).
MAX_FRAME_ELEMENTS = 2**28


@dataclass(frozen=True)
class Layout:
    """Shape of a frame and where its channels are; None when it has no channel axis."""

    shape: tuple[int, ...]
    channel: int | None = None

    @property
    def spatial(self) -> tuple[int, int]:
        """The axes of height and width of an image."""
        if len(self.shape) - (self.channel is not None) != 2:
            raise EdgeLstmError(
                "works on images", found=list(self.shape), expected="[H, W], [H, W, C], [C, H, W]"
            )
        return (1, 2) if self.channel == 0 else (0, 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        rows, columns = self.spatial
        return self.shape[rows], self.shape[columns]

    def resized(self, height: int, width: int) -> Layout:
        """The same layout with another height and width."""
        shape = list(self.shape)
        rows, columns = self.spatial
        shape[rows], shape[columns] = height, width
        return Layout(tuple(shape), self.channel)


def raw_layout(shape: tuple[int, ...], channels_last: bool) -> Layout:
    """Layout of a frame as a source gives it.

    A frame of three axes has its channels last when ``channels_last`` says so or when its last axis has at most
    four entries (grey, RGB, RGBA), else first. A frame of one axis (sensors) is all channels.
    """
    if len(shape) == 1:
        return Layout(shape, 0)
    if len(shape) == 3:
        return Layout(shape, 2 if channels_last or shape[2] <= 4 else 0)
    return Layout(shape)


def _f32(x: Array) -> Array:
    return x.astype(np.float32, copy=False)


def _nodata(layout: Layout, value: float | str, replace: float) -> tuple[Layout, Transform]:
    new = np.float32(replace)
    if value == "nan":
        return layout, lambda x: np.where(np.isnan(_f32(x)), new, _f32(x))
    missing = np.float32(value)
    return layout, lambda x: np.where(_f32(x) == missing, new, _f32(x))


def _scale(layout: Layout, factor: float, offset: float) -> tuple[Layout, Transform]:
    a, b = np.float32(factor), np.float32(offset)
    return layout, lambda x: _f32(x) * a + b


def _log1p(layout: Layout, scale: float) -> tuple[Layout, Transform]:
    s = np.float32(scale)

    def apply(x: Array) -> Array:
        # Below -1 there is no logarithm: the NaN goes on, and the runner's policy for such frames decides.
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(s * np.log1p(_f32(x)))

    return layout, apply


def _clip(layout: Layout, low: float, high: float) -> tuple[Layout, Transform]:
    if low >= high:
        raise EdgeLstmError("min and max", found=f"{low:g}, {high:g}", expected="min below max")
    return layout, lambda x: np.clip(_f32(x), np.float32(low), np.float32(high))


def _normalize(layout: Layout, mean: list[float], std: list[float]) -> tuple[Layout, Transform]:
    channels = 1 if layout.channel is None else layout.shape[layout.channel]
    for key, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            expected = (
                "one"
                if channels == 1
                else f"one for each of the {count_of(channels, 'channel')}, or one for all"
            )
            raise EdgeLstmError(f"number of values in {key}", found=len(values), expected=expected)
    if min(std) <= 0:
        raise EdgeLstmError("std", found=std, expected="values above 0")
    per_channel = [1] * len(layout.shape)
    if layout.channel is not None:
        per_channel[layout.channel] = -1
    centre, deviation = (np.asarray(v, np.float32).reshape(per_channel) for v in (mean, std))
    return layout, lambda x: (_f32(x) - centre) / deviation


def _grey(layout: Layout) -> tuple[Layout, Transform]:
    if layout.channel is None and len(layout.shape) == 2:
        return layout, lambda x: x  # a grey camera in place of a colour one
    if layout.channel is None or layout.shape[layout.channel] != 3:
        raise EdgeLstmError("makes grey from RGB", found=list(layout.shape), expected="three channels")
    axis = layout.channel
    luma = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    shape = layout.shape[:axis] + layout.shape[axis + 1 :]
    return Layout(shape), lambda x: np.tensordot(_f32(x), luma, axes=((axis,), (0,)))


def _crop(layout: Layout, top: int, left: int, height: int, width: int) -> tuple[Layout, Transform]:
    rows, columns = layout.size
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
        raise EdgeLstmError(
            "crop does not lie inside the frame",
            found=f"rows {top} to {top + height}, columns {left} to {left + width}",
            expected=f"within {count_of(rows, 'row')} and {count_of(columns, 'column')}",
        )
    window: list[slice] = [slice(None)] * len(layout.shape)
    axis_h, axis_w = layout.spatial
    window[axis_h], window[axis_w] = slice(top, top + height), slice(left, left + width)
    index = tuple(window)
    return layout.resized(height, width), lambda x: x[index]


def _average(layout: Layout, factor: int) -> tuple[Layout, Transform]:
    rows, columns = layout.size
    if not 1 <= factor <= min(rows, columns):
        raise EdgeLstmError(
            "factor", found=factor, expected=f"1 to {min(rows, columns)}, the frame's shorter side"
        )
    height, width = rows // factor, columns // factor
    _, crop = _crop(layout, 0, 0, height * factor, width * factor)

    def apply(x: Array) -> Array:
        x = _f32(crop(x))
        for axis in layout.spatial:
            # Adding every factor-th slice is many times faster in NumPy than a mean over short axes.
            slices = [(slice(None),) * axis + (slice(start, None, factor),) for start in range(factor)]
            total = x[slices[0]].copy()
            for index in slices[1:]:
                total += x[index]
            x = total / np.float32(factor)
        return x

    return layout.resized(height, width), apply


def _resize(layout: Layout, height: int, width: int) -> tuple[Layout, Transform]:
    if min(height, width) < 1:
        raise EdgeLstmError("size", found=[height, width], expected="at least 1 x 1")
    out = layout.resized(height, width)
    if math.prod(out.shape) > MAX_FRAME_ELEMENTS:
        raise EdgeLstmError(
            "size", found=[height, width], expected=f"at most {MAX_FRAME_ELEMENTS} elements in a frame"
        )
    axes = [
        (axis, before, after)
        for axis, before, after in zip(layout.spatial, layout.size, (height, width), strict=True)
        if before != after
    ]
    axes.sort(
        key=lambda step: step[2] / step[1]
    )  # the axis that shrinks most first: less to do for the other
    steps = [(axis, *_bilinear(before, after, axis, len(layout.shape))) for axis, before, after in axes]

    def apply(x: Array) -> Array:
        x = _f32(x)
        for axis, low, high, weight in steps:
            # In place: fresh arrays of this size cost NumPy more (page faults) than the arithmetic.
            near, x = x.take(low, axis), x.take(high, axis)
            x -= near
            x *= weight
            x += near
        return x

    return out, apply


def _bilinear(before: int, after: int, axis: int, ndim: int) -> tuple[Array, Array, Array]:
    """Indices and weights of linear interpolation with half-pixel centres.

    As ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``; no smoothing when it shrinks.
    """
    centre = np.maximum((np.arange(after) + 0.5) * (before / after) - 0.5, 0)
    low = np.minimum(centre.astype(np.intp), before - 1)
    high = np.minimum(low + 1, before - 1)
    weight = (centre - low).astype(np.float32)
    along = [1] * ndim
    along[axis] = after
    return low, high, weight.reshape(along)


def _channels_first(layout: Layout) -> tuple[Layout, Transform]:
    if len(layout.shape) != 3 or layout.channel != 2:
        raise EdgeLstmError(
            "moves channels from last to first", found=list(layout.shape), expected="[H, W, C]"
        )
    height, width, channels = layout.shape
    return Layout((channels, height, width), 0), lambda x: x.transpose(2, 0, 1)


def _samples(layout: Layout, length: int, hop: int, rate: int) -> tuple[Layout, Transform]:
    """The source cuts the frames so; here it is only checked that it did."""
    if min(length, hop, rate) < 1:
        raise EdgeLstmError("length, hop and rate", found=[length, hop, rate], expected="at least 1")
    if layout.shape != (length,):
        raise EdgeLstmError(
            "samples", found=list(layout.shape), expected=f"blocks of {count_of(length, 'sample')}"
        )
    return layout, lambda x: x


def _magnitude(layout: Layout) -> tuple[Layout, Transform]:
    if len(layout.shape) != 1:
        raise EdgeLstmError("works on samples", found=list(layout.shape), expected="[length]")
    bins = layout.shape[0] // 2 + 1
    return Layout((bins,), 0), lambda x: np.abs(np.fft.rfft(x.astype(np.float64))).astype(np.float32)


_REQUIRED = object()


@dataclass(frozen=True)
class Key:
    """A key of an operation: its JSON name, what it holds, and its value when left out."""

    name: str
    kind: str  # "integer", "number", "number or nan", "numbers"
    default: Any = _REQUIRED

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED

    def check(self, value: Any) -> Any:
        """``value`` itself when it is of this kind; EdgeLstmError otherwise."""
        if self.kind == "numbers":
            good = isinstance(value, (list, tuple)) and len(value) > 0 and all(map(_is_number, value))
        elif self.kind == "integer":
            good = isinstance(value, int) and not isinstance(value, bool)
        else:
            good = _is_number(value) or (self.kind == "number or nan" and value == "nan")
        if not good:
            article = "" if self.kind == "numbers" else "an " if self.kind == "integer" else "a "
            raise EdgeLstmError(f"{self.name}", found=repr(value), expected=f"{article}{self.kind}")
        return value


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= np.finfo(np.float32).max
    )


@dataclass(frozen=True)
class Operation:
    """One word of the vocabulary. ``build(layout, *values)`` takes the values in the order of ``keys``.

    does: what it does, in words. back: what ``Outputs`` undoes it by, in words; empty where it leaves units alone.
    """

    build: Callable[..., tuple[Layout, Any]]
    keys: tuple[Key, ...] = ()
    does: str = ""
    back: str = ""

    def values(self, op: Mapping[str, Any]) -> list[Any]:
        """The values of a JSON operation in order, checked; EdgeLstmError on a missing, unknown or wrong one."""
        known = {key.name for key in self.keys}
        unknown = sorted(str(k) for k in op if k != "op" and k not in known)
        if unknown:
            raise EdgeLstmError("unknown key", found=", ".join(unknown), expected=self.usage())
        missing = [key.name for key in self.keys if key.required and key.name not in op]
        if missing:
            raise EdgeLstmError(f"missing key {', '.join(missing)}", expected=self.usage())
        return [key.check(op[key.name]) if key.name in op else key.default for key in self.keys]

    def usage(self) -> str:
        """The keys in words, those that may be left out in brackets."""
        names = [key.name if key.required else f"[{key.name}]" for key in self.keys]
        return f"keys {', '.join(names)}" if names else "no keys"


OPERATIONS: Mapping[str, Operation] = {
    "nodata": Operation(
        _nodata,
        (Key("value", "number or nan"), Key("replace", "number", 0.0)),
        "every `value` becomes `replace`",
    ),
    "scale": Operation(
        _scale,
        (Key("factor", "number"), Key("offset", "number", 0.0)),
        "`x * factor + offset`",
        "`(x - offset) / factor`",
    ),
    "log1p": Operation(
        _log1p, (Key("scale", "number", 1.0),), "`scale * log(1 + x)`", "`exp(x / scale) - 1`"
    ),
    "clip": Operation(_clip, (Key("min", "number"), Key("max", "number")), "values limited to `min`..`max`"),
    "normalize": Operation(
        _normalize,
        (Key("mean", "numbers"), Key("std", "numbers")),
        "`(x - mean) / std`, one value for each channel or one for all",
        "`x * std + mean`, of one value for all",
    ),
    "grey": Operation(
        _grey, (), "RGB to luma (ITU-R BT.601), the channel axis goes; a grey frame stays as it is"
    ),
    "crop": Operation(
        _crop,
        (Key("top", "integer"), Key("left", "integer"), Key("height", "integer"), Key("width", "integer")),
        "a part of the image",
    ),
    "average": Operation(
        _average,
        (Key("factor", "integer"),),
        "means of `factor` x `factor` pixels; what is left over at bottom and right is cut off",
    ),
    "resize": Operation(
        _resize,
        (Key("height", "integer"), Key("width", "integer")),
        'bilinear, half-pixel centres, no smoothing; as PyTorch\'s `interpolate(mode="bilinear", align_corners=False)`',
    ),
    "samples": Operation(
        _samples,
        (Key("length", "integer"), Key("hop", "integer"), Key("rate", "integer")),
        "sound: a frame is the newest `length` samples, every `hop` samples, at `rate` Hz (what comes at another is resampled)",
    ),
    "magnitude": Operation(
        _magnitude,
        (),
        "sound: magnitudes of the frame's spectrum, `length // 2 + 1` values; no window function",
    ),
    "channels_first": Operation(_channels_first, (), "[H, W, C] becomes [C, H, W]"),
}


def table(operations: Mapping[str, Operation] = OPERATIONS) -> str:
    """A vocabulary as a Markdown table: what docs/preprocessing.md shows."""
    lines = ["| operation | parameters | what it does | undone by |", "| --- | --- | --- | --- |"]
    for name, operation in operations.items():
        keys = ", ".join(
            f"`{k.name}` ({k.kind}{'' if k.required else f'; {k.default:g} if left out'})"
            for k in operation.keys
        )
        lines.append(f"| `{name}` | {keys or 'none'} | {operation.does} | {operation.back} |")
    return "\n".join(lines)
