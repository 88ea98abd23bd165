"""What a module keeps where no attribute of its own shows it: globals of its file, attributes of its class, variables of a function around it."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgelstm.frontends.torch.snapshot import copied, equal
from edgelstm.frontends.torch.watch import is_users
from edgelstm.frontends.torch.written import marked, parts_of, put_there, with_another

_CODE = (type, nn.Module, types.ModuleType, types.FunctionType, classmethod, staticmethod, property)


@dataclass(frozen=True)
class Outside:
    """What is kept in one such place: what to call it, its value, and what puts another there."""

    text: str
    value: Any
    put: Callable[[Any], object]


def changed_outside(module: nn.Module, call: Callable[[], object]) -> list[str]:
    """In words, what is another after ``call()`` than before, where it is kept outside the module itself."""
    before = {one.text: copied(one.value) for one in _values(module)}
    call()
    return [
        one.text for one in _values(module) if one.text in before and not equal(one.value, before[one.text])
    ]


def written_outside(module: nn.Module, call: Callable[[], list[Tensor]]) -> str | None:
    """In words, what each ``call()`` writes outside the module, though its value may stay the same, and goes by itself: a latch that no frame
    has set yet. None where there is none; everything is as it was afterwards."""
    places = [
        one for one in _values(module) if any(map(_is_number, parts_of(one.value))) and _can_be_put(one)
    ]
    if not places:
        return None

    def given(start: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
        """What comes back where that is kept, and what is there then."""
        try:
            for one in places:
                one.put(start[one.text])
            results = [result.clone() for result in call()]
            return results, {one.text: one.value for one in _values(module)}
        finally:
            for one in places:
                one.put(one.value)

    def copies() -> dict[str, Any]:
        return {one.text: copied(one.value) for one in places}

    usual, _ = given(copies())
    start = {text: marked(value) for text, value in copies().items()}
    before = {text: [(part, _version(part)) for part in parts_of(value)] for text, value in start.items()}
    _, after = given(start)
    for one in places:
        parts = parts_of(after.get(one.text))
        numbers = put_there(after.get(one.text))
        if len(parts) != len(before[one.text]):  # it grows, say: others look at that
            continue
        for k, ((old, version), new) in enumerate(zip(before[one.text], parts, strict=True)):
            written = isinstance(old, Tensor) and (new is not old or _version(new) != version)
            if not written and not (isinstance(old, bool | int | float) and k in numbers):
                continue
            results, _ = given(copies() | {one.text: with_another(copied(one.value), k)})
            if not _alike(usual, results):
                again, _ = given(copies())  # of what draws numbers nothing is shown by that
                return one.text if _alike(usual, again) else None
    return None


def _alike(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(equal, a, b))


def _can_be_put(one: Outside) -> bool:
    """Whether another value can stand there at all: not in an enumeration."""
    try:
        one.put(one.value)
    except (AttributeError, TypeError):
        return False
    return True


def _is_number(part: Any) -> bool:
    return isinstance(part, Tensor) or type(part) in (bool, int, float)


def _version(part: Any) -> int:
    return part._version if isinstance(part, Tensor) and not part.is_inference() else 0


def _values(module: nn.Module) -> Iterator[Outside]:
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
                    text = f"{kind.__name__}.{name} (an attribute of the class, not of the module)"
                    yield Outside(text, value, partial(setattr, kind, name))
            forward = inspect.unwrap(vars(kind).get("forward", kind))
            if not isinstance(forward, types.FunctionType):
                continue
            for name, cell in zip(forward.__code__.co_freevars, forward.__closure__ or (), strict=True):
                try:
                    value = cell.cell_contents
                except ValueError:  # not given yet
                    continue
                if _is_value(value):
                    text = f"{name!r} (a variable of the function round {kind.__name__})"
                    yield Outside(text, value, partial(setattr, cell, "cell_contents"))
            if id(forward.__globals__) not in seen:
                seen.add(id(forward.__globals__))
                for name, value in list(forward.__globals__.items()):
                    if not name.startswith("__") and _is_value(value):
                        text = f"{name!r} (a global of {Path(file).name})"
                        yield Outside(text, value, partial(forward.__globals__.__setitem__, name))


def _is_value(value: Any) -> bool:
    return not isinstance(value, _CODE) and not callable(value)
