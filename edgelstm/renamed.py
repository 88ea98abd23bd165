"""Arguments that had other names: still taken, with a DeprecationWarning. The command line's are in ``cli/command.py``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed(**today: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function whose argument ``today[name]`` was called ``name``."""

    def around(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in today.keys() & kwargs.keys():
                new = today[old]
                if new in kwargs:
                    raise TypeError(
                        f"{function.__name__}() got {old!r} and {new!r}, two names of one argument"
                    )
                warnings.warn(
                    f"{function.__name__}({old}=) is called {new}= now", DeprecationWarning, stacklevel=2
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return around
