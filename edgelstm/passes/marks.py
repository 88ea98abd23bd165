"""Which streams each element of a value depends on: what the rules of ``stream_marks`` take and give.

A value has *marks*: bits, one a stream, for every element. They are kept compact: an axis along which all elements depend
on the same streams has size 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from edgelstm.passes.batching import Shape
from edgelstm.passes.graph import Array, attribute


@dataclass(frozen=True)
class Marked:
    """A value: its shape (None: unknown), its marks (as many axes, each of size 1 or in full) and, if constant, itself."""

    shape: Shape | None
    marks: Array
    value: Array | None = None

    @property
    def streams(self) -> int:
        """Bits of all streams that any element depends on."""
        return int(np.bitwise_or.reduce(self.marks, axis=None))


@dataclass(frozen=True)
class Visit:
    """A node, what goes in (None: left out) and the shapes of what comes out."""

    node: onnx.NodeProto
    inputs: tuple[Marked | None, ...]
    shapes: tuple[Shape | None, ...]
    opset: int

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, or ``default``."""
        return attribute(self.node, name, default)

    def integers(self, name: str, index: int) -> list[int] | None:
        """Integers that older opsets hold in an attribute, newer ones in a constant input; None where not known."""
        held = self.attribute(name)
        if held is None and index < len(self.inputs):
            given = self.inputs[index]
            held = None if given is None else given.value
        return None if held is None else [int(v) for v in np.asarray(held).reshape(-1)]

    def given(self, index: int) -> bool:
        """Whether input ``index`` is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def alone(self, *places: int) -> bool:
        """Whether no input but those at ``places`` depends on a stream, and those have a shape."""
        for k, item in enumerate(self.inputs):
            if item is not None and (item.shape is None if k in places else item.streams):
                return False
        return all(self.given(k) for k in places)

    def marks(self, index: int) -> Array:
        """Marks of an input that is there."""
        item = self.inputs[index]
        assert item is not None
        return item.marks

    def shape(self, index: int) -> Shape:
        """Shape of an input that is there and whose shape is known."""
        item = self.inputs[index]
        assert item is not None
        assert item.shape is not None
        return item.shape


#: Marks of each output, or of all outputs at once; None: nothing is known.
Result = list[Array] | Array | None
Rule = Callable[[Visit], Result]


def compact(marks: Array) -> Array:
    """The same marks, every axis along which they do not change of size 1."""
    for axis, size in enumerate(marks.shape):
        if size > 1:
            first = marks.take([0], axis)
            if (marks == first).all():
                marks = first
    return marks


def over(marks: Array, axes: Sequence[int]) -> Array:
    """Every element depends on what all elements along ``axes`` do; those get size 1."""
    merged: Array = np.bitwise_or.reduce(marks, axis=tuple(a % marks.ndim for a in axes), keepdims=True)
    return merged


def all_but(marks: Array, kept: Sequence[int]) -> Array:
    return over(marks, [a for a in range(marks.ndim) if a not in kept])


def raised(marks: Array, rank: int) -> Array:
    return marks.reshape((1,) * (rank - marks.ndim) + marks.shape)
