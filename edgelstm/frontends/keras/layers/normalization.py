"""Normalization with stored statistics, GroupNormalization, UnitNormalization, RMSNormalization, SpectralNormalization."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.builder import Array, Builder, NeedsWindow, Value
from edgelstm.frontends.keras.layers.layer import FrameLayer, Layer, Memory, Tensor
from edgelstm.frontends.keras.layers.weighted import Weighted
from edgelstm.frontends.keras.options import Options

#: keras.backend.epsilon(): what a deviation is at least.
_EPSILON = 1e-7


class Normalization(FrameLayer):
    """(x - mean) / sqrt(variance), or back again with ``invert``; the statistics are weights (``adapt``) or options."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        axis = options.get("axis", -1)
        self.axes = () if axis in (None, []) else options.axes("axis", -1)
        self.invert = options.flag("invert")
        told = [options.get(key) for key in ("mean", "variance")]
        self.given: list[Array] | None = None
        if any(v is not None for v in told):
            try:
                self.given = [np.array(v, np.float64) for v in told]
            except (TypeError, ValueError) as error:
                raise options.error("mean", "numbers, and as many variances") from error
            if not all(np.isfinite(v).all() and v.size <= 2**20 for v in self.given):
                raise options.error("mean", "finite numbers, and as many variances")
        options.finish()

    def variables(self) -> tuple[list[str], list[str]]:
        return [], [] if self.given is not None else ["mean", "variance", "count"]

    def receive(self, arrays: Sequence[Array]) -> None:
        if self.given is None and len(arrays) == 2:  # without the count, as some versions write
            arrays = [*arrays, np.zeros((), np.float32)]
        super().receive(arrays)

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        axes = sorted({value.axis(axis, self.what) for axis in self.axes})
        sizes = tuple(value.shape[axis - 1] for axis in axes)
        if self.given is None:
            mean, variance = (self.weight(name, sizes).astype(np.float64) for name in ("mean", "variance"))
        else:
            mean, variance = (self._spread(v, sizes) for v in self.given)
        deviation = self._deviation(variance)
        factor, shift = (deviation, mean) if self.invert else (1 / deviation, -mean / deviation)
        shape = [1, *(n if k in axes else 1 for k, n in enumerate(value.shape, 1))]
        constants = [
            g.constant(v.astype(np.float32).reshape(shape).transpose(value.perm), f"{place}/{name}")
            for v, name in ((factor, "factor"), (shift, "shift"), (mean, "mean"))
        ]
        # Statistics far from zero would cancel in x factor + shift: take the mean away first.
        if self.invert:
            scaled = g.op("Mul", [value.name, constants[0]], f"{place}/scaled")
            return replace(value, name=g.op("Add", [scaled, constants[1]], place))
        apart = g.op("Sub", [value.name, constants[2]], f"{place}/apart")
        return replace(value, name=g.op("Mul", [apart, constants[0]], place))

    def _spread(self, given: Array, sizes: tuple[int, ...]) -> Array:
        """One number, or numbers for the last of the axes that are kept, for all of them."""
        # Keras 2 keeps them as they came, axes of one place before and between included.
        flat = given.reshape([n for n in given.shape if n != 1])
        try:
            whole: Array = np.broadcast_to(flat, sizes).copy()
        except ValueError as error:
            raise self.options.error("mean", f"numbers for {list(sizes)}", found=list(given.shape)) from error
        return whole

    def _deviation(self, variance: Array) -> Array:
        if (variance < 0).any():
            raise EdgeLstmError(f"{self.what}: variance", found="negative", expected="at least 0")
        deviation: Array = np.maximum(np.sqrt(variance), _EPSILON)
        return deviation

    def apply(self, x: Array) -> Array:
        axes = sorted({axis % x.ndim for axis in self.axes})
        shape = [x.shape[k] if k in axes else 1 for k in range(x.ndim)]
        sizes = tuple(x.shape[k] for k in axes)
        if self.given is None:
            mean, variance = self.weights["mean"], self.weights["variance"]
        else:
            mean, variance = (self._spread(v, sizes) for v in self.given)
        mean, deviation = mean.reshape(shape), self._deviation(variance).reshape(shape)
        return mean + x * deviation if self.invert else (x - mean) / deviation


