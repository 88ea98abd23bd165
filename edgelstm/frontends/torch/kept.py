"""States that a module keeps in attributes and buffers from call to call, put at its door.

    self.hidden_state[:] = h        a buffer written in place, as policies of robots are exported
    self.state = (h, c)             an attribute, None at first or made anew where the number of streams changed
    self.frames.append(x)           a deque or list of frames
    self.count += 1                 a number

:class:`Kept` hands the values in before each call and takes them out after it, so that the module itself stays as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.errors import count_of
from edgelstm.frontends.torch.snapshot import Place
from edgelstm.frontends.torch.torch_step import RETURNED, Form, Picked, Unfit, called
from edgelstm.frontends.torch.tree import Tree, flatten, mapped


@dataclass(frozen=True)
class Layout:
    """How one tensor that a module keeps becomes a state of so many streams.

    axis: its axis of streams. None: it has none, and is one of a single stream; ``lead``: streams are put before its axes,
    and so many axes of size 1 between, for arithmetic to spread over.
    """

    axis: int | None
    lead: int | None = None

    def given(self, state: Tensor) -> Tensor:
        """What the module gets."""
        return state[0] if self.axis is None and self.lead is None else state

    def taken(self, value: Tensor) -> Tensor:
        """The state, from what the module left."""
        return value.unsqueeze(0) if self.axis is None and self.lead is None else value

    def first(self, value: Tensor, n: int) -> Tensor:
        """What ``n`` streams start from, from the value for one."""
        if self.axis is not None:
            return value.narrow(self.axis, 0, 1).repeat_interleave(n, self.axis)
        if self.lead is not None:
            value = value.reshape(*(1 for _ in range(self.lead)), *value.shape)
            return value.expand(n, *value.shape).clone()
        return value.expand(n, *value.shape).clone()


@dataclass(frozen=True)
class Slot:
    """An attribute that is a state: how it nests its tensors, and what it is before the first call."""

    place: Place
    nesting: Tree
    before: Any
    start: tuple[Tensor, ...]
    buffer: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        """Itself: nothing changes it."""
        return self

    @property
    def names(self) -> list[str]:
        """One name for each of its tensors."""
        base = str(self.place).replace(".", "_").lstrip("_") or "state"
        return [base] if len(self.start) == 1 else [f"{base}_{k}" for k in range(len(self.start))]


def nested(value: Any) -> tuple[list[Tensor], Tree]:
    """The tensors and numbers in a value, as tensors, and its nesting; whatever else there is stays in the nesting."""

    def as_tensor(item: Any) -> Any:
        return number(item) if type(item) in (int, float) else item

    return flatten(mapped(value, as_tensor))


def number(value: float) -> Tensor:
    """A number of Python's as a tensor."""
    return torch.tensor(value, dtype=torch.int64 if type(value) is int else torch.float32)


