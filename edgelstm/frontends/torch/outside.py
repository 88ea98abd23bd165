"""What a module keeps where no attribute of its own shows it: globals of its file, attributes of its class, variables of a function around it."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from edgelstm.frontends.torch.snapshot import copied, equal
from edgelstm.frontends.torch.watch import is_users

_CODE = (type, nn.Module, types.ModuleType, types.FunctionType, classmethod, staticmethod, property)


def changed_outside(module: nn.Module, call: Callable[[], object]) -> list[str]:
    """In words, what is another after ``call()`` than before, where it is kept outside the module itself."""
    before = {name: copied(value) for name, value in _values(module)}
    call()
    return [name for name, value in _values(module) if name in before and not equal(value, before[name])]


def _values(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything that is no code, by what to call it."""
    seen: set[int] = set()
    for part in module.modules():
        for kind in type(part).__mro__:
            file = getattr(sys.modules.get(kind.__module__), "__file__", None)
            if id(kind) in seen or file is None or not is_users(file):
                continue
            seen.add(id(kind))
            for name, value in list(vars(kind).items()):
                if not name.startswith("__") and _is_value(value):
                    yield f"{kind.__name__}.{name} (an attribute of the class, not of the module)", value
            forward = inspect.unwrap(vars(kind).get("forward", kind))
            if not isinstance(forward, types.FunctionType):
                continue
            for name, cell in zip(forward.__code__.co_freevars, forward.__closure__ or (), strict=True):
                try:
                    value = cell.cell_contents
                except ValueError:  # not given yet
                    continue
                if _is_value(value):
                    yield f"{name!r} (a variable of the function round {kind.__name__})", value
            if id(forward.__globals__) not in seen:
                seen.add(id(forward.__globals__))
                for name, value in list(forward.__globals__.items()):
                    if not name.startswith("__") and _is_value(value):
                        yield f"{name!r} (a global of {Path(file).name})", value


def _is_value(value: Any) -> bool:
    return not isinstance(value, _CODE) and not callable(value)
