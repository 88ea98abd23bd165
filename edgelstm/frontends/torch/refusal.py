"""Why a module is no step: one message for all that was tried, and hints that were tried before they are printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.torch.arguments import unfilled
from edgelstm.frontends.torch.conventions import DOCUMENTED, GIVEN, KEPT, Candidate, takes_states
from edgelstm.frontends.torch.inner_states import Inside
from edgelstm.frontends.torch.memory import Memory
from edgelstm.frontends.torch.running import Frames
from edgelstm.frontends.torch.torch_step import RETURNED, Form, Unfit, Windowed, called

Attempt = tuple[Candidate, Form | None, Unfit]
FORMS = (
    "cell(x, (h, c)) -> (h, c); or forward(x, *states) -> (outputs, next states); "
    "or forward(x[B, T, ...], state) -> (y, state)"
)
#: What torch says of code that fixes where or in what type it computes, and what to write instead.
_SAID = {
    "compiled with CUDA": "Modules are exported on the CPU: make tensors with x.new_zeros(...) or device=x.device in place of .cuda()",
    "on the same device": "Modules are exported on the CPU: make tensors with x.new_zeros(...) or device=x.device",
    "must have the same dtype": "Modules are exported in float32, whatever their weights are in: take types from the weights or the frame, "
    "x.to(self.weight.dtype), in place of .double() and .half()",
    "same dtype as": "Modules are exported in float32: take types from the weights or the frame in place of .double() and .half()",
}
UNKNOWN = "If only its states are unknown, give one stream's shapes, as states={'h': (64,)} or --state h=64"


class Forgets(EdgeLstmError):
    """A module that keeps its states to itself."""


def forgets(module: nn.Module, memory: Memory, failed: Unfit | None) -> EdgeLstmError:
    """For a module whose kept states would be lost; ``failed``: why they can't be carried either."""
    name = called(module)
    if failed is None:
        return Forgets(
            f"{name} keeps {memory.text()} from call to call, which a graph would lose",
            expected="a word on it",
            hint="carry_state=True (--carry-state) carries it from frame to frame as a state",
        )
    where = f"; {memory.branches[0]}" if memory.branches else ""
    return Forgets(
        f"{name} keeps {memory.text()} from call to call, which can't be carried as it is",
        found=f"as a state it {failed}{where}",
        expected="a forward that takes it as an argument and gives the next value back",
    )


def restarts(inside: Inside, length: int | None) -> EdgeLstmError:
    """For a module whose cells start anew at every call, where nobody said what is wanted."""
    paths = inside.paths
    some = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    window = f"{_windows(length)}; " if length else ""
    return EdgeLstmError(
        f"{inside.source_name} is a window: it starts anew at every call",
        found=f"states inside ({some}) that forward neither takes nor gives back",
        expected="a word on what is wanted",
        hint=f"{window}carry_state=True (--carry-state) a step whose state is carried on from frame to frame, "
        "longer than it may have been trained for",
    )


def _windows(length: int) -> str:
    return f"window={length} (--window {length}) exports windows of {count_of(length, 'frame')}, as it stands"


def refusal(
    module: nn.Module,
    frames: Frames,
    attempts: Sequence[Attempt],
    states: Any,
    window: Callable[[], int | None],
) -> EdgeLstmError:
    """One message for all that was tried: the attempt that got furthest. ``window`` finds a length of windows that works."""
    name = called(module)
    length = window()
    as_window = _windows(length) if length else None
    if windowed := [unfit for _, _, unfit in attempts if isinstance(unfit, Windowed)]:
        return EdgeLstmError(
            f"{name} is a window, not a step",
            found=f"with the state carried it {windowed[0]}",
            expected="a module whose state is all it knows of the past, and that needs no frames of the future",
            hint=as_window,
        )

    def distance(attempt: Attempt) -> tuple[float, bool]:
        candidate, _, unfit = attempt
        return unfit.got, candidate.source == GIVEN

    if not attempts:
        return EdgeLstmError(
            f"{name}.forward is not step-shaped",
            found=f"beyond the frames it {unfilled(module, list(frames.values()), {}) or 'takes what is not known'}",
            expected=FORMS,
            hint=UNKNOWN,
        )
    documented = [each for each in attempts if each[0].source == DOCUMENTED]
    candidate, form, unfit = max(documented or attempts, key=distance)
    if candidate.source == DOCUMENTED:
        shapes = ", ".join(str(list(frame.shape)) for frame in frames.values())
        return EdgeLstmError(f"{name} can't take a frame of shape {shapes}", found=f"it {unfit}")
    source = "" if candidate.source == KEPT else f"({candidate.source}) "
    how = (f"called as {form.text} " if form is not None else "") + source
    hints = [as_window] if as_window else []
    if not takes_states(module, len(frames)):
        hints.insert(
            0,
            "It takes nothing but frames, and no state was found that it keeps or that cells inside it hold",
        )
    elif states is None and unfit.got < RETURNED:
        hints.insert(
            0,
            "If only its states are unknown, give one stream's shapes, as states={'h': (64,)} or --state h=64",
        )
    hints += [hint for said, hint in _SAID.items() if said in str(unfit)][:1]
    return EdgeLstmError(
        f"{name}.forward is not step-shaped",
        found=f"{how}it {unfit}",
        expected=FORMS,
        hint=". ".join(hints) or None,
    )
