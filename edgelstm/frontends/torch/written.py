"""What a module writes at every call though it happens to change nothing: a latch that no frame has set yet, a count of what is rare.

Values that were looked at before and after a call don't tell; that somebody wrote them does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from edgelstm.frontends.torch.snapshot import Place, values
from edgelstm.frontends.torch.tree import tensors_in


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


@contextmanager
def assignments(module: nn.Module) -> Iterator[list[Place]]:
    """Attributes of ``module`` and its parts that are given a number, a True or a False while this lasts."""
    paths = {id(part): path for path, part in module.named_modules()}
    found: list[Place] = []
    usual = nn.Module.__setattr__

    def noted(self: nn.Module, name: str, value: Any) -> None:
        if id(self) in paths and type(value) in (bool, int, float) and not _of_torch(self):
            place = Place(paths[id(self)], name)
            if place not in found:
                found.append(place)
        usual(self, name, value)

    nn.Module.__setattr__ = noted  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        nn.Module.__setattr__ = usual  # type: ignore[method-assign]


def other(value: float) -> float:
    """Another number than ``value``, of its type."""
    return not value if isinstance(value, bool) else value + 1


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _numbers_only(value: Any) -> bool:
    return type(value) in (bool, int, float, str) or value is None


def _of_torch(part: nn.Module) -> bool:
    return type(part).__module__.partition(".")[0] == "torch"
