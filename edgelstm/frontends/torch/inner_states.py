"""States that never pass a module's own door: cells inside it which start anew, from zeros, at every call.

Such a module computes a window. Its cells can still be carried from call to call, and this is how they are found, by
running the module and never by the names of classes:

    a cell in a loop       an inner module called once a frame, some of whose arguments are what its last call gave
    an inner sequence      an inner module called once, whose state is left out or constant, and which gives it back

:func:`find` puts a :class:`Carrier` in the place of each. What that makes of the whole, a sequence module
``(x[B, T, ...], states) -> (y, states)``, still has to be borne out as any other.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgelstm.frontends.torch.pairing import choices
from edgelstm.frontends.torch.running import Frames, run, sample
from edgelstm.frontends.torch.torch_step import Form, called
from edgelstm.frontends.torch.tree import tensors_in

#: Frames of the run in which cells are looked for: enough for a state to go round twice.
FRAMES = 3
#: Streams of that run.
STREAMS = 2


@dataclass(frozen=True)
class Site:
    """A place where a state starts: an inner module and its arguments that are states.

    path: its name in the whole module. nestings: argument -> how it nests its tensors. outputs: for each of those
    tensors, in order, its place among all tensors the inner module gives back. initial: argument -> constant values for
    the streams of the run; not there where it starts from zeros of its own.
    """

    path: str
    nestings: Mapping[str, Any]
    outputs: tuple[int, ...]
    initial: Mapping[str, Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> Site:
        """Itself: nothing changes it, and copies of torch's nestings warn."""
        return self


@dataclass(frozen=True)
class Call:
    """One call of an inner module: arguments by name, and what it gave."""

    path: str
    arguments: Mapping[str, Any]
    returned: Any


class Mailbox:
    """What goes past the door during one call of the whole module: states in, states out, by site."""

    def __init__(self) -> None:
        self.given: dict[int, Sequence[Tensor]] = {}
        self.taken: dict[int, Sequence[Tensor]] = {}


class Carrier(nn.Module):
    """Stands in for an inner module: its first call starts from the state that was handed in, its last one hands it out."""

    def __init__(self, cell: nn.Module, site: Site, number: int, mailbox: Mailbox) -> None:
        super().__init__()
        self.cell = cell
        self.site, self.number, self.mailbox = site, number, mailbox

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = self.mailbox.given.pop(self.number, None)
        if given is not None:
            bound = _bind(self.cell, args, kwargs)
            leaves = list(given)
            for name, nesting in self.site.nestings.items():
                bound.arguments[name] = pytree.tree_unflatten(leaves[: nesting.num_leaves], nesting)
                del leaves[: nesting.num_leaves]
            returned = self.cell(*bound.args, **bound.kwargs)
        else:
            returned = self.cell(*args, **kwargs)
        tensors = pytree.tree_leaves(returned)
        self.mailbox.taken[self.number] = [tensors[k] for k in self.site.outputs]
        return returned

    def __getattr__(self, name: str) -> Any:
        """Whatever else the whole module asks its cell for: sizes, init_hidden()."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("cell"), name)


class Inside(nn.Module):
    """The whole module with its inner states at the door: ``(*frames, states) -> (y, next states)``, one list a site.

    gives_states: the module gives its states back itself, as the second of two things; they are not outputs then.
    """

    def __init__(
        self, module: nn.Module, sites: Sequence[Site], gives_states: bool, time: int | None
    ) -> None:
        super().__init__()
        self.time = time
        self.source_name = called(module)
        self.module = copy.deepcopy(module)
        self.sites = tuple(sites)
        self.gives_states = gives_states
        self.mailbox = Mailbox()
        for number, site in enumerate(sites):
            cell = self.module.get_submodule(site.path)
            carrier = Carrier(cell, site, number, self.mailbox)
            for parent in list(self.module.modules()):
                for name, child in list(parent.named_children()):
                    if child is cell and parent is not carrier:
                        setattr(parent, name, carrier)

    def forward(self, *tensors: Any) -> tuple[Any, list[list[Tensor]]]:
        *frames, states = tensors
        self.mailbox.given = dict(enumerate(states))
        self.mailbox.taken = {}
        try:
            returned = self.module(*frames)
            taken = [list(self.mailbox.taken[number]) for number in range(len(self.sites))]
        finally:
            self.mailbox.given, self.mailbox.taken = {}, {}
        return (returned[0] if self.gives_states else returned), taken

    @property
    def paths(self) -> list[str]:
        """Where the states are."""
        return [site.path for site in self.sites]


def find(module: nn.Module, frames: Frames, time: int | None) -> Inside | None:
    """``module`` with its inner states at the door, None where no inner module carries any. Raises Unfit if it can't run."""
    first, second = (_record(module, _frames(frames, STREAMS, time, seed)) for seed in (1, 2))
    sites: list[Site] = []
    for path, calls in _by_path(first[0]).items():
        if any(path.startswith(f"{site.path}.") for site in sites):
            continue
        others = _by_path(second[0]).get(path, [])
        cell = module.get_submodule(path)
        if len(calls) > 1 and time is not None:
            site = _loop(cell, calls, others)
        else:
            site = (_once if time is None else _sequence)(cell, calls[0], others)
        if site is not None:
            sites.append(site)
    if not sites:
        return None
    return Inside(module, sites, _gives_states(first[1], first[0], sites), time)


