"""Operators that move numbers about: reshape, transpose, expand_dims, concatenate, split, tile, flip, take, roll."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.builder import Array, Builder, NeedsWindow, Value, mixes_rows
from edgelstm.frontends.keras.calls import Slot
from edgelstm.frontends.keras.layers.elementwise import Merge
from edgelstm.frontends.keras.layers.layer import Memory, Tensor
from edgelstm.frontends.keras.operators.operator import OneOperator, Operator, without
from edgelstm.frontends.keras.options import Options, is_whole


def _plain(value: Value, name: str, shape: Sequence[int]) -> Value:
    return replace(value, name=name, shape=tuple(shape), perm=tuple(range(len(shape) + 1)))


def _whole(options: Options, key: str, default: Any = None) -> int:
    value = options.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 2**24:
        raise options.error(key, "a whole number")
    return value


class Reshape(OneOperator):
    """Other axes for the same numbers of each row."""

    parameters = ("x", "newshape")
    keeps_time = False

    def read(self, options: Options) -> None:
        target = options.get("newshape")
        if isinstance(target, int):
            target = [target]
        if not isinstance(target, list | tuple) or not 1 <= len(target) <= 8:
            raise options.error("newshape", "up to 8 sizes")
        first, *rest = target
        # None stands for a size that is only known when the model runs: that of the batch.
        if first is not None and first != -1:
            raise mixes_rows(self.what, f"newshape {list(target)}: a fixed batch")
        if not all(is_whole(n) or n in (-1, None) for n in rest) or sum(n in (-1, None) for n in rest) > 1:
            raise options.error("newshape", "sizes, one of them -1 at most")
        self.batch_is_left = first == -1
        if self.batch_is_left and any(n in (-1, None) for n in rest):
            raise options.error("newshape", "one size that is left over")
        self.target = tuple(-1 if n in (-1, None) else int(n) for n in rest)

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        target = self.target
        if value.time is not None:
            if not target or target[0] == -1 or target[0] != value.time.length:
                raise NeedsWindow(f"{self.what} mixes frames")
            target = target[1:]
        shape = self._filled(target, math.prod(value.shape), value.shape)
        return [_plain(value, g.reshape(g.plain(value), shape, place), shape)]

    def _filled(self, target: tuple[int, ...], size: int, found: Sequence[int]) -> tuple[int, ...]:
        known = math.prod(n for n in target if n != -1)
        shape = tuple(size // max(known, 1) if n == -1 else n for n in target)
        if math.prod(shape) != size:
            if self.batch_is_left:
                raise mixes_rows(self.what, f"rows of {list(found)} as rows of {list(target)}")
            raise self.options.error("newshape", f"{count_of(size, 'number')} a row")
        return shape

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        (x,) = inputs
        lead = 2 if x.streamed else 1
        rest = x.data.shape[lead:]
        shape = self._filled(self.target[lead - 1 :], math.prod(rest), rest)
        return [replace(x, data=x.data.reshape(*x.data.shape[:lead], *shape), mask=None, sequence=False)]


class Permutation(OneOperator):
    """transpose, swapaxes, moveaxis."""

    parameters = ("x", "axes")
    keeps_time = False

    def read(self, options: Options) -> None:
        self.how: tuple[Any, ...] = ()
        if options.kind == "Transpose":
            axes = options.get("axes")
            if axes is None:
                raise mixes_rows(self.what, "all axes turned round")
            self.how = options.axes("axes")
        elif options.kind == "Swapaxes":
            self.how = (_whole(options, "axis1"), _whole(options, "axis2"))
        else:
            self.how = (options.axes("source"), options.axes("destination"))

    def order(self, rank: int) -> list[int]:
        """The axes of Keras's tensor in their new order."""
        if self.options.kind == "Transpose":
            order = [axis % rank for axis in self.how]
        elif self.options.kind == "Swapaxes":
            order = list(range(rank))
            a, b = (axis % rank for axis in self.how)
            order[a], order[b] = b, a
        else:
            old, new = ([axis % rank for axis in part] for part in self.how)
            order = [k for k in range(rank) if k not in old]
            for to, axis in sorted(zip(new, old, strict=True)):
                order.insert(to, axis)
        if sorted(order) != list(range(rank)):
            raise EdgeLstmError(
                f"{self.what}: axes", found=order, expected=f"each of {count_of(rank, 'axis', 'axes')} once"
            )
        if order[0] != 0:
            raise mixes_rows(self.what, f"axes {order}")
        return order

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        order = self.order(value.rank)
        if value.time is not None:
            if order[1] != 1:
                raise NeedsWindow(f"{self.what} moves time")
            order = [0, *(axis - 1 for axis in order[2:])]
        name = g.op("Transpose", [g.plain(value)], place, perm=order)
        return [_plain(value, name, [value.shape[axis - 1] for axis in order[1:]])]

    def apply(self, x: Array) -> list[Array]:
        return [x.transpose(self.order(x.ndim))]


