"""Where a module's states may come from: guesses, most reliable first, for :mod:`edgelstm.frontends.torch.trial` to bear out."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.frame_shapes import is_shape
from edgelstm.frontends.torch.arguments import forms, parameters
from edgelstm.frontends.torch.examples import example
from edgelstm.frontends.torch.running import Frames, run, sample
from edgelstm.frontends.torch.torch_step import RETURNED, Form, Unfit
from edgelstm.frontends.torch.tree import children, describe, flatten, mapped, tensors_in

DOCUMENTED = "its documented states"
GIVEN = "states as given"
LEFT_OUT = "states left out"
INSIDE = "states found in the cells inside"
KEPT = "states it keeps in its attributes"

#: Methods that make a module's states, or what it needs before its first frame.
MAKERS = (
    "initial_states",
    "initial_state",
    "init_hidden",
    "init_hidden_state",
    "init_hidden_states",
    "init_state",
    "init_states",
    "get_initial_state",
    "get_default_rnn_state",
    "zero_state",
)
#: Methods that may have to be called before the first frame.
STARTERS = (
    *MAKERS,
    "reset",
    "reset_state",
    "reset_states",
    "reset_hidden",
    "reset_memory",
)


def methods_called(module: nn.Module, names: Sequence[str]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Its methods of these names, in whatever way they are written: init_hidden, initHidden, _init_hidden."""
    found = {name.lower().replace("_", ""): name for name in reversed(dir(type(module)))}
    for each in names:
        name = found.get(each.replace("_", ""), each)
        if callable(method := getattr(module, name, None)):
            yield name, method


#: Ways to lay the streams into states that were given, at most: each is run.
MOST_AXES = 81
#: The states of so many streams, nested as the module nests them.
MakeStates = Callable[[int], Any]


@dataclass(frozen=True)
class Candidate:
    """A guess to be borne out: how states are made, and where they come from; ``form`` restricts how they are given."""

    make: MakeStates
    source: str
    form: Form | None = None
    maker: str | None = None  # the module's method that makes them

    def forms(
        self, module: nn.Module, frames: Frames, count: int, keys: tuple[str, ...], batch_first: bool | None
    ) -> Iterator[Form]:
        """The ways in which its states may be given."""
        only = self.form
        if only is not None and self.source in (DOCUMENTED, INSIDE, KEPT):
            yield only
            return
        for form in forms(module, tuple(frames), count, keys, batch_first):
            alike = only is None or (form.time, form.frame_names, form.arguments == "mapping") == (
                only.time,
                only.frame_names,
                only.arguments == "mapping",
            )
            if alike:
                yield form


def candidates(
    module: nn.Module, frames: Frames, states: Any, batch_first: bool | None
) -> Iterator[Candidate]:
    """Every guess, for a module that takes states at all."""
    if (known := _of_torch(module, batch_first)) is not None:
        yield known
        return
    if not takes_states(module, len(frames)) and not takes_mapping(module, frames):
        return
    if states is not None:
        for make in _given(states):
            yield Candidate(make, GIVEN)
    for name, method in methods_called(module, MAKERS):
        for arguments in maker_arguments(method, frames, module, states):
            made_by = f"{name}()"
            yield Candidate(partial(made, method, arguments), f"states from its {made_by}", maker=made_by)
    for form in forms(module, tuple(frames), 0, (), batch_first):
        yield from _left_out(module, frames, form)
    for make, source in _by_attribute(module, frames):
        yield Candidate(make, source)


def takes_states(module: nn.Module, frames: int) -> bool:
    """Whether forward has arguments beyond the frames."""
    named, any_number = parameters(module)
    return any_number or len(named) > frames


def takes_mapping(module: nn.Module, frames: Frames) -> bool:
    """Whether forward may want one mapping of all there is; a lone frame nobody named is none."""
    return tuple(frames) != ("x",) and len(parameters(module)[0]) == 1


def _of_torch(module: nn.Module, batch_first: bool | None) -> Candidate | None:
    """torch's own recurrent modules, which say all there is to know."""
    nested = Form("nested")
    if isinstance(module, nn.LSTMCell):
        hidden = module.hidden_size
        return Candidate(_zeros((hidden,), (hidden,)), DOCUMENTED, nested)
    if isinstance(module, nn.GRUCell | nn.RNNCell):
        return Candidate(_zero((module.hidden_size,)), DOCUMENTED, nested)
    if not isinstance(module, nn.RNNBase):
        return None
    if module.bidirectional:
        raise EdgeLstmError(
            f"a bidirectional {type(module).__name__} is no step",
            found="a direction that runs from the last frame to the first",
            expected="a module that needs no frames of the future",
            hint="It sees whole windows: window=10 (--window 10) exports windows of 10 frames, or train one with bidirectional=False",
        )
    if batch_first not in (None, module.batch_first):
        raise EdgeLstmError(
            "batch_first", found=batch_first, expected=f"{module.batch_first}, as the module has it"
        )
    time, layers, hidden = int(module.batch_first), module.num_layers, module.hidden_size
    form = Form("nested", time)
    if isinstance(module, nn.LSTM):
        h = module.proj_size or hidden
        return Candidate(
            lambda n: (torch.zeros(layers, n, h), torch.zeros(layers, n, hidden)), DOCUMENTED, form
        )
    return Candidate(lambda n: torch.zeros(layers, n, hidden), DOCUMENTED, form)


