"""The door for CURRENNT networks."""

from __future__ import annotations

from edgelstm.errors import count_of
from edgelstm.frontends.currennt.file import load_currennt
from edgelstm.frontends.currennt.graph import to_step
from edgelstm.frontends.currennt.program import CurrenntProgram
from edgelstm.frontends.door import Loaded, Request
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Program


def load(source: str, request: Request) -> Loaded:
    """A step, which ``export`` unrolls where a window is asked for; a window where the network also runs backwards."""
    network = load_currennt(source)
    whole = request.window if network.backwards is not None else None
    step = to_step(network, whole)
    notes: tuple[str, ...] = ()
    if whole is not None:
        why = f"layer {network.backwards!r} is a blstm, which also runs backwards from the last frame"
        notes = (f"exported as a window of {count_of(whole, 'frame')}, not as a step: {why}",)
    return Loaded(step, CurrenntProgram(network, step.signature), str(source), notes, whole is not None)


def reference(source: str, request: Request, like: Signature | None) -> Program:
    """The network computed by NumPy, as a window of the length that ``like`` has."""
    return load(source, Request(window=like.window if like else None)).reference
