"""Waiting for a pipe or a socket. ``select.select`` takes no number of a file above 1023, and a service of many streams has such."""

from __future__ import annotations

import selectors
from typing import Any

_Selector: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)


def readable(file: Any, seconds: float) -> bool:
    """Whether there is something to read, or its end, within so many seconds. file: a number, or an object that has one."""
    return _is_ready(file, selectors.EVENT_READ, seconds)


def writable(file: Any, seconds: float) -> bool:
    """Whether it takes something, or refuses to, within so many seconds."""
    return _is_ready(file, selectors.EVENT_WRITE, seconds)


def _is_ready(file: Any, what: int, seconds: float) -> bool:
    with _Selector() as selector:
        selector.register(file, what)
        return bool(selector.select(seconds))
