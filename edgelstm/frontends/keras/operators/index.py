"""Slices of tensors: x[..., :2], x[:, -1], x[:, :, None]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.builder import Array, Builder, NeedsWindow, Value, mixes_rows
from edgelstm.frontends.keras.calls import Dots
from edgelstm.frontends.keras.layers.layer import Memory, Tensor
from edgelstm.frontends.keras.operators.operator import OneOperator, without
from edgelstm.frontends.keras.options import Options

_ALL = slice(None)


class GetItem(OneOperator):
    """Places of each axis: a number, a slice, a list of numbers, None for a new axis."""

    parameters = ("x", "key")

    def read(self, options: Options) -> None:
        key = options.get("key")
        # A list in a configuration may be a tuple, or the list of an index by numbers: Keras writes tuples so.
        self.key: list[Any] = list(key) if isinstance(key, list) else [key]
        for item in self.key:
            whole = isinstance(item, int) and not isinstance(item, bool)
            numbers = isinstance(item, list) and all(isinstance(k, int) for k in item)
            if not (whole or numbers or item is None or isinstance(item, slice | Dots)):
                raise options.error("key", "numbers, slices, None and ...")
        if sum(isinstance(item, list) for item in self.key) > 1 or len(self.key) > 16:
            raise options.error("key", "one list of numbers at most")
        self.adds_axis = None in self.key
        front = self.key[: next((k for k, i in enumerate(self.key) if isinstance(i, Dots)), len(self.key))]
        self.keeps_time = len(front) < 2 or front[1] == _ALL
        self.takes_last = len(front) > 1 and front[1] == -1

    def full(self, rank: int) -> list[Any]:
        """The key with an item for every axis of a tensor of ``rank`` axes."""
        taken = sum(item is not None and not isinstance(item, Dots) for item in self.key)
        if taken > rank or sum(isinstance(item, Dots) for item in self.key) > 1:
            raise self.options.error("key", f"at most {count_of(rank, 'axis', 'axes')}")
        key: list[Any] = []
        for item in self.key:
            key += [_ALL] * (rank - taken) if isinstance(item, Dots) else [item]
        if not any(isinstance(item, Dots) for item in self.key):
            key += [_ALL] * (rank - taken)
        if key[0] != _ALL:
            raise mixes_rows(self.what, f"an index of the batch: {_shown(key[0])}")
        return key

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        (value,) = self.unmasked(inputs)
        key = self.full(value.rank)
        if value.time is None:
            made = self._cut(g, value, key, place)
            return [replace(made, sequence=value.sequence and self.keeps_time)]
        time = value.time
        if key[1] == _ALL:
            return [self._cut(g, value, [_ALL, *key[2:]], place)]
        if key[1] != -1:
            raise NeedsWindow(f"{self.what} takes a part of the sequence")
        if time.open_end or time.every != 1:
            raise NeedsWindow(
                f"{self.what} takes the last element, and a layer below looks at several frames"
            )
        last = replace(value, time=None, ready=time.delay)
        return [self._cut(g, last, [_ALL, *key[2:]], place)]

    def _cut(self, g: Builder, value: Value, key: Sequence[Any], place: str) -> Value:
        """By an item for every axis of the tensor itself."""
        axis = 0
        gone: list[int] = []
        fresh: list[int] = []
        shape = list(value.shape)
        name = value.name
        for item in key:
            if item is None:
                fresh.append(axis - len(gone) + len(fresh))
                continue
            if axis and item != _ALL:
                size = shape[axis - 1]
                places = self.places(item, size)
                where = value.physical(axis)
                step = places[1] - places[0] if len(places) > 1 else 1
                if step > 0 and not isinstance(item, list):
                    bounds = [g.integers([n]) for n in (places[0], places[-1] + 1)]
                    name = g.op("Slice", [name, *bounds, g.integers([where]), g.integers([step])], place)
                else:
                    name = g.op("Gather", [name, g.integers(places, "places")], place, axis=where)
                shape[axis - 1] = len(places)
                if isinstance(item, int):
                    gone.append(axis)
            axis += 1
        made = replace(value, name=name, shape=tuple(shape))
        if gone:
            where_all = g.integers([value.physical(axis) for axis in gone])
            made = without(made, g.op("Squeeze", [name, where_all], f"{place}/taken"), gone)
        if fresh:
            plain = g.plain(made)
            sizes = list(made.shape)
            for at in fresh:
                sizes.insert(at - 1, 1)
            name = g.op("Unsqueeze", [plain, g.integers(fresh)], f"{place}/wide")
            made = replace(made, name=name, shape=tuple(sizes), perm=tuple(range(len(sizes) + 1)))
        return made

    def places(self, item: Any, size: int) -> list[int]:
        """Which places of an axis of ``size`` an item takes."""
        if isinstance(item, slice):
            found = list(range(size))[item]
        else:
            numbers = item if isinstance(item, list) else [item]
            if not all(-size <= k < size for k in numbers):
                raise EdgeLstmError(f"{self.what}: index", found=_shown(item), expected=f"below {size}")
            found = [k % size for k in numbers]
        if not found:
            raise EdgeLstmError(
                f"{self.what}: nothing is left", found=_shown(item), expected="at least one place"
            )
        return found

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        (x,) = inputs
        key = self.full(x.data.ndim)
        if x.streamed and key[1] == -1:
            came = x.data.shape[1] > 0
            data = x.data if came else np.zeros((len(x.data), 1, *x.data.shape[2:]), x.data.dtype)
            return [Tensor(self._indexed(data, key), begun=came)]
        sequence = x.sequence and self.keeps_time
        return [replace(x, data=self._indexed(x.data, key), mask=None, sequence=sequence)]

    def _indexed(self, x: Array, key: Sequence[Any]) -> Array:
        y: Array = x[tuple(key)]
        return y


def _shown(item: Any) -> str:
    if not isinstance(item, slice):
        return str(item)
    parts = ["" if n is None else str(n) for n in (item.start, item.stop, item.step)]
    return ":".join(parts if parts[2] else parts[:2])
