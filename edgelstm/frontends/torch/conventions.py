"""Where a module's states may come from: guesses, most reliable first, for :mod:`edgelstm.frontends.torch.trial` to bear out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.frame_shapes import is_shape
from edgelstm.frontends.torch.examples import example
from edgelstm.frontends.torch.torch_step import Form, Unfit, argument_names, describe

DOCUMENTED = "its documented states"
GIVEN = "states as given"
LEFT_OUT = "states left out"
INSIDE = "states found in the cells inside"

Result = TypeVar("Result")

#: What people call the argument that takes states.
_STATE_NAME = re.compile(r"state|hidden|hx|hc|carry|memor|^h_?0?$|prev")

#: Examples of one frame, without the stream axis, by input name.
Frames = Mapping[str, Tensor]
#: The states of so many streams, nested as the module nests them.
MakeStates = Callable[[int], Any]


@dataclass(frozen=True)
class Candidate:
    """A guess to be borne out: a form, and how states are made. ``source`` says where they come from."""

    form: Form
    make: MakeStates
    source: str


def candidates(
    module: nn.Module, frames: Frames, states: Any, batch_first: bool | None
) -> Iterator[Candidate]:
    if (known := _of_torch(module, batch_first)) is not None:
        yield known
        return
    forms = list(_forms(module, frames, batch_first))

    def each(make: MakeStates, source: str) -> Iterator[Candidate]:
        for form in forms:
            yield Candidate(form, make, source)

    if states is not None:
        for make in _given(states):
            yield from each(make, GIVEN)
    for name, arguments in (
        ("initial_states", ()),
        ("init_hidden", ()),
        ("init_hidden", _image_size(frames)),
    ):
        if callable(method := getattr(module, name, None)):
            yield from each(_method(method, arguments), f"states from its {name}()")
    bare = _Bare(module, frames)
    for form in forms:
        yield Candidate(form, _left_out(bare, form), LEFT_OUT)
    for make, source in _by_attribute(module, frames):
        yield from each(make, source)


def _forms(module: nn.Module, frames: Frames, batch_first: bool | None) -> Iterator[Form]:
    """Every way to call a module, the usual ones first."""
    keyword = _state_argument(module, len(frames))
    if batch_first is None:
        batch_first = getattr(module, "batch_first", None)
        yield Form("cell", "nested", "states", keyword=keyword)
        yield Form("step", "leaves", "pair")
        yield Form("step", "nested", "pair", keyword=keyword)
        yield Form("cell", "leaves", "states")
        yield Form("step", "leaves", "flat")
        yield Form("step", "nested", "flat", keyword=keyword)
    for time in (1, 0):
        if batch_first in (None, time == 1):
            yield Form("sequence", "nested", "pair", time, keyword)
            yield Form("sequence", "leaves", "pair", time)
            yield Form("sequence", "nested", "flat", time, keyword)
            yield Form("sequence", "leaves", "flat", time)


def takes_states(module: nn.Module, frames: int) -> bool:
    """Whether forward has arguments beyond the frames."""
    names, any_number = argument_names(module)
    return any_number or len(names) > frames


def _state_argument(module: nn.Module, frames: int) -> str | None:
    """The argument of forward that is called like a state, where others stand between it and the frames."""
    names = argument_names(module)[0][frames:]
    named = [k for k, name in enumerate(names) if _STATE_NAME.search(name.lower())]
    return names[named[0]] if named and named[0] > 0 else None


def _of_torch(module: nn.Module, batch_first: bool | None) -> Candidate | None:
    """torch's own recurrent modules, which say all there is to know."""
    if isinstance(module, nn.LSTMCell):
        hidden = module.hidden_size
        return Candidate(Form("cell", "nested", "states"), _zeros((hidden,), (hidden,)), DOCUMENTED)
    if isinstance(module, nn.GRUCell | nn.RNNCell):
        return Candidate(Form("cell", "nested", "states"), _zero((module.hidden_size,)), DOCUMENTED)
    if not isinstance(module, nn.RNNBase):
        return None
    if module.bidirectional:
        raise EdgeLstmError(
            f"a bidirectional {type(module).__name__} is no step",
            found="a direction that runs from the last frame to the first",
            expected="a module that needs no frames of the future",
            hint="It sees whole windows: run it with any ONNX runtime, or train one with bidirectional=False",
        )
    if batch_first not in (None, module.batch_first):
        raise EdgeLstmError(
            "batch_first", found=batch_first, expected=f"{module.batch_first}, as the module has it"
        )
    time, layers, hidden = int(module.batch_first), module.num_layers, module.hidden_size
    form = Form("sequence", "nested", "pair", time)
    if isinstance(module, nn.LSTM):
        h = module.proj_size or hidden
        return Candidate(
            form, lambda n: (torch.zeros(layers, n, h), torch.zeros(layers, n, hidden)), DOCUMENTED
        )
    return Candidate(form, lambda n: torch.zeros(layers, n, hidden), DOCUMENTED)


