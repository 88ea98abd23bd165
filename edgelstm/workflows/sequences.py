"""Recordings to calibrate on: spans of sources, or arrays from a script, as the frames of a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.graph.step import StepModel
from edgelstm.pipeline import Frame as RawFrame
from edgelstm.pipeline import Inputs, Source, open_source
from edgelstm.pipeline.inputs import cut, of_one_stream
from edgelstm.quantize.calibrate import Recording
from edgelstm.quantize.recipe import Span
from edgelstm.runtime.protocol import Array, Frame

log = logging.getLogger(__name__)

Progress = Callable[[int], None]


class SpanFrames:
    """The frames of part of a source, ready for the model; read anew whenever they are asked for."""

    def __init__(self, step: StepModel, span: Span, ops: Any) -> None:
        self._step, self._span, self._ops = step, span, ops

    def __iter__(self) -> Iterator[Frame]:
        span, signature = self._span, self._step.signature
        stop = None if span.frames is None else span.start + span.frames
        count = 0

        def counted(frames: Iterable[RawFrame]) -> Iterator[RawFrame]:
            nonlocal count
            for frame in frames:
                count += 1
                yield frame

        with open_source(span.source, limit=None if span.skip else stop) as opened:
            source, hop, _ = cut(opened, signature, self._ops, span.hop)
            inputs = Inputs(signature, self._ops, hop=hop)
            frames = islice(good(source, Inputs(signature, self._ops, hop=hop), span), span.start, stop)
            for _, arrays in inputs.steps(of_one_stream(counted(frames))):
                yield arrays
        if span.frames is None or span.at_most:
            return
        if count < span.frames - span.frames % (signature.window or 1):
            raise EdgeLstmError(
                f"source {span.source} is shorter than the sequence",
                found=f"{count_of(count, 'frame')} from frame {span.start} on",
                expected=str(span.frames),
                hint="Ask for fewer frames, or record more",
            )


def good(source: Source, inputs: Inputs, span: Span) -> Iterable[RawFrame]:
    """The frames of a source, with ``span.skip`` those that can be taken: ``inputs`` makes of them what the model takes."""
    if not span.skip:
        return source
    source.gives_bad = True
    return _taken(source, inputs)


def _taken(source: Source, inputs: Inputs) -> Iterator[RawFrame]:
    left_out, first = 0, ""
    for frame in source:
        why = str(frame.bad or frame.late or frame.missing or "")
        if frame.bad is None and frame.late is None:
            arrays = inputs(frame).values()  # which may bring what is missing to a number
            if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in arrays):
                yield frame
                continue
        left_out += 1
        first = first or why or f"frame {frame.index} ({frame.name}): NaN or infinity"
    if left_out:
        log.warning("left out: %s, the first: %s", count_of(left_out, "frame"), first)


def windows_of(step: StepModel, span: Span | None, ops: Any) -> tuple[int, int]:
    """(frames in what one step takes, frames from one to the next) of a span, or of arrays."""
    signature = step.signature
    if span is None or span.hop is None:
        return signature.window or 1, signature.window or 1
    with open_source(span.source) as opened:
        inputs = Inputs(signature, ops, hop=cut(opened, signature, ops, span.hop)[1])
    return inputs.window or 1, inputs.hop or 1


def cut_span(step: StepModel, span: Span, length: int, ops: Any) -> list[Span]:
    """Spans of ``length`` frames each, end to end; what is left over is in none."""
    if length < 1:
        raise EdgeLstmError("sequence", found=length, expected="at least 1 frame")
    stop = None if span.frames is None else span.start + span.frames
    with open_source(span.source, limit=None if span.skip else stop) as opened:
        source, hop, _ = cut(opened, step.signature, ops, span.hop)
        frames = good(source, Inputs(step.signature, ops, hop=hop), span)
        count = sum(1 for _ in islice(frames, stop)) - span.start
    if count < length:
        raise EdgeLstmError(
            f"source {span.source} is shorter than a sequence",
            found=count_of(max(0, count), "frame"),
            expected=f"at least {length}",
            hint="Ask for shorter sequences, or record more",
        )
    return [
        replace(span, start=span.start + k * length, frames=length, at_most=False)
        for k in range(count // length)
    ]


def given(step: StepModel, index: int, frames: Iterable[Array | Frame]) -> Recording:
    """A sequence of arrays from a script."""
    inputs = [t.name for t in step.signature.inputs]
    return Recording(
        f"sequence {index}", (f if not isinstance(f, np.ndarray) else {inputs[0]: f} for f in frames)
    )


def label(span: Span) -> str:
    if span.start == 0 and (span.frames is None or span.at_most):
        return span.source
    return f"{span.source} from {span.start}" + (
        "" if span.frames is None else f", {count_of(span.frames, 'frame')}"
    )
