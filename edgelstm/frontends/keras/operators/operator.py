"""What every operator on tensors shares: its operands, and the two plain kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras.builder import Array, Builder, Value
from edgelstm.frontends.keras.calls import MAX_CONSTANT, Slot
from edgelstm.frontends.keras.layers.layer import Layer, Memory, Tensor
from edgelstm.frontends.keras.options import Options


class Operator(Layer):
    """One call of an operator: ``options`` holds its parameters by name, Slots where tensors stand."""

    any_dtype = True
    #: Its parameters in the order of Keras 3.
    parameters: ClassVar[tuple[str, ...]] = ("x",)

    def operand(self, key: str, default: Any = ...) -> Slot | Array:
        """A tensor or a constant."""
        value = self.options.get(key) if default is ... else self.options.get(key, default)
        if isinstance(value, Slot):
            return value
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise self.options.error(key, "a tensor, a number or an array") from error
        if array.dtype.kind not in "fiub" or array.size > MAX_CONSTANT:
            raise self.options.error(key, "a tensor, a number or an array")
        if not np.isfinite(array).all():
            raise self.options.error(key, "finite numbers")
        return array

    def slots(self, key: str) -> list[Slot]:
        """A list of tensors."""
        value = self.options.get(key)
        items = value if isinstance(value, list) else [value]
        if not items or not all(isinstance(item, Slot) for item in items):
            raise self.options.error(key, "tensors")
        return list(items)

    def unmasked(self, inputs: Sequence[Value]) -> list[Value]:
        """The values without masks, which operators of Keras 3 drop."""
        if self.options.source.keras < 3 and any(v.mask is not None for v in inputs):
            raise EdgeLstmError(
                f"{self.what} takes a masked sequence", expected="no Masking before operators"
            )
        return [replace(v, mask=None) for v in inputs]


class OneOperator(Operator):
    """An operator of a single tensor that computes every frame alone."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.source = self.operand(self.parameters[0])
        if not isinstance(self.source, Slot):
            raise options.error(self.parameters[0], "a tensor")
        self.read(options)
        options.finish("name")

    def read(self, options: Options) -> None:
        """Its other parameters."""

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        (value,) = self.unmasked(inputs)
        made = self.frame(g, value, place)
        return [replace(y, sequence=value.sequence and self.keeps_time) for y in made]

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        (x,) = inputs
        sequence = x.sequence and self.keeps_time
        return [replace(x, data=y, mask=None, sequence=sequence) for y in self.apply(x.data)]

    def frame(self, g: Builder, value: Value, place: str) -> list[Value]:
        """Emit it on one value; one with an ``emit`` of its own does without."""
        raise NotImplementedError

    def apply(self, x: Array) -> list[Array]:
        """By NumPy, on Keras's tensor; one with a ``compute`` of its own does without."""
        raise NotImplementedError


def without(value: Value, name: str, axes: Sequence[int]) -> Value:
    """``value`` as ``name``, which has lost ``axes`` (Keras's order)."""
    kept = [a for a in value.perm if a not in axes]
    order = sorted(kept)
    shape = tuple(n for k, n in enumerate(value.shape, 1) if k not in axes)
    return replace(value, name=name, shape=shape, perm=tuple(order.index(a) for a in kept))
