"""How a message names what a user may set: as an option of the commands, or as a key of a pipeline file."""

from __future__ import annotations

from collections.abc import Callable

#: Of a name and a value, what to write where the message is read.
Say = Callable[[str, object], str]


def as_option(name: str, value: object) -> str:
    """``--hop 1``, ``--preprocess 'grey'``."""
    return f"--{name} " + (f"'{value}'" if isinstance(value, str) else str(value))


def as_key(name: str, value: object) -> str:
    """``hop = 1``, ``preprocess = "grey"``."""
    return f"{name} = " + (f'"{value}"' if isinstance(value, str) else str(value))


def at_export(name: str, value: object) -> str:
    """Of a model that can be told nothing where it is run: ``export it with --preprocess 'grey'``."""
    return f"export it with {as_option(name, value)}"


def of_input(say: Say, name: str) -> Say:
    """The same for one of several inputs of a model."""
    return lambda option, value: say(option, f"{name}:{value}" if option == "preprocess" else value)
