"""Layers that look at a window of places: what convolutions and pooling share, time as one of the places included.

Over time the last frames are a state, a ring of ``span - 1`` frames. With ``causal`` padding it starts as the zeros that
Keras pads with. With ``valid`` the first result comes when the window is full, with ``same`` when the frames it looks
ahead have come; the zeros behind the last frame never come in a stream.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.arithmetic import same_padding
from edgelstm.frontends.keras.builder import (
    Array,
    Builder,
    NeedsWindow,
    Shape,
    Time,
    Value,
    channels_first,
)
from edgelstm.frontends.keras.layers.layer import FrameLayer, Memory, Tensor
from edgelstm.frontends.keras.options import Options

Pads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Field:
    """What comes in, ready for an operator: the tensor [N, C, *spatial], its sizes, and the time it has."""

    name: str
    channels: int
    spatial: Shape
    time: Time | None
    #: Zeros before and after each axis of ``spatial``.
    pads: Pads


class WindowLayer(FrameLayer):
    """A layer with kernel sizes, strides, padding and a data format over ``rank`` axes."""

    mask_rule = "drops"
    #: Whether places beyond the edge count as zeros (a convolution) or not at all (pooling).
    zeros_count = True

    def __init__(self, options: Options, rank: int) -> None:
        super().__init__(options)
        self.rank = rank
        self.sizes: Shape = ()
        self.strides: Shape = ()
        self.dilation: Shape = (1,) * rank
        self.padding = "valid"
        formats = ("channels_last", "channels_first")
        self.first = options.choice("data_format", formats, "channels_last") == "channels_first"

    @property
    def span(self) -> tuple[int, ...]:
        """How many places the window covers on each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.sizes, self.dilation, strict=True))

    def _pads(self, spatial: Sequence[int]) -> Pads:
        pads = []
        for k, n in enumerate(spatial):
            if self.padding == "same":
                pads.append(same_padding(n, self.sizes[k], self.strides[k], self.dilation[k]))
            elif self.padding == "causal":
                pads.append((self.span[k] - 1, 0))
            else:
                pads.append((0, 0))
        return tuple(pads)

    def open(self, g: Builder, value: Value, place: str) -> Field:
        """The value as the operator takes it; on a stream the last frames come before it as axis 2."""
        streamed = value.time is not None
        if len(value.shape) != self.rank + (0 if streamed else 1):
            raise EdgeLstmError(
                f"{self.what}: what comes in",
                found=f"{count_of(value.rank, 'axis', 'axes')}",
                expected=f"{self.rank + 2}: streams, {self.rank} places, channels",
            )
        if self.first:
            if streamed:
                raise NeedsWindow(f"{self.what} takes time as its channels (data_format channels_first)")
            return Field(
                g.plain(value), value.shape[0], value.shape[1:], None, self._checked(value.shape[1:])
            )
        name = g.layout(value, channels_first(value.shape))
        channels, spatial = value.shape[-1], value.shape[:-1]
        if value.time is None:
            return Field(name, channels, spatial, None, self._checked(spatial))
        inner = self._inner()._checked(spatial) if spatial else ()
        return self._over_time(g, value, name, channels, spatial, inner, place)

    def close(self, field: Field, name: str, channels: int, before: Value, g: Builder, place: str) -> Value:
        """The operator's result [N, channels, *places] as a value of the layer."""
        spatial = self.places(field)
        if field.time is not None:
            name = g.op("Squeeze", [name, g.integers([2])], f"{place}/now")
            shape = (*spatial[1:], channels)
            return replace(before, name=name, shape=shape, time=field.time, perm=channels_first(shape))
        if self.first:
            shape = (channels, *spatial)
            return replace(before, name=name, shape=shape, perm=tuple(range(len(shape) + 1)))
        shape = (*spatial, channels)
        return replace(before, name=name, shape=shape, perm=channels_first(shape))

    def places(self, field: Field) -> Shape:
        """Sizes of the result."""
        return tuple(
            (n + sum(pad) - span) // s + 1
            for n, pad, span, s in zip(field.spatial, field.pads, self.span, self.strides, strict=True)
        )

    def attributes(self, field: Field) -> dict[str, list[int]]:
        """What Conv and the pools of ONNX share. Over time the stride is the clock's business."""
        strides = list(self.strides)
        if field.time is not None:
            strides[0] = 1
        return {
            "kernel_shape": list(self.sizes),
            "strides": strides,
            "pads": [p[0] for p in field.pads] + [p[1] for p in field.pads],
        }

    def _checked(self, spatial: Shape) -> Pads:
        pads = self._pads(spatial)
        for n, pad, span in zip(spatial, pads, self.span, strict=True):
            if n + sum(pad) < span:
                raise EdgeLstmError(
                    f"{self.what}: the window is larger than what comes in",
                    found=f"{list(self.span)} places on {list(spatial)}",
                    expected="a smaller kernel, or a larger frame",
                )
        return pads

    def _inner(self) -> WindowLayer:
        """This layer without its first axis, time."""
        inner = object.__new__(type(self))
        inner.options, inner.padding = self.options, self.padding
        inner.sizes, inner.strides, inner.dilation = self.sizes[1:], self.strides[1:], self.dilation[1:]
        return inner

    def _lead(self, length: int | None) -> tuple[int, bool]:
        """Places before the first frame, and whether the window reaches behind the last of ``length`` frames."""
        span, stride = self.span[0], self.strides[0]
        if self.padding == "causal":
            return span - 1, False
        if self.padding != "same":
            return 0, False
        if stride == 1:
            before, after = (span - 1) // 2, span - 1 - (span - 1) // 2
        elif length is not None:
            before, after = same_padding(length, self.sizes[0], stride, self.dilation[0])
        elif span == stride:
            before, after = 0, 1  # all but the last window fit
        else:
            raise NeedsWindow(
                f"{self.what} pads a sequence of unknown length by what its length and stride say"
            )
        if before and not self.zeros_count:
            raise NeedsWindow(f"{self.what} begins before the first frame")
        return before, after > 0

    def _over_time(
        self, g: Builder, value: Value, name: str, channels: int, spatial: Shape, pads: Pads, place: str
    ) -> Field:
        time = value.time
        assert time is not None
        span, stride = self.span[0], self.strides[0]
        before, behind = self._lead(time.length)
        name = g.op("Unsqueeze", [name, g.integers([2])], f"{place}/frame")
        if span > 1:
            state = f"{place}.frames"
            held = g.state(state, (channels, span - 1, *spatial))
            name = g.op("Concat", [held, name], f"{place}/frames", axis=2)
            kept = g.op(
                "Slice",
                [name, g.integers([1]), g.integers([span]), g.integers([2])],
                f"{place}/kept",
            )
            g.carry(state, kept, g.gate(time, None, len(spatial) + 3))
        length = self._length(time.length)
        delay = time.delay + time.every * (span - 1 - before)
        made = Time(delay, time.every * stride, length, time.open_end or behind)
        return Field(name, channels, (span, *spatial), made, ((0, 0), *pads))

    def _length(self, length: int | None) -> int | None:
        """How many elements come of ``length`` frames."""
        if length is None:
            return None
        if self.padding == "valid":
            length = max(length - self.span[0] + 1, 0)
        return -(-length // self.strides[0])

    # -- the reference --------------------------------------------------------------------------------------------

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        x: Tensor = self.single(inputs)
        if not x.streamed:
            data = np.moveaxis(x.data, 1, -1) if self.first else x.data
            y = self.windows(data, self._pads(data.shape[1:-1]))
            return [replace(x, data=np.moveaxis(y, -1, 1) if self.first else y, mask=None)]
        # What the last windows did not use up waits; at first it is the zeros before the first frame.
        key, stride = f"{place}.waiting", self.strides[0]
        if key not in memory:
            before, _ = self._lead(x.length)
            memory[key] = np.zeros((len(x.data), before, *x.data.shape[2:]), x.data.dtype), 0
        waiting, skip = memory[key]
        line = np.concatenate([waiting, x.data], axis=1)
        skipped = min(skip, line.shape[1])
        line, skip = line[:, skipped:], skip - skipped
        count = max((line.shape[1] - self.span[0]) // stride + 1, 0)
        used = min(count * stride, line.shape[1])
        memory[key] = line[:, used:], skip + count * stride - used
        needed = line[:, : (count - 1) * stride + self.span[0]] if count else line[:, :0]
        pads = ((0, 0), *self._inner()._pads(line.shape[2:-1]))
        length = self._length(x.length)
        return [replace(x, data=self.windows(needed, pads), mask=None, length=length)]

    @abstractmethod
    def windows(self, x: Array, pads: Pads) -> Array:
        """The layer by NumPy on [N, *spatial, C]."""
