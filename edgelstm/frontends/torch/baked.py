"""Weights that are computed from others (``torch.nn.utils.parametrizations``), as the tensors they are once training is over."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize


def bake(module: nn.Module) -> None:
    """Put in place of each parametrised tensor of ``module``, a copy in evaluation mode, the value it has.

    An orthogonal weight is made by operators that ONNX lacks, and every one of them would be computed anew at every step.
    What differs from one reading to the next stays as it is: it is no weight.
    """
    for part in list(module.modules()):
        if not parametrize.is_parametrized(part):
            continue
        _own_class(part)
        for name in list(part.parametrizations):  # type: ignore[arg-type]
            with torch.no_grad():
                values = [getattr(part, name) for _ in range(2)]
            if torch.equal(*values):
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)


def _own_class(part: nn.Module) -> None:
    """Copies share the class that torch made for the one they are copied from, and taking a parametrisation away changes it."""
    shared = type(part)
    own = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    part.__class__ = type(shared.__name__, shared.__bases__, own)