def initial(
    module: nn.Module, inside: Inside, frames: Frames, time: int | None, streams: int
) -> list[list[Tensor]]:
    """What the states of so many streams start from, as :class:`Inside` takes them: ``module``'s own constants, or zeros."""
    calls, _ = _record(module, _frames(frames, streams, time, 0, count=1))
    states = []
    for site in inside.sites:
        first, *_ = (each for each in calls if each.path == site.path)
        tensors = pytree.tree_leaves(first.returned)
        leaves = [torch.zeros_like(tensors[k]) for k in site.outputs]
        place = 0
        for name, nesting in site.nestings.items():
            if name in site.initial:
                leaves[place : place + nesting.num_leaves] = pytree.tree_leaves(first.arguments[name])
            place += nesting.num_leaves
        states.append(leaves)
    return states


# -- what the module does -----------------------------------------------------------------------------------------


def _frames(frames: Frames, streams: int, time: int | None, seed: int, count: int = FRAMES) -> list[Tensor]:
    """Frames [streams, count, ...] or [count, streams, ...]; one frame without an axis of time."""
    if time is None:
        return sample(frames, streams, seed=100 * seed)
    each = [sample(frames, streams, seed=100 * seed + k) for k in range(count)]
    return [torch.stack(some, dim=time) for some in zip(*each, strict=True)]


def _record(module: nn.Module, frames: Sequence[Tensor]) -> tuple[list[Call], Any]:
    """Every call of an inner module in the order they begin, and what the whole module returned."""
    calls: list[Call | None] = []

    def watched(path: str, cell: nn.Module) -> Any:
        forward = cell.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            place = len(calls)
            calls.append(None)
            returned = forward(*args, **kwargs)
            calls[place] = Call(path, dict(_bind(cell, args, kwargs, forward).arguments), returned)
            return returned

        return run

    with _replaced_forwards(module, watched):
        returned = run(module, *frames)
    return [each for each in calls if each is not None], returned


@contextmanager
def _replaced_forwards(module: nn.Module, watched: Any) -> Iterator[None]:
    """Not hooks: some call ``cell.forward`` themselves."""
    changed = []
    try:
        for path, cell in module.named_modules():
            if path and not isinstance(cell, torch.jit.ScriptModule) and "forward" not in vars(cell):
                cell.forward = watched(path, cell)
                changed.append(cell)
        yield
    finally:
        for cell in changed:
            del cell.forward


def _bind(
    cell: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], forward: Any = None
) -> inspect.BoundArguments:
    return inspect.signature(forward or cell.forward).bind(*args, **kwargs)


