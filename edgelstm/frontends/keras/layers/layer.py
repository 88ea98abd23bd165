"""What every layer offers, and the two plain kinds: those that work place by place, and those that merge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.keras.builder import Array, Builder, NeedsWindow, Value
from edgelstm.frontends.keras.layers.weighted import Weighted
from edgelstm.frontends.keras.options import Options

MaskRule = Literal["keeps", "drops", "refuses"]


@dataclass(frozen=True)
class Tensor:
    """A value of the reference: Keras's tensor itself, [N, T, ...] or [N, ...].

    streamed: axis 1 holds what the last frames brought of a sequence, which may be nothing. mask: bool [N, T]. sequence:
    axis 1 is the time of a whole window. length: of the whole sequence, where the file says it. begun: False
    while it stems from a sequence that has no element yet.
    """

    data: Array
    streamed: bool = False
    mask: Array | None = None
    sequence: bool = False
    length: int | None = None
    begun: bool = True


#: What a model remembers between two calls of the reference, by ``<place of the layer>.<name>``.
Memory = dict[str, Any]


class Layer(Weighted, ABC):
    """One layer of a model.

    ``emit`` puts it into a graph, ``compute`` is its equation in Keras's own layout; the two share only options and
    weights. ``place`` is the layer's place in the model, unique for each call of it: its states are named after it.
    """

    #: Axis 1 of what comes in is time, whatever the rest of the model does.
    is_temporal: ClassVar[bool] = False
    #: What comes out has the time axis of what came in.
    keeps_time: bool = True
    #: It gives a feature axis to numbers that have none: [N, T] becomes [N, T, ...].
    adds_axis: bool = False
    #: It takes whole numbers and bools as they are; what comes to other layers is float32.
    any_dtype: ClassVar[bool] = False
    #: What comes in counts or names things: frames of whole numbers.
    takes_ids: ClassVar[bool] = False
    #: The last element of a sequence is all it takes.
    takes_last: bool = False
    mask_rule: ClassVar[MaskRule] = "keeps"

    @abstractmethod
    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        """Add the layer to the graph; gives its outputs.

        Raises NeedsWindow where a frame of a sequence comes in and the layer needs the whole of it.
        """

    @abstractmethod
    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        """The same by NumPy. ``memory`` is this layer's to read and write under names that begin with ``place``."""

    def single(self, inputs: Sequence[Any]) -> Any:
        """The only input."""
        if len(inputs) != 1:
            raise EdgeLstmError(f"{self.what}: inputs", found=len(inputs), expected=1)
        return inputs[0]

    def features(self, value: Value, least: int = 1) -> int:
        """Size of the last axis."""
        if len(value.shape) < least:
            raise EdgeLstmError(
                f"{self.what}: what comes in",
                found=f"shape {list(value.shape)}",
                expected=f"at least {count_of(least, 'axis', 'axes')} beside the streams",
            )
        return value.shape[-1]


class FrameLayer(Layer):
    """A layer that computes every frame of a sequence alone, from one input."""

    def emit(self, g: Builder, inputs: Sequence[Value], place: str) -> list[Value]:
        value: Value = self.single(inputs)
        return [self.masked(value, self.frame(g, value, place), self.what)]

    def compute(self, inputs: Sequence[Tensor], place: str, memory: Memory) -> list[Tensor]:
        x: Tensor = self.single(inputs)
        kept = x.mask if self.mask_rule == "keeps" else None
        sequence = x.sequence and self.keeps_time
        return [replace(x, data=self.apply(x.data), mask=kept, sequence=sequence)]

    def masked(self, before: Value, after: Value, what: str) -> Value:
        """``after`` with the mask it has in Keras."""
        if before.mask is not None and self.mask_rule == "refuses":
            raise EdgeLstmError(
                f"{what} takes part in Masking, which is not supported there",
                expected="recurrent layers, Dense, Activation, Dropout and normalisation behind Masking",
            )
        kept = before.mask if self.mask_rule == "keeps" else None
        return replace(after, mask=kept, sequence=before.sequence and self.keeps_time)

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        """Emit the layer on one value; a kind with an ``emit`` of its own does without."""
        raise NotImplementedError

    def apply(self, x: Array) -> Array:
        """By NumPy, on Keras's tensor; a kind with a ``compute`` of its own does without."""
        raise NotImplementedError


class Identity(FrameLayer):
    """What does nothing at inference: Dropout and its kin."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        options.finish("rate", "stddev", "data_format", "l1", "l2")

    def frame(self, g: Builder, value: Value, place: str) -> Value:
        return value

    def apply(self, x: Array) -> Array:
        return x


def same_time(layer: Layer, values: Sequence[Value]) -> None:
    """Raise NeedsWindow unless all values are frames, or none is."""
    if len({v.time is None for v in values}) > 1:
        raise NeedsWindow(f"{layer.what} joins a sequence with what is none")
