"""verify: the same frames through two runnables, and how far apart every output and state is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike
from edgelstm.frontends import Request, door_of, is_factory, open_reference
from edgelstm.graph.signature import Signature
from edgelstm.renamed import renamed
from edgelstm.runtime.outside import Outside
from edgelstm.runtime.protocol import Array, Frame, Program
from edgelstm.verify.compare import Comparison, check_comparable, compare
from edgelstm.workflows.frames import STEPS, Preprocessing, Progress, check_hop, operations, ready_frames


@renamed(steps="limit", kwargs="init")
def verify(
    a: str | Program,
    b: str | Program,
    source: str | Iterable[Array | Frame] | None = None,
    *,
    limit: int = STEPS,
    weights: PathLike | None = None,
    init: Mapping[str, Any] | None = None,
    frame: Any = None,
    states: Any = None,
    results: Sequence[str] | None = None,
    gate_order: str | None = None,
    preprocess: Preprocessing | None = None,
    hop: int | None = None,
    threshold: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Stream the same frames through two runnables and report how far apart every output and state is, and the drift.

    ``a`` (the reference) and ``b`` are ``.onnx`` step graphs or windows, described ``.safetensors`` files, torch
    factories ``"package.module:factory"`` (called with ``init``; ``weights`` loads into them), TorchScript files, or Programs. At least one
    of them must state its Signature, which tells what a torch module takes; ``frame``, ``states``, ``results`` and ``gate_order`` say what
    :func:`export` was told of it besides. ``source`` (at most ``limit`` frames of it) as :func:`run` takes it; without it, seeded normal noise. Where an output is a forecast
    of the input, [K, *shape of a frame], both are scored against the frames that came: mean absolute error, and CSI of
    ``threshold`` (default: :func:`edgelstm.pipeline.units.usual_threshold`).
    """
    from edgelstm.pipeline import Inputs
    from edgelstm.pipeline.units import forecast_scorer

    if limit < 1:
        raise EdgeLstmError("limit", found=limit, expected="at least 1 frame")
    check_hop(hop, source)
    if threshold is not None and not math.isfinite(threshold):
        raise EdgeLstmError("threshold", found=threshold, expected="a finite number")
    runnables = (a, b)
    if (weights is not None or init is not None) and not any(map(is_factory, runnables)):
        raise EdgeLstmError(
            f"weights or arguments given for {a} and {b}",
            expected="a torch factory, package.module:factory, that they are for",
        )
    request = Request(
        weights=weights, init=init, frame=frame, states=states, results=results, gate_order=gate_order
    )
    request.only(f"{a} and {b}", frozenset().union(*(_takes(r) for r in runnables)))
    with ExitStack() as stack:
        opened: list[Program | None] = [None, None]
        # A torch module does not say what a frame looks like: open it last, by the other one's Signature.
        for place in sorted((0, 1), key=lambda i: _needs_like(runnables[i])):
            item = runnables[place]
            if isinstance(item, str | Path):
                other = opened[1 - place]
                like = None if other is None else other.signature
                program = _open(str(item), request, like, threads)
                stack.callback(program.close)
                opened[place] = program
            else:
                opened[place] = item
        first, second = opened
        assert first is not None
        assert second is not None
        names = tuple(str(r) if isinstance(r, str | Path) else type(r).__name__ for r in runnables)
        # A torch factory or a described file says nothing of raw frames; the export beside it may.
        told = next((p.signature for p in (first, second) if p.signature.preprocessing), first.signature)
        check_comparable(first.signature, second.signature, (names[0], names[1]))
        signature = replace(first.signature, preprocessing=told.preprocessing)
        for one, other in ((first, second), (second, first)):
            if one.signature.window not in (None, hop) and hop is not None:
                Inputs(one.signature, hop=hop)  # says why, where states are carried
                Inputs(replace(one.signature, states=other.signature.states), hop=hop)
        scorer = (
            None
            if source is None or hop is not None
            else forecast_scorer(signature, second.signature, operations(signature, preprocess), threshold)
        )
        if threshold is not None and scorer is None:
            raise EdgeLstmError(
                "a threshold, and no forecast to score",
                found="noise instead of a source" if source is None else "no such output",
                expected="a source, one input, and an output [K, *shape of a frame]",
            )
        frames = ready_frames(
            signature, source, limit, preprocess, None if scorer is None else scorer.arrived, hop=hop
        )
        outside = Outside(first.signature.ranges or second.signature.ranges)
        said: list[str] = []

        def looked_at(frames: Iterable[Frame]) -> Iterator[Frame]:
            for frame in frames:
                if not outside.done and (note := outside.look(frame)) is not None:
                    said.append(note)
                yield frame

        result = compare(
            first,
            second,
            frames if source is None else looked_at(frames),
            names=(names[0], names[1]),
            observe=None if scorer is None else scorer.observe,
            progress=progress,
        )
        result.said = said
        # Windows that a hop cuts count as one frame each.
        result.asked = limit if result.frames < limit and hop is None else None
        result.forecast = None if scorer is None else scorer.result()
        return result


def _needs_like(runnable: str | Program) -> bool:
    """Whether it is opened by the Signature of the other: a torch factory, a file of torch's."""
    return bool(_takes(runnable) & {"results"})


def _takes(runnable: str | Program) -> frozenset[str]:
    """What may be said of a runnable."""
    from edgelstm.runtime.open import suffixes

    if not isinstance(runnable, str | Path):
        return frozenset()
    door = door_of(runnable)
    ours = not is_factory(runnable) and Path(runnable).suffix.lower() in suffixes()
    return frozenset() if door is None or ours else door.takes


def _open(spec: str, request: Request, like: Signature | None, threads: int | None) -> Program:
    """A Program for a runnable of ``verify``."""
    from edgelstm.runtime.open import open_program, suffixes
    from edgelstm.runtime.rows import FixedRows

    suffix = "" if is_factory(spec) else Path(spec).suffix.lower()
    if suffix in suffixes():
        threads = threads if suffix == ".onnx" else None
        try:  # without operators of our own: the file is judged, as any runtime computes it
            return open_program(spec, threads=threads, native=False)
        except FixedRows as fixed:  # one stream is compared, beside others that idle
            return open_program(spec, streams=fixed.rows, threads=threads, native=False)
    door = door_of(spec)
    taken = {f.name for f in fields(request)} & (frozenset() if door is None else door.takes)
    own = Request(**{name: getattr(request, name) for name in taken})
    return open_reference(spec, own, like)
