"""From a trained model, whatever form it has, to a StepModel and a Program that computes what it should give.

A folder a source; :data:`DOORS` is the one table that says which opens what. A new source is a folder with a ``door.py``
and a line here. May import: runtime, passes, graph and below; only ``torch/`` imports torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, without_drive
from edgelstm.frontends.door import Door, Loaded, Request
from edgelstm.graph.signature import Signature
from edgelstm.runtime.protocol import Program

__all__ = ["DOORS", "Door", "Loaded", "Request", "door_of", "is_factory", "load", "open_reference"]

TORCH = Door(
    "a torch module, or package.module:factory",
    (),
    "edgelstm.frontends.torch.door",
    frozenset({"weights", "frame", "states", "init", "window", "carry_state", "results"}),
)
CHECKPOINT = Door(
    "a TorchScript file or a checkpoint",
    (".pt", ".pth", ".ckpt", ".ts", ".torchscript", ".pkl", ".pickle", ".joblib", ".bin"),
    "edgelstm.frontends.torch.checkpoint_door",
    frozenset({"frame", "states", "window", "carry_state", "gate_order", "results"}),
)
DOORS = (
    Door(
        "a described .safetensors",
        (".safetensors",),
        "edgelstm.frontends.described.door",
        frozenset({"window"}),
    ),
    Door(
        "a Keras model (.keras, .h5)",
        (".keras", ".h5", ".hdf5"),
        "edgelstm.frontends.keras.door",
        frozenset({"frame", "window", "carry_state"}),
    ),
    Door("a CURRENNT network (.jsn)", (".jsn",), "edgelstm.frontends.currennt.door", frozenset({"window"})),
    Door(
        "an .onnx with its state pairs",
        (".onnx",),
        "edgelstm.frontends.onnx.door",
        frozenset({"states", "fix", "confirm", "window"}),
    ),
    CHECKPOINT,
    TORCH,
)
SOURCES = ", ".join(door.what for door in DOORS)


def load(source: Any, request: Request) -> Loaded:
    """Open a trained model. Raises EdgeLstmError for what no door opens, and for requests that its door would ignore."""
    door = door_of(source)
    if door is None:
        raise EdgeLstmError(
            f"can't export {source}",
            found=f"suffix {Path(source).suffix.lower() or '(none)'}",
            expected=SOURCES,
        )
    request.only(source, door.takes | {"confirm"})  # a script may always offer to confirm
    loaded: Loaded = import_module(door.home).load(source, request)
    return loaded


def open_reference(spec: str, request: Request, like: Signature | None) -> Program:
    """A source as a Program, without exporting it. ``like`` tells a torch factory's frames and states."""
    door = door_of(spec)
    home = None if door is None else import_module(door.home)
    if home is None or not hasattr(home, "reference"):
        raise EdgeLstmError(f"can't open {spec}", expected=SOURCES)
    program: Program = home.reference(spec, request, like)
    return program


def door_of(source: Any) -> Door | None:
    """Which door opens ``source``; None: none does."""
    if not isinstance(source, str | Path) or is_factory(source):
        return TORCH
    door = next((d for d in DOORS if d.opens(source)), None)
    if door is DOORS[0] and not _is_described(source):
        return CHECKPOINT
    return door


def is_factory(source: object) -> bool:
    """Whether ``source`` is text of the form ``package.module:factory`` or ``file.py:factory``."""
    return isinstance(source, str) and ":" in without_drive(source) and not Path(source).exists()


def _is_described(path: PathLike) -> bool:
    """Whether a .safetensors file states its architecture, or can't be read, which the reader will say."""
    from safetensors import safe_open

    from edgelstm.frontends.described.architecture import ARCHITECTURE_KEY

    try:
        with safe_open(path, framework="numpy") as file:
            return ARCHITECTURE_KEY in (file.metadata() or {})
    except Exception:
        return True