def _by_path(calls: Sequence[Call]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = {}
    for each in calls:
        found.setdefault(each.path, []).append(each)
    return found


# -- where states start -------------------------------------------------------------------------------------------


def _loop(cell: nn.Module, calls: Sequence[Call], others: Sequence[Call]) -> Site | None:
    """A cell in a loop over time: from its second call on, arguments that its call before gave."""
    nestings: dict[str, Any] = {}
    outputs: list[int] = []
    for name in calls[1].arguments:
        places = _given_before(calls[1].arguments[name], calls[0].returned)
        if places is None:
            continue
        if any(_given_before(b.arguments.get(name), a.returned) is None for a, b in pairwise(calls[1:])):
            return None
        nestings[name] = pytree.tree_structure(calls[1].arguments[name])
        outputs += places
    return _starting(nestings, outputs, calls[0], others)


def _given_before(argument: Any, returned: Any) -> list[int] | None:
    """Places in ``returned`` of the tensors of ``argument``, if all of them come from there."""
    leaves, made = pytree.tree_leaves(argument), pytree.tree_leaves(returned)
    places = [next((k for k, t in enumerate(made) if _same(leaf, t)), None) for leaf in leaves]
    found = [place for place in places if place is not None]
    return found if leaves and len(found) == len(places) else None


def _sequence(cell: nn.Module, only: Call, others: Sequence[Call]) -> Site | None:
    """An inner module that runs along time itself and gives its state back as the second of two things."""
    returned = only.returned
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        return None
    state = returned[1]
    leaves, nesting = pytree.tree_flatten(state)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        return None
    before = len(pytree.tree_leaves(returned[0]))
    outputs = list(range(before, before + len(leaves)))
    for name, parameter in inspect.signature(cell.forward).parameters.items():
        given = only.arguments.get(name)
        if given is None:
            plain = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if not plain or not _starts_at_zero(cell, only, name, state):
                continue
        elif pytree.tree_structure(given) != nesting or not all(
            isinstance(a, Tensor) and a.shape == b.shape
            for a, b in zip(pytree.tree_leaves(given), leaves, strict=True)
        ):
            continue
        return _starting({name: nesting}, outputs, only, others)
    return None


def _once(cell: nn.Module, only: Call, others: Sequence[Call]) -> Site | None:
    """A cell called once for one frame, from arguments that do not depend on it; of what it gives back some have their shape."""
    if not others:
        return None
    other = others[0].arguments
    names = [
        name
        for name, value in only.arguments.items()
        if (found := tensors_in(value))
        and len(found) == len(again := tensors_in(other.get(name)))
        and all(map(_same, found, again))
    ]
    given = [t for name in names for t in tensors_in(only.arguments[name])]
    if not given or any(t.dim() == 0 or t.shape[0] != STREAMS for t in given):
        return None
    keys = [
        name if len(tensors_in(only.arguments[name])) == 1 else f"{name}_{k}"
        for name in names
        for k in range(len(tensors_in(only.arguments[name])))
    ]
    left = choices(Form("none"), [given, given], [only.returned, only.returned], keys, None)
    if len(left) != 1:
        return None
    nestings = {name: pytree.tree_structure(only.arguments[name]) for name in names}
    return _starting(nestings, left[0].states, only, others)


def _starts_at_zero(cell: nn.Module, only: Call, name: str, state: Any) -> bool:
    """Whether zeros given as argument ``name`` change nothing, and something else does."""
    results = []
    for start in (torch.zeros_like, torch.ones_like):
        arguments = {**only.arguments, name: pytree.tree_map(start, state)}
        try:
            bound = inspect.signature(cell.forward).bind_partial()
            bound.arguments.update(arguments)
            results.append(cell(*bound.args, **bound.kwargs))
        except Exception:  # whatever a user's module raises: it does not take that argument
            return False
    same = [
        all(
            _same(a, b)
            for a, b in zip(pytree.tree_leaves(only.returned), pytree.tree_leaves(r), strict=False)
        )
        for r in results
    ]
    return same == [True, False]


def _starting(
    nestings: dict[str, Any], outputs: Sequence[int], first: Call, others: Sequence[Call]
) -> Site | None:
    """The site, if the ``first`` call's states are left out or do not depend on the frames (``others``: other frames)."""
    if not nestings or not others:
        return None
    initial = {}
    for name, nesting in nestings.items():
        value, other = first.arguments.get(name), others[0].arguments.get(name)
        leaves = [leaf for leaf in pytree.tree_leaves(value) if leaf is not None]
        if not leaves:
            continue
        again = pytree.tree_leaves(other)
        constant = len(leaves) == len(again) and all(map(_same, leaves, again))
        if not constant or pytree.tree_structure(value).num_leaves != nesting.num_leaves:
            return None
        initial[name] = value
    return Site(first.path, nestings, tuple(outputs), initial)


def _gives_states(returned: Any, calls: Sequence[Call], sites: Sequence[Site]) -> bool:
    """Whether the whole module returned two things, the second of which are states of ``sites`` and nothing else."""
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        return False
    last = {each.path: each for each in calls}
    states = []
    for site in sites:
        tensors = pytree.tree_leaves(last[site.path].returned)
        states += [tensors[k] for k in site.outputs]
    leaves = pytree.tree_leaves(returned[1])
    return bool(leaves) and all(any(_same(leaf, state) for state in states) for leaf in leaves)


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b is None
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
