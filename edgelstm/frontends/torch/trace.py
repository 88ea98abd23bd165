"""The traced door: a torch step through torch's own exporter, and from there the way every graph goes."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING, Any, TypeVar

import onnx

from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.torch.package import import_torch
from edgelstm.frontends.torch.recognise import as_step
from edgelstm.frontends.torch.torchscript import export_script, holds_script
from edgelstm.graph.signature import Signature, StateSpec, TensorSpec
from edgelstm.graph.step import OPSET, StepModel, make_step
from edgelstm.passes.choose_bools import choose_bools
from edgelstm.passes.expand_rnn import expand_rnn
from edgelstm.passes.fuse_gates import fuse_gates
from edgelstm.passes.graph import renamed
from edgelstm.passes.join_inputs import join_inputs
from edgelstm.passes.merge_views import merge_views
from edgelstm.passes.one_stream import signature_of_one
from edgelstm.passes.simplify import simplify
from edgelstm.passes.unstack import unstack

if TYPE_CHECKING:
    from torch import nn

    from edgelstm.frontends.torch.torch_step import TorchStep
    from edgelstm.frontends.torch.windows import TorchWindow

Opened = TypeVar("Opened", "TorchStep", "TorchWindow")


def trace_or_for_one(opened: Opened) -> tuple[Opened, StepModel, tuple[str, ...]]:
    """:func:`trace`; for one stream where the code fixes their number, if it can do with one. Also what is to be said of that."""
    try:
        return opened, trace(opened), ()
    except FixedStreams as error:
        alone = copy.copy(opened)
        alone.signature = signature_of_one(opened.signature)
        try:
            step = trace(alone)
        except EdgeLstmError:
            raise error from None
        return (
            alone,
            step,
            (f"written for one stream (several take one call each): {error.what}, by {error.found}",),
        )


def trace(module: nn.Module | TorchStep | TorchWindow, frame: Any = None, **options: Any) -> StepModel:
    """Export a torch module as a step graph: FusedGates with their bodies, one Gemm or convolution a cell.

    module: what :func:`~edgelstm.frontends.torch.recognise.as_step` returned, or a module, a ``frame`` and the ``options`` of
    ``as_step``. The Signature is the step's, except that an output which is a state's next value *is* that state's
    output: one tensor. torch.nn.LSTM, GRU and their cells are exported in plain arithmetic.

    Raises EdgeLstmError when torch or its exporter is missing, when forward can't be exported (its reason given), or when
    it fixes the number of streams.
    """
    step = trace_raw(module, frame, **options)
    step = simplify(merge_views(simplify(unstack(expand_rnn(choose_bools(step))))))
    return join_inputs(fuse_gates(_share_outputs(step)))


def trace_raw(module: nn.Module | TorchStep | TorchWindow, frame: Any = None, **options: Any) -> StepModel:
    """What torch's exporter gives, named by the Signature and without its notes; no pass has run yet."""
    import_torch()
    from edgelstm.frontends.torch.torch_step import TorchStep
    from edgelstm.frontends.torch.windows import TorchWindow

    step = module if isinstance(module, TorchStep | TorchWindow) else as_step(module, frame, **options)
    return _named(_export(step), step.signature)


def _export(step: TorchStep | TorchWindow) -> onnx.ModelProto:
    """torch.onnx.export with a free stream axis, quiet."""
    import torch

    from edgelstm.frontends.torch.plain_cells import rewrite
    from edgelstm.frontends.torch.running import users_files
    from edgelstm.frontends.torch.torch_step import called

    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EdgeLstmError(
            "exporting a torch module needs onnxscript",
            found="none here",
            hint="pip install 'edgelstm[torch]'",
        ) from error
    name = called(step.module)
    scripted = holds_script(step.module)
    plain = step if scripted else step.around(rewrite(step.module)).eval()
    specs: list[TensorSpec | StateSpec] = [*step.signature.inputs, *step.signature.states]
    one = step.signature.stream_axis == 1
    # Two streams: torch takes sizes 0 and 1 for special cases and would fix them.
    examples = tuple(
        torch.zeros(1 if one else 2, *s.frame_shape, dtype=getattr(torch, s.dtype)) for s in specs
    )
    streams = torch.export.Dim("N")
    try:
        if scripted:
            with _quiet(), torch.no_grad():
                return export_script(plain, examples, [s.name for s in specs])
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                plain,
                examples,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=None if one else (tuple({0: streams} for _ in specs),),
                verbose=False,
                external_data=False,
            )
    except EdgeLstmError:
        raise
    except Exception as error:  # the exporter raises whatever went wrong inside
        raise _refused(name, error, users_files(step.module)) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    # Where the code compares the number of streams with a constant, torch fixes it without a word.
    if not one and any(v.type.tensor_type.shape.dim[0].HasField("dim_value") for v in model.graph.input):
        raise _fixed(name)
    return model


