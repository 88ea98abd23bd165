"""Frames that a calibration does not see, so that what is made of it can be judged by them.

The end of some sequences is held back. Where they came from sources the calibration file says where they are; where they
came from arrays it holds them, if they are small enough, else it says that it can't.
"""

from __future__ import annotations

import base64
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.signature import Signature
from edgelstm.graph.step import StepModel
from edgelstm.quantize.recipe import Span
from edgelstm.runtime.protocol import Array, Frame
from edgelstm.workflows.sequences import SpanFrames

#: Of a sequence this part is held back, at most so many frames; shorter sequences than ``SHORTEST`` are seen whole.
PART, MOST, SHORTEST = 8, 64, 64
#: Sequences whose end is held back.
SEQUENCES = 3
#: Frames before those held back that the state runs over first: it has to leave its initial value.
RUN_IN = 192
#: Bytes that frames waiting to be held back may take, and those of arrays in a calibration file.
WAITING, KEPT = 64 << 20, 4 << 20


@dataclass
class HeldBack:
    """The frames of one sequence but those at its end; read them all, then see :meth:`entry`.

    ``span``: where they come from; None for arrays. ``each``: frames in an item, T of a window. ``hop``: from item to item; where
    windows overlap, those that share frames with what is held back are left out too.
    """

    frames: Iterable[Frame]
    span: Span | None
    each: int = 1
    hop: int = 1
    _count: int = 0
    _held: int = 0
    _last: deque[Frame] = field(default_factory=deque)
    _too_large: bool = False

    def __iter__(self) -> Iterator[Frame]:
        waiting: deque[Frame] = deque()
        most = max(1, (MOST - self.each) // self.hop + 1)
        shared = -(-self.each // self.hop) - 1
        self._count, self._last = 0, deque()
        for frame in self.frames:
            copy = {name: np.array(value) for name, value in frame.items()}
            size = max(1, sum(value.nbytes for value in copy.values()))
            self._count += 1
            waiting.append(copy)
            if self.span is None:
                self._last.append(copy)
                self._too_large = KEPT // size < min(self._count, 2 * most)
                while len(self._last) > min((MOST + RUN_IN) // self.each or 1, KEPT // size):
                    self._last.popleft()
            while len(waiting) > min(most + shared, WAITING // size):
                yield waiting.popleft()
        whole = self._covered(self._count) < SHORTEST
        able = max(0, len(waiting) - shared)
        self._held = 0 if whole else min(able, self._count // PART)
        seen = len(waiting) - (self._held + shared if self._held else 0)
        for _ in range(seen):
            yield waiting.popleft()

    def _covered(self, items: int) -> int:
        """Frames of the source in so many items, one after the other."""
        return (items - 1) * self.hop + self.each if items else 0

    def entry(self) -> dict[str, Any]:
        """What the calibration file says of it. frames: those to run over, of which the last ``held_back`` were not seen."""
        items = min(self._count, RUN_IN // self.hop + max(self._held, 1))
        run = self._covered(items)
        data: dict[str, Any] = {"frames": run, "held_back": self._covered(self._held)}
        if self.span is not None:
            start = self.span.start + (self._count - items) * self.hop
            data |= {"source": self.span.source, "start": start} | ({"skip": True} if self.span.skip else {})
            if self.span.hop is None:
                return data
            return data | {"hop": self.span.hop, "each": self.each, "every": self.hop}
        if self._too_large:
            return data | {"why_not": "the frames came from arrays, and are too large to keep"}
        frames = list(self._last)[-max(1, run // self.each) :]
        data |= {"frames": len(frames) * self.each, "held_back": min(self._held, len(frames)) * self.each}
        arrays = {}
        for name in frames[0]:
            raw = np.stack([f[name] for f in frames]).tobytes()
            arrays[name] = base64.b64encode(zlib.compress(raw, 6)).decode("ascii")
        return data | {"arrays": arrays}


def frames_of(step: StepModel, entry: Mapping[str, Any], ops: Any) -> Iterable[Frame]:
    """The frames that an entry tells of, as the model takes them. Raises EdgeLstmError where they can't be had."""
    count, window = int(entry["frames"]), step.signature.window or 1
    if "source" in entry:
        hop = None if entry.get("hop") is None else int(entry["hop"])
        skip = bool(entry.get("skip", False))
        return SpanFrames(
            step, Span(str(entry["source"]), int(entry["start"]), count, hop=hop, skip=skip), ops
        )
    if "arrays" in entry:
        return _arrays(step.signature, entry["arrays"], count // window)
    raise EdgeLstmError("frames held back", found=str(entry.get("why_not", "nothing is said of them")))


def _arrays(signature: Signature, arrays: Mapping[str, str], count: int) -> list[Frame]:
    found: dict[str, Array] = {}
    for spec in signature.inputs:
        dtype, shape = np_dtype(spec.dtype), (count, *spec.frame_shape)
        size = int(np.prod(shape)) * dtype.itemsize
        try:
            opened = zlib.decompressobj()
            raw = opened.decompress(base64.b64decode(arrays[spec.name], validate=True), size + 1)
        except (KeyError, ValueError, TypeError, zlib.error) as error:
            raise EdgeLstmError(
                "frames in the calibration", found=str(error), hint="Calibrate again"
            ) from error
        if len(raw) != size or size > 2 * KEPT:
            raise EdgeLstmError(
                f"frames of {spec.name!r} in the calibration",
                found=f"{count_of(len(raw), 'byte')}",
                expected=f"{size}",
                hint="Calibrate again",
            )
        found[spec.name] = np.frombuffer(raw, dtype).reshape(shape)
    return [{name: value[k] for name, value in found.items()} for k in range(count)]
