"""Checkpoints without a module: recurrent weights whose names and shapes tell the rest, or the user does.

torch.nn.LSTM names its weights in a way of its own, which says everything: layers, sizes, gates i, f, g, o. A stack of
ConvLSTM cells with one convolution each tells its layers and sizes by shapes, and **not** the order of its gates: the
four blocks of rows look alike, i, f, o, g is as common as i, f, g, o, and a wrong order can even score better on the
data at hand. So the order is asked for, never guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike
from edgelstm.frontends.described.architecture import Architecture, ConvLstm, Lstm
from edgelstm.frontends.described.graph import Described
from edgelstm.frontends.torch.checkpoint import listed, read_tensors

#: FusedGates's order, and torch's.
ORDER = "ifgo"
Weights = dict[str, npt.NDArray[np.float32]]
_TORCH_NAME = re.compile(r"^(.*?)((?:weight|bias)_(?:ih|hh|hr))_l(\d+)(_reverse)?$")


def load_bare(
    path: PathLike, frame: Sequence[int] | Mapping[str, Sequence[int]] | None, gate_order: str | None
) -> tuple[Described, tuple[str, ...]]:
    """The model in a checkpoint that states none, and what was taken for granted.

    frame: shape of a frame, which the weights of a ConvLSTM don't tell. gate_order: of a ConvLSTM, such as ``"ifog"``.

    Raises EdgeLstmError for a file without recurrent weights; with others beside them, whose use only a module tells;
    of a kind that no name tells; and for a ConvLSTM without ``gate_order``.
    """
    weights = {
        name: np.ascontiguousarray(value.float().numpy())
        for name, value in read_tensors(path).items()
        if value.is_floating_point()
    }
    if gate_order is not None and sorted(gate_order) != sorted(ORDER):
        raise EdgeLstmError(
            "gate order",
            found=gate_order,
            expected="the letters i, f, g and o in the order of the gates, such as ifog",
            hint="i: input, f: forget, g: candidate (tanh), o: output",
        )
    if any(_TORCH_NAME.match(name) for name in weights):
        described = _torch_lstm(path, weights, gate_order)
        if frame is not None and _shape(frame) != described.architecture.frame_shape:
            raise _frame_error(path, frame, f"{described.architecture.frame_shape[0]}")
        return described, ()
    convolutions = {name: value for name, value in weights.items() if _looks_recurrent(value)}
    if not convolutions:
        raise EdgeLstmError(
            f"{path} holds no recurrent weights",
            found=f"{count_of(len(weights), 'tensor')}: {listed(list(weights))}",
            expected="weights of torch.nn.LSTM (weight_ih_l0, ...) or of ConvLSTM cells [4 * hidden, inputs + hidden, k, k]",
            hint="Cells that a module keeps in a plain Python list are not saved with it; those of an encoder, a head or "
            f"another kind of cell need their module: {_with_module(path)}",
        )
    return _conv_lstm(path, weights, list(convolutions), frame, gate_order)


def _with_module(path: PathLike) -> str:
    return f"edgelstm export package.module:Class --weights {path} --frame ..."


def _torch_lstm(path: PathLike, weights: Weights, gate_order: str | None) -> Described:
    found = {name: m for name in weights if (m := _TORCH_NAME.match(name))}
    prefixes = list(dict.fromkeys(m[1] for m in found.values()))
    others = [name for name in weights if name not in found]
    if others or len(prefixes) > 1:
        raise EdgeLstmError(
            f"{path} holds more than one LSTM, and says not how it is put together",
            found=f"recurrent {', '.join(p.rstrip('.') or '(unnamed)' for p in prefixes)}; others {listed(others) or '(none)'}",
            expected="the weights of one torch.nn.LSTM and nothing else",
            hint=f"Give the module they belong to: {_with_module(path)}",
        )
    layers = 1 + max(int(m[3]) for m in found.values())
    (prefix,) = prefixes
    inputs, hidden, cells = 0, [], {}
    for layer in range(layers):
        w_x, w_h = (weights.get(f"{prefix}weight_{kind}_l{layer}") for kind in ("ih", "hh"))
        rows = None if w_h is None or w_h.ndim != 2 else w_h.shape[1]
        plain = w_x is not None and w_x.ndim == 2 and rows is not None and w_x.shape[0] == 4 * rows
        if not plain or any(m[4] or m[2] == "weight_hr" for m in found.values()):
            raise _other_kind(path, found, w_x, w_h)
        assert w_x is not None
        assert w_h is not None
        inputs = inputs or w_x.shape[1]
        hidden.append(w_h.shape[1])
        cells[f"cells.{layer}.weight"] = np.concatenate([w_x, w_h], axis=1)
        cells[f"cells.{layer}.bias"] = np.sum(
            [weights.get(f"{prefix}bias_{k}_l{layer}", np.zeros(len(w_x), np.float32)) for k in ("ih", "hh")],
            0,
        ).astype(np.float32)
    if gate_order is not None:
        raise EdgeLstmError(
            f"a gate order given for {path}", found=gate_order, expected="none: torch.nn.LSTM's is i, f, g, o"
        )
    return _described(path, Lstm(inputs, tuple(hidden)), cells)


def _other_kind(path: PathLike, found: Mapping[str, Any], w_x: Any, w_h: Any) -> EdgeLstmError:
    """torch's names, and yet not a plain LSTM: which one it is."""
    if any(m[4] for m in found.values()):
        kind = "a bidirectional module: a window, not a step"
    elif any(m[2] == "weight_hr" for m in found.values()):
        kind = "an LSTM with proj_size"
    elif w_x is not None and w_h is not None and w_x.shape[0] == 3 * w_h.shape[-1]:
        kind = "a torch.nn.GRU (three gates)"
    elif w_x is not None and w_h is not None and w_x.shape[0] == w_h.shape[-1]:
        kind = "a torch.nn.RNN (one gate), whose activation no weight tells"
    else:
        kind = f"tensors {listed(list(found))}"
    return EdgeLstmError(
        f"{path} is not the weights of a plain torch.nn.LSTM",
        found=kind,
        expected="weight_ih_l0 [4 * hidden, inputs], weight_hh_l0 [4 * hidden, hidden], ...",
        hint='Name the module: edgelstm export torch.nn:GRU --init \'{"input_size": 3, "hidden_size": 64}\' '
        f"--weights {path} --frame 3",
    )


