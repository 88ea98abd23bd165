"""What sinks share that deliver over a network: outputs that could not be delivered, waits that end, connections for several streams."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sources.source import Frame

T = TypeVar("T")
#: Seconds from one look at ``stop`` to the next while something else is waited for.
LOOK = 0.1


class Undelivered(EdgeLstmError):
    """These outputs are lost, and the sink goes on. reason: one word, under which they are counted (``undelivered:REASON``). count: at the
    sink's end, how many of those that were taken are not known to have arrived."""

    def __init__(self, what: str, reason: str, *, found: object = None, count: int = 0) -> None:
        super().__init__(what, found=found)
        self.reason, self.count = reason, count


def wait_for(
    changed: threading.Condition,
    ready: Callable[[], bool],
    stop: threading.Event,
    seconds: float | None = None,
) -> bool:
    """Wait, ``changed`` held, until ``ready()``; False when ``stop`` was set before that, or ``seconds`` are over."""
    until = math.inf if seconds is None else time.monotonic() + seconds
    while not ready():
        if stop.is_set() or time.monotonic() >= until:
            return False
        changed.wait(LOOK)
    return True


@dataclass
class _Entry:
    manager: AbstractContextManager[Any]
    opened: Any
    users: int = 0


_entries: dict[Hashable, _Entry] = {}
_lock = threading.Lock()


@contextmanager
def shared(key: Hashable, make: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """One connection or server for all that name the same ``key``: opened for the first, closed behind the last.

    So the streams of a file that go to one broker, or are shown on one port, need one of them.
    """
    with _lock:
        entry = _entries.get(key)
        if entry is None:
            manager = make()
            entry = _entries[key] = _Entry(manager, manager.__enter__())
        entry.users += 1
    try:
        yield entry.opened
    finally:
        with _lock:
            entry.users -= 1
            last = entry.users == 0
            if last:
                del _entries[key]
        if last:
            entry.manager.__exit__(None, None, None)


def stream_name(frame: Frame) -> str:
    """Of the stream, ``stream`` where there is but one without a name."""
    return "stream" if frame.stream is None else frame.stream


def as_level(name: str) -> str:
    """A name as one level of a path or topic: what would be another level, a wildcard or white space is percent-encoded, so that two names
    are two levels."""
    return re.sub(r"[/\\+#?%\s\x00-\x1f\x7f]", lambda found: quote(found[0], safe=""), name)


def in_path(template: str, frame: Frame) -> str:
    """``template`` with ``{stream}`` in place, :func:`as_level`."""
    return template.replace("{stream}", as_level(stream_name(frame)))


def in_url(path: str) -> str:
    """A path as it stands in a URL: what is percent-encoded already stays."""
    return quote(path, safe="/%?&=:@!$'()*+,;~-._")
