"""A torch step in float64, whatever its code says of float32: what export judges the graph by."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from edgelstm.frontends.torch.torch_step import TorchStep
from edgelstm.frontends.torch.torchscript import copied_script
from edgelstm.frontends.torch.windows import TorchWindow

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class InDouble(nn.Module):
    """``step`` with its weights, and all that it computes, in float64."""

    def __init__(self, step: TorchStep | TorchWindow) -> None:
        super().__init__()
        self.signature = step.signature
        module = step.module
        scripted = isinstance(module, torch.jit.ScriptModule)
        copied = copied_script(module) if scripted else copy.deepcopy(module)
        self.step = step.around(copied.double()).eval()

    def forward(self, *given: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """As the step's; frames and states may be of any float type."""
        with _double_by_default(), _Widening():  # type: ignore[no-untyped-call]
            result: tuple[Sequence[Tensor], Sequence[Tensor]] = self.step(*(_widened(t) for t in given))
        return result


@contextmanager
def in_double(module: nn.Module) -> Iterator[nn.Module]:
    """A copy of ``module`` that computes in float64 for as long as this lasts."""
    copied = copied_script(module) if isinstance(module, torch.jit.ScriptModule) else copy.deepcopy(module)
    with _double_by_default(), _Widening():  # type: ignore[no-untyped-call]
        yield copied.double().eval()


class _Widening(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operator takes float64 in place of narrower floats, also where code casts to them or made constants of them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map(_widened, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.dtype in _NARROW else value
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


@contextmanager
def _double_by_default() -> Iterator[None]:
    """What code makes without naming a type is float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
