"""What every peer needs from us: complete feeds of the float graph, and our Signature on the graph it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.passes.lower import lower
from edgelstm.runtime.onnxruntime import OrtProgram
from edgelstm.runtime.protocol import Array, Frame

#: Every input of the graph by name, [1, ...].
Feed = Mapping[str, Array]
#: What a peer's calibration sees as states. "carried": the true ones, recorded as our float graph ran; the best one can
#: do for it. "zero": the initial ones at every frame, which is what a calibration reader without the model can give.
States = Literal["carried", "zero"]


def record_feeds(step_path: Path, frames: Iterable[Frame], states: States = "carried") -> Iterator[Feed]:
    """One feed a frame of one stream, made one at a time."""
    program = OrtProgram(str(step_path), spin=False)
    state = program.new_state()
    specs = program.signature.states
    try:
        for frame in frames:
            before = program.read_state(state, 0)
            yield {name: np.array(value)[None] for name, value in frame.items()} | {
                s.input: before[s.name][None] for s in specs
            }
            if states == "carried":
                program.step([frame], state, [0])
    finally:
        program.close()


def plain_step(step_path: Path, out: Path) -> None:
    """Our step graph as other tools want it: standard operators only, and an operator set (13 or later) that has
    per-channel Q/DQ."""
    step = lower(StepModel.load(step_path), "openvino")
    if step.opset < 13:
        step = StepModel(onnx.version_converter.convert_version(step.copy_model(), 17), step.signature)
    step.save(out)


def as_step(quantised: Path, original: Path) -> StepModel:
    """The graph that a tool made of ``original``, with the Signature of ``original``, so that our Runner streams it.

    Raises EdgeLstmError when the tool renamed, dropped or retyped an input or output.
    """
    step = StepModel(onnx.load(quantised), StepModel.load(original).signature)
    try:
        step.check(str(quantised))
    except EdgeLstmError as error:
        raise EdgeLstmError(f"{quantised} is no longer a step like {original}", found=str(error)) from error
    return step
