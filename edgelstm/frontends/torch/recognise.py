"""Any recurrent torch module, seen as one step: frames and states in, outputs and next states out.

Three forms are known:

    cell      cell(x, (h, c)) -> (h, c)                  also cell(x, h, c), and cell(x, h) -> h, as torch.nn.GRUCell
    step      module(x, *states) -> (outputs, next states)   also module(x, states), and (y, h, c) given back
    sequence  module(x[B, T, ...], state) -> (y, state)  such as torch.nn.LSTM, run with T = 1

Which one a module has is found by running it, with two different numbers of streams: the axis that follows the number is
the stream axis. Nothing is read from source code, and nothing counts that the run does not bear out. A sequence module
that keeps its states to itself gets them put at its door: see ``frontends.inside``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.frame_shapes import is_shape
from edgelstm.frontends.torch.examples import read_frames
from edgelstm.frontends.torch.package import import_torch
from edgelstm.frontends.torch.torchscript import copied_script

if TYPE_CHECKING:
    from torch import nn

    from edgelstm.frontends.torch.torch_step import TorchStep
    from edgelstm.frontends.torch.windows import TorchWindow


def as_step(
    module: nn.Module,
    frame: Any,
    *,
    states: Any = None,
    batch_first: bool | None = None,
    outputs: Sequence[str] | None = None,
    carry_state: bool = False,
    results: Sequence[str] | None = None,
) -> TorchStep:
    """A copy of ``module`` (evaluation mode, float32, CPU) as one step; ``module`` itself is left as it is.

    Parameters
    ----------
    frame: one frame without the stream axis: its shape (float32), or an example array, whose dtype counts (other floats are
        taken and computed with in float32); or a mapping of those by input name, in the order of forward's arguments. A lone
        frame is called ``x``.
    states: one stream's states, without the stream axis: shapes (they start at zero) or arrays (the initial values),
        nested as the module nests them, or a flat mapping by name. Needed where the module itself does not tell:
        by ``initial_states(streams)``, by a state that may be left out, or by an attribute such as ``hidden_size``.
    batch_first: whether a sequence module takes [B, T, ...] or [T, B, ...]; found by running it when None.
    carry_state: for a module that starts from zeros at every call: carry the states of the cells inside it all the same.
        Without it that is done only where the module gives those states back.
    outputs: names of the outputs; else the module's ``output_names``, its dictionary's keys, or ``y`` (``y0, y1, ...``).

    Returns a :class:`~edgelstm.frontends.torch.torch_step.TorchStep` with a Signature: stream axis ``N``, states ``h0, c0, h1, ...``
    each with the streams on axis 0, also where the module stacks its layers as [layers, N, ...].

    Raises EdgeLstmError for a module that is not step-shaped, saying what forward gave and what is expected; for a
    bidirectional or otherwise windowed module; and when torch is missing.
    """
    from edgelstm.frontends.torch.narrow import taking
    from edgelstm.frontends.torch.trial import probe

    given = read_frames(frame)
    examples = _in_float32(given)

    def attempt(frames: Mapping[str, Any]) -> TorchStep:
        found = probe(_copied(module), frames, states, batch_first, outputs, carry_state, results)
        return taking(found, given)

    try:
        return attempt(examples)
    except EdgeLstmError as error:
        kinds = [kind for said, kind in _OTHER_KINDS.items() if said in str(error)]
        for other in _of_other_kinds(frame, examples, kinds):
            try:
                return attempt(other)
            except EdgeLstmError:
                continue
        if any(said in str(error) for said in _ASKED) and (
            ways := _frames_that_work(frame, examples, attempt)
        ):
            error.hint = (
                f"Frames were taken as float32; if they are of another type, say which: {' or '.join(ways)}"
            )
        raise


#: What torch says where a module takes no floats, and what it takes: ids for a table or for one_hot, masks. Not what it says of
#: ``h[done] = 0``: that takes whole numbers and bools, and means different things by them.
_OTHER_KINDS = {
    "scalar types: Long": "int64",
    "applicable to index tensor": "int64",
    "boolean tensor": "bool",
}


#: What torch says where a module takes no floats, and whole numbers and bools mean different things to it.
_ASKED = (
    "tensors used as indices",
    "integer and Boolean",
    "not implemented for 'Float'",
    "not implemented for Float",
)


def _frames_that_work(frame: Any, examples: Mapping[str, Any], attempt: Callable[..., Any]) -> list[str]:
    """Options under which the module is a step."""
    ways = []
    for other in _of_other_kinds(frame, examples, ("int64", "bool")):
        try:
            attempt(other)
        except EdgeLstmError:
            continue
        ways.append(" ".join(f"--frame {_frame_option(name, t)}" for name, t in other.items()))
    return ways[:2]


def _frame_option(name: str, example: Any) -> str:
    kind = str(example.dtype).removeprefix("torch.")
    shape = ",".join(map(str, example.shape))
    return f"{name}:{shape}" + ("" if kind == "float32" else f":{kind}")


def _in_float32(examples: Mapping[str, Any]) -> dict[str, Any]:
    return {n: t.float() if t.is_floating_point() else t for n, t in examples.items()}


def _of_other_kinds(
    frame: Any, examples: Mapping[str, Any], kinds: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The frames of which only a shape is known, one at a time or all of them of another kind."""
    torch = import_torch()
    given = frame if isinstance(frame, Mapping) else {"x": frame}
    free = [name for name in examples if is_shape(given[name])]
    for names in [*([name] for name in free), *([free] if len(free) > 1 else [])]:
        for kind in kinds:
            yield {**examples, **{name: examples[name].to(getattr(torch, kind)) for name in names}}


