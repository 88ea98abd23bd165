"""Max and average pooling, over windows and over everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgelstm.frontends.keras import arithmetic
from edgelstm.frontends.keras.builder import Array, Builder, Value
from edgelstm.frontends.keras.layers.layer import FrameLayer
from edgelstm.frontends.keras.layers.windowed import Pads, WindowLayer
from edgelstm.frontends.keras.options import Options


class Pooling(WindowLayer):
    """MaxPooling1D/2D/3D and AveragePooling1D/2D/3D; places beyond the edge count in neither."""

    zeros_count = False

    def __init__(self, options: Options) -> None:
        super().__init__(options, int(options.kind[-2]))
        self.sizes = options.sizes("pool_size", self.rank, 2)
        strides = options.get("strides")
        self.strides = self.sizes if strides is None else options.sizes("strides", self.rank)
        self.padding = options.choice("padding", ("valid", "same"), "valid")
        self.is_max = options.kind.startswith("Max")
        options.finish()

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        field = self.open(g, value, place)
        name = g.op(
            "MaxPool" if self.is_max else "AveragePool", [field.name], place, **self.attributes(field)
        )
        return self.close(field, name, field.channels, value, g, place)

    def windows(self, x: Array, pads: Pads) -> Array:
        return arithmetic.pool(x, "max" if self.is_max else "average", self.sizes, self.strides, pads)


class GlobalPooling(FrameLayer):
    """GlobalMaxPooling and GlobalAveragePooling: all places become one."""

    keeps_time = False
    mask_rule = "refuses"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.rank = int(options.kind[-2])
        formats = ("channels_last", "channels_first")
        self.first = options.choice("data_format", formats, "channels_last") == "channels_first"
        self.keep = options.flag("keepdims")
        self.is_max = "Max" in options.kind
        options.finish()

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        if value.time is not None:
            value.axis(1, f"{self.what} pools over all frames: it")
        self.features(value, self.rank + 1)
        axes = [k + (2 if self.first else 1) for k in range(self.rank)]
        physical = sorted(value.physical(axis) for axis in axes)
        op = "ReduceMax" if self.is_max else "ReduceMean"
        kept = [n for k, n in enumerate(value.shape, 1) if k not in axes]
        shape = [1 if k in axes else n for k, n in enumerate(value.shape, 1)] if self.keep else kept
        name = g.op(op, [value.name, g.integers(physical)], place, keepdims=int(self.keep))
        perm = value.perm if self.keep else ()
        return replace(value, name=name, shape=tuple(shape), perm=perm)

    def apply(self, x: Array) -> Array:
        axes = tuple(k + (2 if self.first else 1) for k in range(self.rank))
        y: Array = (np.max if self.is_max else np.mean)(x, axis=axes, keepdims=self.keep)
        return y
