"""What a module writes at every call though it happens to change nothing: a latch that no frame has set yet, a count of what is rare.

Values that were looked at before and after a call don't tell; that somebody wrote them does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.frontends.torch.snapshot import Place, values
from edgelstm.frontends.torch.tree import mapped, tensors_in


class Marks:
    """Which tensors a module keeps at one moment, and how often each has been written to."""

    def __init__(self, module: nn.Module) -> None:
        self._found = {
            place: [(t, _version(t)) for t in tensors_in(value)]
            for place, value in values(module)
            if not _numbers_only(value) and not _of_torch(module.get_submodule(place.path))
        }

    def written(self, before: Marks) -> list[Place]:
        """What was written since: in place, or by another tensor put there."""
        return [
            place
            for place, tensors in self._found.items()
            if place in before._found
            and len(tensors) == len(before._found[place])
            and any(
                a is not b or m != n for (a, m), (b, n) in zip(tensors, before._found[place], strict=True)
            )
        ]


class _Whole(int):
    """A whole number, a True or a False that was put in the place of an equal one."""

    __slots__ = ()


class _Real(float):
    """A float likewise."""

    __slots__ = ()


def marked(value: Any) -> Any:
    """``value`` with each number of Python's in it by an equal one that can be told from what a call puts there."""

    def change(item: Any) -> Any:
        if type(item) in (bool, int):
            return _Whole(item)
        return _Real(item) if type(item) is float else item

    return mapped(value, change)


def put_there(value: Any) -> list[int]:
    """Which of the parts of ``value`` are numbers that were put there since it was marked."""
    return [k for k, part in enumerate(parts_of(value)) if type(part) in (bool, int, float)]


def parts_of(value: Any) -> list[Any]:
    """What is no container in ``value``, in order."""
    found: list[Any] = []

    def take(item: Any) -> Any:
        found.append(item)
        return item

    mapped(value, take)
    return found


def with_another(value: Any, k: int) -> Any:
    """``value`` with another number, or a tensor of others, of the same type, as its part ``k``."""
    count = iter(range(len(parts_of(value))))

    def change(item: Any) -> Any:
        if next(count) != k:
            return item
        if isinstance(item, Tensor) and item.dtype == torch.bool:
            return ~item
        return not item if isinstance(item, bool) else item + 1

    return mapped(value, change)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _numbers_only(value: Any) -> bool:
    return type(value) in (bool, int, float, str) or value is None


def _of_torch(part: nn.Module) -> bool:
    return type(part).__module__.partition(".")[0] == "torch"
