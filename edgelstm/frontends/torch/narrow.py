"""Frames of other floating types than float32: taken as they come, and cast before the module sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from edgelstm.frontends.torch.naming import dtype_of
from edgelstm.frontends.torch.torch_step import TorchStep
from edgelstm.frontends.torch.windows import TorchWindow

Opened = TypeVar("Opened", TorchStep, TorchWindow)


def taking(opened: Opened, examples: Mapping[str, Tensor]) -> Opened:
    """``opened`` with frames of the examples' floating types: a graph casts them, whatever fed it stays as it is."""
    types = {
        n: dtype_of(n, t) for n, t in examples.items() if t.is_floating_point() and t.dtype != torch.float32
    }
    if not types:
        return opened
    inputs = tuple(replace(t, dtype=types.get(t.name, t.dtype)) for t in opened.signature.inputs)
    made = opened.around(opened.module)
    made.signature = replace(opened.signature, inputs=inputs)
    return made
