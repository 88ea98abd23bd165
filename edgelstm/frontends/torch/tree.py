"""What modules take and give back, however it is nested: tensors in order, and the way back to the same nesting.

Beyond what ``torch.utils._pytree`` knows: subclasses of tuple, dataclasses, plain objects, deques. What is no tensor stays as
it is. Nothing here depends on a class being registered anywhere.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Size, Tensor, nn

_STDLIB = sysconfig.get_path("stdlib")
#: Nested deeper than this nothing is looked for.
MAX_DEPTH = 12


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A tensor and the keys that lead to it."""

    path: tuple[Any, ...]
    tensor: Tensor

    @property
    def name(self) -> str | None:
        """The innermost key that is a name."""
        return next((key for key in reversed(self.path) if isinstance(key, str)), None)


@dataclasses.dataclass(frozen=True)
class _Slot:
    number: int


class Tree:
    """A nesting without its tensors."""

    def __init__(self, template: Any, count: int) -> None:
        self.template, self.count = template, count

    def __deepcopy__(self, memo: dict[int, Any]) -> Tree:
        """Itself: nothing changes it."""
        return self

    def build(self, tensors: Sequence[Any]) -> Any:
        """The same nesting round other tensors."""
        return mapped(
            self.template, lambda value: tensors[value.number] if isinstance(value, _Slot) else value
        )


def flatten(value: Any) -> tuple[list[Tensor], Tree]:
    """The tensors in ``value``, in order, and how it nests them."""
    found: list[Tensor] = []

    def take(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        found.append(item)
        return _Slot(len(found) - 1)

    template = mapped(value, take)
    return found, Tree(template, len(found))


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in ``value``, in order."""
    return [leaf.tensor for leaf in leaves(value)]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[Leaf]:
    """The tensors in ``value``, in order, with the keys that lead to each."""
    if isinstance(value, Tensor):
        return [Leaf(path, value)]
    parts = children(value) if len(path) < MAX_DEPTH else None
    return [leaf for key, part in parts or () for leaf in leaves(part, (*path, key))]


def numbers_in(value: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], float]:
    """Python's own numbers in ``value``, by the keys that lead to each."""
    if type(value) in (int, float, bool):
        return {path: value}
    parts = children(value) if len(path) < MAX_DEPTH else None
    return {p: n for key, part in parts or () for p, n in numbers_in(part, (*path, key)).items()}


def children(value: Any) -> list[tuple[Any, Any]] | None:
    """Keys and parts of a container; None for anything else."""
    if isinstance(value, _Slot):
        return None
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, Size):  # of whole numbers: nothing to look for, and it takes nothing else
        return None
    if isinstance(value, tuple | list | deque):
        return list(enumerate(value))
    if _is_record(value):
        return list(vars(value).items())
    return None


def mapped(value: Any, change: Callable[[Any], Any], depth: int = 0) -> Any:
    """``value`` with every part that is no container changed; containers are new ones of the same class."""
    parts = children(value) if depth < MAX_DEPTH else None
    if parts is None:
        return change(value)
    copied: Any = None if isinstance(value, tuple | deque) or type(value) is list else _shell(value)
    if copied is value:
        return change(value)
    made = [mapped(part, change, depth + 1) for _, part in parts]
    if type(value) in (tuple, list):
        return type(value)(made)
    if isinstance(value, deque):
        return deque(made, value.maxlen)
    if isinstance(value, tuple):
        new = tuple.__new__(type(value), made)
        if hasattr(value, "__dict__"):
            vars(new).update(vars(value))
        return new
    if isinstance(value, list):
        copied[:] = made
        return copied
    for (key, _), part in zip(parts, made, strict=True):
        if isinstance(value, Mapping):
            copied[key] = part
        else:
            object.__setattr__(copied, key, part)
    return copied


def _shell(value: Any) -> Any:
    """A copy to be filled; the value itself where it can't be copied, or is the only one of its kind."""
    try:
        return copy.copy(value)
    except Exception:  # whatever a user's class raises
        return value


def _is_record(value: Any) -> bool:
    """A dataclass or an object of a plain class, which holds tensors and is none itself."""
    if isinstance(value, type | nn.Module | Tensor) or callable(value) or not hasattr(value, "__dict__"):
        return False
    if dataclasses.is_dataclass(value):
        return True
    if type(value) in (SimpleNamespace, argparse.Namespace):
        return True
    root = type(value).__module__.partition(".")[0]
    if (
        root in sys.stdlib_module_names
    ):  # files, loggers, locks hold no tensors; unless it is a file of the user's of the same name
        file = getattr(sys.modules.get(root), "__file__", None)
        return file is not None and not file.startswith(_STDLIB)
    return root not in ("torch", "numpy")


def describe(value: Any) -> str:
    """Types and shapes, in one line."""
    if isinstance(value, Tensor):
        return f"Tensor{list(value.shape)}"
    parts = children(value)
    if parts is None:
        return "None" if value is None else type(value).__name__
    named = any(isinstance(key, str) for key, _ in parts)
    texts = [f"{key!r}: {describe(part)}" if named else describe(part) for key, part in parts[:6]]
    inner = ", ".join(texts) + (", ..." if len(parts) > 6 else "")
    left, right = "{}" if named else "()" if isinstance(value, tuple) else "[]"
    return left + inner + right
