"""From a trained model, whatever form it has, to a StepModel and a Program that computes what it should give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, read_bytes
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Program

if TYPE_CHECKING:
    from edgelstm.frontends.onnx.importer import Confirm
    from edgelstm.graph.step import StepModel

#: Suffixes of files that torch writes.
CHECKPOINTS = (".pt", ".pth", ".ckpt", ".ts", ".torchscript", ".pkl", ".pickle", ".joblib", ".bin")
#: Suffixes of files that Keras writes.
KERAS = (".keras", ".h5", ".hdf5")
CURRENNT = ".jsn"
SOURCES = (
    "a described .safetensors, a Keras model (.keras, .h5), a CURRENNT network (.jsn), "
    "an .onnx with its state pairs, a torch module, or package.module:factory"
)


@dataclass(frozen=True)
class Loaded:
    """A model at the door: its step graph, and its source as a Program to compare the graph with.

    notes: what the user has to know of how it was taken. windowed: ``step`` computes windows as they were asked for, so
    there is nothing to unroll.
    """

    step: StepModel
    reference: Program
    description: str
    notes: tuple[str, ...] = ()
    windowed: bool = False


def load(
    source: Any,
    *,
    weights: PathLike | None = None,
    frame: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    states: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    fix: Mapping[str, int | float | bool] | None = None,
    confirm: Confirm | None = None,
    window: int | None = None,
    carry_state: bool = False,
    gate_order: str | None = None,
) -> Loaded:
    """Open a trained model; see :func:`edgelstm.workflows.export.export` for the arguments."""
    if isinstance(source, str | Path) and not is_factory(source):
        suffix = Path(source).suffix.lower()
        _refuse(source, weights=weights, kwargs=kwargs)
        if suffix in KERAS:
            _refuse(source, states=states, fix=fix, gate_order=gate_order)
            return _load_keras(source, frame, window, carry_state)
        if suffix in CHECKPOINTS or (suffix == ".safetensors" and not _is_described(source)):
            _refuse(source, fix=fix)
            return _load_checkpoint(source, frame, states, window, carry_state, gate_order)
        _refuse(source, frame=frame, carry_state=carry_state or None, gate_order=gate_order)
        if suffix == ".onnx":
            return _load_onnx(source, states, fix, confirm)
        _refuse(source, fix=fix)
        if suffix == CURRENNT:
            _refuse(source, states=states)
            return _load_currennt(source, window)
        if suffix == ".safetensors":
            _refuse(source, states=states)
            return _load_described(source)
        raise EdgeLstmError(f"can't export {source}", found=f"suffix {suffix or '(none)'}", expected=SOURCES)
    _refuse(source, fix=fix)
    if gate_order is not None:
        raise EdgeLstmError(
            "a gate order given for a torch module",
            found=gate_order,
            expected="none: the module's own arithmetic tells it",
        )
    return _load_traced(source, weights, frame, states, kwargs, window, carry_state)


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
        from edgelstm.frontends.torch.program import TorchProgram
        from edgelstm.frontends.torch.recognise import open_module

        # What the Signature says of it was settled at export: a model without states is a window.
        length = like.window or like.inputs[0].frame_shape[0]
        module = _module(spec, weights, kwargs)
        if not states and not like.window:
            frame = {name: shape[1:] for name, shape in frame.items()}
        opened, _, _ = open_module(
            module, frame, states=states or None, window=None if states else length, carry_state=bool(states)
        )
        return TorchProgram(opened)
    if Path(spec).suffix.lower() in KERAS:
        return _keras_reference(spec, like)
    if Path(spec).suffix.lower() == CURRENNT:
        return _load_currennt(spec, like.window if like else None).reference
    if Path(spec).suffix.lower() != ".safetensors":
        raise EdgeLstmError(f"can't open {spec}", expected=SOURCES)
    return _load_described(spec).reference


def is_factory(source: object) -> bool:
    """Whether ``source`` is text of the form ``package.module:factory`` or ``file.py:factory``."""
    return isinstance(source, str) and ":" in source and not Path(source).exists()


def _is_described(path: PathLike) -> bool:
    """Whether a .safetensors file states its architecture, or can't be read, which the reader will say."""
    from safetensors import safe_open

    from edgelstm.frontends.described.architecture import ARCHITECTURE_KEY

    try:
        with safe_open(path, framework="numpy") as file:
            return ARCHITECTURE_KEY in (file.metadata() or {})
    except Exception:
        return True


def _load_described(path: PathLike) -> Loaded:
    from edgelstm.frontends.described.graph import load_described, to_step
    from edgelstm.frontends.described.reference import NumpyProgram

    described = load_described(path)
    return Loaded(to_step(described), NumpyProgram(described), str(path))


