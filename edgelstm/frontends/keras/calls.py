"""How a functional model calls its layers: the tensors, and the arguments beside them, as Keras 3 and Keras 2 write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras.options import is_off

#: Layer, number of its call, number of the output.
Ref = tuple[str, int, int]
#: Numbers of one constant in a configuration.
MAX_CONSTANT = 2**20
#: Before a constant that stands for the first tensor, in files of Keras 2.
_CONSTANT = "_CONSTANT_VALUE"


@dataclass(frozen=True)
class Slot:
    """In place of a tensor: its number among those the call takes."""

    number: int


@dataclass(frozen=True)
class Dots:
    """An ellipsis in an index."""


@dataclass(frozen=True)
class Arguments:
    """One call: what it gives, tensors replaced by Slots, and the tensors."""

    args: tuple[Any, ...]
    keywords: Mapping[str, Any]
    refs: tuple[Ref, ...]

    def named(self, what: str, names: Sequence[str]) -> dict[str, Any]:
        """All arguments by name, where ``names`` are the parameters in order."""
        if len(self.args) > len(names):
            raise EdgeLstmError(
                f"{what}: arguments of its call", found=len(self.args), expected=", ".join(names)
            )
        found = dict(zip(names, self.args, strict=False))
        for key, value in self.keywords.items():
            if key in names:
                found[key] = value
            elif not is_off(value):
                raise EdgeLstmError(
                    f"{what} is called with {key!r}", found=str(value)[:80], expected=", ".join(names)
                )
        return found


def read_call(what: str, node: Any) -> Arguments:
    """The arguments of one node of a layer."""
    refs: list[Ref] = []

    def tensor(name: Any, number: Any, output: Any) -> Slot:
        refs.append((str(name), int(number), int(output)))
        return Slot(len(refs) - 1)

    if not isinstance(node, list):
        read = _reader(what, tensor, old=False)
        args = tuple(read(argument) for argument in node["args"])
        keywords = {str(key): read(value) for key, value in (node.get("kwargs") or {}).items()}
        return Arguments(args, keywords, tuple(refs))
    # Keras 2: [name, node, tensor, keywords] for the first argument, or a list of such.
    read = _reader(what, tensor, old=True)
    single = bool(node) and isinstance(node[0], str)
    items = [node] if single else node
    first: list[Any] = []
    found: dict[str, Any] = {}
    for item in items:
        known = str(item[0]) != _CONSTANT
        first.append(tensor(*item[:3]) if known else read(item[2]))
        if len(item) > 3 and isinstance(item[3], Mapping) and not found:
            found = {str(key): read(value) for key, value in item[3].items()}
    args = (first[0],) if len(first) == 1 else (first,)
    return Arguments(args, found, tuple(refs))


def _reader(what: str, tensor: Callable[[Any, Any, Any], Slot], *, old: bool) -> Callable[[Any], Any]:
    """Values of a configuration as Python's and NumPy's."""

    def read(value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            if len(value) == 3 and isinstance(value[0], str) and old:
                return read(value[2]) if value[0] == _CONSTANT else tensor(*value)
            return [read(item) for item in value]
        if not isinstance(value, Mapping):
            raise EdgeLstmError(f"{what} is called with what is unknown", found=str(value)[:80])
        kind, config = value.get("class_name"), value.get("config")
        if kind is None and set(value) <= {"start", "stop", "step"}:
            return slice(*(_bound(what, read(value.get(k))) for k in ("start", "stop", "step")))
        if kind == "__keras_tensor__":
            return tensor(*value["config"]["keras_history"])
        if kind == "__slice__" and isinstance(config, Mapping):
            return slice(*(_bound(what, read(config.get(k))) for k in ("start", "stop", "step")))
        if kind == "__ellipsis__":
            return Dots()
        if kind == "__tuple__":
            return [read(item) for item in value.get("items") or (config or {}).get("items") or []]
        if kind in ("__numpy__", "__tensor__") and isinstance(config, Mapping):
            return _array(what, config.get("value"), config.get("dtype"))
        raise EdgeLstmError(
            f"{what} is called with what is unknown",
            found=str(kind or value)[:80],
            expected="tensors, numbers, slices and arrays",
        )

    return read


def _bound(what: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise EdgeLstmError(f"{what}: a slice", found=str(value)[:80], expected="whole numbers")
    return value


def _array(what: str, value: Any, dtype: Any) -> Any:
    try:
        array = np.array(value, dtype=str(dtype or "float32"))
    except (TypeError, ValueError) as error:
        raise EdgeLstmError(f"{what}: a constant", found=str(error)[:80], expected="an array") from error
    if array.dtype.kind not in "fiub" or math.prod(array.shape) > MAX_CONSTANT:
        raise EdgeLstmError(
            f"{what}: a constant",
            found=f"{array.dtype}{list(array.shape)}",
            expected=f"at most {MAX_CONSTANT} numbers",
        )
    return array