class FixedStreams(EdgeLstmError):
    """A forward whose code needs one number of streams; a graph for one may be had of it."""


def _fixed(name: str) -> EdgeLstmError:
    return FixedStreams(
        f"{name}.forward fixes the number of streams",
        found="code that needs one size on axis 0, such as len(x), view(1, ...) or a branch on x.shape[0]",
        expected="a forward that does the same for any number of streams",
    )


def _refused(name: str, error: BaseException, files: Sequence[str]) -> EdgeLstmError:
    from edgelstm.frontends.torch.watch import where_raised

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    text = "\n".join(str(e) for e in chain)
    if "onstraints violated" in text or "pecialized" in text:
        return _fixed(name)
    reason = next((line.strip() for e in reversed(chain) for line in str(e).splitlines() if line.strip()), "")
    place = where_raised(error, files)
    hint = "Branches on the values of tensors and calls outside torch can't be exported"
    if "complex" in text:
        hint = "torch exports few operators on complex numbers: write them with pairs of real ones, as torch.view_as_real gives them"
    elif "data-dependent" in text or (isinstance(chain[-1], RuntimeError | TypeError) and "prim::If" in text):
        hint = "A branch on the value of a tensor has to be written with torch.where(condition, a, b): a graph computes both sides"
    return EdgeLstmError(
        f"torch can't export {name}.forward",
        found=f"{type(chain[-1]).__name__}: {reason}"[:400] + (f" ({place})" if place else ""),
        hint=hint,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what the exporter prints, warns of or logs; its errors reach us as exceptions."""
    # Globally, since torch sets up loggers of its own, with levels of their own, while it runs.
    import torch

    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    shown = torch._C._jit_is_onnx_log_enabled()
    torch._C._jit_set_onnx_log_enabled(False)  # of the older exporter: the whole graph, where it fails
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        torch._C._jit_set_onnx_log_enabled(shown)


def _named(model: onnx.ModelProto, signature: Signature) -> StepModel:
    """The exporter's nodes and weights under the Signature's names; its inputs and outputs are in the same order.

    One value may be several outputs; each but the first becomes a copy of it.
    """
    graph = model.graph
    weights = {t.name for t in graph.initializer}
    inputs = [v.name for v in graph.input if v.name not in weights]
    outputs = [v.name for v in graph.output]
    wanted_inputs = [t.name for t in signature.inputs] + [s.input for s in signature.states]
    wanted_outputs = [t.name for t in signature.outputs] + [s.output for s in signature.states]
    twice = [k for k, name in enumerate(outputs) if name in outputs[:k]]
    copies = {k: f"{outputs[k]}_{k}_copy" for k in twice}
    copying = [onnx.helper.make_node("Identity", [outputs[k]], [copy]) for k, copy in copies.items()]
    outputs = [copies.get(k, name) for k, name in enumerate(outputs)]
    names: dict[str, str] = dict(zip(inputs, wanted_inputs, strict=True)) | dict(
        zip(outputs, wanted_outputs, strict=True)
    )
    reserved = set(names.values())

    def name_of(name: str) -> str:
        if name in names:
            return names[name]
        return f"{name}_" if name in reserved else name

    nodes = [
        renamed(node, name_of, [o and name_of(o) for o in node.output]) for node in [*graph.node, *copying]
    ]
    tensors = []
    for tensor in graph.initializer:
        kept = onnx.TensorProto()
        kept.CopyFrom(tensor)
        kept.name = name_of(tensor.name)
        del kept.metadata_props[:]
        kept.doc_string = ""
        tensors.append(kept)
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
    return make_step(nodes, signature, tensors, model.functions)


def _share_outputs(step: StepModel) -> StepModel:
    """Where a state's next value is an output as well, the state takes the output's name: one tensor, no copy."""
    outputs = {t.name for t in step.signature.outputs}
    states = {s.output for s in step.signature.states}
    same: dict[str, str] = {}
    nodes = []
    for node in step.model.graph.node:
        if node.op_type == "Identity":
            (source,), (copy,) = node.input, node.output
            for state, output in ((source, copy), (copy, source)):
                if state in states and output in outputs and state not in same:
                    same[state] = output
                    break
            else:
                nodes.append(node)
        else:
            nodes.append(node)
    if not same:
        return step
    nodes = [renamed(n, lambda name: same.get(name, name), [same.get(o, o) for o in n.output]) for n in nodes]
    signature = replace(
        step.signature,
        states=tuple(replace(s, output=same.get(s.output, s.output)) for s in step.signature.states),
    )
    return make_step(nodes, signature, step.model.graph.initializer, step.model.functions)
