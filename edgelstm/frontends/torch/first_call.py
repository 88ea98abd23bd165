"""A module that starts from more than zeros where its state is left out: from its first frame, or from weights of its own.

    if state is None: state = (x, self.encode(x))     the frame before is the first frame itself, h comes of it
    if state is None: state = self.start.expand(...)  a start that was learned
    if state is None: return zeros, (x, ...)          the first frame has no result yet

No values of states say that. :class:`FirstCall` computes both, the call without a state and the one with, and a last state,
``started``, chooses for each stream.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.frontends.torch.torch_step import RETURNED, Form, Picked, Unfit, called
from edgelstm.frontends.torch.tree import flatten

STARTED = "started"


class FirstCall(nn.Module):
    """``(*frames, states) -> [*outputs, *next states, started]``; the states are ``module``'s own, then ``started`` [N], bool.

    form: how ``module`` is called with its states, ``bare`` without. axes: that of the streams in each state.
    """

    def __init__(self, module: nn.Module, form: Form, bare: Form, axes: tuple[int, ...]) -> None:
        super().__init__()
        assert form.picked is not None
        self.source_name = called(module)
        self.module = copy.deepcopy(module)
        self.inner, self.axes = form, axes
        self.bare = bare
        self.outputs, self.count = len(form.picked.outputs), len(axes)

    @property
    def form(self) -> Form:
        """How this module itself is called."""
        assert self.inner.picked is not None
        every = [torch.empty(0) for _ in range(self.count + 1)]
        outputs = tuple(range(self.outputs))
        states = tuple(range(self.outputs, self.outputs + self.count + 1))
        return Form(
            "nested",
            self.inner.time,
            nesting=flatten(every)[1],
            picked=Picked(outputs, states, self.inner.picked.names),
            timed=self.inner.timed,
        )

    @property
    def state_names(self) -> list[str]:
        """What the module's own states are called, and the last."""
        return [*self.inner.keys, STARTED]

    def forward(self, *tensors: Any) -> list[Tensor]:
        *frames, states = tensors
        *own, started = states
        later = self.inner.read(self.inner.run(self.module, frames, own))
        first = self.inner.read(self.bare.run(self.module, frames, ()))
        timed = self.inner.timed or (False,) * self.outputs
        axes = [int(self.inner.time == 0 and has_time) for has_time in timed] + list(self.axes)
        chosen = []
        pairs = zip([*later.outputs, *later.states], [*first.outputs, *first.states], axes, strict=True)
        for a, b, axis in pairs:
            if a.shape != b.shape or a.dtype != b.dtype:
                raise Unfit("gave other shapes or types where its state was left out", got=RETURNED)
            shape = [1] * a.dim()
            shape[axis] = -1
            chosen.append(torch.where(started.reshape(shape), a, b))
        return [*chosen, torch.ones_like(started)]
