"""run: a source streamed through a model, the state carried, the outputs written."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.files import PathLike
from edgelstm.runtime.frames import BadFrame
from edgelstm.runtime.runner import Runner
from edgelstm.workflows.frames import Preprocessing, Progress, operations

if TYPE_CHECKING:
    from edgelstm.pipeline import View


@dataclass
class RunReport:
    """What :func:`run` did. Times are of the step alone, in milliseconds."""

    model: str
    source: str
    out: str | None
    frames: int = 0
    skipped: int = 0
    gaps: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    values: tuple[float, float] | None = None
    milliseconds: list[float] = field(default_factory=list, repr=False)

    def percentile(self, q: float) -> float:
        """Time of a step, in milliseconds, at percentile ``q``."""
        return float(np.percentile(self.milliseconds, q)) if self.milliseconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": self.model,
            "source": self.source,
            "out": self.out,
            "frames": self.frames,
            "skipped": self.skipped,
            "gaps": list(self.gaps),
            "said": list(self.said),
            "values": None if self.values is None else list(self.values),
            "p50_ms": self.percentile(50),
            "p99_ms": self.percentile(99),
            "max_ms": self.percentile(100),
        }


def run(
    model: PathLike,
    source: str,
    out: PathLike | None = None,
    *,
    device: str | None = None,
    threads: int | None = None,
    limit: int | None = None,
    preprocess: Preprocessing | None = None,
    on_bad_frame: BadFrame = "error",
    view: View | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> RunReport:
    """Stream ``source`` through ``model`` frame by frame, the state carried, and write the outputs to ``out``.

    device: see :func:`edgelstm.runtime.open_program`; default: the CPU for a step graph, the first GPU for an engine.
    See :func:`edgelstm.pipeline.open_source` for sources and :func:`edgelstm.pipeline.open_sink` for outputs; frames
    go through the preprocessing the Signature declares, unless ``preprocess`` replaces it. ``say`` gets how the source is
    read, line by line, before the first frame (``said`` of the report). Nothing is left behind when it fails.
    """
    from edgelstm.pipeline import Inputs, open_sink, open_source

    with ExitStack() as stack:
        runner = stack.enter_context(Runner.open(model, device, threads=threads, on_bad_frame=on_bad_frame))
        frames = stack.enter_context(open_source(source, limit=limit))
        report = RunReport(
            str(model),
            frames.description,
            None if out is None else str(out),
            gaps=frames.gaps,
            said=frames.said,
            values=frames.values,
        )
        if say is not None:
            for line in frames.said:
                say(line)
        inputs = Inputs(runner.signature, operations(runner.signature, preprocess))
        sink = None
        if out is not None:
            sink = stack.enter_context(open_sink(out, runner.signature, fps=frames.fps, view=view))
        stream = runner.stream("main")
        for frame, arrays in inputs.steps(frames):
            started = time.perf_counter()
            outputs = stream.step(arrays)
            seconds = time.perf_counter() - started
            if stream.skipped > report.skipped:
                report.skipped = stream.skipped
            else:
                report.frames += 1
                report.milliseconds.append(seconds * 1e3)
                if sink is not None:
                    sink.write(frame, outputs, seconds)
            if progress is not None:
                progress(1)
    return report
