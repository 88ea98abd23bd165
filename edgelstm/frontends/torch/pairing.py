"""Which of the tensors that a module gave back are its next states? By the user's word, by names, by nesting, by what made what.

Shapes come first: a next state has its state's shape and dtype, for two streams and for three. Where more than one choice is
left, one that bears the states' own names wins; then one that is nested by itself, ``(y, (h, c))``; then the one whose outputs
are made from the next states (and the frame) alone, as a read-out is. What is still open then is the user's to say: nothing is
guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.torch.arguments import STATE_NAME
from edgelstm.frontends.torch.running import returned
from edgelstm.frontends.torch.torch_step import PAIRED, RETURNED, Form, Picked, Unfit, called, names_of
from edgelstm.frontends.torch.tree import Leaf, children, describe, leaves, numbers_in
from edgelstm.frontends.torch.watch import reaches, watched

#: A result that is left out.
DROPPED = "_"
#: Parts of names that say which step a state belongs to, not which state it is.
_TIMES = {
    "in",
    "out",
    "next",
    "new",
    "prev",
    "previous",
    "last",
    "cur",
    "curr",
    "current",
    "final",
    "updated",
    "t",
    "n",
    "old",
}
#: More choices than this are not looked at.
_MANY = 64


class Ambiguous(EdgeLstmError):
    """More than one choice is left, and they lead to different models."""


def choices(
    form: Form,
    given: Sequence[Sequence[Tensor]],
    back: Sequence[Any],
    keys: Sequence[str],
    results: Sequence[str] | None,
) -> list[Picked]:
    """The choices that are left by shapes, names and nesting; ``given`` and ``back`` for two numbers of streams.

    results: what the user calls the results, in order: a state's name marks its next value, ``_`` one that is left out.
    Raises Unfit when there is none.
    """
    found = [leaves(each) for each in back]
    few = found[0]
    if len({len(each) for each in found}) != 1:
        raise Unfit(f"returned {describe(back[0])} and, for more streams, {describe(back[1])}", got=RETURNED)
    count = len(given[0])

    def fits(k: int, place: int) -> bool:
        return _fits(given, found, k, place)

    if results is not None:
        return [_as_said(few, results, keys, count, fits)]
    if count == 0:
        if not few:
            raise Unfit(f"returned {describe(back[0])} where tensors belong", got=RETURNED)
        return [_picked(few, ())]
    if named := _by_name(few, keys, fits):
        return [_picked(few, named)]
    containers = _spans(back[0], 0)[0]
    runs = [tuple(range(k, k + count)) for k in range(len(few) - count + 1)]
    fitting = [run for run in runs if all(fits(k, p) for k, p in enumerate(run))]
    fitting = [
        run for run in fitting if all(set(run) & set(c) in (set(), set(c), set(run)) for c in containers)
    ]
    fitting = fitting or list(_in_order(count, len(few), fits))
    if not fitting:
        fewest = any(len(c) == count for c in containers) or len(few) == count
        raise Unfit(
            f"given states {describe(list(given[0]))}, returned {describe(back[0])}",
            got=PAIRED if fewest else RETURNED,
        )
    told = [run for run in fitting if all(_is_called_state(few[p]) for p in run)]
    others = [run for run in fitting if any(_is_called_state(few[p]) for p in run)]
    if len(told) == 1 and others == told:
        fitting = told
    return _distinct([_picked(few, run) for run in fitting], few)


def _fits(given: Sequence[Sequence[Tensor]], found: Sequence[Sequence[Leaf]], k: int, place: int) -> bool:
    """Whether a result has a state's shape and dtype, for every number of streams."""
    return all(
        states[k].shape == each[place].tensor.shape and states[k].dtype == each[place].tensor.dtype
        for states, each in zip(given, found, strict=True)
    )


def _is_called_state(leaf: Leaf) -> bool:
    return any(isinstance(key, str) and STATE_NAME.search(key.lower()) for key in leaf.path)


