"""Layers that move numbers about: Flatten, Reshape, Permute, RepeatVector, padding, cropping, up-sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.builder import Array, Builder, NeedsWindow, Value
from edgelstm.frontends.keras.layers.layer import FrameLayer, Memory, Tensor
from edgelstm.frontends.keras.options import Options, is_whole


class Flatten(FrameLayer):
    """All axes become one."""

    keeps_time = False
    mask_rule = "drops"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        formats = ("channels_last", "channels_first")
        self.first = options.choice("data_format", formats, "channels_last") == "channels_first"
        options.finish()

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        if value.time is not None:
            value.axis(1, f"{self.what} lays all frames end to end: it")
        perm = list(range(len(value.shape) + 1))
        if self.first and len(perm) > 2:
            perm = [0, *perm[2:], 1]
        size = math.prod(value.shape)
        name = g.reshape(g.layout(value, perm), [size], place)
        return replace(value, name=name, shape=(size,), perm=(0, 1))

    def apply(self, x: Array) -> Array:
        moved = np.moveaxis(x, 1, -1) if self.first and x.ndim > 2 else x
        return moved.reshape(len(x), math.prod(x.shape[1:]))


class Reshape(FrameLayer):
    """Other axes for the same numbers; -1 stands for what is left."""

    keeps_time = False
    mask_rule = "drops"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        target = options.get("target_shape")
        good = isinstance(target, list | tuple) and len(target) <= 8
        if not good or not all(is_whole(n) or n == -1 for n in target) or list(target).count(-1) > 1:
            raise options.error("target_shape", "up to 8 sizes, one of them -1 at most")
        self.target = tuple(int(n) for n in target)
        options.finish()

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        target = self.target
        if value.time is not None:
            # Only a Reshape that leaves time as it is works frame by frame.
            if not target or target[0] == -1 or target[0] != value.time.length:
                raise NeedsWindow(f"{self.what} mixes frames")
            target = target[1:]
        shape = self.filled(target, math.prod(value.shape))
        name = g.reshape(g.plain(value), shape, place)
        return replace(value, name=name, shape=shape, perm=tuple(range(len(shape) + 1)))

    def filled(self, target: tuple[int, ...], size: int) -> tuple[int, ...]:
        """The target with its -1 replaced."""
        known = math.prod(n for n in target if n != -1)
        shape = tuple(size // max(known, 1) if n == -1 else n for n in target)
        if math.prod(shape) != size:
            raise self.options.error(
                "target_shape",
                f"{count_of(size, 'number')}",
                found=f"{list(self.target)} from {count_of(size, 'number')}",
            )
        return shape

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        x: Tensor = self.single(inputs)
        lead = 2 if x.streamed else 1
        rest = x.data.shape[lead:]
        shape = self.filled(self.target[lead - 1 :], math.prod(rest))
        data = x.data.reshape(*x.data.shape[:lead], *shape)
        return [replace(x, data=data, mask=None, sequence=False)]


class Permute(FrameLayer):
    """Axes in another order."""

    keeps_time = False
    mask_rule = "drops"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        dims = options.get("dims")
        if not isinstance(dims, list | tuple) or sorted(map(str, dims)) != [
            str(k + 1) for k in range(len(dims))
        ]:
            raise options.error("dims", "each axis from 1 on once")
        self.dims = tuple(int(d) for d in dims)
        options.finish()

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        dims = self.dims
        if len(dims) != value.rank - 1:
            raise self.options.error("dims", f"{count_of(value.rank - 1, 'axis', 'axes')}")
        if value.time is not None:
            if dims[0] != 1:
                raise NeedsWindow(f"{self.what} moves time")
            dims = tuple(d - 1 for d in dims[1:])
        name = g.op("Transpose", [g.plain(value)], place, perm=[0, *dims])
        shape = tuple(value.shape[d - 1] for d in dims)
        return replace(value, name=name, shape=shape, perm=tuple(range(len(shape) + 1)))

    def apply(self, x: Array) -> Array:
        turned: Array = x.transpose(0, *self.dims)
        return turned


class RepeatVector(FrameLayer):
    """[N, F] -> [N, n, F]: the start of a decoder."""

    keeps_time = False
    mask_rule = "drops"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.count = options.whole("n")
        options.finish()

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        if value.time is not None or len(value.shape) != 1:
            raise EdgeLstmError(
                f"{self.what}: what comes in",
                found=f"{count_of(value.rank, 'axis', 'axes')}",
                expected="2: streams, features",
            )
        shape = (self.count, *value.shape)
        replace(value, shape=shape)  # its size is checked before it is made
        wide = g.op("Unsqueeze", [value.name, g.integers([1])], f"{place}/one")
        name = g.op("Tile", [wide, g.integers([1, self.count, 1])], place)
        return replace(value, name=name, shape=shape, perm=(0, 1, 2))

    def apply(self, x: Array) -> Array:
        return np.repeat(x[:, None], self.count, axis=1)


class _Spatial(FrameLayer):
    """A layer that treats ``rank`` axes alike, in either data format."""

    mask_rule = "drops"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.rank = int(options.kind[-2])
        formats = ("channels_last", "channels_first")
        self.first = options.choice("data_format", formats, "channels_last") == "channels_first"

    def axes(self, value: Value) -> list[int]:
        """The axes in Keras's order, time left out where it is not touched."""
        self.features(value, self.rank + (0 if value.time else 1))
        lead = 2 if self.first else 1
        return [lead + k for k in range(self.rank)]

    def along(self, value: Value, amounts: list[tuple[int, ...]], nothing: tuple[int, ...]) -> dict[int, int]:
        """Axis here (Keras's order) -> index of the amount; NeedsWindow where time itself would change."""
        found = {}
        for k, axis in enumerate(self.axes(value)):
            if amounts[k] == nothing:
                continue
            found[value.axis(axis, self.what)] = k
        return found

    def numpy_axes(self, x: Array) -> list[int]:
        """The axes of Keras's tensor."""
        return [k + (2 if self.first else 1) for k in range(self.rank)]


