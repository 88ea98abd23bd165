"""What was found of a module, as a TorchStep: the names, places and first values of its states, and its Signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgelstm.dtypes import DTYPES
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.torch.arguments import parameters
from edgelstm.frontends.torch.conventions import GIVEN, Candidate, examples
from edgelstm.frontends.torch.first_call import FirstCall
from edgelstm.frontends.torch.kept import Kept
from edgelstm.frontends.torch.running import FEW, MORE, Frames, close, returned, run, sample, step
from edgelstm.frontends.torch.torch_step import RETURNED, Form, Place, TorchStep, Unfit, called
from edgelstm.frontends.torch.tree import Leaf, flatten, leaves, tensors_in
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec

#: More layers than this in one stacked tensor stay one state.
MAX_LAYERS = 64


def make_step(
    module: nn.Module,
    frames: Frames,
    form: Form,
    candidate: Candidate,
    states: Any,
    outputs: Sequence[str] | None,
) -> TorchStep:
    """The step. Raises EdgeLstmError for names and first values that are not to be had."""
    one = isinstance(module, Kept) and module.one_stream
    counts = (1, 1) if one else (FEW, MORE)
    first = [flatten(run(candidate.make, n)) for n in counts]
    few, more = (
        step(module, form, sample(frames, n), tensors) for n, (tensors, _) in zip(counts, first, strict=True)
    )
    places = [Place(k, 0) for k in range(len(few.states))] if one else _places(few.states, more.states)
    nested = first[0][1].build(first[0][0])
    initial = [place.take(first[0][0]) for place in places]
    given = _flat(states) if states is not None and candidate.source != GIVEN else None
    if given is not None:
        initial = _as_given(module, given, initial)
    names = list(map(str, states)) if isinstance(states, Mapping) else []
    if isinstance(module, FirstCall):
        names = module.state_names
    elif isinstance(module, Kept):
        names = _of_kept(module, names, places)
    elif len(names) != len(places):
        names = _state_names(module, form, nested, places, len(frames))
    taken = {*frames, *names}
    own = output_names(module, len(few.outputs), few.names, outputs)
    labels = [n if n not in taken else f"{n}_out" for n in own]
    streams: int | str = 1 if one else "N"
    signature = Signature(
        inputs=tuple(TensorSpec(n, dtype_of(n, f), (streams, *f.shape)) for n, f in frames.items()),
        outputs=tuple(
            TensorSpec(n, dtype_of(n, y), (streams, *y.shape[1:]))
            for n, y in zip(labels, few.outputs, strict=True)
        ),
        states=tuple(
            StateSpec(n, n, f"{n}_next", dtype_of(n, t), (streams, *t.shape[1:]), _initial(n, t))
            for n, t in zip(names, initial, strict=True)
        ),
    )
    return TorchStep(module, form, places, signature)


def stream_axis(name: str, few: Tensor, more: Tensor) -> int:
    """The axis that follows the number of streams. Raises Unfit."""
    for axis, sizes in enumerate(zip(few.shape, more.shape, strict=True)):
        if sizes == (FEW, MORE):
            return axis
    raise Unfit(
        f"gave {name} as {list(few.shape)} for {FEW} streams and {list(more.shape)} for {MORE}, without an axis of that size",
        got=RETURNED,
    )


def _flat(states: Any) -> list[Tensor]:
    return tensors_in(examples(tuple(states.values()) if isinstance(states, Mapping) else states))


def _as_given(module: nn.Module, given: Sequence[Tensor], initial: Sequence[Tensor]) -> list[Tensor]:
    """The module told how it nests its states; what they start from is the user's word."""
    shapes = [tuple(t.shape[1:]) for t in initial]
    if isinstance(module, Kept):  # what is kept has its own start
        shapes = shapes[: len(given)]
    if [tuple(t.shape) for t in given] != shapes:
        raise EdgeLstmError(
            f"the states of {called(module)}",
            found=f"{[tuple(t.shape) for t in given]} as given",
            expected=f"{shapes}",
        )
    n = initial[0].shape[0]
    told = [torch.stack([t] * n).to(like.dtype) for t, like in zip(given, initial, strict=False)]
    return [*told, *initial[len(told) :]]


def _places(few: Sequence[Tensor], more: Sequence[Tensor]) -> list[Place]:
    axes = [stream_axis(f"state {k}", a, b) for k, (a, b) in enumerate(zip(few, more, strict=True))]
    layers = {t.shape[0] if axis == 1 else None for t, axis in zip(few, axes, strict=True)}
    count = layers.pop() if len(layers) == 1 else None
    if count is not None and count <= MAX_LAYERS:
        return [Place(k, 1, part) for part in range(count) for k in range(len(few))]
    return [Place(k, axis) for k, axis in enumerate(axes)]


def starts_at_zero(module: nn.Module, frames: Frames, form: Form, candidate: Candidate) -> bool:
    """Whether a call without states gives what one from zeros gives. Raises EdgeLstmError where it draws its states."""
    bare = candidate.form or Form("none", form.time, frame_names=form.frame_names)
    given = sample(frames, FEW, time=form.time)
    untold = tensors_in(returned(module, bare, given, ()))
    told = tensors_in(returned(module, form, given, tensors_in(run(candidate.make, FEW))))
    if len(untold) != len(told) or not all(map(close, untold, told)):
        again = tensors_in(returned(module, bare, given, ()))
        if len(again) != len(untold) or all(map(close, untold, again)):
            return False
        raise EdgeLstmError(
            f"{called(module)} starts from a state of its own",
            found="random numbers, drawn at every call",
            expected="states=, arrays of its initial values without the stream axis",
        )
    return True


