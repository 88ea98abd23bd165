"""What the fixture ``run`` of conftest.py gives: a command as the console script calls it."""

from __future__ import annotations

from collections.abc import Callable

#: Arguments -> exit code, standard output, standard error.
Run = Callable[..., tuple[int, str, str]]