class GroupNormalization(FrameLayer):
    """Each group of channels normalised over all places and all frames (Wu & He 2018), then gamma and beta a channel."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        groups = options.get("groups", 32)
        self.groups = -1 if groups == -1 else options.whole("groups", 32)
        axes = options.axes("axis", -1)
        if len(axes) != 1:
            raise options.error("axis", "one axis")
        self.axis = axes[0]
        self.epsilon = options.number("epsilon", 1e-3)
        self.center, self.scale = options.flag("center", True), options.flag("scale", True)
        options.finish()

    def variables(self) -> tuple[list[str], list[str]]:
        return (["gamma"] if self.scale else []) + (["beta"] if self.center else []), []

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        axis = value.axis(self.axis, self.what)
        if value.time is not None:
            raise NeedsWindow(f"{self.what} normalises over all frames")
        size = value.shape[axis - 1]
        groups = self.count(size)
        # Channels first: a group then lies in one piece.
        perm = (0, axis, *(k for k in range(1, len(value.perm)) if k != axis))
        places = [value.shape[k - 1] for k in perm[2:]]
        x = g.reshape(g.layout(value, perm), [groups, size // groups * math.prod(places)], f"{place}/groups")
        where = g.integers([2])
        mean = g.op("ReduceMean", [x, where], f"{place}/mean", keepdims=1)
        apart = g.op("Sub", [x, mean], f"{place}/apart")
        square = g.op("Mul", [apart, apart], f"{place}/square")
        variance = g.op("ReduceMean", [square, where], f"{place}/variance", keepdims=1)
        raised = g.op("Add", [variance, g.number(self.epsilon)], f"{place}/raised")
        root = g.op("Sqrt", [raised], f"{place}/deviation")
        y = g.reshape(g.op("Div", [apart, root], f"{place}/normal"), [size, *places], f"{place}/channels")
        for name, op, on in (("gamma", "Mul", self.scale), ("beta", "Add", self.center)):
            if on:
                weight = self.weight(name, (size,)).reshape(size, *[1] * len(places))
                y = g.op(op, [y, g.constant(weight, f"{place}/{name}")], f"{place}/{name}d")
        return replace(value, name=y, perm=perm)

    def count(self, size: int) -> int:
        """How many groups ``size`` channels make."""
        groups = size if self.groups == -1 else self.groups
        if size % groups:
            raise self.options.error("groups", f"a divisor of {count_of(size, 'channel')}")
        return groups

    def apply(self, x: Array) -> Array:
        moved = np.moveaxis(x, self.axis, 1)
        size = moved.shape[1]
        z = moved.reshape(len(x), self.count(size), -1)
        z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + self.epsilon)
        y = np.moveaxis(z.reshape(moved.shape), 1, -1)
        y = y * self.weights.get("gamma", 1.0) + self.weights.get("beta", 0.0)
        return np.moveaxis(y, -1, self.axis)


class UnitNormalization(FrameLayer):
    """x / ||x|| along the given axes."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.axes = options.axes("axis", -1)
        options.finish()

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        axes = sorted({value.axis(axis, self.what) for axis in self.axes})
        where = g.integers([value.physical(axis) for axis in axes])
        total = g.op("ReduceSumSquare", [value.name, where], f"{place}/square", keepdims=1)
        root = g.op("Sqrt", [total], f"{place}/norm")
        # Keras's inverse is at most 1e12: zeros stay zeros.
        lowest = g.op("Max", [root, g.number(1e-12)], f"{place}/least")
        return replace(value, name=g.op("Div", [value.name, lowest], place))

    def apply(self, x: Array) -> Array:
        axes = tuple(axis % x.ndim for axis in self.axes)
        y: Array = x / np.maximum(np.sqrt(np.square(x).sum(axes, keepdims=True)), 1e-12)
        return y


class RMSNormalization(FrameLayer):
    """scale x / sqrt(mean(x^2) + epsilon) along the given axes (Zhang & Sennrich 2019)."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.axes = options.axes("axis", -1)
        self.epsilon = options.number("epsilon", 1e-6)
        options.finish()

    def variables(self) -> tuple[list[str], list[str]]:
        return ["scale"], []

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        axes = sorted({value.axis(axis, self.what) for axis in self.axes})
        sizes = tuple(value.shape[axis - 1] for axis in axes)
        shape = [1, *(n if k in axes else 1 for k, n in enumerate(value.shape, 1))]
        scale = self.weight("scale", sizes).reshape(shape).transpose(value.perm)
        square = g.op("Mul", [value.name, value.name], f"{place}/square")
        where = g.integers([value.physical(axis) for axis in axes])
        mean = g.op("ReduceMean", [square, where], f"{place}/mean", keepdims=1)
        raised = g.op("Add", [mean, g.number(self.epsilon)], f"{place}/raised")
        normal = g.op("Div", [value.name, g.op("Sqrt", [raised], f"{place}/root")], f"{place}/normal")
        return replace(value, name=g.op("Mul", [normal, g.constant(scale, f"{place}/scale")], place))

    def apply(self, x: Array) -> Array:
        axes = tuple(sorted(axis % x.ndim for axis in self.axes))
        shape = [x.shape[k] if k in axes else 1 for k in range(x.ndim)]
        y: Array = x / np.sqrt(np.square(x).mean(axes, keepdims=True) + self.epsilon)
        return y * self.weights["scale"].reshape(shape)


class SpectralNormalization(Layer):
    """A layer whose kernel training kept small (Miyato et al. 2018): at inference that layer, its kernel as stored."""

    def __init__(self, options: Options, make: Callable[[Options, str, Mapping[str, Any]], Layer]) -> None:
        super().__init__(options)
        inner = options.get("layer")
        if not isinstance(inner, dict):
            raise options.error("layer", "the configuration of a layer")
        self.layer = make(options, "layer", inner)
        self.keeps_time = self.layer.keeps_time
        options.finish("power_iterations")

    def children(self) -> list[tuple[str, Weighted]]:
        return [("layer", self.layer)]

    def variables(self) -> tuple[list[str], list[str]]:
        return [], ["vector_u"]

    def receive(self, arrays: Sequence[Array]) -> None:
        super().receive(arrays[-1:])  # .keras archives hold the kernel here too

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        return self.layer.emit(g, inputs, f"{place}/layer")

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        return self.layer.compute(inputs, f"{place}/layer", memory)