def settle(
    module: nn.Module,
    form: Form,
    frames: Sequence[Tensor],
    states: Sequence[Tensor],
    left: Sequence[Picked],
    keys: Sequence[str],
    name: str,
) -> Picked:
    """The one of several choices whose outputs are read-outs of its next states. Raises Ambiguous."""
    with watched() as watch:
        before = [watch.node(t) for t in states]
        found = [leaf.tensor for leaf in leaves(returned(module, form, frames, states))]
        nodes = [watch.node(t) for t in found]
    borne_out = [
        picked
        for picked in left
        if not reaches(
            [nodes[k] for k in picked.outputs if k not in picked.states],
            before,
            [nodes[k] for k in picked.states],
        )
    ]
    if len(borne_out) == 1:
        return borne_out[0]
    raise _ask(name, keys, left, found)


def depends(module: nn.Module, form: Form, frames: Sequence[Tensor], states: Sequence[Tensor]) -> bool:
    """Whether anything that comes back is made from the states that went in."""
    if not states:
        return True
    with watched() as watch:
        before = [watch.node(t) for t in states]
        found = [leaf.tensor for leaf in leaves(returned(module, form, frames, states))]
        escapes = [event.node for event in watch.escapes]
        return reaches([watch.node(t) for t in found] + escapes, before)


