"""The door for files that torch wrote: a TorchScript module, or nothing but weights."""

from __future__ import annotations

from edgelstm.frontends.described.graph import to_step
from edgelstm.frontends.described.reference import NumpyProgram
from edgelstm.frontends.door import Loaded, Request
from edgelstm.frontends.torch.state_dict import load_bare
from edgelstm.frontends.torch.torchscript import is_torchscript, load_torchscript
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Program

OF_SCRIPTS = frozenset({"frame", "states", "window", "carry_state", "confirm", "results"})
OF_WEIGHTS = frozenset({"frame", "window", "gate_order", "confirm"})


def load(source: str, request: Request) -> Loaded:
    """A TorchScript file as the module it holds; weights alone where their names and shapes tell the rest."""
    if is_torchscript(source):
        from edgelstm.frontends.torch import door

        request.only(source, OF_SCRIPTS)
        return door.load(load_torchscript(source), request, str(source))
    request.only(source, OF_WEIGHTS)
    described, notes = load_bare(source, request.frame, request.gate_order)
    return Loaded(to_step(described), NumpyProgram(described), str(source), notes)


def reference(source: str, request: Request, like: Signature | None) -> Program:
    """A TorchScript file run by torch; weights alone computed by NumPy."""
    if is_torchscript(source):
        from edgelstm.frontends.torch import door

        request.only(source, OF_SCRIPTS)
        return door.reference(load_torchscript(source), request, like)
    request.only(source, OF_WEIGHTS)
    frame = request.frame
    if frame is None and like is not None:
        spec = like.inputs[0]
        frame = spec.frame_shape[1:] if like.window else spec.frame_shape
    described, _ = load_bare(
        source, frame if request.gate_order or request.frame else None, request.gate_order
    )
    return NumpyProgram(described)
