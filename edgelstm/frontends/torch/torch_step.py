"""How recurrent torch modules are called and read, and the one form all of them become: :class:`TorchStep`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgelstm.frontends.torch.on_cpu import on_cpu
from edgelstm.frontends.torch.tree import Leaf, Tree, leaves
from edgelstm.graph.signature import Signature

#: States in one nested argument; each tensor an argument of its own; in one mapping together with the frames; none.
Arguments = Literal["nested", "leaves", "mapping", "none"]


class Unfit(Exception):
    """A module does not have the form it was tried as. got: how far it came, the larger the further."""

    def __init__(self, reason: str, *, got: float = 0) -> None:
        self.got = got
        super().__init__(reason)


#: How far a call came: its arguments did not fit; it raised (and after how many operators); it gave something back.
UNBOUND, RAISED, RETURNED, PAIRED = 0.0, 1.0, 2.0, 3.0


class Windowed(Unfit):
    """A module that takes and gives states, and yet sees more of time than these tell."""


@dataclass(frozen=True)
class Picked:
    """Which of the tensors that came back are what: places of the outputs, of the next states in the order they go in."""

    outputs: tuple[int, ...]
    states: tuple[int, ...]
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Result:
    """What one call gave: outputs, their names if the module names them, and next states in the module's layout."""

    outputs: list[Tensor]
    names: tuple[str, ...] | None
    states: list[Tensor]


