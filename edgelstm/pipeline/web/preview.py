"""The last frame and what the model made of it as small pictures, made when somebody asks and kept until the next frame."""

from __future__ import annotations

import math
import struct
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgelstm.graph.signature import Signature
from edgelstm.pipeline.service.pulse import Shown
from edgelstm.pipeline.sinks.panels import COLOURS, as_float
from edgelstm.pipeline.sources.source import Array

#: The longer side of a picture, in pixels; larger ones are thinned out.
LARGEST = 480
#: Values that are shown of what is no picture, and pixels that a picture has on either side at least.
MOST, FEWEST = 64, 4
#: Pictures that are kept.
KEPT = 64


def kind_of(signature: Signature, outputs: Mapping[str, Array]) -> str:
    """``pictures`` where an output is one, else ``numbers``."""
    return "pictures" if picture_of(signature, outputs) is not None else "numbers"


def picture_of(signature: Signature, outputs: Mapping[str, Array]) -> str | None:
    """Name of the first output that is a picture."""
    names = [t.name for t in signature.outputs if t.name in outputs] or list(outputs)
    return next((n for n in names if _planes(outputs[n]) is not None), None)


def pictured(signature: Signature, outputs: Mapping[str, Array]) -> str:
    """What the picture of the prediction shows, in words."""
    name = picture_of(signature, outputs)
    if name is None:
        return ", ".join(outputs)
    planes = _planes(outputs[name])
    leads = 1 if planes is None else len(planes)
    return name if leads == 1 else f"{name}, {leads} of {leads}"


def numbers(shown: Shown) -> dict[str, list[float | None]]:
    """The first values of the frame as it came (``@frame``), and of each output; None for NaN and infinity."""
    data = shown.frame.data
    arrays = {"@frame": next(iter(data.values())) if isinstance(data, Mapping) else data, **shown.outputs}
    return {n: [_finite(v) for v in np.asarray(a).ravel()[:MOST].tolist()] for n, a in arrays.items()}


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _planes(array: Array) -> Array | None:
    """[K, C, H, W] with one channel or three of what may be looked at, else None."""
    x = np.asarray(array)
    if x.dtype.kind not in "fiub" or not 2 <= x.ndim <= 5:
        return None
    if x.ndim >= 3 and x.shape[-1] in (1, 3) and min(x.shape[-3:-1]) >= FEWEST:
        x = np.moveaxis(x, -1, -3)
    x = x.reshape((1,) * (4 - x.ndim) + x.shape) if x.ndim < 4 else x.reshape(-1, *x.shape[-3:])
    if min(x.shape[2:]) < FEWEST:
        return None
    return x if x.shape[1] == 3 else x[:, :1]


class Pictures:
    """PNGs of each stream. Black and white of a picture without a known scale are the least and the largest value so far."""

    def __init__(self) -> None:
        #: With what tells one step from another, so that no frame is kept alive.
        self._made: dict[tuple[str, str], tuple[object, bytes]] = {}
        self._scales: dict[tuple[str, str], tuple[float, float]] = {}
        self._lock = threading.Lock()

    def frame(self, stream: str, shown: Shown) -> bytes | None:
        """The frame: in colour as it came, else as the model took it; None if it is no picture."""
        frame = shown.frame
        raw = next(iter(frame.data.values())) if isinstance(frame.data, Mapping) else frame.data
        if frame.values is not None or raw.dtype == np.uint8:
            return self._picture((stream, "@frame"), shown, raw, frame.values or (0, 255))
        taken = next(iter(shown.taken.values()))
        return self._picture((stream, "@frame"), shown, taken if _planes(taken) is not None else raw, None)

    def output(self, stream: str, name: str, shown: Shown) -> bytes | None:
        """An output, its farthest lead time; None if it is no picture. One like the frame has the frame's black and white."""
        array, taken = shown.outputs[name], _planes(next(iter(shown.taken.values())))
        planes = _planes(array)
        scale = None
        if taken is not None and planes is not None and taken.shape[1:] == planes.shape[1:]:
            with self._lock:
                scale = self._scale((stream, "@taken"), as_float(taken[-1], "float32"))
        return self._picture((stream, name), shown, array, scale)

    def _picture(
        self, key: tuple[str, str], shown: Shown, array: Array, values: tuple[float, float] | None
    ) -> bytes | None:
        whose = (id(shown), shown.frame.index, shown.frame.name)
        with self._lock:
            kept = self._made.get(key)
            if kept is not None and kept[0] == whose:
                return kept[1]
            planes = _planes(array)
            if planes is None:
                return None
            x = planes[-1]
            step = max(1, -(-max(x.shape[1:]) // LARGEST))
            x = as_float(x[:, ::step, ::step], "float32")
            low, high = values or self._scale(key, x)
            with np.errstate(invalid="ignore"):
                grey = np.nan_to_num(np.clip((x - low) * (255 / ((high - low) or 1.0)), 0, 255)).astype(
                    np.uint8
                )
            made = png(grey[0] if len(grey) == 1 else np.ascontiguousarray(np.moveaxis(grey, 0, -1)))
            while len(self._made) >= KEPT:
                self._made.pop(next(iter(self._made)))
            self._made[key] = (whose, made)
            return made

    def _scale(self, key: tuple[str, str], x: Array) -> tuple[float, float]:
        finite = x[np.isfinite(x)]
        least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        low, high = self._scales.get(key, (least, most))
        while len(self._scales) >= KEPT:
            self._scales.pop(next(iter(self._scales)))
        self._scales[key] = low, high = min(low, least), max(high, most)
        return low, high


def _ramp() -> bytes:
    stops = np.array(COLOURS["blue"], np.float64)
    places = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), places, stops[:, c]) for c in range(3)], 1)
    return np.rint(table).astype(np.uint8).tobytes()


RAMP = _ramp()


def png(pixels: Array) -> bytes:
    """An 8-bit PNG of uint8 [H, W], coloured from black over blue to white, or [H, W, 3] RGB (PNG specification, section 11)."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    lines = np.zeros((height, rows.shape[1] + 1), np.uint8)
    lines[:, 1:] = rows
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 3, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b"")]
    if pixels.ndim == 2:
        parts.insert(1, (b"PLTE", RAMP))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
