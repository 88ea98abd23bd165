"""What a module remembers from call to call, though nobody handed it in: found by running it and looking at its attributes.

What changes and makes a difference is a state. What is made once and for all at the first call (peepholes whose size the first
frame tells) is no state and stays. Numbers drawn at random, and whatever is kept where nobody can look, are told apart from
both by running the same frames again.
"""

from __future__ import annotations

import random as python_random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.torch.kept import Slot, nested
from edgelstm.frontends.torch.outside import changed_outside, written_outside
from edgelstm.frontends.torch.running import Frames, returned, sample
from edgelstm.frontends.torch.snapshot import Place, Snapshot, put_back, remember, values
from edgelstm.frontends.torch.torch_step import Form, Unfit, called
from edgelstm.frontends.torch.tree import leaves
from edgelstm.frontends.torch.watch import moves_of, reaches, watched
from edgelstm.frontends.torch.written import Marks, marked, parts_of, put_there, with_another

#: Calls after which what is kept must have its final shape: longer rings of frames are not waited for.
LONGEST = 130


@dataclass(frozen=True)
class Call:
    """A form in which a module can be called, and the states it is given as arguments, for ``n`` streams.

    laid: its frames have their axis of time already, after that of the streams.
    """

    module: nn.Module
    form: Form
    frames: Frames
    states: Any
    laid: bool = False

    def __call__(self, n: int, seed: int, *, fresh: bool) -> list[Tensor]:
        """The tensors that come back."""
        frames = sample(self.frames, n, seed=seed, time=None if self.laid else self.form.time)
        if self.laid and self.form.time == 0:
            frames = [frame.transpose(0, 1) for frame in frames]
        found = returned(self.module, self.form, frames, self.states(n), fresh=fresh)
        return [leaf.tensor for leaf in leaves(found)]


@dataclass(frozen=True)
class Memory:
    """What is kept: the attributes that are states, and how many calls it takes until they have their shape."""

    slots: tuple[Slot, ...]
    calls: int
    branches: tuple[str, ...] = ()

    def text(self) -> str:
        """Where it is kept, in words."""
        kinds = [f"{str(s.place)!r} ({'a buffer' if s.buffer else 'an attribute'})" for s in self.slots]
        return ", ".join(kinds[:3]) + (f" and {len(kinds) - 3} more" if len(kinds) > 3 else "")


def recall(call: Call) -> Memory | None:
    """What ``call.module`` keeps that makes a difference; None: nothing. What it makes once and for all it has afterwards.

    Raises Unfit where it can't be run, EdgeLstmError for one that draws numbers, grows for ever or remembers elsewhere.
    """
    module = call.module
    n = _streams(call)
    before = Snapshot(module)
    call(n, 1, fresh=False)
    states, marks = [Snapshot(module)], [Marks(module)]
    for seed in (2, 3):
        call(n, seed, fresh=False)
        states.append(Snapshot(module))
        marks.append(Marks(module))
    changed = states[0].changed(before)
    lasting = list(dict.fromkeys([*changed, *states[1].changed(states[0]), *states[2].changed(states[1])]))
    if once := [
        p for p in lasting if p not in states[1].changed(states[0]) and p not in states[2].changed(states[1])
    ]:
        call(n + 1, 9, fresh=True)
        again = Snapshot(module).changed(states[0])
        put_back(module)
        made = {p for p in once if p not in again}
        if made:
            _adopt(call, n, made)
        lasting = [p for p in lasting if p not in made]
        # What is made anew for another number of streams, and the same whatever the frames are, is no memory either.
        call(n, 9, fresh=True)
        others = Snapshot(module).changed(states[0])
        lasting = [p for p in lasting if p not in once or p in others]
    put_back(module)
    _check_numbers(call, n, lasting)
    _check_outside(call, n)
    # Written at every call though it was the same each time: a latch, a count of what these frames have none of.
    written = [p for p in marks[2].written(marks[1]) if p in marks[1].written(marks[0])]
    quiet = [p for p in written if p not in lasting and p in before.values]
    if not lasting and not quiet:
        check_repeats(call, n)
        return None
    slots, calls = _steady(call, n, [*lasting, *quiet], before)
    return _relevant(call, n, slots, calls, frozenset(quiet))


