"""What every frontend gives and gets: the model at the door, and what the user said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.runtime.protocol import Program

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgelstm.graph.step import StepModel


class Source(Program, Protocol):
    """A trained model as a Program that can also say what its own rounding costs."""

    def exact(self) -> Program:
        """The same function in float64, its outputs and states unrounded. Raises where it can't be had, saying why."""

    def rounded(self) -> Program:
        """The same function in the precision of its source: float32, or float16 where that is what it has."""


@dataclass(frozen=True)
class Loaded:
    """A model at the door: its step graph, and its source as a Program to compare the graph with.

    notes: what the user has to know of how it was taken. windowed: ``step`` computes windows as they were asked for, so
    there is nothing to unroll.
    """

    step: StepModel
    reference: Source
    description: str
    notes: tuple[str, ...] = ()
    windowed: bool = False


#: What each part of a request is for, said where a model has no use for it.
USE = {
    "weights": "it is for torch factories",
    "init": "it is for torch factories",
    "frame": "the file says it itself",
    "states": "the file says it itself",
    "fix": "it is for ONNX files made elsewhere",
    "confirm": "it is for ONNX files made elsewhere",
    "window": "the file says it itself",
    "carry_state": "it is for torch modules and Keras models",
    "results": "it is for torch modules",
    "gate_order": "it is for checkpoints alone; elsewhere the arithmetic tells it",
}


@dataclass(frozen=True)
class Request:
    """What a user may say of a model; see :func:`edgelstm.workflows.export.export`. None or False: nothing was said.

    doing: called with what is being done; any door takes it.
    """

    weights: PathLike | None = None
    frame: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    states: Any = None
    init: Mapping[str, Any] | None = None
    fix: Mapping[str, int | float | bool] | None = None
    confirm: Callable[..., bool] | None = None
    window: int | None = None
    carry_state: bool = False
    gate_order: str | None = None
    results: Sequence[str] | None = None
    doing: Callable[[str], None] | None = None

    def say(self, what: str) -> None:
        """Tell who waits what is being done."""
        if self.doing is not None:
            self.doing(what)

    def only(self, source: object, taken: frozenset[str]) -> None:
        """Raise EdgeLstmError where something was said that is not among ``taken``: it would be ignored."""
        for field in fields(self):
            if field.name not in {*taken, "doing"} and getattr(self, field.name) not in (None, False):
                what = source if isinstance(source, str | Path) else type(source).__name__
                raise EdgeLstmError(
                    f"{field.name} given for {what}", expected=f"no {field.name}: {USE[field.name]}"
                )


@dataclass(frozen=True)
class Door:
    """One kind of source. home: the module with ``load(source, request) -> Loaded`` and, where ``verify`` takes the source
    as it is, ``reference(path, like) -> Program``. takes: what of a :class:`Request` it understands; the rest is refused.
    """

    what: str
    suffixes: tuple[str, ...]
    home: str
    takes: frozenset[str]

    def opens(self, path: PathLike) -> bool:
        """Whether the suffix is one of its own."""
        return Path(path).suffix.lower() in self.suffixes