def _given(states: Any) -> Iterator[MakeStates]:
    """States as the user gave them, in the nestings a module may want: streams on axis 0, then on axis 1, then where each has its own."""
    nestings: list[Any] = []
    values: Any
    if isinstance(states, Mapping):
        named = {name: examples(value) for name, value in states.items()}
        values = tuple(named.values())
        nestings = [values, *(values if len(values) == 1 else ()), named]
    else:
        nestings = [examples(states)]
        values = nestings[0] if isinstance(nestings[0], tuple | list) else (nestings[0],)
    leaves = tensors_in(values)
    count = len(leaves)
    if all(isinstance(item, Tensor) for item in values):
        if count == 1:
            nestings.append(leaves[0])
        nestings.append(list(leaves))
        if count % 2 == 0 and count > 2:
            nestings.append([tuple(leaves[k : k + 2]) for k in range(0, count, 2)])
            nestings.append((leaves[0::2], leaves[1::2]))
            nestings.append(tuple(torch.stack(part) for part in (leaves[0::2], leaves[1::2]) if _alike(part)))
        if count > 1 and _alike(leaves):
            nestings.append(torch.stack(list(leaves)))
    for axis in (0, 1):
        for nesting in nestings:
            if tensors_in(nesting) and all(leaf.dim() >= axis for leaf in tensors_in(nesting)):
                yield partial(_repeated, nesting, axis)
    if all(isinstance(item, Tensor) for item in values):
        for axes in _mixed_axes([leaf.dim() for leaf in leaves]):
            yield partial(_repeated_each, leaves, axes)


