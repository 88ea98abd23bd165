"""Trial runs of a user's module: always as it was at first, and whatever it raises told with its line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgelstm.frontends.torch.arguments import unfilled
from edgelstm.frontends.torch.on_cpu import on_cpu
from edgelstm.frontends.torch.snapshot import put_back
from edgelstm.frontends.torch.torch_step import PAIRED, RAISED, UNBOUND, Form, Result, Unfit
from edgelstm.frontends.torch.watch import is_users, where_raised

#: Examples of one frame, without the stream axis, by input name.
Frames = Mapping[str, Tensor]

#: Two numbers of streams; the axis of a tensor that follows them is the stream axis.
FEW, MORE = 2, 3
#: How far two runs of one computation may be from each other, relative to the largest value.
TOLERANCE = 1e-3


#: How floats are drawn: noise, and what modules want that take logarithms, roots or counts.
_DRAWS: tuple[Callable[[Tensor], Tensor], ...] = (lambda t: t, torch.abs, torch.sigmoid)
_draw: ContextVar[int] = ContextVar("draw", default=0)
T = TypeVar("T")


class NoNumbers(Unfit):
    """A module gave NaN or infinity for the frames that were drawn: nothing can be told by them."""


def with_numbers(attempt: Callable[[], T]) -> T:
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
        raise NoNumbers("gave NaN or infinity for the frames that were drawn", got=PAIRED)


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many operators ran."""

    operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


def run(function: Callable[..., Any], *args: Any, _fresh: bool = True, **kwargs: Any) -> Any:
    """``function(*args)``, and Unfit for whatever a user's module raises. A module is put back as it was first."""
    module = function if isinstance(function, nn.Module) else None
    if module is not None and _fresh:
        put_back(module)
    if module is not None and (reason := unfilled(module, args, kwargs)):
        raise Unfit(reason, got=UNBOUND)
    counted = _Counted()  # type: ignore[no-untyped-call]
    try:
        with on_cpu(), counted:
            return function(*args, **kwargs)
    except Unfit:
        raise
    except Exception as error:
        # A table looked up with numbers that the frames hold: others may be in it.
        kind = NoNumbers if "index out of range in self" in str(error) else Unfit
        raise kind(raised(error), got=RAISED + counted.operators / (counted.operators + 100)) from error


def raised(error: BaseException) -> str:
    """An exception of a user's module in one line, with the line of theirs that it came from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    if "TorchScript interpreter" in first:  # then what went wrong is said last
        first = lines[-1].removeprefix(f"{type(error).__name__}: ")
    place = where_raised(error)
    return f"raised {type(error).__name__}: {first}"[:300] + (f" ({place})" if place else "")


def returned(module: nn.Module, form: Form, frames: Any, states: Any, *, fresh: bool = True) -> Any:
    """What a call in this form gives back; frames as the module takes them. Raises Unfit."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return run(module, *args, _fresh=fresh, **kwargs)

    return form.called_by(call, frames, states)


def step(module: nn.Module, form: Form, frames: Any, states: Any, *, fresh: bool = True) -> Result:
    """One step, frames without a time axis. Raises Unfit."""
    if form.time is not None:
        frames = [frame.unsqueeze(form.time) for frame in frames]
    result = form.read(returned(module, form, frames, states, fresh=fresh))
    return form.without_time(result)


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


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results of one computation are the same."""
    if a.shape != b.shape:
        return False
    check_numbers([a, b])
    a, b = a.double(), b.double()
    scale = float(a.abs().max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * scale)


def users_files(module: nn.Module) -> tuple[str, ...]:
    """The files in which the classes of a module's parts are written, torch's and ours left out."""
    found: dict[str, None] = {}
    for part in module.modules():
        try:
            file = inspect.getfile(type(part))
        except (TypeError, OSError):
            continue
        if is_users(file):
            found[file] = None
    return tuple(found)