class ExpandDims(OneOperator):
    """A new axis of one place."""

    parameters = ("x", "axis")
    adds_axis = True

    def read(self, options: Options) -> None:
        self.axes = options.axes("axis")
        if len(self.axes) != 1:
            raise options.error("axis", "one axis")
        self.keeps_time = self.axes[0] != 1

    def place_of(self, rank: int) -> int:
        """The new axis in Keras's tensor of ``rank`` axes."""
        axis = self.axes[0]
        found = axis + rank + 1 if axis < 0 else axis
        if found == 0:
            raise mixes_rows(self.what, "a new axis before the batch")
        if not 0 < found <= rank:
            raise EdgeLstmError(f"{self.what}: axis", found=axis, expected=f"an axis of {rank + 1}")
        return found

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        axis = self.place_of(value.rank)
        if value.time is not None:
            if axis == 1:
                raise NeedsWindow(f"{self.what} puts an axis before time")
            axis -= 1
        name = g.op("Unsqueeze", [g.plain(value), g.integers([axis])], place)
        return [_plain(value, name, (*value.shape[: axis - 1], 1, *value.shape[axis - 1 :]))]

    def apply(self, x: Array) -> list[Array]:
        return [np.expand_dims(x, self.place_of(x.ndim))]


class Squeeze(OneOperator):
    """Axes of one place go."""

    parameters = ("x", "axis")

    def read(self, options: Options) -> None:
        if options.get("axis") is None:
            raise options.error("axis", "an axis: without it the batch may go too")
        self.axes = options.axes("axis")
        self.keeps_time = 1 not in self.axes

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        axes = sorted({value.axis(axis, self.what) for axis in self.axes})
        if any(value.shape[axis - 1] != 1 for axis in axes):
            raise EdgeLstmError(f"{self.what}: axes", found=list(value.shape), expected="axes of one place")
        where = g.integers([value.physical(axis) for axis in axes])
        return [without(value, g.op("Squeeze", [value.name, where], place), axes)]

    def apply(self, x: Array) -> list[Array]:
        return [np.squeeze(x, tuple(axis % x.ndim for axis in self.axes))]


class AlongAxis(OneOperator):
    """flip, repeat, roll, take, tile, cumsum: each place of an axis becomes another, several, or none."""

    parameters = ("x", "axis")

    def read(self, options: Options) -> None:
        self.amounts: list[int] = []
        if options.kind == "Tile":
            self.amounts = list(options.sizes("repeats", len(options.get("repeats") or [])))
            self.axes: tuple[int, ...] = ()
            return
        if options.get("axis") is None:
            raise mixes_rows(self.what, "axis None: all axes")
        self.axes = options.axes("axis")
        if options.kind == "Repeat":
            self.amounts = [options.whole("repeats")] * len(self.axes)
        elif options.kind == "Roll":
            self.amounts = [_whole(options, "shift")] * len(self.axes)
        elif options.kind == "Take":
            found = self.operand("indices")
            if isinstance(found, Slot) or found.dtype.kind not in "iu" or found.ndim > 1:
                raise options.error("indices", "whole numbers")
            self.amounts = [int(k) for k in found.ravel()]
            self.scalar = found.ndim == 0
        if options.kind in ("Repeat", "Take") and len(self.axes) != 1:
            raise options.error("axis", "one axis")
        if options.kind == "Take":
            self.keeps_time = self.axes[0] != 1

    def chosen(self, axis: int, size: int) -> list[int]:
        """Which places of an axis of ``size`` come, in order."""
        kind, places = self.options.kind, range(size)
        if kind == "Flip":
            return list(places)[::-1]
        if kind == "Repeat":
            return [k for k in places for _ in range(self.amounts[0])]
        if kind == "Roll":
            return [(k - self.amounts[0]) % max(size, 1) for k in places]
        if kind == "Tile":
            return list(places) * self.amounts[axis]
        if not all(-size <= k < size for k in self.amounts):
            raise self.options.error("indices", f"numbers below {size}")
        return [k % size for k in self.amounts]

    def touched(self, rank: int) -> list[int]:
        """The axes of Keras's tensor that change."""
        if self.options.kind != "Tile":
            return list(self.axes)
        if len(self.amounts) > rank:
            raise self.options.error("repeats", f"at most {count_of(rank, 'number')}")
        self.amounts = [1] * (rank - len(self.amounts)) + self.amounts
        return [k for k, n in enumerate(self.amounts) if n != 1]

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        shape, name = list(value.shape), value.name
        lead = value.rank - len(value.shape)
        for axis in self.touched(value.rank):
            here = value.axis(axis, self.what)
            chosen = self.chosen(here + lead - 1, shape[here - 1])
            name = g.op("Gather", [name, g.integers(chosen, "places")], place, axis=value.physical(here))
            shape[here - 1] = len(chosen)
            replace(value, shape=tuple(shape))  # its size is checked before the next
        made = replace(value, name=name, shape=tuple(shape))
        if self.options.kind == "Take" and self.scalar:
            here = value.axis(self.axes[0], self.what)
            where = g.integers([value.physical(here)])
            return [without(made, g.op("Squeeze", [name, where], f"{place}/one"), [here])]
        return [made]

    def apply(self, x: Array) -> list[Array]:
        for axis in self.touched(x.ndim):
            x = x.take(self.chosen(axis % x.ndim, x.shape[axis]), axis)
        if self.options.kind == "Take" and self.scalar:
            x = x.squeeze(self.axes[0])
        return [x]


