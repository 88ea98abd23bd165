"""What holds weights of a Keras file: a layer, or a part of one that is no layer by itself, such as a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.builder import Array, Shape
from edgelstm.frontends.keras.options import Options


class Weighted:
    """Its options, its own weights by name, and what it holds that has weights too."""

    #: What ``compute`` computes in; its program sets it, and the weights' type with it.
    working: type[np.floating[Any]] = np.float64

    def __init__(self, options: Options) -> None:
        self.options = options
        self.name = options.path.rsplit("/", 1)[-1]
        self.trainable = options.get("trainable", True) is not False
        self.weights: dict[str, Array] = {}

    @property
    def what(self) -> str:
        """The layer, for messages."""
        return self.options.what

    def variables(self) -> tuple[list[str], list[str]]:
        """Names of the layer's own weights in Keras's order: those that training changes, and the others."""
        return [], []

    def children(self) -> list[tuple[str, Weighted]]:
        """What is inside this one, by the name of the attribute that holds it."""
        return []

    def receive(self, arrays: Sequence[Array]) -> None:
        """Take the layer's own weights, in Keras's order."""
        names = [name for part in self.variables() for name in part]
        if len(arrays) != len(names):
            raise EdgeLstmError(
                f"{self.what}: weights are missing or too many",
                found=f"{count_of(len(arrays), 'array')} of shapes {[list(a.shape) for a in arrays][:8]}",
                expected=f"{len(names)}: {', '.join(names) or 'none'}",
            )
        self.weights = dict(zip(names, arrays, strict=True))

    def weight(self, name: str, shape: Shape) -> Array:
        """A weight, its shape and its numbers checked."""
        value = self.weights.get(name)
        if value is None:
            raise EdgeLstmError(f"{self.what}: weight {name!r} is missing", expected=f"shape {list(shape)}")
        if value.shape != shape:
            raise EdgeLstmError(
                f"{self.what}: weight {name!r}",
                found=f"shape {list(value.shape)}",
                expected=f"shape {list(shape)}",
            )
        if not np.isfinite(value).all():
            raise EdgeLstmError(
                f"{self.what}: weight {name!r}", found="NaN or infinity", expected="finite numbers"
            )
        return value