def reordered(
    module: nn.Module,
    form: Form,
    frames: Sequence[Tensor],
    given: Sequence[Sequence[Tensor]],
    back: Sequence[Any],
    tried: Sequence[Picked],
) -> list[Picked]:
    """Choices in which the states come back in another order than they went in, each made from the state it follows."""
    found = [leaves(each) for each in back]
    count = len(given[0])
    if count < 2 or len({len(each) for each in found}) != 1:
        return []
    with watched() as watch:
        before = [watch.node(t) for t in given[0]]
        nodes = [watch.node(leaf.tensor) for leaf in leaves(returned(module, form, frames, given[0]))]
    free = [
        [
            p
            for p in range(len(found[0]))
            if _fits(given, found, k, p) and p < len(nodes) and reaches([nodes[p]], [before[k]])
        ]
        for k in range(count)
    ]

    def further(taken: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(taken) == count:
            yield taken
            return
        for place in free[len(taken)]:
            if place not in taken:
                yield from further((*taken, place))

    known = {picked.states for picked in tried}
    return [_picked(found[0], each) for each in islice(further(()), _MANY) if each not in known]


def is_whole(back: Any, form: Form) -> bool:
    """Whether the states went in as one thing and came back as one."""
    assert form.picked is not None
    own = set(form.picked.states)
    return form.arguments == "nested" and any(set(span) == own for span in _spans(back, 0)[0])


def check_numbers_stay(module: nn.Module, form: Form, back: Any) -> None:
    """Raise EdgeLstmError where a number of Python's, nested with the states, comes back as another: a graph would hold the first for ever."""
    assert form.picked is not None
    if (
        form.arguments != "nested"
        or form.nesting is None
        or not (before := numbers_in(form.nesting.template))
    ):
        return
    found = leaves(back)
    paths = [found[place].path for place in form.picked.states]
    shared = 0
    while all(len(p) > shared for p in paths) and len({p[shared] for p in paths}) == 1:
        shared += 1
    # Of the parts that hold all states the innermost is what goes in next; a lone state's is around it.
    for depth in range(shared, -1, -1):
        part = back
        for key in paths[0][:depth]:
            part = dict(children(part) or ())[key]
        after = numbers_in(part)
        if after.keys() != before.keys():
            continue
        for path, number in before.items():
            if after[path] != number:
                where = "".join(f"[{key!r}]" for key in path)
                raise EdgeLstmError(
                    f"the states of {called(module)} hold a number of Python's that changes from call to call",
                    found=f"{where} was {number} and came back as {after[path]}",
                    expected="tensors, which a graph can carry, the streams on their first axis: torch.zeros(batch)",
                    hint="What an if on it decides has to be written with torch.where",
                )
        return


def said(picked: Picked, keys: Sequence[str], order: Sequence[int] | None = None) -> str:
    """The results by name, as --results takes them; order: the place of each state, where it is not the one picked."""
    count = 1 + max(*picked.states, *picked.outputs)
    outputs = [k for k in picked.outputs if k not in picked.states]
    labels = [DROPPED] * count
    for number, k in enumerate(outputs):
        name = picked.names[number] if picked.names and len(picked.names) == len(outputs) else None
        labels[k] = name or ("y" if len(outputs) == 1 else f"y{number}")
    for key, place in zip(keys, picked.states if order is None else order, strict=True):
        labels[place] = key
    return ",".join(labels)


def _ask(name: str, keys: Sequence[str], left: Sequence[Picked], found: Sequence[Tensor]) -> Ambiguous:
    names = list(keys)

    def said(picked: Picked) -> str:
        labels = [f"y{k}" for k in range(len(found))]
        for key, place in zip(names, picked.states, strict=True):
            labels[place] = key
        return ",".join(labels)

    options = [said(picked) for picked in left[:3]]
    return Ambiguous(
        f"which of the {count_of(len(found), 'result')} of {name} are its next states",
        found=f"{describe([*found])}, more than one choice of the same shapes",
        expected=f"a word on it: --results {' or --results '.join(options)} (results={options[0].split(',')!r})",
        hint="In the order forward gives them: a state's name marks its next value, any other name an output, _ what is left out",
    )


def _as_said(
    few: Sequence[Leaf], results: Sequence[str], keys: Sequence[str], count: int, fits: Any
) -> Picked:
    missing = [key for key in keys if list(results).count(key) != 1]
    if len(results) != len(few) or missing or len(keys) != count:
        raise EdgeLstmError(
            "the results as named",
            found=list(results),
            expected=f"{count_of(len(few), 'name')}, as many as tensors come back, among them once each of the states {list(keys)}",
        )
    states = tuple(list(results).index(key) for key in keys)
    wrong = [key for k, key in enumerate(keys) if not fits(k, states[k])]
    if wrong:
        raise Unfit(
            f"gave {wrong[0]!r} as {list(few[states[keys.index(wrong[0])]].tensor.shape)}, not as its state is",
            got=PAIRED,
        )
    outputs = tuple(k for k, label in enumerate(results) if k not in states and label != DROPPED)
    if not outputs:
        return Picked(states[:1], states)
    return Picked(outputs, states, tuple(results[k] for k in outputs))


def _picked(few: Sequence[Leaf], states: Sequence[int]) -> Picked:
    """All else is an output; where there is nothing else, the first state is."""
    outputs = tuple(k for k in range(len(few)) if k not in states)
    if not outputs:
        return Picked(tuple(states[:1]), tuple(states))
    return Picked(outputs, tuple(states), names_of(few, outputs))


def _by_name(few: Sequence[Leaf], keys: Sequence[str], fits: Any) -> tuple[int, ...] | None:
    """The places whose names are the states' own."""
    bare = [_bare(key) for key in keys]
    if not keys or not all(bare) or len(set(bare)) < len(bare):
        return None
    places = []
    for k, key in enumerate(bare):
        known = [
            p
            for p, leaf in enumerate(few)
            if leaf.name is not None and _bare(leaf.name) == key and fits(k, p)
        ]
        if len(known) != 1:
            return None
        places += known
    return tuple(places) if len(set(places)) == len(places) else None


def _bare(name: str) -> str:
    parts = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return "_".join(part for part in parts if part not in _TIMES)


def _spans(value: Any, start: int) -> tuple[list[tuple[int, ...]], int]:
    """The places of the leaves of every container within, and where its own end."""
    if isinstance(value, Tensor):
        return [], start + 1
    found: list[tuple[int, ...]] = []
    end = start
    for _, part in children(value) or ():
        inner, end = _spans(part, end)
        found += inner
    return [*found, tuple(range(start, end))], end


def _in_order(count: int, total: int, fits: Any) -> Iterator[tuple[int, ...]]:
    """Places in order, not all side by side."""

    def further(taken: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(taken) == count:
            yield taken
            return
        for place in range(taken[-1] + 1 if taken else 0, total):
            if fits(len(taken), place):
                yield from further((*taken, place))

    yield from islice(further(()), _MANY)


def _distinct(picked: Sequence[Picked], few: Sequence[Leaf]) -> list[Picked]:
    """Choices that give different numbers; of equal ones the last, which has the outputs first."""
    kept: list[Picked] = []
    for each in reversed(picked):
        same = any(
            all(
                torch.equal(few[a].tensor, few[b].tensor)
                for a, b in zip(each.states, other.states, strict=True)
            )
            for other in kept
        )
        if not same:
            kept.append(each)
    return kept[::-1]