def _check_numbers(call: Call, n: int, lasting: Sequence[Place]) -> None:
    """Raise EdgeLstmError for a number or True and False of Python's that a call makes from its frames and a later one goes by.

    No graph holds it, and where these frames never change it nothing else would show it.
    """
    module = call.module
    with watched() as watch:
        usual = call(n, 5, fresh=True)
    after = Snapshot(module)
    put_back(module)
    if not watch.escapes:  # then no number is made from frames
        return

    def called_with(place: Place, value: Any) -> list[Tensor] | None:
        put_back(module)
        object.__setattr__(module.get_submodule(place.path), place.name, value)
        try:
            return call(n, 5, fresh=False)
        except Unfit:
            return None

    for place, value in list(values(module)):
        # Of what is kept, numbers become tensors; a True or False beside them does not.
        kinds = (bool,) if place in lasting else (bool, int, float)
        own = [k for k, part in enumerate(parts_of(value)) if type(part) in kinds]
        if not own or (place in lasting and isinstance(value, bool)):
            continue
        written = put_there(place.get(module)) if called_with(place, marked(value)) is not None else []
        for k in (k for k in own if k in written):
            changed = called_with(place, with_another(value, k))
            same = (
                changed is not None and _same(usual, changed) and place not in Snapshot(module).changed(after)
            )
            put_back(module)
            if same:
                continue
            kind = type(parts_of(value)[k]).__name__
            where = next((event.where for event in watch.escapes if event.where), None)
            raise EdgeLstmError(
                f"{called(module)} keeps {str(place)!r} ({'a' if kind != 'int' else 'an'} {kind} of Python's) from call to call, which a graph would lose",
                found="one that is made from the frames"
                + (f" at {where}" if where else "")
                + " and that later results go by",
                expected="a tensor in its place, with a value for each stream",
                hint="Such as self.on = torch.where(self.on, p > 0.4, p > 0.6), a buffer of bools [1, 1] at first",
            )
        put_back(module)


def _check_outside(call: Call, n: int) -> None:
    """Raise EdgeLstmError for what calls write where no attribute shows it and go by, whether or not these frames change it."""
    if isinstance(call.module, torch.jit.ScriptModule):
        return
    try:
        kept = written_outside(call.module, lambda: call(n, 5, fresh=True))
    except Unfit:  # with another number in a place of its own it can't be run: nothing is shown by that
        return
    finally:
        put_back(call.module)
    if kept is not None:
        raise _kept_outside(call, kept, "a value that each call writes and the next one goes by")


def _kept_outside(call: Call, kept: str, found: str) -> EdgeLstmError:
    return EdgeLstmError(
        f"{called(call.module)} keeps {kept} from call to call, where neither a graph nor a second stream can have it",
        found=found,
        expected="what it keeps in an attribute of the module, such as self.state, which --carry-state carries; "
        "or a forward that takes it and gives the next value back",
    )


def _streams(call: Call) -> int:
    """A number of streams it can be run with."""
    failed: Unfit | None = None
    for n in (1, 2, *_sizes(call.module)):
        try:
            call(n, 0, fresh=True)
        except Unfit as unfit:
            failed = failed or unfit
            continue
        put_back(call.module)
        return n
    assert failed is not None
    raise failed


def _sizes(module: nn.Module) -> list[int]:
    found = {size for _, b in module.named_buffers() for size in b.shape if 2 < size <= 64}
    return sorted(found)[:8]


def _adopt(call: Call, n: int, made: set[Place]) -> None:
    """Make what the first call makes once and for all part of the module."""
    call(n, 1, fresh=True)
    parts = {place: call.module.get_submodule(place.path) for place in made}
    values = {place: getattr(part, place.name) for place, part in parts.items()}
    put_back(call.module)
    for place, value in values.items():
        setattr(parts[place], place.name, value)
    remember(call.module)


def check_repeats(call: Call, n: int) -> None:
    """The same frames give the same results. Raises EdgeLstmError with the reason where they don't."""
    results = []
    state = torch.random.get_rng_state(), np.random.get_state(), python_random.getstate()
    try:
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            python_random.seed(seed)
            results.append(call(n, 5, fresh=True))
        put_back(call.module)
        if _same(*results):
            return
        torch.manual_seed(1)
        np.random.seed(1)
        python_random.seed(1)
        same_numbers = _same(results[0], call(n, 5, fresh=True))
        with watched() as watch:
            call(n, 5, fresh=True)
        put_back(call.module)
    finally:
        torch.random.set_rng_state(state[0])
        np.random.set_state(state[1])
        python_random.setstate(state[2])
    name = called(call.module)
    if drawn := [event for event in watch.random if event.where]:
        event = drawn[0]
        place = f" at {event.where}" if event.where else ""
        raise EdgeLstmError(
            f"{name} draws random numbers at every call, in evaluation mode too",
            found=f"{event.operator.strip('_')}{place}",
            expected="a forward that gives the same for the same frames",
            hint="Let dropout follow the mode: training=self.training"
            if "bernoulli" in event.operator or "dropout" in event.operator
            else "Take the numbers as an input instead",
        )
    scripted = isinstance(call.module, torch.jit.ScriptModule)
    if not same_numbers and not scripted:
        kept = changed_outside(call.module, lambda: (call(n, 5, fresh=True), call(n, 6, fresh=True)))
        put_back(call.module)
        if kept:
            raise _kept_outside(
                call, kept[0], "other results for the same frames, from the same attributes and buffers"
            )
    reason = (
        ("random numbers, drawn inside the script" if scripted else "random numbers that are not torch's")
        if same_numbers
        else "something kept outside its attributes and buffers"
    )
    raise EdgeLstmError(
        f"{name} gives other results for the same frames, from the same attributes",
        found=reason,
        expected="a forward that gives the same for the same frames and states",
        hint=None
        if same_numbers
        else "Keep it in an attribute of the module, which --carry-state carries, or take it as an argument and give the next value back",
    )


