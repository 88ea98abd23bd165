"""What has to be fixed or named so that somebody else's ONNX file becomes a step: found by trying, said in one message."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from time import monotonic
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.onnx.borders import Fix, rename_dimensions
from edgelstm.frontends.onnx.source import all_graphs
from edgelstm.frontends.onnx.state_pairs import Pair
from edgelstm.graph.step import value_shape
from edgelstm.passes.graph import constant_tensor
from edgelstm.runtime.protocol import Array
from edgelstm.runtime.session import CPU, import_onnxruntime

#: Sizes that are tried for a dimension that nothing tells: one frame, then the blocks and bands that audio comes in.
SIZES = (
    1,
    512,
    256,
    160,
    320,
    480,
    128,
    64,
    80,
    40,
    2,
    4,
    8,
    16,
    32,
    96,
    100,
    200,
    240,
    400,
    576,
    640,
    1024,
    1536,
    2048,
)
#: Runs of the file that are tried, and seconds spent on them.
RUNS, SECONDS = 120, 8.0

_COMPARES = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")

#: Tries an import with these fixes; returns the pairs that it would take.
Try = Callable[[Fix], Sequence[Pair]]


@dataclass
class Needs:
    """What a file leaves open. numbers: inputs that are scalars, with the values tried. streams: dimensions that may be
    the streams'. sizes: the other free dimensions. inputs: all inputs, dimensions named."""

    inputs: list[onnx.ValueInfoProto]
    numbers: dict[str, list[Any]] = field(default_factory=dict)
    streams: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)


def needs_of(model: onnx.ModelProto, fix: Fix, states: Collection[str]) -> Needs:
    """What is open once ``fix`` is fixed and ``states`` are named: a scalar among those is no number that never changes."""
    weights = {t.name for t in model.graph.initializer}
    values = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in model.graph.input]
    values = [v for v in values if v.name not in weights]
    rename_dimensions(values, fix)
    needs = Needs(values)
    free = {
        v.name: [d for d in value_shape(v) or [] if isinstance(d, str) and d not in fix]
        for v in values
        if v.name not in fix
    }
    shared = set.intersection(*(set(d) for d in free.values() if d)) if any(free.values()) else set()
    for value in values:
        if value.name in fix:
            continue
        if value_shape(value) == [] and value.name not in states:
            needs.numbers[value.name] = _numbers(model, value)
        dims = free[value.name]
        stream = next((d for d in dims if d in shared), dims[0] if dims else None)
        for d in dims:
            (needs.streams if d == stream else needs.sizes).append(d)
    needs.streams = list(dict.fromkeys(needs.streams))
    needs.sizes = [d for d in dict.fromkeys(needs.sizes) if d not in needs.streams]
    return needs


def advise(
    error: EdgeLstmError,
    model: onnx.ModelProto,
    where: str,
    said: Mapping[str, str],
    fix: Fix,
    attempt: Try,
) -> EdgeLstmError:
    """``error`` with all that has still to be said of the file: the command that works, which was tried.

    said: the state pairs that were named, as the command line has them. Where nothing that is tried works, the error of
    the attempt that is one frame and one stream in a call, if that is another one than ``error``.
    """
    needs = needs_of(model, fix, said)
    runs = list(islice(_running(model, needs, fix), 12))
    last: EdgeLstmError | None = None
    for streams_free in (True, False):
        for found in runs[:1]:
            ones = {} if streams_free else dict.fromkeys(needs.streams, 1)
            try:
                pairs = attempt({**fix, **found, **ones})
            except EdgeLstmError as failed:
                last = failed
                continue
            return _advice(error, where, said, {**fix, **found, **ones}, pairs, needs, runs)
    return last if last is not None and needs.sizes and "dynamic on axis" in error.what else error