def open_module(
    module: nn.Module,
    frame: Any,
    *,
    states: Any = None,
    window: int | None = None,
    carry_state: bool = False,
    results: Sequence[str] | None = None,
) -> tuple[TorchStep | TorchWindow, tuple[str, ...], bool]:
    """``module`` as a step if it is one; else, with ``window``, as windows of so many frames, just as it computes them.

    Also what the user should know of that, and whether it is such a window. Arguments and errors as :func:`as_step`'s.
    """
    try:
        step = as_step(module, frame, states=states, carry_state=carry_state, results=results)
    except EdgeLstmError as error:
        if window is None or carry_state or states is not None or error.__class__ is not EdgeLstmError:
            raise
        from edgelstm.frontends.torch.narrow import taking
        from edgelstm.frontends.torch.windows import MixedStreams, as_window

        given = read_frames(frame)
        try:
            whole = taking(as_window(_copied(module), _in_float32(given), window), given)
        except EdgeLstmError as other:
            if "is a window" in error.what or isinstance(
                other, MixedStreams
            ):  # then why it can't be one of this length is what helps
                raise other from error
            raise error from other
        note = _window_note(type(module).__name__, window, whole.signature.window is None)
        return whole, (note, *_types_note(module)), True
    return step, (*_notes(step), *_types_note(module)), False


def _types_note(module: nn.Module) -> tuple[str, ...]:
    """What becomes of weights that are not in float32."""
    from edgelstm.frontends.torch.torch_step import called

    tensors = [*module.parameters(), *module.buffers()]
    kinds = {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()} - {"float32"}
    name = called(module)
    notes = []
    if narrow := sorted(kinds & {"float16", "bfloat16"}):
        notes.append(
            f"weights of {name} are {' and '.join(narrow)}: the graph holds them and computes in float32, and so does "
            "what it is compared with; quantize --precision fp16 makes a smaller one"
        )
    if wide := sorted(kinds - {"float16", "bfloat16"}):
        notes.append(
            f"weights of {name} are {' and '.join(wide)}: rounded to float32, in which the graph computes"
        )
    return tuple(notes)


def _notes(step: TorchStep) -> tuple[str, ...]:
    """What the user should know of how a step was made."""
    from edgelstm.frontends.torch.first_call import FirstCall
    from edgelstm.frontends.torch.inner_states import Inside
    from edgelstm.frontends.torch.kept import Kept
    from edgelstm.frontends.torch.pairing import said
    from edgelstm.frontends.torch.torch_step import called

    inner = step.module
    if step.form.reordered and step.form.picked is not None:
        taken = said(step.form.picked, step.form.keys)
        return (
            f"results taken as --results {taken} says, in another order than the states go in: so read, two frames in one call "
            "give what they give one after the other",
        )
    if isinstance(inner, Kept):
        places = ", ".join(str(slot.place) for slot in inner.slots)
        note = f"{places}, which {inner.source_name} keeps from call to call, carried as states"
        if inner.anew:
            note += "; a stream's first frame is computed as the module computes its first call, by a second copy of it"
        if inner.one_stream:
            note += "; written for one stream, since what is kept has no place for more"
        return (note,)
    if isinstance(inner, FirstCall):
        return (
            f"{inner.source_name} starts from more than zeros where its state is left out: a stream's first frame is computed so, by a "
            "second copy of it, and the state 'started' chooses",
        )
    if step.begun_by is not None:
        return (
            f"streams begin with the states that {step.begun_by} of {called(inner)} makes; where its states are left out it begins with "
            "others (--state NAME=FILE.npy gives those)",
        )
    if not isinstance(inner, Inside):
        return ()
    note = f"states of {', '.join(inner.paths)} are carried from frame to frame"
    if not inner.gives_states:
        note += (
            f", though {inner.source_name} itself starts anew at every call: past the length of its training windows "
            "nothing is known of how well it does"
        )
    return (note,)


def _window_note(name: str, window: int, whole: bool) -> str:
    text = f"{name} starts anew at every call: exported as windows of {count_of(window, 'frame')}, nothing is carried between them"
    if whole:
        text += "; not all of its outputs have a time axis, so a whole window counts as one frame"
    return text


def _copied(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, float32, on the CPU."""
    torch = import_torch()
    if not isinstance(module, torch.nn.Module):
        raise EdgeLstmError("the model to export", found=type(module).__name__, expected="a torch.nn.Module")
    try:
        if isinstance(module, torch.jit.ScriptModule):
            from edgelstm.frontends.torch.script_eager import Eager, keeps_states

            script = copied_script(module)
            return Eager(script) if keeps_states(script) else script
        copied: nn.Module = copy.deepcopy(module, _made(module))
    except Exception as error:  # whatever a user's module raises
        raise EdgeLstmError(f"{type(module).__name__} can't be copied", found=str(error)) from error
    from edgelstm.frontends.torch.baked import bake

    copied = copied.to(device="cpu").float().eval()
    bake(copied)
    return copied.requires_grad_(False)


def _made(module: nn.Module) -> dict[int, Any]:
    """For deepcopy: what stands for tensors in attributes, or in lists there, that were made from parameters, as weight_norm's weights are.

    torch copies none that remember what made them.
    """
    torch = import_torch()
    return {
        id(tensor): tensor.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        for tensor in (value if isinstance(value, list | tuple) else (value,))
        if isinstance(tensor, torch.Tensor) and not tensor.is_leaf
    }
