"""From a trained model, whatever form it has, to a StepModel and a Program that computes what it should give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, read_bytes
from edgelstm.runtime.protocol import Program
from edgelstm.signature import Signature

if TYPE_CHECKING:
    from edgelstm.frontends.onnx_import import Confirm
    from edgelstm.step import StepModel

SOURCES = "a described .safetensors, an .onnx with its state pairs, a torch module, or package.module:factory"


@dataclass(frozen=True)
class Loaded:
    """A model at the door: its step graph, and its source as a Program to compare the graph with."""

    step: StepModel
    reference: Program
    description: str


def load(
    source: Any,
    *,
    weights: PathLike | None = None,
    frame: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    states: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    fix: Mapping[str, int | float | bool] | None = None,
    confirm: Confirm | None = None,
) -> Loaded:
    """Open a trained model; see :func:`edgelstm.workflows.export` for the arguments."""
    if isinstance(source, str | Path) and not is_factory(source):
        suffix = Path(source).suffix.lower()
        _refuse(source, weights=weights, frame=frame, kwargs=kwargs)
        if suffix == ".onnx":
            return _load_onnx(source, states, fix, confirm)
        _refuse(source, fix=fix)
        if suffix == ".safetensors":
            _refuse(source, states=states)
            return _load_described(source)
        raise EdgeLstmError(f"can't export {source}", found=f"suffix {suffix or '(none)'}", expected=SOURCES)
    _refuse(source, fix=fix)
    return _load_traced(source, weights, frame, states, kwargs)


def open_reference(
    spec: str, *, weights: PathLike | None, kwargs: Mapping[str, Any] | None, like: Signature | None
) -> Program:
    """A source as a Program, without exporting it. ``like`` tells a torch factory's frames and states."""
    if is_factory(spec):
        if like is None:
            raise EdgeLstmError(
                f"{spec} does not say what its frames look like",
                expected="an .onnx or described .safetensors beside it",
            )
        frame = {t.name: t.frame_shape[1:] if like.window else t.frame_shape for t in like.inputs}
        states = {s.name: s.initial_value() for s in like.states}
        from edgelstm.frontends.adapters import as_step
        from edgelstm.frontends.torch_program import TorchProgram

        return TorchProgram(as_step(_module(spec, weights, kwargs), frame, states=states))
    if Path(spec).suffix.lower() != ".safetensors":
        raise EdgeLstmError(f"can't open {spec}", expected=SOURCES)
    return _load_described(spec).reference


def is_factory(source: object) -> bool:
    """Whether ``source`` is text of the form ``package.module:factory`` or ``file.py:factory``."""
    return isinstance(source, str) and ":" in source and not Path(source).exists()


def _load_described(path: PathLike) -> Loaded:
    from edgelstm.frontends.described import load_described, to_step
    from edgelstm.frontends.reference import NumpyProgram

    described = load_described(path)
    return Loaded(to_step(described), NumpyProgram(described), str(path))


def _load_onnx(
    path: PathLike, states: Any, fix: Mapping[str, int | float | bool] | None, confirm: Confirm | None
) -> Loaded:
    """A step graph of ours or somebody else's: cleaned up, its LSTMs in our form, and compared with the file as it was."""
    from edgelstm.frontends.onnx_import import import_onnx
    from edgelstm.passes.expand_rnn import expand_rnn
    from edgelstm.passes.fuse_gates import fuse_gates
    from edgelstm.passes.join_inputs import join_inputs
    from edgelstm.passes.simplify import simplify
    from edgelstm.runtime.onnxruntime import OrtProgram
    from edgelstm.step import METADATA_KEY, StepModel, parse_onnx

    data = read_bytes(path)
    ours = any(p.key == METADATA_KEY for p in parse_onnx(data, str(path), external=True).metadata_props)
    reference: Program
    if states is None and ours:
        _refuse(path, fix=fix)
        declared = StepModel.from_bytes(data, str(path))
        reference = OrtProgram(declared.to_bytes())
    else:
        declared, reference = import_onnx(path, states, fix=fix, confirm=confirm)
    return Loaded(join_inputs(fuse_gates(simplify(expand_rnn(declared)))), reference, str(path))


def _load_traced(source: Any, weights: PathLike | None, frame: Any, states: Any, kwargs: Any) -> Loaded:
    from edgelstm.frontends.adapters import as_step
    from edgelstm.frontends.torch_program import TorchProgram
    from edgelstm.frontends.traced import trace

    module = _module(source, weights, kwargs)
    if frame is None:
        raise EdgeLstmError(
            "the shape of a frame is not given",
            expected="frame=(1, 64, 64), or --frame 1,64,64: one frame without the stream axis",
        )
    stepped = as_step(module, frame, states=states)
    name = source if isinstance(source, str) else type(source).__name__
    return Loaded(trace(stepped), TorchProgram(stepped), name)


def _module(source: Any, weights: PathLike | None, kwargs: Mapping[str, Any] | None) -> Any:
    from edgelstm.frontends.weights import load_weights, resolve

    module = resolve(source, kwargs) if isinstance(source, str) else source
    if weights is not None:
        load_weights(module, weights)
    return module


def _refuse(source: object, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise EdgeLstmError(
                f"{name} given for {source}",
                expected=f"no {name}: the file says it itself, it is for torch factories",
            )
