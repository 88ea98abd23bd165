"""The three forms of recurrent torch modules, and the one form all of them become: :class:`TorchStep`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgelstm.graph.signature import Signature

Kind = Literal["cell", "step", "sequence"]
#: States in one nested argument, or each tensor an argument of its own.
Arguments = Literal["nested", "leaves"]
#: What comes back: (outputs, states); the states alone, the first of which is the output; or one after the other.
Returns = Literal["pair", "states", "flat"]
FORMS: dict[Kind, str] = {
    "cell": "a cell, cell(x, (h, c)) -> (h, c)",
    "step": "a step, forward(x, *states) -> (outputs, next states)",
    "sequence": "a sequence module, forward(x[B, T, ...], state) -> (y, state)",
}


class Unfit(Exception):
    """A module does not have the form it was tried as; ``returned``: its forward ran, but gave something else."""

    def __init__(self, reason: str, *, returned: bool) -> None:
        self.returned = returned
        super().__init__(reason)


class Windowed(Unfit):
    """A module that takes and gives states, and yet sees more of time than these tell."""


@dataclass(frozen=True)
class Result:
    """What one call gave: outputs, their names if the module names them, and next states in the module's layout."""

    outputs: list[Tensor]
    names: tuple[str, ...] | None
    states: list[Tensor]


@dataclass(frozen=True)
class Form:
    """How a module is called and how its result is read.

    nesting: how it nests its states. keyword: the argument they are given as, where it is not the one after the
    frames. time: the axis of its frames that a sequence module runs along. timed: which of its outputs have that
    axis, too.
    """

    kind: Kind
    arguments: Arguments
    returns: Returns
    time: int | None = None
    keyword: str | None = None
    nesting: Any = None
    timed: tuple[bool, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Form:
        """Itself: nothing changes it, and copies of torch's nestings warn."""
        return self

    def call(self, module: nn.Module, frames: Sequence[Tensor], states: Sequence[Tensor]) -> Result:
        """One step, frames without a time axis. Raises Unfit when the result does not have this form."""
        if self.time is not None:
            frames = [frame.unsqueeze(self.time) for frame in frames]
        result = self.read(self.run(module, frames, states))
        timed = self.timed or (False,) * len(result.outputs)
        outputs = [
            y.squeeze(self.time) if has_time and self.time is not None else y
            for y, has_time in zip(result.outputs, timed, strict=True)
        ]
        return replace(result, outputs=outputs)

    def run(self, module: nn.Module, frames: Sequence[Tensor], states: Sequence[Tensor]) -> Any:
        """Call the module with frames as they are."""
        if self.arguments == "leaves":
            return module(*frames, *states)
        nested = pytree.tree_unflatten(list(states), self.nesting)
        if self.keyword is not None:
            return module(*frames, **{self.keyword: nested})
        return module(*frames, nested)

    def read(self, returned: Any) -> Result:
        """Take what the module returned apart."""
        if self.returns == "states":
            states = tensors(returned)
            return Result(states[:1], None, states)
        outputs, following = self.parts(returned)
        names = tuple(map(str, outputs)) if isinstance(outputs, Mapping) else None
        return Result(tensors(outputs), names, tensors(following))

    def parts(self, returned: Any) -> tuple[Any, Any]:
        """(outputs, next states), as the module nests them."""
        if self.returns == "states":
            return (), returned
        enough = isinstance(returned, tuple | list) and len(returned) >= 2
        if not enough or (self.returns == "pair" and len(returned) != 2):
            raise Unfit(f"returned {describe(returned)}", returned=True)
        outputs, *following = returned
        return outputs, following[0] if self.returns == "pair" else tuple(following)


@dataclass(frozen=True)
class Place:
    """Where a graph's state lives in the module's layout: which tensor, which part of it, which axis the streams are on.

    ``part`` None: the whole tensor. Otherwise the tensor stacks layers on axis 0, as torch.nn.LSTM does, and each
    layer is a state of its own.
    """

    leaf: int
    axis: int
    part: int | None = None

    def take(self, leaves: Sequence[Tensor]) -> Tensor:
        """The state, streams on axis 0."""
        leaf = leaves[self.leaf]
        if self.part is not None:
            return leaf[self.part]
        return leaf.movedim(self.axis, 0) if self.axis else leaf


def join(places: Sequence[Place], states: Sequence[Tensor]) -> list[Tensor]:
    """The module's tensors from the graph's states: the inverse of ``Place.take``."""
    leaves: dict[int, list[Tensor]] = {}
    for place, state in zip(places, states, strict=True):
        whole = state.movedim(0, place.axis) if place.axis and place.part is None else state
        leaves.setdefault(place.leaf, []).append(whole)
    stacked = {place.leaf for place in places if place.part is not None}
    return [torch.stack(leaves[k]) if k in stacked else leaves[k][0] for k in sorted(leaves)]


class TorchStep(nn.Module):
    """One step of a torch module: ``step(*frames, *states) -> (outputs, next states)``, both tuples.

    Tensors are in the order of ``signature``, whose names and shapes they have, streams on axis 0.
    """

    def __init__(self, module: nn.Module, form: Form, places: Sequence[Place], signature: Signature) -> None:
        super().__init__()
        self.module = module
        self.form = form
        self.places = tuple(places)
        self.signature = signature

    def around(self, module: nn.Module) -> TorchStep:
        """The same step of another module."""
        return TorchStep(module, self.form, self.places, self.signature)

    def forward(self, *given: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        count = len(self.signature.inputs)
        result = self.form.call(self.module, given[:count], join(self.places, given[count:]))
        return tuple(result.outputs), tuple(place.take(result.states) for place in self.places)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in ``value``, in order. Raises Unfit where anything else is among them."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    leaves = pytree.tree_leaves(value)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise Unfit(f"returned {describe(value)} where tensors belong", returned=True)
    return leaves


def called(module: nn.Module) -> str:
    """What messages call a module: its class, not that of a wrapper of ours."""
    if isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    return str(getattr(module, "called", type(module).__name__))


def argument_names(module: nn.Module) -> tuple[list[str], bool]:
    """What forward's arguments are called, and whether it takes any number of them."""
    if isinstance(module, torch.jit.ScriptModule):
        schema: Any = getattr(getattr(module, "forward", None), "schema", None)
        return ([argument.name for argument in schema.arguments[1:]], False) if schema else ([], True)
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return named, any(p.kind == p.VAR_POSITIONAL for p in parameters)


def describe(value: Any) -> str:
    """Types and shapes, in one line."""
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + _some(f"{key!r}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        left, right = "()" if isinstance(value, tuple) else "[]"
        return left + _some(map(describe, value)) + right
    return "None" if value is None else type(value).__name__


def _some(texts: Iterable[str], limit: int = 6) -> str:
    items = list(texts)
    return ", ".join(items[:limit]) + (", ..." if len(items) > limit else "")
