"""The one error class of the package."""

from __future__ import annotations

from collections.abc import Iterable

#: Names that a message lists at most.
LISTED = 5


def some(names: Iterable[object]) -> str:
    """The first few of ``names``, and how many more there are: nobody reads the names of 312 tensors."""
    every = [str(name) for name in names]
    more = len(every) - LISTED
    return ", ".join(every[:LISTED]) + (f" and {more} more" if more > 0 else "")


def count_of(number: int, one: str, many: str | None = None) -> str:
    """``1 frame``, ``2 frames``; ``many`` where an s does not make it."""
    return f"{number} {one if number == 1 else many or one + 's'}"


class EdgeLstmError(Exception):
    """Something the user can act on.

    Parameters
    ----------
    what: the file, tensor, stream or option that is wrong, and in which way.
    found: what was there.
    expected: what should have been there.
    hint: what to do about it.

    The command line prints ``str(error)`` on one line and exits with code 2.
    """

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.found = found
        self.expected = expected
        self.hint = hint
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what
        if self.found is not None:
            text += f": found {self.found}"
        if self.expected is not None:
            text += f"{';' if self.found is not None else ':'} expected {self.expected}"
        if self.hint:
            text += f". {self.hint}"
        return text
