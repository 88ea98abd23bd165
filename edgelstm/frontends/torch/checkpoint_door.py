"""The door for files that torch wrote: a TorchScript module, or nothing but weights."""

from __future__ import annotations

from edgelstm.frontends.described.graph import to_step
from edgelstm.frontends.described.reference import NumpyProgram
from edgelstm.frontends.door import Loaded, Request
from edgelstm.frontends.torch.state_dict import load_bare
from edgelstm.frontends.torch.torchscript import is_torchscript, load_torchscript

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