def _advice(
    error: EdgeLstmError,
    where: str,
    said: Mapping[str, str],
    fix: Fix,
    pairs: Sequence[Pair],
    needs: Needs,
    runs: Sequence[Fix],
) -> EdgeLstmError:
    states = dict(said) or {pair.input: pair.output for pair in pairs}
    words = ["edgelstm", "export", where]
    for name, value in fix.items():
        words += ["--fix", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    for name, output in states.items():
        words += ["--state", f"{name}={output}"]
    command = " ".join(shlex.quote(word) for word in [*words, "-o", "step.onnx"])
    guesses = []
    for name in (*needs.numbers, *needs.sizes):
        values = list(dict.fromkeys(str(run[name]) for run in runs if name in run))
        if name in needs.sizes and "1" in values:
            guesses.append(f"{name}=1 is one frame in a call")
        elif len(values) > 1:
            guesses.append(
                f"nothing tells {name}: {', '.join(values[:6])} run; take what it was trained with"
            )
    doubts = [f"{pair.input}={pair.output} is doubtful: {pair.doubt}" for pair in pairs if pair.doubt]
    if pairs and not doubts:
        command += " (or --yes for the pairs)"
    open_ = [f"{name} (a number)" for name in needs.numbers] + [f"{name} (a size)" for name in needs.sizes]
    shown = f"{error.found}; open are {', '.join(open_)}" if open_ else error.found
    hint = "; ".join([f"All that has to be said of this file, tried: {command}", *guesses, *doubts])
    return EdgeLstmError(error.what, found=shown, expected=error.expected, hint=hint)


def _numbers(model: onnx.ModelProto, value: onnx.ValueInfoProto) -> list[Any]:
    """Values to try for a scalar: those the graph compares it with, then 1 and 0."""
    kind = value.type.tensor_type.elem_type
    if kind == TensorProto.BOOL:
        return [True, False]
    constants: dict[str, onnx.TensorProto] = {}
    nodes = [n for graph in all_graphs(model.graph) for n in graph.node]
    for graph in all_graphs(model.graph):
        constants |= {t.name: t for t in graph.initializer}
    for node in nodes:
        if node.op_type == "Constant" and (tensor := constant_tensor(node)) is not None:
            constants[node.output[0]] = tensor
    found: list[Any] = []
    same = {value.name}
    for node in nodes:
        if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze") and node.input[0] in same:
            same.add(node.output[0])
        if node.op_type in _COMPARES and any(name in same for name in node.input):
            arrays = [onnx.numpy_helper.to_array(constants[n]) for n in node.input if n in constants]
            found += [array.reshape(-1)[0].item() for array in arrays if array.size]
    return list(dict.fromkeys([*found, 1, 0]))


def _running(model: onnx.ModelProto, needs: Needs, fix: Fix) -> Iterator[dict[str, Any]]:
    """Fixes with which the file itself runs on one stream, and gives back states of the shapes they came in."""
    names = [*needs.numbers, *needs.sizes]
    if not names:
        yield {}
        return
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    except Exception:  # of no stable class: then there is nothing to try it with
        return
    end = monotonic() + SECONDS
    choices = [needs.numbers.get(name, SIZES) for name in names]
    # Those that change first are the sizes: a number chooses a branch of the graph.
    for values in islice(product(*choices), RUNS):
        if monotonic() > end:
            return
        found = dict(zip(names, values, strict=True))
        feeds = {v.name: _feed(v, {**fix, **found}) for v in needs.inputs}
        try:
            session.run(None, feeds)
        except Exception:  # of no stable class: not with these values
            continue
        yield found


def _feed(value: onnx.ValueInfoProto, fixed: Mapping[str, Any]) -> Array:
    shape = [d if isinstance(d, int) else int(fixed.get(d, 1)) for d in value_shape(value) or []]
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if value.name in fixed:
        return np.full(shape, fixed[value.name]).astype(kind)
    if np.dtype(kind).kind == "f":
        return np.random.default_rng(0).standard_normal(shape).astype(kind)
    return np.zeros(shape, kind)
