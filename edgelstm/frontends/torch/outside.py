"""What a module keeps where no attribute of its own shows it: globals, attributes of its class, variables of a function around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from edgelstm.frontends.torch.reached import Outside, reached
from edgelstm.frontends.torch.snapshot import copied, equal
from edgelstm.frontends.torch.written import marked, parts_of, put_there, with_another


def changed_outside(module: nn.Module, call: Callable[[], object]) -> list[str]:
    """In words, what is another after ``call()`` than before, where it is kept outside the module itself."""
    before = {one.text: copied(one.value) for one in reached(module)}
    call()
    return [
        one.text for one in reached(module) if one.text in before and not equal(one.value, before[one.text])
    ]


def written_outside(module: nn.Module, call: Callable[[], list[Tensor]]) -> str | None:
    """In words, what each ``call()`` writes outside the module, though its value may stay the same, and goes by itself: a latch that no frame
    has set yet. None where there is none; everything is as it was afterwards."""
    places = [
        one for one in reached(module) if any(map(_is_number, parts_of(one.value))) and _can_be_put(one)
    ]
    if not places:
        return None

    def given(start: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
        """What comes back where that is kept, and what is there then."""
        try:
            for one in places:
                one.put(start[one.text])
            results = [result.clone() for result in call()]
            return results, {one.text: one.value for one in reached(module)}
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
