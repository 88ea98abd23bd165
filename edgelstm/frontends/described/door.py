"""The door for .safetensors files that state their architecture."""

from __future__ import annotations

from edgelstm.frontends.described.graph import load_described, to_step
from edgelstm.frontends.described.reference import NumpyProgram
from edgelstm.frontends.door import Loaded, Request
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Program


def load(source: str, request: Request) -> Loaded:
    """A step; ``export`` unrolls it where a window is asked for."""
    described = load_described(source)
    return Loaded(to_step(described), NumpyProgram(described), str(source))


def reference(source: str, request: Request, like: Signature | None) -> Program:
    """The model computed by NumPy."""
    return NumpyProgram(load_described(source))