def _mixed_axes(ranks: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Axes of the streams, one a state: a GRU's [layers, N, H] beside a convolution's past [N, C, T] or [blocks, kinds, N, H]."""
    places = [range(min(rank, 2) + 1) for rank in ranks]
    if math.prod(map(len, places)) > MOST_AXES:
        places = [range(min(rank, 1) + 1) for rank in ranks]
    if math.prod(map(len, places)) > MOST_AXES:
        return
    for axes in product(*places):
        if len(set(axes)) > 1 or axes[0] > 1:  # the others were tried
            yield axes


def _repeated_each(leaves: Sequence[Tensor], axes: Sequence[int], n: int) -> tuple[Tensor, ...]:
    return tuple(torch.stack([t] * n, dim=axis) for t, axis in zip(leaves, axes, strict=True))


def _alike(tensors: Any) -> bool:
    return len({(t.shape, t.dtype) for t in tensors}) == 1


def _repeated(nested: Any, axis: int, n: int) -> Any:
    return mapped(nested, lambda t: torch.stack([t] * n, dim=axis) if isinstance(t, Tensor) else t)


def examples(states: Any) -> Any:
    """``states`` with every shape turned into zeros."""
    if isinstance(states, Mapping):
        return {name: examples(value) for name, value in states.items()}
    if isinstance(states, tuple | list) and not (is_shape(states) and states):
        return type(states)(map(examples, states)) if states else states
    value = example(states, "a state")
    return value.float() if value.is_floating_point() else value  # as the copy of the module computes


# -- methods that make states -----------------------------------------------------------------------------------------


def made(method: Callable[..., Any], arguments: Mapping[str, Any], n: int) -> Any:
    given = {name: n if value is _STREAMS else value for name, value in arguments.items()}
    return run(partial(method, **given))


_STREAMS = object()
_ARGUMENTS = (
    (re.compile(r"batch|^bs|^b$|^n$|stream|num_envs"), "streams"),
    (re.compile(r"device"), "device"),
    (re.compile(r"dtype"), "dtype"),
    (re.compile(r"shape|size$|spatial|image|resolution"), "space"),
    (re.compile(r"^h(eight)?$"), "height"),
    (re.compile(r"^w(idth)?$"), "width"),
    (re.compile(r"hidden|channel|units|dim|features"), "hidden"),
)


def maker_arguments(
    method: Callable[..., Any], frames: Frames, module: nn.Module, states: Any
) -> Iterator[dict[str, Any]]:
    """The arguments of such a method by what they are called; nothing where one of them is not known."""
    try:
        wanted = list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):
        return
    frame = next(iter(frames.values()))
    size = _hidden_size(module, states)
    sizes = dict(_sizes(module))
    known: dict[str, Any] = {
        "streams": _STREAMS,
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "space": tuple(frame.shape[1:]),
        "height": frame.shape[-2] if frame.dim() > 1 else None,
        "width": frame.shape[-1] if frame.dim() > 1 else None,
        "hidden": size,
    }
    found: dict[str, Any] = {}
    for number, p in enumerate(wanted):
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        kind = next((kind for pattern, kind in _ARGUMENTS if pattern.search(p.name.lower())), None)
        if p.name.lower() in ("hidden_size", "hidden_dim"):
            kind = "hidden"
        kind = kind or ("streams" if number == 0 and p.default is p.empty else None)
        value = sizes.get(p.name) if kind == "hidden" and p.name in sizes else known.get(kind or "")
        if p.default is not p.empty and kind not in ("streams",):
            continue
        if value is None:
            return
        found[p.name] = value
    yield found


def _hidden_size(module: nn.Module, states: Any) -> int | None:
    if states is not None:
        first = next(
            iter(tensors_in(examples(tuple(states.values()) if isinstance(states, Mapping) else states))),
            None,
        )
        if first is not None and first.dim():
            return int(first.shape[0])
    return next((size for _, size in _sizes(module)), None)


# -- states left out ----------------------------------------------------------------------------------------------------


def _left_out(module: nn.Module, frames: Frames, form: Form) -> Iterator[Candidate]:
    """What a call without states gives back, as zeros: where the module starts when nobody says otherwise."""
    known: dict[int, Any] = {}

    def bare(n: int) -> Any:
        if n not in known:
            given = sample(frames, n, time=form.time)
            args, kwargs = form.bound(given, ())
            known[n] = run(module, *args, **kwargs)
        return known[n]

    try:
        parts = list(_state_parts(bare(2)))
    except Unfit as unfit:
        if form.nones:  # that a state is needed says more
            return
        reason, got = str(unfit), unfit.got

        def failed(n: int) -> Any:
            raise Unfit(reason, got=got)

        yield Candidate(failed, LEFT_OUT, form)
        return
    for part in parts:
        yield Candidate(partial(_zeroed, bare, part), LEFT_OUT, form)


def _state_parts(returned: Any) -> Iterator[Callable[[Any], Any]]:
    """Ways to take the states out of what came back without any having been given."""
    parts = children(returned)
    if parts is not None and len(parts) > 1:
        values = [value for _, value in parts]
        keys = [key for key, _ in parts]
        if len(values) == 2:
            yield lambda r: children(r)[1][1]  # type: ignore[index]
        named = [k for k, key in enumerate(keys) if isinstance(key, str)]
        containers = [
            k for k, value in enumerate(values) if not isinstance(value, Tensor) and tensors_in(value)
        ]
        for k in dict.fromkeys([*named, *containers]):
            yield partial(_part, k)
        for start in range(1, len(values)):
            yield partial(_tail, start)
        yield partial(_part, len(values) - 1)
        for end in range(len(values) - 1, 0, -1):
            yield partial(_head, end)
    yield lambda r: r


def _part(k: int, returned: Any) -> Any:
    return (children(returned) or [])[k][1]


def _tail(start: int, returned: Any) -> Any:
    return tuple(value for _, value in (children(returned) or [])[start:])


def _head(end: int, returned: Any) -> Any:
    return tuple(value for _, value in (children(returned) or [])[:end])


def _zeroed(bare: Callable[[int], Any], part: Callable[[Any], Any], n: int) -> Any:
    state = part(bare(n))
    tensors, nesting = flatten(state)
    if not tensors:
        raise Unfit(f"returned {describe(bare(n))} and no next state", got=RETURNED)
    return nesting.build([torch.zeros_like(t) for t in tensors])


# -- sizes the module holds -----------------------------------------------------------------------------------------------


def _sizes(module: nn.Module) -> Iterator[tuple[str, int]]:
    for name in ("hidden_size", "hidden_channels", "hidden_dim", "hidden", "n_hidden", "units"):
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield name, value


def _by_attribute(module: nn.Module, frames: Frames) -> Iterator[tuple[MakeStates, str]]:
    """A cell's (h, c), or its h, of a size that an attribute or the gates' weight tells."""
    sizes: dict[int, str] = {}
    for name, value in _sizes(module):
        sizes.setdefault(value, f"states of the size its {name} tells")
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() >= 2 and weight.shape[0] % 4 == 0:
            sizes.setdefault(weight.shape[0] // 4, "states of the size four gates tell")
            break
    space = tuple(next(iter(frames.values())).shape[1:])
    for size, source in sizes.items():
        shape = (size, *space)
        yield _zeros(shape, shape), source
        yield _zero(shape), source


def _zero(shape: tuple[int, ...]) -> MakeStates:
    return lambda n: torch.zeros(n, *shape)


def _zeros(*shapes: tuple[int, ...]) -> MakeStates:
    return lambda n: tuple(torch.zeros(n, *shape) for shape in shapes)
