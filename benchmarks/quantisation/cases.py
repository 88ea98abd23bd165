"""The models that are quantised: the reference cell, the three trained examples, and DTLN's two halves.

Every model is an fp32 step graph of ours. What is compared over time is its hidden state h (:meth:`Case.hidden`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edgelstm
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.protocol import Array

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXAMPLES = ROOT / "examples"
SHARED = ROOT.parent / "shared"  # real data and models of other people, where there are any
RADAR = SHARED / "data" / "knmi-2010-08-26"
DTLN = SHARED / "models" / "dtln"


@dataclass(frozen=True)
class Case:
    """``make(path)`` writes the fp32 step graph. ``calibration``: frames of one sequence to calibrate on; ``steps``:
    steps of one round of timing. ``needs``: a file or folder without which the case is left out. ``packed``: the one
    state tensor holds h and c side by side on its last axis.
    """

    make: Callable[[Path], None]
    calibration: int
    steps: int
    needs: Path
    packed: bool = False

    def hidden(self, states: Mapping[str, Array]) -> Array:
        """h of all layers as one vector, from the states by name, without the stream axis."""
        if self.packed:
            return np.concatenate([state[..., 0].ravel() for state in states.values()])
        return np.concatenate([states[name].ravel() for name in sorted(states) if name.startswith("h")])


def step_graph(name: str, folder: Path) -> Path:
    """The fp32 step graph of a case, made where it is not in ``folder`` yet."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        case = CASES[name]
        if not case.needs.exists():
            raise EdgeLstmError(f"case {name}", found="nothing", expected=str(case.needs))
        case.make(path)
    return path


def available() -> list[str]:
    """The cases that this checkout has everything for."""
    return [name for name, case in CASES.items() if case.needs.exists()]


def _conv_lstm(path: Path) -> None:
    sys.path.append(str(HERE.parent))
    import models

    edgelstm.export(models.conv_lstm(path.parent), path)


def _example(name: str) -> Callable[[Path], None]:
    return lambda path: _export(EXAMPLES / name / "model.safetensors", path)


def _dtln(file: str, before: str, after: str) -> Callable[[Path], None]:
    """DTLN's state goes in as ``before`` and comes out as ``after``. Export expands its LSTM operators into Gemms,
    without which nothing in model_1 could be quantised: no tool here quantises ONNX's LSTM."""
    return lambda path: _export(DTLN / file, path, {before: after})


def _export(source: Path, path: Path, states: dict[str, str] | None = None) -> None:
    edgelstm.export(str(source), path, states=states)


CASES = {
    "conv_lstm": Case(_conv_lstm, calibration=200, steps=60, needs=HERE),
    "moving_digits": Case(_example("moving_digits"), calibration=400, steps=60, needs=EXAMPLES),
    "nowcast_radar": Case(_example("nowcast_radar"), calibration=400, steps=60, needs=RADAR),
    "sensor_lstm": Case(_example("sensor_lstm"), calibration=1000, steps=3000, needs=EXAMPLES),
    "dtln_1": Case(
        _dtln("model_1.onnx", "input_3", "tf_op_layer_stack_2"),
        1000,
        1000,
        DTLN / "model_1.onnx",
        packed=True,
    ),
    "dtln_2": Case(
        _dtln("model_2.onnx", "input_5", "tf_op_layer_stack_5"),
        1000,
        1000,
        DTLN / "model_2.onnx",
        packed=True,
    ),
}
