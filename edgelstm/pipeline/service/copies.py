"""Outputs to keep: large ones go into memory that was used for earlier ones, once nobody holds these any more."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping

import numpy as np

from edgelstm.runtime.protocol import Array

#: Bytes from which on new memory costs more than the copy: the system hands it out page by page, zeroed.
LARGE = 128 * 1024
#: Arrays of an output that are kept for that; where sinks hold more, further ones are new.
KEPT = 4


def _holders(kept: deque[Array]) -> int:
    """References to the first array, the queue's own among them; what counting adds differs from Python to Python."""
    return sys.getrefcount(kept[0])


#: Of one that nobody else holds.
_ALONE = _holders(deque([np.empty(0)]))


class Copies:
    """Of one stream's outputs."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[Array]] = {}

    def of(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Copies that stay as they are for as long as anyone holds them, or a view of them."""
        return {n: a.copy() if a.nbytes < LARGE else self._large(n, a) for n, a in outputs.items()}

    def _large(self, name: str, array: Array) -> Array:
        kept = self._kept.setdefault(name, deque(maxlen=KEPT))
        for _ in range(len(kept)):
            alone = _holders(kept) <= _ALONE
            found = kept.popleft()
            if alone and found.shape == array.shape and found.dtype == array.dtype:
                np.copyto(found, array)
                kept.append(found)
                return found
            if not alone:
                kept.append(found)
        made: Array = array.copy()
        kept.append(made)
        return made