def _same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.allclose(x.double(), y.double(), rtol=1e-5, atol=1e-6, equal_nan=True)
        for x, y in zip(a, b, strict=True)
    )


def _steady(call: Call, n: int, places: Sequence[Place], before: Snapshot) -> tuple[list[Slot], int]:
    """The attributes once their shapes no longer change, and after how many calls."""
    module = call.module
    known: list[Any] = []
    put_back(module)
    for calls in range(1, LONGEST + 1):
        call(n, calls, fresh=False)
        shape = [_shape(place.get(module)) for place in places]
        if known and shape == known[-1]:
            break
        known.append(shape)
    else:
        last, one = known[-1], known[-2]
        grows = next(str(p) for p, a, b in zip(places, last, one, strict=True) if a != b)
        put_back(module)
        raise EdgeLstmError(
            f"{called(module)} keeps ever more in {grows!r}",
            found=f"still growing after {LONGEST} calls",
            expected="a memory of a fixed size, such as collections.deque(maxlen=8)",
        )
    slots = []
    for place in places:
        value, first = place.get(module), before.values.get(place)
        tensors, nesting = nested(value)
        if not tensors:
            slots.append(Slot(place, nesting, first, (), place.is_buffer(module)))
            continue
        begin, _ = nested(first)
        same = len(begin) == len(tensors) and all(
            a.shape == b.shape and a.dtype == b.dtype for a, b in zip(begin, tensors, strict=True)
        )
        start = begin if same else [torch.zeros_like(t) for t in tensors]
        slots.append(Slot(place, nesting, first, tuple(t.clone() for t in start), place.is_buffer(module)))
    put_back(module)
    return slots, calls


def _shape(value: Any) -> Any:
    tensors, nesting = nested(value)
    return [(tuple(t.shape), t.dtype) for t in tensors], repr(nesting.template)


def _relevant(
    call: Call, n: int, slots: Sequence[Slot], calls: int, quiet: frozenset[Place] = frozenset()
) -> Memory | None:
    """Those that results, or others of them, are made from; of the ``quiet`` those that are not always handed on as they are."""
    module = call.module
    put_back(module)
    for seed in range(calls):
        call(n, seed, fresh=False)
    values = {slot.place: slot.place.get(module) for slot in slots}
    given: dict[Place, list[Tensor]] = {}
    for slot in slots:
        tensors, nesting = nested(values[slot.place])
        given[slot.place] = [t.detach().clone() for t in tensors]
        part = module.get_submodule(slot.place.path)
        part._buffers.pop(slot.place.name, None)
        object.__setattr__(part, slot.place.name, nesting.build(given[slot.place]))
    try:
        with watched() as watch:
            sources = {place: [watch.node(t) for t in tensors] for place, tensors in given.items()}
            out = call(n, 77, fresh=False)
            nodes = [watch.node(t) for t in out]
            after = {slot.place: [watch.node(t) for t in nested(slot.place.get(module))[0]] for slot in slots}
            escapes = list(watch.escapes)
    except Unfit as unfit:
        which = next(
            (str(s.place) for s in slots if str(s.place).rpartition(".")[2] in str(unfit)),
            str(slots[0].place),
        )
        raise EdgeLstmError(
            f"{called(module)} keeps {which!r} from call to call, and needs it to be a number of Python's",
            found=f"given as a tensor it {unfit}",
            expected="arithmetic that a graph can hold",
        ) from unfit
    finally:
        _buffers_again(module, slots)
    for place in quiet:
        if moves_of(after[place], sources[place]):
            del sources[place]
    branches = [
        (event, place)
        for event in escapes
        for place, found in sources.items()
        if reaches([event.node], found)
    ]
    needed: set[Place] = set()
    goals = [*nodes, *(event.node for event, _ in branches)]
    while True:
        more = {p for p, found in sources.items() if p not in needed and found and reaches(goals, found)}
        if not more:
            break
        needed |= more
        goals += [node for p in more for node in after[p]]
    lines = tuple(
        dict.fromkeys(
            f"{place!s} decides" + (f" at {event.where}" if event.where else "") for event, place in branches
        )
    )
    kept = tuple(slot for slot in slots if slot.place in needed)
    flags = [slot for slot in slots if not slot.start]
    if not kept and not flags:
        check_repeats(call, n)
        return None
    return Memory((*kept, *flags), calls, lines)


def _buffers_again(module: nn.Module, slots: Sequence[Slot]) -> None:
    """What was a buffer is one, and everything is as it was."""
    for slot in slots:
        part = module.get_submodule(slot.place.path)
        if slot.buffer and slot.place.name in vars(part):
            part._buffers[slot.place.name] = vars(part).pop(slot.place.name)
    put_back(module)
