"""The door for torch modules, and for factories that make them."""

from __future__ import annotations

from functools import partial
from typing import Any

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.frontends.door import Loaded, Request
from edgelstm.frontends.torch.checkpoint import listed
from edgelstm.frontends.torch.factory import load_weights, random_weights, resolve
from edgelstm.frontends.torch.program import TorchProgram
from edgelstm.frontends.torch.recognise import as_step, open_module
from edgelstm.frontends.torch.trace import trace
from edgelstm.graph.signature import Signature
from edgelstm.passes.stream_axis import find_mixing
from edgelstm.runtime.protocol import Program


def load(source: Any, request: Request, name: str | None = None) -> Loaded:
    """A module as a step, or as a window where that is asked for and it starts anew at every call."""
    module = _module(source, request)
    drawn = (
        random_weights(module, source, request.kwargs)
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
    step = trace(opened)
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
            module, request.frame, states=request.states, carry_state=request.carry_state, results=results
        )
    except EdgeLstmError:
        return False
    return True


def reference(source: str, request: Request, like: Signature | None) -> Program:
    """The module itself, its frames and states being those of ``like``."""
    if like is None:
        raise EdgeLstmError(
            f"{source} does not say what its frames look like",
            expected="an .onnx or described .safetensors beside it",
        )
    frame = {t.name: t.frame_shape[1:] if like.window else t.frame_shape for t in like.inputs}
    states = {s.name: s.initial_value() for s in like.states}
    # What the Signature says of it was settled at export: a model without states is a window.
    length = like.window or like.inputs[0].frame_shape[0]
    if not states and not like.window:
        frame = {name: shape[1:] for name, shape in frame.items()}
    opened, _, _ = open_module(
        _module(source, request),
        frame,
        states=states or None,
        window=None if states else length,
        carry_state=bool(states),
    )
    return TorchProgram(opened)


def _module(source: Any, request: Request) -> Any:
    module = resolve(source, request.kwargs) if isinstance(source, str) else source
    if request.weights is not None:
        load_weights(module, request.weights)
    return module
