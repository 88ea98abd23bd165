"""The door for ONNX files: step graphs of ours, or anybody's."""

from __future__ import annotations

from edgelstm.files import read_bytes
from edgelstm.frontends.door import Loaded, Request
from edgelstm.frontends.onnx.importer import Imported, import_onnx
from edgelstm.frontends.onnx.program import DeclaredProgram
from edgelstm.graph.step import METADATA_KEY, StepModel, parse_onnx
from edgelstm.passes.expand_rnn import expand_rnn
from edgelstm.passes.fuse_gates import fuse_gates
from edgelstm.passes.join_inputs import join_inputs
from edgelstm.passes.simplify import simplify

#: What a step graph of ours says itself.
OF_OTHERS = frozenset({"states", "window", "confirm"})


def load(source: str, request: Request) -> Loaded:
    """Cleaned up, its LSTMs in our form, and compared with the file as it was."""
    data = read_bytes(source)
    ours = any(p.key == METADATA_KEY for p in parse_onnx(data, str(source), external=True).metadata_props)
    if request.states is None and ours:
        request.only(source, OF_OTHERS)
        declared = StepModel.from_bytes(data, str(source))
        found = Imported(declared, DeclaredProgram(declared))
    else:
        found = import_onnx(source, request.states, fix=request.fix, confirm=request.confirm)
    step = join_inputs(fuse_gates(simplify(expand_rnn(found.step))))
    return Loaded(step, found.reference, str(source), found.notes)