def _load_keras(path: PathLike, frame: Any, window: int | None, carry_state: bool) -> Loaded:
    from edgelstm.frontends.keras import load_keras

    found = load_keras(path, frame=frame, window=window, carry_state=carry_state)
    return Loaded(found.step, found.reference, str(path), found.notes, found.window is not None)


def _keras_reference(path: PathLike, like: Signature | None) -> Program:
    """A Keras model taken as ``like`` was: with its frames, as a step if that has states and else as the same window."""
    from edgelstm.frontends.keras import load_keras

    if like is None:
        return load_keras(path).reference
    step = bool(like.states)
    frame = {t.name: t.frame_shape[1:] if like.window else t.frame_shape for t in like.inputs}
    if step:
        return load_keras(path, frame=frame, carry_state=True).reference
    return load_keras(path, window=like.window).reference


def _load_currennt(path: PathLike, window: int | None) -> Loaded:
    """A step, which ``export`` unrolls where a window is asked for; a window where the network also runs backwards."""
    from edgelstm.frontends.currennt.file import load_currennt
    from edgelstm.frontends.currennt.graph import to_step
    from edgelstm.frontends.currennt.program import CurrenntProgram

    network = load_currennt(path)
    whole = window if network.backwards is not None else None
    step = to_step(network, whole)
    notes: tuple[str, ...] = ()
    if whole is not None:
        why = f"layer {network.backwards!r} is a blstm, which also runs backwards from the last frame"
        notes = (f"exported as a window of {whole} frames, not as a step: {why}",)
    return Loaded(step, CurrenntProgram(network, step.signature), str(path), notes, whole is not None)


def _load_onnx(
    path: PathLike, states: Any, fix: Mapping[str, int | float | bool] | None, confirm: Confirm | None
) -> Loaded:
    """A step graph of ours or somebody else's: cleaned up, its LSTMs in our form, and compared with the file as it was."""
    from edgelstm.frontends.onnx.importer import Imported, import_onnx
    from edgelstm.graph.step import METADATA_KEY, StepModel, parse_onnx
    from edgelstm.passes.expand_rnn import expand_rnn
    from edgelstm.passes.fuse_gates import fuse_gates
    from edgelstm.passes.join_inputs import join_inputs
    from edgelstm.passes.simplify import simplify
    from edgelstm.runtime.onnxruntime import OrtProgram

    data = read_bytes(path)
    ours = any(p.key == METADATA_KEY for p in parse_onnx(data, str(path), external=True).metadata_props)
    if states is None and ours:
        _refuse(path, fix=fix)
        declared = StepModel.from_bytes(data, str(path))
        found = Imported(declared, OrtProgram(declared.to_bytes()))
    else:
        found = import_onnx(path, states, fix=fix, confirm=confirm)
    step = join_inputs(fuse_gates(simplify(expand_rnn(found.step))))
    return Loaded(step, found.reference, str(path), found.notes)


def _load_checkpoint(
    path: str | Path, frame: Any, states: Any, window: int | None, carry_state: bool, gate_order: str | None
) -> Loaded:
    """A file of torch: a TorchScript module, or nothing but weights."""
    from edgelstm.frontends.described.graph import to_step
    from edgelstm.frontends.described.reference import NumpyProgram
    from edgelstm.frontends.torch.state_dict import load_bare
    from edgelstm.frontends.torch.torchscript import is_torchscript, load_torchscript

    if is_torchscript(path):
        _refuse(path, gate_order=gate_order)
        return _load_traced(load_torchscript(path), None, frame, states, None, window, carry_state, str(path))
    _refuse(path, states=states, carry_state=carry_state or None)
    described, notes = load_bare(path, frame, gate_order)
    return Loaded(to_step(described), NumpyProgram(described), str(path), notes)


def _load_traced(
    source: Any,
    weights: PathLike | None,
    frame: Any,
    states: Any,
    kwargs: Any,
    window: int | None,
    carry_state: bool,
    name: str | None = None,
) -> Loaded:
    from edgelstm.frontends.torch.program import TorchProgram
    from edgelstm.frontends.torch.recognise import open_module
    from edgelstm.frontends.torch.trace import trace

    module = _module(source, weights, kwargs)
    if frame is None:
        raise EdgeLstmError(
            "the shape of a frame is not given",
            expected="frame=(1, 64, 64), or --frame 1,64,64: one frame without the stream axis",
        )
    opened, notes, windowed = open_module(
        module, frame, states=states, window=window, carry_state=carry_state
    )
    name = name or (source if isinstance(source, str) else type(source).__name__)
    return Loaded(trace(opened), TorchProgram(opened), name, notes, windowed)


def _module(source: Any, weights: PathLike | None, kwargs: Mapping[str, Any] | None) -> Any:
    from edgelstm.frontends.torch.factory import load_weights, resolve

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