class Split(OneOperator):
    """Parts of an axis, each an output."""

    parameters = ("x", "indices_or_sections", "axis")

    def read(self, options: Options) -> None:
        self.axis = options.axes("axis", 0)[0]
        self.sections = options.get("indices_or_sections")
        given = self.sections if isinstance(self.sections, list) else [self.sections]
        if not given or len(given) > 1000 or not all(is_whole(n) for n in given):
            raise options.error("indices_or_sections", "whole numbers")
        self.keeps_time = self.axis != 1

    def bounds(self, size: int) -> list[int]:
        """Where the parts end."""
        if isinstance(self.sections, list):
            ends = [*self.sections, size]
            if self.options.source.keras < 3:  # sizes
                ends = [int(n) for n in np.cumsum(self.sections)]
        else:
            ends = [size * (k + 1) // self.sections for k in range(self.sections)]
        if ends[-1] != size or sorted(set(ends)) != ends:
            raise self.options.error("indices_or_sections", f"parts of {size} places")
        return ends

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        axis = value.axis(self.axis, self.what)
        made, start = [], 0
        for end in self.bounds(value.shape[axis - 1]):
            where = g.integers([value.physical(axis)])
            name = g.op("Slice", [value.name, g.integers([start]), g.integers([end]), where], place)
            shape = (*value.shape[: axis - 1], end - start, *value.shape[axis:])
            made.append(replace(value, name=name, shape=shape))
            start = end
        return made

    def apply(self, x: Array) -> list[Array]:
        return np.split(x, self.bounds(x.shape[self.axis])[:-1], self.axis)


class Joined(Operator):
    """concatenate and stack: Concatenate of the layers, behind a new axis where stacked."""

    parameters = ("xs", "axis")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.parts = [slot.number for slot in self.slots("xs")]
        axes = options.axes("axis", 0)
        options.finish("name")
        self.stacks = options.kind == "Stack"
        self.merge = Merge(Options(options.source, options.path, "Concatenate", {"axis": axes[0]}))
        if self.stacks:
            wide = {"x": Slot(0), "axis": axes[0]}
            self.expand = ExpandDims(Options(options.source, options.path, "ExpandDims", wide))
        self.keeps_time = not self.stacks or self.expand.keeps_time

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        values = [v for k in self.parts for v in [self.unmasked(inputs)[k]]]
        dtype = values[0].dtype if len({v.dtype for v in values}) == 1 else "float32"
        values = [g.cast(v, dtype) for v in values]
        if self.stacks:
            values = [y for v in values for y in self.expand.frame(g, v, f"{place}/wide")]
        made = self.merge.emit(g, values, place)
        return [replace(y, sequence=y.sequence and self.keeps_time) for y in made]

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        values = [inputs[k] for k in self.parts]
        if self.stacks:
            values = [replace(x, data=self.expand.apply(x.data)[0]) for x in values]
        return [replace(y, mask=None) for y in self.merge.compute(values, place, memory)]
