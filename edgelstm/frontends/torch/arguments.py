"""The arguments of a forward: which take the frames, which the states, which say how many frames or streams there are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgelstm.errors import count_of
from edgelstm.frontends.torch.torch_step import Arguments, Form

#: What people call the argument that takes states.
STATE_NAME = re.compile(
    r"state|hidden|hx|hc|carry|memor|^h(_?0|_in|_?prev|_?t)?$|^c(_?0|_in|_?prev|_?t)?$|prev|cache|^rnn_h"
)
#: What people call an argument that says how many frames there are, and one that says how many streams.
_LENGTH = re.compile(
    r"^(t|time|steps?|frames?|length)$|seq|time_?steps?|n_?(steps|frames)|num_(steps|frames)|(win|window)_(len|size)"
)
_BATCH = re.compile(
    r"^(b|bs|bsz|n|batch)$|batch_?size|^n_?(batch|streams|envs)|num_(envs|streams|batch)|^batch_?n"
)
#: Keys under which mappings hold states.
STATE_KEYS = ("rnn_states", "states", "state", "hidden", "hidden_states", "hidden_state", "memory")


@dataclass(frozen=True)
class Parameter:
    """One argument of forward; ``default`` of one that has none is not None but ``required``."""

    name: str
    required: bool
    default: Any = None
    by_place: bool = True

    @property
    def may_count(self) -> bool:
        """Whether it may be a number of something."""
        return self.required or self.default is None or (type(self.default) is int)


def parameters(module: nn.Module) -> tuple[list[Parameter], bool]:
    """The arguments of forward, and whether it takes any number of them."""
    source = vars(module).get("script_source")
    script = module if source is None else source.script
    if isinstance(script, torch.jit.ScriptModule):
        schema: Any = getattr(getattr(script, "forward", None), "schema", None)
        if schema is None:
            return [], True
        arguments = schema.arguments[1:]
        return [Parameter(a.name, not a.has_default_value(), a.default_value) for a in arguments], False
    try:
        found = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return [], True
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [
        Parameter(p.name, p.default is p.empty, None if p.default is p.empty else p.default, p.kind in kinds)
        for p in found
        if p.kind in (*kinds, inspect.Parameter.KEYWORD_ONLY)
    ]
    return named, any(p.kind == p.VAR_POSITIONAL for p in found)


def unfilled(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> str | None:
    """Why these arguments can't be forward's; None if they can."""
    named, any_number = parameters(module)
    placed = [p for p in named if p.by_place]
    if len(args) > len(placed) and not any_number:
        return f"takes {count_of(len(placed), 'argument')}"
    filled = {p.name for p in placed[: len(args)]}
    if twice := filled & kwargs.keys():
        return f"takes {sorted(twice)[0]!r} once"
    if missing := [p.name for p in named if p.required and p.name not in filled and p.name not in kwargs]:
        return f"also needs {', '.join(map(repr, missing))}"
    return None


def forms(
    module: nn.Module, frames: Sequence[str], count: int, keys: Sequence[str], batch_first: bool | None
) -> Iterator[Form]:
    """Every way to call ``module`` with these frames and so many states (called ``keys``), the usual ones first."""
    named, any_number = parameters(module)
    by_name = len(frames) > 1 and set(frames) <= {p.name for p in named}
    by_name &= [p.name for p in named[: len(frames)]] != list(frames)
    rest = [p for p in named if p.name not in frames] if by_name else named[len(frames) :]
    frame_names = tuple(frames) if by_name else None
    ways = list(_ways(rest, count, keys, by_name, any_number))
    times: list[int | None] = [None] if batch_first is None else []
    if batch_first is None:
        batch_first = getattr(module, "batch_first", None)
    times += [time for time in (1, 0) if batch_first in (None, time == 1)]
    for time in times:
        for arguments, keyword, state_names in ways:
            used = {keyword, *(state_names or ())}
            if state_names is None and keyword is None:
                used |= {p.name for p in rest[: 1 if arguments == "nested" else count]}
            left = [p for p in rest if p.name not in used and p.may_count]
            lengths = tuple(p.name for p in left if _LENGTH.search(p.name.lower()) and _is_count(p))
            batches = tuple(p.name for p in left if _BATCH.search(p.name.lower()) and p.name not in lengths)
            needed = {p.name for p in left if p.required}
            if not needed:
                yield Form(arguments, time, keyword, frame_names, state_names)
            if lengths or batches:
                yield Form(arguments, time, keyword, frame_names, state_names, lengths, batches)
            unfilled_states = needed.difference(lengths, batches)
            if (
                not count
                and unfilled_states
                and all(STATE_NAME.search(name.lower()) for name in unfilled_states)
            ):
                nones = tuple(p.name for p in left if p.name in unfilled_states)
                yield Form(arguments, time, keyword, frame_names, state_names, lengths, batches, nones)
        if len(named) == 1 and tuple(frames) != ("x",):
            for key in dict.fromkeys((*(keys if len(keys) == 1 else ()), *STATE_KEYS)) if count else (None,):
                yield Form("mapping", time, key, tuple(frames))


def _is_count(parameter: Parameter) -> bool:
    return parameter.required or type(parameter.default) is int or parameter.default is None


def _ways(
    rest: Sequence[Parameter], count: int, keys: Sequence[str], by_name: bool, any_number: bool
) -> Iterator[tuple[Arguments, str | None, tuple[str, ...] | None]]:
    """How so many states may be given: arguments, keyword, names."""
    if not count:
        yield "none", None, None
        return
    names = [p.name for p in rest]
    likely = [name for name in names if STATE_NAME.search(name.lower())]
    if not by_name and (any_number or (rest and rest[0].by_place)):
        yield "nested", None, None
    if len(keys) == count and set(keys) <= set(names):
        yield "leaves", None, tuple(keys)
    elif not by_name and (any_number or len([p for p in rest if p.by_place]) >= count):
        yield "leaves", None, None
    for name in likely or (names[:1] if by_name else []):
        if by_name or names.index(name) > 0 or not rest[0].by_place:
            yield "nested", name, None
    if len(likely) == count > 1 and (by_name or likely != names[:count]):
        yield "leaves", None, tuple(likely)
