"""Live and recorded frames in, outputs out: sources, preprocessing, sinks. NumPy only; other packages when used.

May import: verify.forecast, verify.anomaly, verify.step_errors, runtime, graph.signature and below; never torch or onnx.
"""

from __future__ import annotations

from edgelstm.pipeline.inputs import Inputs
from edgelstm.pipeline.optext import format_ops, parse_ops, parse_preprocess
from edgelstm.pipeline.outputs import Outputs
from edgelstm.pipeline.place import Context, Grid, Place
from edgelstm.pipeline.postprocess import parse_postprocess
from edgelstm.pipeline.preprocess import Preprocess, inverse
from edgelstm.pipeline.sinks import Sink, View, open_sink
from edgelstm.pipeline.sources import Frame, Source, open_source

__all__ = [
    "Context",
    "Frame",
    "Grid",
    "Inputs",
    "Outputs",
    "Place",
    "Preprocess",
    "Sink",
    "Source",
    "View",
    "format_ops",
    "inverse",
    "open_sink",
    "open_source",
    "parse_ops",
    "parse_postprocess",
    "parse_preprocess",
]
