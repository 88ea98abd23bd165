"""What every command does before it parses: old names of options become today's, ``example:`` becomes a path, and an option given
twice is an error.

Kinds of sources and sinks in help texts come from their tables, which are loaded only where help is shown.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from importlib import import_module
from typing import Any

from typer.core import TyperCommand

from edgelstm.errors import EdgeLstmError

#: Names that options had: still taken, not shown. One name for one thing: --output, --limit, --runtime, --gpu.
OLD_NAMES = {
    "run": {"--out": "--output"},
    "export": {"--steps": "--limit", "--lower": "--runtime"},
    "verify": {"--steps": "--limit"},
    "calibrate": {"--target": "--runtime", "--frames": "--limit"},
    "quantize": {"--target": "--runtime", "--steps": "--limit"},
    "build-engine": {"--target": "--gpu"},
    "build-plugin": {"--arch": "--gpu", "--source": "--plugins"},
}


#: Marks in help texts, and the module whose ``KINDS`` stand there.
KINDS = {"{sources}": "edgelstm.pipeline.sources", "{sinks}": "edgelstm.pipeline.sinks"}


#: A file that comes with the package: alone, as an option's value, behind the name of a stream.
EXAMPLE = re.compile(r"((?:--[\w-]+=)?(?:[\w-]+=)?)(example:.+)")


def _example(argument: str) -> str:
    found = EXAMPLE.fullmatch(argument)
    if found is None:
        return argument
    from edgelstm.workflows.shipped import shipped

    return found[1] + shipped(found[2])


def fill_help(command: Any) -> None:
    """Put what the tables say in place of the marks in a command's help texts."""
    for parameter in command.params:
        for mark, module in KINDS.items():
            text = getattr(parameter, "help", None) or ""
            if mark in text:
                kinds = str(import_module(module).KINDS)
                parameter.help = text.replace(mark, kinds[0].upper() + kinds[1:])


#: Larger whole numbers are slips of the finger, and more than the libraries below take.
LARGEST = 2**31 - 1


def _check_number(option: Any, value: Any) -> None:
    """Raise EdgeLstmError for what no option means: NaN, infinity, numbers without end."""
    if isinstance(value, float) and not math.isfinite(value):
        raise EdgeLstmError(option.opts[0], found=value, expected="a finite number")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise EdgeLstmError(option.opts[0], found=value, expected=f"at most {LARGEST}")


class Command(TyperCommand):
    """A command whose options are looked at before they are parsed."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """See :func:`fill_help`."""
        fill_help(self)
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See the module; raises EdgeLstmError for an option that takes one value and has two."""
        today = [_example(self._renamed(a)) for a in args]
        given: Counter[str] = Counter()
        takes_next = False
        options = {
            name: p
            for p in self.params
            if p.param_type_name == "option"
            for name in (*p.opts, *p.secondary_opts)
        }
        for argument in today:
            if takes_next:
                takes_next = False
                continue
            if argument == "--":
                break
            name, equals, _ = argument.partition("=")
            option: Any = options.get(name)
            if option is None or option.is_flag:
                continue
            takes_next = not equals
            given[option.opts[0]] += 1
            if given[option.opts[0]] > 1 and not option.multiple:
                raise EdgeLstmError(f"{name} is given twice", expected="once: it takes one value")
        parsed: list[str] = super().parse_args(ctx, today)
        for option in self.params:
            value = ctx.params.get(option.name)
            for number in value if isinstance(value, list | tuple) else (value,):
                _check_number(option, number)
        return parsed

    def _renamed(self, argument: str) -> str:
        name, equals, value = argument.partition("=")
        return OLD_NAMES.get(self.name or "", {}).get(name, name) + equals + value
