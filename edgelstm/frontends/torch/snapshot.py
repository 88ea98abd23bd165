"""What a module keeps in its attributes and buffers: taken down, compared, and put back, so that every trial finds it as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from edgelstm.frontends.torch.tree import children, mapped

_OF_TORCH = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Place:
    """An attribute of a module inside the whole one."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}.{self.name}" if self.path else self.name

    def get(self, module: nn.Module) -> Any:
        """Its value; None where it is missing."""
        return _values(module.get_submodule(self.path)).get(self.name)

    def is_buffer(self, module: nn.Module) -> bool:
        """Whether it is registered as a buffer."""
        return self.name in module.get_submodule(self.path)._buffers


class Snapshot:
    """The values of a module's attributes and buffers at one moment; its parameters count as they are."""

    def __init__(self, module: nn.Module) -> None:
        self.values = {place: copied(value) for place, value in values(module)}

    def changed(self, other: Snapshot) -> list[Place]:
        """What differs from an earlier snapshot."""
        missing = [place for place in other.values if place not in self.values]
        return [
            place
            for place, value in self.values.items()
            if place not in other.values or not equal(value, other.values[place])
        ] + missing

    def restore(self, module: nn.Module) -> None:
        """Put everything back: in place where a tensor is still there, since others may share it."""
        for path, part in _modules(module):
            for name, value in _values(part).items():
                place = Place(path, name)
                if place not in self.values:
                    _remove(part, name)
                elif not equal(value, self.values[place]):
                    put(part, name, value, self.values[place])
            for place, saved in self.values.items():
                if place.path == path and place.name not in _values(part):
                    put(part, place.name, None, saved)


#: What modules looked like before any trial.
_FIRST: WeakKeyDictionary[nn.Module, Snapshot] = WeakKeyDictionary()


def remember(module: nn.Module) -> None:
    """From now on :func:`put_back` gives this module the values it has now."""
    _FIRST[module] = Snapshot(module)


def put_back(module: Any) -> None:
    """The values that were remembered, if any were."""
    if isinstance(module, nn.Module) and module in _FIRST:
        _FIRST[module].restore(module)


def values(module: nn.Module) -> Iterator[tuple[Place, Any]]:
    """Every attribute and buffer that torch itself does not put there."""
    for path, part in _modules(module):
        for name, value in _values(part).items():
            yield Place(path, name), value


def _modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return (
        (path, part) for path, part in module.named_modules() if not isinstance(part, torch.jit.ScriptModule)
    )


def _values(part: nn.Module) -> dict[str, Any]:
    own = {
        name: value
        for name, value in vars(part).items()
        if name not in _OF_TORCH and not _is_code(value) and not _is_index(part, name)
    }
    return {
        **own,
        **part._buffers,
        **{name: value for name, value in part._parameters.items() if value is None},
    }


def _is_index(part: nn.Module, name: str) -> bool:
    """Whether this is torch's own list of an LSTM's weights; it grows where these are replaced at every call (weight drop)."""
    return isinstance(part, nn.RNNBase) and name.startswith("_flat_weight")


def _is_code(value: Any) -> bool:
    return isinstance(value, nn.Module | nn.Parameter | type) or (
        callable(value) and not isinstance(value, Tensor)
    )


def put(part: nn.Module, name: str, value: Any, saved: Any) -> None:
    """Give an attribute a copy of what was kept."""
    if (
        isinstance(value, Tensor)
        and isinstance(saved, Tensor)
        and (value.shape, value.dtype) == (saved.shape, saved.dtype)
    ):
        with torch.no_grad():
            value.copy_(saved)
    elif name in part._buffers:
        part._buffers[name] = copied(saved)
    else:
        if name in part._parameters:  # made by the first call, where there was None
            part._parameters[name] = None if saved is None else part._parameters[name]
            if saved is None:
                return
        object.__setattr__(part, name, copied(saved))


def _remove(part: nn.Module, name: str) -> None:
    if name in part._buffers:
        del part._buffers[name]
    elif name in vars(part):
        object.__delattr__(part, name)


def copied(value: Any) -> Any:
    """A copy: tensors and containers anew, everything else itself."""

    def anew(item: Any) -> Any:
        if isinstance(item, nn.Module | nn.Parameter):
            return item
        if isinstance(item, Tensor):
            return item.detach().clone()
        return item.copy() if isinstance(item, np.ndarray | set) else item

    return mapped(value, anew)


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same, containers part by part; NaN equals NaN."""
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
            return False
        return torch.equal(a, b) or (
            a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        )
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.shape == b.shape and bool(np.array_equal(a, b))
    parts, others = children(a), children(b)
    if parts is not None and others is not None:
        if type(a) is not type(b) or len(parts) != len(others):
            return False
        if isinstance(a, Mapping) and list(a) != list(b):
            return False
        return all(equal(x, y) for (_, x), (_, y) in zip(parts, others, strict=True))
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:  # whatever a user's class does when it is compared
        return False