class Kept(nn.Module):
    """``(*frames, states) -> [*outputs, *next states]``: the states it takes as arguments, then those it keeps.

    anew: the first frame of a stream is computed as the module computes it before anything is kept; a last state says which
    streams had theirs.
    """

    def __init__(
        self,
        module: nn.Module,
        form: Form,
        slots: Sequence[Slot],
        layouts: Sequence[Layout],
        anew: bool = False,
    ) -> None:
        super().__init__()
        self.source_name = called(module)
        self.module = copy.deepcopy(module)
        self.inner, self.slots, self.layouts, self.anew = form, tuple(slots), tuple(layouts), anew
        assert form.picked is not None
        self.outputs, self.given = len(form.picked.outputs), len(form.picked.states)
        for slot in slots:  # a plain attribute takes any value, a buffer only a tensor
            part = self.module.get_submodule(slot.place.path)
            part._buffers.pop(slot.place.name, None)
            part._parameters.pop(slot.place.name, None)
            object.__setattr__(part, slot.place.name, None)

    @property
    def form(self) -> Form:
        """How this module itself is called."""
        count = self.outputs + self.given + len(self.layouts) + self.anew
        states = list(range(self.outputs, count))
        assert self.inner.picked is not None
        return Form(
            "nested",
            self.inner.time,
            nesting=flatten([torch.empty(0) for _ in states])[1],
            picked=Picked(tuple(range(self.outputs)), tuple(states), self.inner.picked.names),
            timed=self.inner.timed,
        )

    @property
    def names(self) -> list[str]:
        """Names of the states that are kept."""
        return [name for slot in self.slots for name in slot.names] + ["started"] * self.anew

    @property
    def one_stream(self) -> bool:
        """Whether it can't tell streams apart."""
        return any(layout.axis is None and layout.lead is None for layout in self.layouts)

    def first(self, n: int) -> list[Tensor]:
        """What the kept states of ``n`` streams start from."""
        values = [t for slot in self.slots for t in slot.start]
        states = [layout.first(t, n) for layout, t in zip(self.layouts, values, strict=True)]
        return [*states, *([torch.zeros(n, dtype=torch.bool)] if self.anew else [])]

    def forward(self, *tensors: Any) -> list[Tensor]:
        *frames, states = tensors
        explicit, kept = list(states[: self.given]), list(states[self.given :])
        if not self.anew:
            return self._run(frames, explicit, kept)
        started = kept.pop()
        later = self._run(frames, explicit, kept)
        first = self._run(frames, explicit, None)
        chosen = []
        for k, (a, b) in enumerate(zip(later, first, strict=True)):
            axis = self._axis(k)
            if a.shape[axis] != started.shape[0] or a.shape != b.shape:
                raise Unfit("gave other shapes at its first frame", got=RETURNED)
            shape = [1] * a.dim()
            shape[axis] = -1
            chosen.append(torch.where(started.reshape(shape), a, b))
        return [*chosen, torch.ones_like(started)]

    def _axis(self, k: int) -> int:
        """The stream axis of a result."""
        if k < self.outputs:
            return 1 if self.inner.time == 0 and self.inner.timed and self.inner.timed[k] else 0
        layout = self.layouts[k - self.outputs - self.given] if k >= self.outputs + self.given else None
        return layout.axis or 0 if layout is not None else 0

    def _run(
        self, frames: Sequence[Tensor], explicit: Sequence[Tensor], kept: Sequence[Tensor] | None
    ) -> list[Tensor]:
        rest = (
            None
            if kept is None
            else [lay.given(t).clone() for lay, t in zip(self.layouts, kept, strict=True)]
        )
        parts = [self.module.get_submodule(slot.place.path) for slot in self.slots]
        for part, slot in zip(parts, self.slots, strict=True):
            if rest is None:
                value = mapped(slot.before, lambda v: v.clone() if isinstance(v, Tensor) else v)
            else:
                value = slot.nesting.build(rest[: slot.nesting.count])
                del rest[: slot.nesting.count]
            object.__setattr__(part, slot.place.name, value)
        try:
            returned = self.inner.read(self.inner.run(self.module, frames, explicit))
            after = []
            for part, slot in zip(parts, self.slots, strict=True):
                found, _ = nested(_value(part, slot.place.name))
                if len(found) != slot.nesting.count:
                    raise Unfit(
                        f"left {count_of(len(found), 'tensor')} in {slot.place}, not {slot.nesting.count}",
                        got=RETURNED,
                    )
                after += found
        finally:
            for part, slot in zip(parts, self.slots, strict=True):
                part._buffers.pop(slot.place.name, None)
                object.__setattr__(part, slot.place.name, None)
        states = [lay.taken(t).clone() for lay, t in zip(self.layouts, after, strict=True)]
        return [*returned.outputs, *returned.states, *states]


def _value(part: nn.Module, name: str) -> Any:
    return part._buffers[name] if name in part._buffers else getattr(part, name)