def _looks_recurrent(value: npt.NDArray[Any]) -> bool:
    """A convolution over x and h to four gates, of odd size: [4 * hidden, inputs + hidden, k, k]."""
    square = value.ndim == 4 and value.shape[2] == value.shape[3] and value.shape[2] % 2 == 1
    return square and value.shape[0] % 4 == 0 and value.shape[1] > value.shape[0] // 4


def _conv_lstm(
    path: PathLike, weights: Weights, names: list[str], frame: Any, gate_order: str | None
) -> tuple[Described, tuple[str, ...]]:
    names = sorted(names, key=lambda name: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", name)])
    biases = {name: f"{name.removesuffix('weight')}bias" for name in names}
    others = [name for name in weights if name not in names and name not in biases.values()]
    hidden = [weights[name].shape[0] // 4 for name in names]
    inputs = [weights[name].shape[1] - h for name, h in zip(names, hidden, strict=True)]
    kernels = {weights[name].shape[2] for name in names}
    sizes = ", ".join(f"{name} {list(weights[name].shape)}" for name in names)
    if others or inputs[1:] != hidden[:-1] or len(kernels) > 1:
        raise EdgeLstmError(
            f"{path} is not a plain stack of ConvLSTM cells, and says not how it is put together",
            found=f"{sizes}; others {listed(others) or '(none)'}",
            expected="one convolution [4 * hidden, inputs + hidden, k, k] a layer, each on the h of the one before, and nothing else",
            hint=f"Give the module they belong to: {_with_module(path)}",
        )
    if gate_order is None:
        raise EdgeLstmError(
            f"{path} does not tell the order of its gates",
            found=f"{sizes}, whose four blocks of rows look alike",
            expected="--gate-order ifog, ifgo, fiog, ... (gate_order=)",
            hint="Look it up where the cell is written: the order in which the convolution's output is split. It is not "
            "guessed, since a wrong order gives plausible results and can even score better than the right one",
        )
    shape = _shape(frame)
    if len(shape) != 3 or shape[0] != inputs[0]:
        raise _frame_error(path, frame, f"{inputs[0]},HEIGHT,WIDTH")
    architecture = ConvLstm(shape[0], tuple(hidden), kernels.pop(), (shape[1], shape[2]))
    cells = {}
    for layer, name in enumerate(names):
        bias = weights.get(biases[name], np.zeros(len(weights[name]), np.float32))
        cells[f"cells.{layer}.weight"] = _reordered(weights[name], gate_order)
        cells[f"cells.{layer}.bias"] = _reordered(bias, gate_order)
    note = (
        f"gates {', '.join(gate_order)} as told; taken for granted, since no weight tells it: the cell joins x before h, "
        "pads with zeros, and has tanh for g and c"
    )
    return _described(path, architecture, cells), (note,)


def _shape(frame: Any) -> tuple[int, ...]:
    """Of the only frame; () where there is none, or several."""
    if isinstance(frame, Mapping):
        frame = next(iter(frame.values())) if len(frame) == 1 else ()
    return tuple(frame or ())


def _frame_error(path: PathLike, frame: Any, expected: str) -> EdgeLstmError:
    return EdgeLstmError(
        f"the frame of {path}",
        found=",".join(map(str, _shape(frame))) or "none",
        expected=f"--frame {expected}, as the weights of its first layer say",
    )


def _reordered(rows: npt.NDArray[np.float32], gate_order: str) -> npt.NDArray[np.float32]:
    parts = dict(zip(gate_order, np.split(rows, 4), strict=True))
    return np.concatenate([parts[gate] for gate in ORDER])


def _described(path: PathLike, architecture: Architecture, cells: Weights) -> Described:
    wrong = [
        f"{name} {list(cells[name].shape)} for {list(shape)}"
        for name, shape in architecture.tensors().items()
        if name not in cells or cells[name].shape != shape
    ]
    if wrong:
        raise EdgeLstmError(f"the layers of {path} do not fit each other", found=listed(wrong))
    if not all(math.isfinite(float(np.abs(value).max(initial=0))) for value in cells.values()):
        raise EdgeLstmError(f"{Path(path)} holds weights that are NaN or infinite", expected="finite numbers")
    return Described(architecture, cells)
