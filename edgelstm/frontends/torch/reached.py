"""What a module's code can reach outside the module: attributes of its classes, variables of functions around them, and globals, of other
files of the user's too, that its methods, or what they call, name. What no such code names (data sets, open files, loggers of a
training script) is neither looked at nor copied."""

from __future__ import annotations

import inspect
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from edgelstm.frontends.torch.watch import is_users

_CODE = (type, nn.Module, types.ModuleType, types.FunctionType, classmethod, staticmethod, property)


@dataclass(frozen=True)
class Outside:
    """What is kept in one such place: what to call it, its value, and what puts another there."""

    text: str
    value: Any
    put: Callable[[Any], object]


def reached(module: nn.Module) -> Iterator[Outside]:
    """Everything that is no code, by what to call it."""
    return _Walk().of(module)


class _Walk:
    """From class to function to what they name; each once."""

    def __init__(self) -> None:
        self._seen: set[Any] = set()
        self._parts: set[int] = set()
        #: Functions yet to be read, and the class or function whose they are.
        self._waiting: deque[tuple[types.FunctionType, str]] = deque()

    def of(self, module: nn.Module) -> Iterator[Outside]:
        self._parts = {id(part) for part in module.modules()}
        for part in module.modules():
            yield from self._class(type(part))
        while self._waiting:
            function, owner = self._waiting.popleft()
            yield from self._function(function, owner)

    def _is_new(self, key: Any) -> bool:
        new = key not in self._seen
        self._seen.add(key)
        return new

    def _class(self, kind: type) -> Iterator[Outside]:
        for each in kind.__mro__:
            if _file_of(each) is None or not self._is_new(id(each)):
                continue
            for name, value in list(vars(each).items()):
                for function in _functions_in(value):
                    self._waiting.append((function, each.__name__))
                if not name.startswith("__") and _is_value(value):
                    text = f"{each.__name__}.{name} (an attribute of the class, not of the module)"
                    yield Outside(text, value, partial(setattr, each, name))

    def _function(self, function: types.FunctionType, owner: str) -> Iterator[Outside]:
        code = function.__code__
        if not is_users(code.co_filename) or not self._is_new(id(function)):
            return
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not given yet
                continue
            if self._is_new(id(cell)):
                text = f"{name!r} (a variable of the function round {owner})"
                yield from self._named(text, value, partial(setattr, cell, "cell_contents"), owner, ())
        names = _names(code)
        yield from _of_function(function)
        yield from self._among(function.__globals__, code.co_filename, names)

    def _among(self, space: dict[str, Any], file: str, names: frozenset[str]) -> Iterator[Outside]:
        """What is named of the globals of a file."""
        for name in sorted(names):
            if name in space and not name.startswith("__") and self._is_new((id(space), name)):
                text = f"{name!r} (a global of {Path(file).name})"
                yield from self._named(text, space[name], partial(space.__setitem__, name), name, names)

    def _named(
        self,
        text: str,
        value: Any,
        put: Callable[[Any], object],
        owner: str,
        names: frozenset[str] | tuple[()],
    ) -> Iterator[Outside]:
        if isinstance(value, types.ModuleType):
            file = getattr(value, "__file__", None)
            if file is not None and is_users(file):
                yield from self._among(vars(value), file, frozenset(names))
        elif isinstance(value, type):
            yield from self._class(value)
        else:
            self._waiting.extend((function, owner) for function in _functions_in(value))
            if _is_value(value):
                yield from self._class(type(value))
                yield Outside(text, value, put)
            elif not isinstance(value, _CODE) or isinstance(value, nn.Module):
                yield from self._object(text, value)

    def _object(self, text: str, value: Any) -> Iterator[Outside]:
        """What an object that can be called keeps; of a module that is no part of the one that is exported its buffers too."""
        if not hasattr(value, "__dict__") or id(value) in self._parts or not self._is_new(id(value)):
            return
        yield from self._class(type(value))
        kept = dict(vars(value)) if _file_of(type(value)) is not None else {}
        if isinstance(value, nn.Module):
            kept = {name: v for name, v in kept.items() if name[:1] != "_" and name != "training"}
            for name, buffer in list(value._buffers.items()):
                yield Outside(f"{name!r} of {text}", buffer, partial(value._buffers.__setitem__, name))
        for name, each in kept.items():
            if not name.startswith("__") and _is_value(each):
                yield Outside(f"{name!r} of {text}", each, partial(setattr, value, name))


def _file_of(kind: type) -> str | None:
    """The user's file that a class is from; None of others."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file if file is not None and is_users(file) else None


def _of_function(function: types.FunctionType) -> Iterator[Outside]:
    """Its attributes, and default arguments that can be written into."""
    called = function.__name__
    for name, value in list(vars(function).items()):
        if not name.startswith("__") and _is_value(value):
            yield Outside(
                f"{name!r} (an attribute of the function {called})", value, partial(setattr, function, name)
            )
    for k, value in enumerate(function.__defaults__ or ()):
        if _is_value(value) and not isinstance(value, bool | int | float | str | bytes | None):

            def put(new: Any, k: int = k) -> None:
                given = list(function.__defaults__ or ())
                given[k] = new
                function.__defaults__ = tuple(given)

            yield Outside(f"the default of argument {_argument(function, k)!r} of {called}", value, put)


def _argument(function: types.FunctionType, k: int) -> str:
    """The name of the argument whose default is the ``k``-th."""
    code = function.__code__
    return code.co_varnames[code.co_argcount - len(function.__defaults__ or ()) + k]


def _functions_in(value: Any) -> list[types.FunctionType]:
    """The function that stands behind a method, property or decorated function, if one does."""
    parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
    found = []
    for part in parts:
        function = getattr(part, "__func__", part)
        if callable(function):
            found += [f for f in (function, inspect.unwrap(function)) if isinstance(f, types.FunctionType)]
    return found


def _names(code: types.CodeType) -> frozenset[str]:
    """Globals and attributes that the code, and functions inside it, name."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*map(_names, inner))


def _is_value(value: Any) -> bool:
    return not isinstance(value, _CODE) and not callable(value)