def _given(states: Any) -> Iterator[MakeStates]:
    """States as the user gave them, in the nestings a module may want: streams on axis 0, then on axis 1."""
    if isinstance(states, Mapping):
        states = tuple(states.values())
    nested = examples(states)
    nestings = [nested]
    leaves = pytree.tree_leaves(nested)
    if isinstance(nested, tuple | list) and all(isinstance(item, Tensor) for item in nested):
        if len(leaves) == 1:
            nestings.append(leaves[0])
        elif len(leaves) % 2 == 0:
            nestings.append([tuple(leaves[k : k + 2]) for k in range(0, len(leaves), 2)])
    for axis in (0, 1):
        if all(leaf.dim() >= axis for leaf in leaves):
            yield from (_repeated(nesting, axis) for nesting in nestings)


def _repeated(nested: Any, axis: int) -> MakeStates:
    return lambda n: pytree.tree_map(lambda t: torch.stack([t] * n, dim=axis), nested)


def _method(method: Callable[..., Any], arguments: tuple[Any, ...]) -> MakeStates:
    return lambda n: method(n, *arguments)


def examples(states: Any) -> Any:
    """``states`` with every shape turned into zeros."""
    if isinstance(states, tuple | list) and not (is_shape(states) and states):
        return type(states)(map(examples, states)) if states else states
    return example(states, "a state")


def _image_size(frames: Frames) -> tuple[tuple[int, ...], ...]:
    first = next(iter(frames.values()))
    return (tuple(first.shape[-2:]),)


class _Bare:
    """What the module returns when it is called with frames alone; each such call is made once."""

    def __init__(self, module: nn.Module, frames: Frames) -> None:
        self.module, self.frames = module, frames
        self.known: dict[tuple[int, int | None], Any] = {}

    def __call__(self, streams: int, time: int | None) -> Any:
        """The returned value, or Unfit raised, for so many streams with time on that axis."""
        key = (streams, time)
        if key not in self.known:
            try:
                self.known[key] = call(self.module, *sample(self.frames, streams, time=time))
            except Unfit as unfit:
                self.known[key] = unfit
        if isinstance(self.known[key], Unfit):
            raise self.known[key]
        return self.known[key]


def _left_out(bare: _Bare, form: Form) -> MakeStates:
    """What a call without states gives back, as zeros: where the module starts when nobody says otherwise."""

    def make(n: int) -> Any:
        _, returned = form.parts(bare(n, form.time))
        leaves = pytree.tree_leaves(returned)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise Unfit(f"returned {describe(returned)} as its next state", returned=True)
        return pytree.tree_map(torch.zeros_like, returned)

    return make


def _by_attribute(module: nn.Module, frames: Frames) -> Iterator[tuple[MakeStates, str]]:
    """A cell's (h, c), or its h, of a size that an attribute or the gates' weight tells."""
    sizes: dict[int, str] = {}
    for name in ("hidden_size", "hidden_channels", "hidden_dim", "hidden", "n_hidden", "units"):
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
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


def call(run: Callable[..., Any], *arguments: Any) -> Any:
    """``run(*arguments)``, and Unfit for whatever a user's module raises."""
    try:
        return run(*arguments)
    except Unfit:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise Unfit(f"raised {type(error).__name__}: {first}"[:300], returned=False) from error


#: How floats are drawn: noise, and what modules want that take logarithms, roots or counts.
_DRAWS: tuple[Callable[[Tensor], Tensor], ...] = (lambda t: t, torch.abs, torch.sigmoid)
_draw: ContextVar[int] = ContextVar("draw", default=0)


class NoNumbers(Unfit):
    """A module gave NaN or infinity for the frames that were drawn: nothing can be told by them."""


def with_numbers(attempt: Callable[[], Result]) -> Result:
    """``attempt()``, with other frames drawn where it raises NoNumbers; the last time it is what it raises."""
    for k in range(len(_DRAWS)):
        token = _draw.set(k)
        try:
            return attempt()
        except NoNumbers:
            if k == len(_DRAWS) - 1:
                raise
        finally:
            _draw.reset(token)
    raise AssertionError


def check_numbers(values: Iterable[Tensor]) -> None:
    """Raise NoNumbers where one of ``values`` holds NaN or infinity."""
    if not all(bool(torch.isfinite(t).all()) for t in values if t.is_floating_point()):
        raise NoNumbers("gave NaN or infinity for the frames that were drawn", returned=True)


def sample(frames: Frames, n: int, *, seed: int = 0, time: int | None = None) -> list[Tensor]:
    """Frames of ``n`` streams: noise, or the example itself where that is of integers; one long on axis ``time``."""
    generator = torch.Generator().manual_seed(seed)
    draw = _DRAWS[_draw.get()]
    samples = [
        draw(torch.randn((n, *frame.shape), generator=generator)).to(frame.dtype)
        if frame.is_floating_point()
        else torch.stack([frame] * n)
        for frame in frames.values()
    ]
    return samples if time is None else [frame.unsqueeze(time) for frame in samples]
