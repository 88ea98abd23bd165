"""The door for Keras files."""

from __future__ import annotations

from edgelstm.frontends.door import Loaded, Request
from edgelstm.frontends.keras import load_keras
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Program


def load(source: str, request: Request) -> Loaded:
    """A step, or a window where the model can't be streamed or was not made to be."""
    found = load_keras(source, frame=request.frame, window=request.window, carry_state=request.carry_state)
    return Loaded(found.step, found.reference, str(source), found.notes, found.window is not None)


def reference(source: str, request: Request, like: Signature | None) -> Program:
    """The model taken as ``like`` was: with its frames, as a step if that has states and else as the same window."""
    if like is None:
        return load_keras(source).reference
    if like.states:
        frame = {t.name: t.frame_shape[1:] if like.window else t.frame_shape for t in like.inputs}
        return load_keras(source, frame=frame, carry_state=True).reference
    return load_keras(source, window=like.window).reference