# -- names --------------------------------------------------------------------------------------------------------------


def keys_of(module: nn.Module, form: Form, nested: Any, states: Any, frames: int, count: int) -> list[str]:
    """What the module's own tensors of states are called: by the user, by its arguments, by its mappings; else h, c."""
    if isinstance(states, Mapping) and len(states) == count:
        return list(map(str, states))
    if form.state_names is not None:
        return list(form.state_names)
    if form.arguments == "leaves":
        names = [p.name for p in parameters(module)[0] if p.by_place][frames : frames + count]
        if len(names) == count:
            return names
    found = leaves(nested)
    own = [leaf.name for leaf in found]
    if all(own) and len(set(own)) == count:
        return [str(name) for name in own]
    if count == 1:
        return ["h"]
    return ["h", "c"] if count == 2 else [f"h{k}" for k in range(count)]


def _of_kept(module: Kept, given: Sequence[str], places: Sequence[Place]) -> list[str]:
    """Names of the states that are given as arguments, then of those that are kept; layer by layer if they are stacked."""
    explicit = [*given, *(f"h{k}" for k in range(len(given), module.given))][: module.given]
    names = [*explicit, *module.names]
    parts = [p.part for p in places]
    layers = max((p for p in parts if p is not None), default=0) + 1
    return [names[p.leaf] if layers == 1 else f"{names[p.leaf]}_{p.part}" for p in places]


def _state_names(
    module: nn.Module, form: Form, nested: Any, places: Sequence[Place], frames: int
) -> list[str]:
    """h0, c0, h1, c1, ... (h1 alone for a GRU), if they come by layers; else forward's names; else state0, state1, ..."""
    count = len(places)
    if form.state_names is not None and len(form.state_names) == count:
        return list(form.state_names)
    if form.arguments == "leaves":
        positional = [p.name for p in parameters(module)[0] if p.by_place][frames:]
        if len(positional) == count:
            return positional
        found = tensors_in(nested)
        paired = count % 2 == 0 and all(
            a.shape == b.shape for a, b in zip(found[::2], found[1::2], strict=True)
        )
    elif isinstance(nested, Tensor):
        return [f"h{k}" for k in range(count)]
    elif _is_pair(nested):
        paired = True
    else:
        found_leaves = leaves(nested)
        named = _named(found_leaves)
        if named is not None and len(named) == count:
            return named
        groups = [[item] if isinstance(item, Tensor) else tensors_in(item) for item in nested]
        paired = all(len(group) == 2 for group in groups)
        if not paired and all(len(group) in (1, 2) for group in groups):
            names = [f"{'hc'[k]}{number}" for number, group in enumerate(groups) for k in range(len(group))]
            if len(names) == count:
                return names
    if paired:
        return [f"{'hc'[k % 2]}{k // 2}" for k in range(count)]
    return [f"state{k}" for k in range(count)]


def _named(found: Sequence[Leaf]) -> list[str] | None:
    """Names by the keys that lead to each, if there are any."""
    if not all(leaf.name for leaf in found):
        return None
    names = ["_".join(map(str, leaf.path)) for leaf in found]
    short = [str(leaf.name) for leaf in found]
    return short if len(set(short)) == len(short) else names


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(t, Tensor) for t in value)


def output_names(
    module: nn.Module, count: int, own: Sequence[str] | None, outputs: Sequence[str] | None
) -> Sequence[str]:
    """Names of ``count`` outputs: as asked for, as the module says, as it ``own``s them, or y, y0, y1, ..."""
    said = getattr(module, "output_names", None)
    names = outputs or own or (said if isinstance(said, tuple | list) else None)
    if outputs is None and isinstance(said, tuple | list):
        names = said
    if names is None:
        return ["y"] if count == 1 else [f"y{k}" for k in range(count)]
    if len(names) != count:
        raise EdgeLstmError(
            f"names of the outputs of {called(module)}",
            found=list(names),
            expected=f"{count_of(count, 'name')}",
        )
    return list(names)


def dtype_of(name: str, tensor: Tensor) -> str:
    """A Signature's name for the dtype. Raises EdgeLstmError for others."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        hint = (
            "Hand complex numbers in and out as pairs of real ones: torch.view_as_real, torch.view_as_complex"
        )
        raise EdgeLstmError(
            f"dtype of {name!r}",
            found=dtype,
            expected=f"one of {', '.join(DTYPES)}",
            hint=hint if "complex" in dtype else None,
        )
    return dtype


def _initial(name: str, value: Tensor) -> bytes | None:
    if not all(torch.equal(value[0], row) for row in value[1:]):
        raise EdgeLstmError(
            f"the initial value of state {name!r}", found="one that differs from stream to stream"
        )
    return bytes(value[0].contiguous().numpy().tobytes()) if bool(value.any()) else None
