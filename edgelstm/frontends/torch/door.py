"""The door for torch modules, and for factories that make them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.dtypes import np_dtype
from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.door import Loaded, Request
from edgelstm.frontends.torch.checkpoint import listed
from edgelstm.frontends.torch.factory import load_weights, random_weights, resolve
from edgelstm.frontends.torch.program import TorchProgram
from edgelstm.frontends.torch.recognise import as_step, open_module
from edgelstm.frontends.torch.trace import trace, trace_or_for_one
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.passes.stream_axis import find_mixing
from edgelstm.runtime.protocol import Program

if TYPE_CHECKING:
    from edgelstm.frontends.torch.torch_step import TorchStep
    from edgelstm.frontends.torch.windows import TorchWindow


def load(source: Any, request: Request, name: str | None = None) -> Loaded:
    """A module as a step, or as a window where that is asked for and it starts anew at every call."""
    module = _module(source, request)
    drawn = (
        random_weights(module, source, request.init)
        if isinstance(source, str) and request.weights is None
        else []
    )
    if request.frame is None:
        raise EdgeLstmError(
            "the shape of a frame is not given",
            expected="frame=(1, 64, 64), or --frame 1,64,64: one frame without the stream axis",
        )
    from edgelstm.frontends.torch.windows import MixedStreams  # needs torch

    def open_with(frame: Any) -> Any:
        return open_module(
            module,
            frame,
            states=request.states,
            window=request.window,
            carry_state=request.carry_state,
            results=request.results,
        )

    try:
        opened, notes, windowed = open_with(request.frame)
    except MixedStreams as error:
        error.found = "; ".join(dict.fromkeys(map(_what_mixes, error.readings))) or error.found
        raise
    except EdgeLstmError as error:
        from edgelstm.frontends.torch.unfit_frame import explained  # needs torch

        why = explained(module, request.frame, request.states, error, open_with)
        if why is error:
            raise
        raise why from error
    name = name or (source if isinstance(source, str) else type(source).__name__)
    if drawn:
        notes = (
            f"untrained: no weights were given, and {source} draws {count_of(len(drawn), 'tensor')} at random at every call "
            f"({listed(drawn)}); give --weights",
            *notes,
        )
    request.say("tracing")
    opened, step, alone = trace_or_for_one(opened)
    notes = (*notes, *alone)
    if request.results is None:
        from edgelstm.frontends.torch.crossed import check_order  # needs torch

        notes = (*notes, *check_order(step, opened, partial(_is_step, module, request)))
    return Loaded(step, TorchProgram(opened), name, notes, windowed)


def _what_mixes(window: Any) -> str:
    """The operator in a window's graph that mixes its streams."""
    try:
        mixing = find_mixing(trace(window))
    except EdgeLstmError:
        mixing = None
    how = f"called as {window.form.text}"
    if mixing is None:
        return f"{how}, one stream has other results when the frames of another change"
    return f"{how}, {mixing} mixes their rows, as {mixing.tensor!r} shows"


def _is_step(module: Any, request: Request, results: list[str]) -> bool:
    """Whether the module opens as a step with its results named so."""
    try:
        as_step(
            module,
            request.frame,
            states=request.states,
            carry_state=request.carry_state,
            results=results,
        )
    except EdgeLstmError:
        return False
    return True


def reference(source: Any, request: Request, like: Signature | None) -> Program:
    """The module itself, its frames and states being those of ``like``, called as ``request`` says where it says anything."""
    if like is None:
        raise EdgeLstmError(
            f"{source} does not say what its frames look like",
            expected="an .onnx or described .safetensors beside it",
        )
    module = _module(source, request)
    # What the Signature says of it was settled at export: a model without states is a window.
    whole = not like.states and not like.window
    frame = request.frame or {t.name: _example(t, bool(like.window or whole)) for t in like.inputs}
    first = like.inputs[0].frame_shape
    length = like.window or (first[0] if first else None)

    def opened(states: Any) -> TorchStep | TorchWindow:
        found, _, _ = open_module(
            module,
            frame,
            states=states,
            window=None if like.states else length,
            carry_state=bool(like.states),
            results=request.results,
        )
        return found

    own = {s.name: s.values(s.initial_value()) for s in like.states} or None
    try:
        step = opened(own if request.states is None else request.states)
    except EdgeLstmError:
        if request.states is not None or request.results is None:
            raise
        # The results are named as at the export, where the module said itself what its states are.
        step = opened(None)
        if not _starts_alike(step.signature, like):
            raise
    if request.results is None:
        said = own if request.states is None else request.states
        _check_order(module, replace(request, frame=frame, states=said), step)
    return TorchProgram(step)


def _example(spec: TensorSpec, timed: bool) -> Any:
    """One frame: its shape, or zeros where it is of no floats."""
    shape = spec.frame_shape[1:] if timed else spec.frame_shape
    kind = np_dtype(spec.dtype)
    return np.zeros(shape, kind) if kind.kind in "iub" and spec.dtype in ("bool", kind.name) else shape


def _starts_alike(a: Signature, b: Signature) -> bool:
    """Whether two models have the same states, which start from the same."""
    first, second = ({s.name: s.values(s.initial_value()) for s in x.states} for x in (a, b))
    return first.keys() == second.keys() and all(np.array_equal(v, second[n]) for n, v in first.items())


def _check_order(module: Any, request: Request, step: TorchStep | TorchWindow) -> None:
    """Raise EdgeLstmError for results that an export would ask about."""
    from edgelstm.frontends.torch.crossed import check_order  # needs torch

    try:
        graph = trace(step)
    except EdgeLstmError:  # it need not be exportable to be compared with
        return
    check_order(graph, step, partial(_is_step, module, request))


def _module(source: Any, request: Request) -> Any:
    module = resolve(source, request.init) if isinstance(source, str) else source
    if request.weights is not None:
        load_weights(module, request.weights)
    return module
