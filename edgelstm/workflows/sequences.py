"""Recordings to calibrate on: spans of sources, or arrays from a script, as the frames of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel
from edgelstm.pipeline import Inputs, open_source
from edgelstm.pipeline.inputs import cut, of_one_stream
from edgelstm.quantize.calibrate import Recording
from edgelstm.quantize.recipe import Span
from edgelstm.runtime.protocol import Array, Frame

Progress = Callable[[int], None]


class SpanFrames:
    """The frames of part of a source, ready for the model; read anew whenever they are asked for."""

    def __init__(self, step: StepModel, span: Span, ops: Any) -> None:
        self._step, self._span, self._ops = step, span, ops

    def __iter__(self) -> Iterator[Frame]:
        span, inputs = self._span, Inputs(self._step.signature, self._ops)
        stop = None if span.frames is None else span.start + span.frames
        count = 0
        with open_source(span.source, limit=stop) as opened:
            source, _, _ = cut(opened, self._step.signature, self._ops)
            for _, arrays in inputs.steps(of_one_stream(islice(source, span.start, None))):
                count += self._step.signature.window or 1
                yield arrays
        if span.frames is not None and count < span.frames - (
            span.frames % (self._step.signature.window or 1)
        ):
            raise EdgeLstmError(
                f"source {span.source} is shorter than the sequence",
                found=f"{count} frames from frame {span.start} on",
                expected=str(span.frames),
                hint="Ask for fewer frames, or record more",
            )


def cut_span(span: Span, length: int) -> list[Span]:
    if length < 1:
        raise EdgeLstmError("sequence", found=length, expected="at least 1 frame")
    stop = None if span.frames is None else span.start + span.frames
    with open_source(span.source, limit=stop) as source:
        count = sum(1 for _ in source) - span.start
    if count < length:
        raise EdgeLstmError(
            f"source {span.source} is shorter than a sequence",
            found=f"{max(0, count)} frames",
            expected=f"at least {length}",
            hint="Ask for shorter sequences, or record more",
        )
    return [Span(span.source, span.start + k * length, length) for k in range(count // length)]


def given(step: StepModel, index: int, frames: Iterable[Array | Frame]) -> Recording:
    """A sequence of arrays from a script."""
    inputs = [t.name for t in step.signature.inputs]
    return Recording(
        f"sequence {index}", (f if not isinstance(f, np.ndarray) else {inputs[0]: f} for f in frames)
    )


def label(span: Span) -> str:
    if span.start == 0 and span.frames is None:
        return span.source
    return f"{span.source} from {span.start}" + ("" if span.frames is None else f", {span.frames} frames")
