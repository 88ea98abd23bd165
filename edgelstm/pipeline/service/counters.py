"""What happened to a stream, counted under plain words."""

from __future__ import annotations

import threading
from collections import Counter

#: Counted every frame, each by one thread alone, and so without a lock.
_EVERY_FRAME = ("read", "stepped")


class Counts:
    """Counters of one stream; any thread may add.

    read: frames that its source gave. stepped: frames that went through the model. dropped:REASON: frames that did not.
    left_out:REASON: what a source came by and never gave.
    filled: steps with a frame that stood in for a missing one. reset:CAUSE, rolled_back:CAUSE: what was done to the state.
    delivered, undelivered:REASON: outputs at a sink. lost, returned: the source.

    Every frame read is stepped, dropped for one reason, still queued, or waiting for its window to fill.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        #: The source's thread adds to this one, and the loop's to the next.
        self.read = 0
        self.stepped = 0

    def add(self, name: str, count: int = 1) -> int:
        """Count; gives the new number."""
        with self._lock:
            self._counts[name] += count
            return self._counts[name]

    def __getitem__(self, name: str) -> int:
        with self._lock:
            return self._counts[name] + (getattr(self, name) if name in _EVERY_FRAME else 0)

    def total(self, kind: str) -> int:
        """Of all ``kind:...`` together."""
        with self._lock:
            return sum(n for name, n in self._counts.items() if name.startswith(kind + ":"))

    def load(self, counts: dict[str, int]) -> None:
        """Go on from ``counts``."""
        with self._lock:
            self._counts.update(counts)

    def to_json(self) -> dict[str, int]:
        """JSON-ready, in the order of the alphabet."""
        with self._lock:
            counts = self._counts.copy()
        for name in _EVERY_FRAME:
            counts[name] += getattr(self, name)
        return {name: counts[name] for name in sorted(counts) if counts[name]}


def is_worth_a_line(count: int) -> bool:
    """The 1st, 10th, 100th, ... of a kind: a fault in every frame must not fill the disk."""
    while count >= 10 and count % 10 == 0:
        count //= 10
    return count == 1