@dataclass(frozen=True)
class Form:
    """How a module is called and how its result is read.

    keyword: the argument a nested state is given as, or the key in the mapping; None: the one after the frames. names: the
    frames' arguments, or those of single states, where they go by name. lengths, batches: arguments that say how many
    frames and streams there are; nones: arguments of states that are left out, and have no default. nesting: how the states are nested. picked: what came back. time: the axis of the frames
    that a sequence module runs along; timed: which outputs have that axis, too. keys: what the module's own tensors of states
    are called. whole: the states come back as one thing, as they go in. reordered: they come back in another order than
    they go in, which two frames in one call bear out. in_place: the next states are what the call leaves in those it was given.
    """

    arguments: Arguments
    time: int | None = None
    keyword: str | None = None
    frame_names: tuple[str, ...] | None = None
    state_names: tuple[str, ...] | None = None
    lengths: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    nones: tuple[str, ...] = ()
    nesting: Tree | None = None
    picked: Picked | None = None
    timed: tuple[bool, ...] = ()
    keys: tuple[str, ...] = ()
    whole: bool = False
    reordered: bool = False
    in_place: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Form:
        """Itself: nothing changes it."""
        return self

    @property
    def text(self) -> str:
        """How the module is called, in words."""
        frames = ", ".join(f"{name}=" for name in self.frame_names or ()) or "x"
        if self.time is not None:
            frames += "[B, T, ...]" if self.time == 1 else "[T, B, ...]"
        extra = "".join(
            f", {name}={'B' if name in self.batches else 'T'}" for name in (*self.lengths, *self.batches)
        ) + "".join(f", {name}=None" for name in self.nones)
        if self.arguments == "mapping":
            return f"forward({{{frames}, {self.keyword!r}: states}})"
        if self.arguments == "none":
            return f"forward({frames}{extra})"
        if self.arguments == "leaves":
            return (
                f"forward({frames}, {', '.join(self.state_names) if self.state_names else '*states'}{extra})"
            )
        return f"forward({frames}, {f'{self.keyword}=' if self.keyword else ''}states{extra})"

    def call(self, module: nn.Module, frames: Sequence[Tensor], states: Sequence[Tensor]) -> Result:
        """One step, frames without a time axis."""
        if self.time is not None:
            frames = [frame.unsqueeze(self.time) for frame in frames]
        return self.without_time(self.read(self.run(module, frames, states)))

    def without_time(self, result: Result) -> Result:
        """The result of one frame: outputs that have a time axis lose it."""
        timed = self.timed or (False,) * len(result.outputs)
        outputs = [
            y.squeeze(self.time) if has_time and self.time is not None else y
            for y, has_time in zip(result.outputs, timed, strict=True)
        ]
        return replace(result, outputs=outputs)

    def run(self, module: nn.Module, frames: Sequence[Tensor], states: Sequence[Tensor]) -> Any:
        """Call the module with frames as they are."""
        with on_cpu():
            return self.called_by(lambda *args, **kwargs: module(*args, **kwargs), frames, states)

    def called_by(self, call: Callable[..., Any], frames: Sequence[Tensor], states: Sequence[Tensor]) -> Any:
        """What ``call`` gives back for the arguments, with the states it leaves where these are changed in place.

        Frames and states are copies: code may write into them.
        """
        states = [t.clone() for t in states]
        nested = None if self.nesting is None else self.nesting.build(states)
        args, kwargs = self._arguments([t.clone() for t in frames], states, nested)
        back = call(*args, **kwargs)
        return (back, states if self.arguments == "leaves" else nested) if self.in_place else back

    def bound(self, frames: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call."""
        return self._arguments(frames, states, None if self.nesting is None else self.nesting.build(states))

    def _arguments(
        self, frames: Sequence[Tensor], states: Sequence[Tensor], nested: Any
    ) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = list(frames)
        kwargs: dict[str, Any] = {}
        first = frames[0]
        if self.frame_names is not None:
            args, kwargs = [], dict(zip(self.frame_names, frames, strict=True))
        if self.arguments == "mapping":
            return [{**kwargs, **({self.keyword: nested} if self.keyword else {})}], {}
        kwargs |= dict.fromkeys(self.lengths, 1 if self.time is None else first.shape[self.time])
        kwargs |= dict.fromkeys(self.nones)
        kwargs |= dict.fromkeys(self.batches, first.shape[1 if self.time == 0 else 0])
        if self.arguments == "leaves":
            if self.state_names is None:
                args += states
            else:
                kwargs |= dict(zip(self.state_names, states, strict=True))
        elif self.arguments == "nested" and self.keyword is not None:
            kwargs[self.keyword] = nested
        elif self.arguments == "nested":
            args.append(nested)
        return args, kwargs

    def read(self, returned: Any) -> Result:
        """Take what the module returned apart."""
        assert self.picked is not None
        found = [leaf.tensor for leaf in leaves(returned)]
        picked = self.picked
        return Result([found[k] for k in picked.outputs], picked.names, [found[k] for k in picked.states])


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
        #: What makes its first states, where a call without states begins with others.
        self.begun_by: str | None = None

    def around(self, module: nn.Module) -> TorchStep:
        """The same step of another module."""
        other = TorchStep(module, self.form, self.places, self.signature)
        other.begun_by = self.begun_by
        return other

    def forward(self, *given: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        count = len(self.signature.inputs)
        frames = in_float32(self.signature, given[:count])
        result = self.form.call(self.module, frames, join(self.places, given[count:]))
        return tuple(result.outputs), tuple(place.take(result.states) for place in self.places)


def in_float32(signature: Signature, frames: Sequence[Tensor]) -> list[Tensor]:
    """Frames as the module takes them, a copy in float32: other floats cast."""
    other = ("float16", "bfloat16", "float64")
    return [f.float() if t.dtype in other else f for t, f in zip(signature.inputs, frames, strict=True)]


def called(module: nn.Module) -> str:
    """What messages call a module: its class, not that of a wrapper of ours."""
    if isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    return str(getattr(module, "source_name", type(module).__name__))


def names_of(found: Sequence[Leaf], picked: Sequence[int]) -> tuple[str, ...] | None:
    """The names that what was returned gives its parts, if all of these have one of their own."""
    names = []
    for k in picked:
        leaf = found[k]
        strings = [str(key) for key in leaf.path if isinstance(key, str)]
        numbers = [str(key) for key in leaf.path if isinstance(key, int) and strings]
        if not strings:
            return None
        names.append(
            "_".join([strings[-1], *(numbers if sum(1 for o in found if o.name == leaf.name) > 1 else [])])
        )
    return tuple(names) if len(set(names)) == len(names) else None
