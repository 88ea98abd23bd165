"""Code that says "cuda" in its forward, run on the CPU, where modules are exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class on_cpu(TorchFunctionMode):
    """While it is entered, what is asked to be made on a GPU or moved there is made on the CPU and stays there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.cuda:
            return args[0]
        if any(_gpu(value) for value in (*args[1:], *kwargs.values())):
            args = (*args[:1], *map(_here, args[1:]))
            kwargs = {name: _here(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _gpu(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.partition(":")[0] == "cuda"


def _here(value: Any) -> Any:
    return torch.device("cpu") if _gpu(value) else value