class ZeroPadding(_Spatial):
    """Zeros around; Cropping takes away instead."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.crops = options.kind.startswith("Cropping")
        key = "cropping" if self.crops else "padding"
        self.amounts = list(options.pairs(key, self.rank, 1))
        options.finish()

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        found = self.along(value, list(self.amounts), (0, 0))
        if not found:
            return value
        shape = list(value.shape)
        physical = sorted(found, key=value.physical)
        pairs = [self.amounts[found[axis]] for axis in physical]
        for axis, (before, after) in zip(physical, pairs, strict=True):
            shape[axis - 1] += -(before + after) if self.crops else before + after
        if min(shape) < 1:
            raise EdgeLstmError(f"{self.what}: nothing is left", found=shape, expected="at least one place")
        made = replace(value, shape=tuple(shape))
        axes = g.integers([value.physical(axis) for axis in physical])
        if self.crops:
            ends = [value.shape[axis - 1] - after for axis, (_, after) in zip(physical, pairs, strict=True)]
            inputs = [value.name, g.integers([b for b, _ in pairs]), g.integers(ends), axes]
            return replace(made, name=g.op("Slice", inputs, place))
        # Pads of all axes: those of a selection came with opset 18, and not all runtimes take them.
        pads = np.zeros((2, len(value.perm)), np.int64)
        for axis, pair in zip(physical, pairs, strict=True):
            pads[:, value.physical(axis)] = pair
        return replace(made, name=g.op("Pad", [value.name, g.integers(pads.ravel().tolist(), "pads")], place))

    def apply(self, x: Array) -> Array:
        amounts = dict(zip(self.numpy_axes(x), self.amounts, strict=True))
        if self.crops:
            return x[
                tuple(
                    slice(amounts.get(k, (0, 0))[0], x.shape[k] - amounts.get(k, (0, 0))[1])
                    for k in range(x.ndim)
                )
            ]
        return np.pad(x, [amounts.get(k, (0, 0)) for k in range(x.ndim)])


class UpSampling(_Spatial):
    """Each place several times over; UpSampling2D also ``bilinear`` (half-pixel centres)."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.factors = options.sizes("size", self.rank, 2)
        allowed = ("nearest", "bilinear") if self.rank == 2 else ("nearest",)
        self.bilinear = options.choice("interpolation", allowed, "nearest") == "bilinear"
        options.finish()

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        found = self.along(value, [(f,) for f in self.factors], (1,))
        if not found:
            return value
        shape = list(value.shape)
        scales = np.ones(len(value.perm), np.float32)
        for axis, k in found.items():
            shape[axis - 1] *= self.factors[k]
            scales[value.physical(axis)] = self.factors[k]
        made = replace(value, shape=tuple(shape))
        name = g.op(
            "Resize",
            [value.name, "", g.constant(scales, f"{place}/scales")],
            place,
            mode="linear" if self.bilinear else "nearest",
            coordinate_transformation_mode="half_pixel" if self.bilinear else "asymmetric",
            **({} if self.bilinear else {"nearest_mode": "floor"}),
        )
        return replace(made, name=name)

    def apply(self, x: Array) -> Array:
        for axis, factor in zip(self.numpy_axes(x), self.factors, strict=True):
            if not self.bilinear:
                x = np.repeat(x, factor, axis)
                continue
            size = x.shape[axis]
            at = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
            low = np.floor(at).astype(int)
            high = np.minimum(low + 1, size - 1)
            part = (at - low).reshape([-1 if k == axis else 1 for k in range(x.ndim)])
            x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
        return x
