"""run: sources streamed through a model, the state carried, the outputs written."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of, some
from edgelstm.files import PathLike, one_file, refuse_overwrite
from edgelstm.renamed import renamed
from edgelstm.runtime.frames import BadFrame
from edgelstm.runtime.outside import OutsideRange
from edgelstm.runtime.runner import Runner
from edgelstm.workflows.frames import Preprocessing, Progress, operations, say_left_out
from edgelstm.workflows.streaming import Counts, Job, Loop, Stage, Step, named_sources, out_path

if TYPE_CHECKING:
    from edgelstm.pipeline import Outputs, Source, View
    from edgelstm.pipeline.inputs import OnGap
    from edgelstm.pipeline.outputs import Units
    from edgelstm.verify.forecast import ForecastScorer, ForecastScores

log = logging.getLogger(__name__)

#: Sinks whose files have a column for the stream, and rows as `score` and `detect` write them.
ROWS = (".csv", ".parquet")


@dataclass(repr=False)
class RunReport:
    """What :func:`run` did. Times are of the step alone, in milliseconds; of several streams, of their common step.

    out: paths of the outputs, by stream name in ``outs``. resets: states set back at gaps. units: of each output that has any;
    frame_unit: of frames in physical units. interval: seconds from frame to frame.
    scores: by stream name, of a model that forecasts its own input, beside repeating the last frame (``a``).
    """

    model: str
    source: str
    out: str | None
    frames: int = 0
    skipped: int = 0
    gaps: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    values: tuple[float, float] | None = None
    resets: int = 0
    outs: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    frame_unit: str | None = None
    interval: float | None = None
    scores: dict[str, ForecastScores | None] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        many = f", {self.skipped} skipped" if self.skipped else ""
        return f"RunReport({self.model} on {some(self.source.split('; '))}, {count_of(self.frames, 'frame')}{many}, p50 {self.percentile(50):.3g} ms)"

    def percentile(self, q: float) -> float:
        """Time of a step, in milliseconds, at percentile ``q``."""
        return float(np.percentile(self.milliseconds, q)) if self.milliseconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": self.model,
            "source": self.source,
            "out": self.out,
            "outs": dict(self.outs),
            "frames": self.frames,
            "skipped": self.skipped,
            "gaps": list(self.gaps),
            "resets": self.resets,
            "said": list(self.said),
            "values": None if self.values is None else list(self.values),
            "units": dict(self.units),
            "scores": {n: None if s is None else s.to_json() for n, s in self.scores.items()},
            "p50_ms": self.percentile(50),
            "p99_ms": self.percentile(99),
            "max_ms": self.percentile(100),
        }


@renamed(out="output")
def run(
    model: PathLike,
    source: PathLike | Sequence[PathLike] | Mapping[str, PathLike],
    output: PathLike | None = None,
    *,
    device: str | None = None,
    threads: int | None = None,
    limit: int | None = None,
    preprocess: Preprocessing | None = None,
    postprocess: Preprocessing | None = None,
    hop: int | None = None,
    on_bad_frame: BadFrame = "error",
    on_gap: OnGap = "hold",
    units: Units | None = None,
    then: Sequence[PathLike] = (),
    score: bool = False,
    threshold: float | None = None,
    follow: bool = False,
    idle: float | None = None,
    begin: PathLike | None = None,
    view: View | None = None,
    observe: Callable[[Step], None] | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> RunReport:
    """Stream ``source`` through ``model`` frame by frame, the state carried, and write the outputs to ``output``.

    source: one, or several whose streams run side by side: a list (``NAME=SOURCE`` names a stream, else its file does) or a
    mapping by name. Each has a state and an output of its own: ``{stream}`` in ``output`` is its name, else it stands
    before the suffix. ``limit`` frames of each.
    device: see :func:`edgelstm.runtime.open_program`; default: the CPU for a step graph, the first GPU for an engine.
    postprocess: of the (last) model's outputs, in place of what it declares; see ``docs/preprocessing.md``.
    hop: for models whose step takes several frames together, see :class:`edgelstm.Inputs`; of sound, in samples.
    on_gap: where a source says that frames are missing: ``hold`` the state and go on, ``reset`` it, or ``error``.
    units: of what is written, see :class:`edgelstm.Outputs`; None: ``physical`` in .nc, .tif, .h5 and pictures with captions where it can be, else ``model``.
    then: models that take what the one before gives, each with states and preprocessing of its own.
    score: hold forecasts of the input against the frames that came; CSI of ``threshold``.
    follow: wait for further files of a folder, for ``idle`` seconds or (None) until interrupted, which ends the run well.

    begin: a file that the service wrote (``keep_frames``): the model begins with the state in it, and not with its initial one.

    observe: called with every step, :class:`edgelstm.workflows.streaming.Step`.

    See :func:`edgelstm.pipeline.open_source` for sources and :func:`edgelstm.pipeline.open_sink` for outputs; frames
    go through the preprocessing the Signature declares, unless ``preprocess`` replaces it. ``say`` gets how the source is
    read, line by line, before the first frame (``said`` of the report). Nothing is left behind when it fails.
    """
    from edgelstm.pipeline import Inputs, Outputs, open_sink, open_source
    from edgelstm.pipeline.context import context_of
    from edgelstm.pipeline.inputs import cut
    from edgelstm.pipeline.sinks import in_physical_units

    specs = named_sources(source)
    with ExitStack() as stack:
        try:
            sources = {
                name: stack.enter_context(open_source(spec, limit=limit, follow=follow, idle=idle))
                for name, spec in specs.items()
            }
        except EdgeLstmError:
            Runner.open(model, device, threads=threads).close()  # what is wrong with the model is said first
            raise
        rooms = sum(s.streams for s in sources.values())
        runners = [
            stack.enter_context(
                Runner.open(path, device, streams=rooms, threads=threads, on_bad_frame=on_bad_frame)
            )
            for path in (model, *then)
        ]
        first = runners[0].signature
        if begin is not None:
            _begin(runners, begin, sources)
        ops = operations(first, preprocess)
        say_left_out(first, ops)
        parts = {name: cut(s, first, ops, hop) for name, s in sources.items()}
        sources = {name: stack.enter_context(part[0]) for name, part in parts.items()}
        report = RunReport(
            " then ".join(map(str, (model, *then))),
            "; ".join(s.description for s in sources.values()),
            None,
            gaps=tuple(gap for s in sources.values() for gap in s.gaps),
            said=tuple(line for s in sources.values() for line in s.said),
            values=next(iter(sources.values())).values,
        )
        if say is not None:
            for line in report.said:
                say(line)
        outputs = [Outputs(r.signature, None if k else ops) for k, r in enumerate(runners)]
        read = in_physical_units("-" if output is None else str(output), view)
        outputs[-1] = _outputs(runners[-1].signature, None if then else ops, units, read, postprocess)
        jobs = []
        for name, opened in sources.items():
            inputs = Inputs(first, ops, hop=parts[name][1], on_gap=on_gap)
            sink = None
            signatures, done = [r.signature for r in runners], next(iter(inputs.ops.values()), ())
            model_file, cut_at = Path(report.model).name, parts[name][2]
            context = context_of(opened, signatures, done, outputs[-1], model=model_file, hop=cut_at)
            report.frame_unit, report.interval = opened.place.unit(done), opened.place.interval
            report.units = dict(context.units)
            for made in outputs:
                made.check_hop(cut_at)
            if output is not None:
                path = out_path(str(output), name, len(sources) > 1)
                if path != "-" and one_file(path) in map(one_file, report.outs.values()):
                    raise EdgeLstmError(
                        f"output {path}",
                        found="that on many disks another stream's is the same file",
                        expected="names of streams that differ in more than case",
                    )
                report.outs[name] = path
                refuse_overwrite(report.outs[name], (model, *then, *specs.values()))
                sink = stack.enter_context(
                    open_sink(
                        report.outs[name], outputs[-1].signature, fps=opened.fps, view=view, context=context
                    )
                )
            scorer = partial(_scorer, first, ops, threshold, inputs.window is not None) if score else None
            if scorer is not None:
                scorer()  # whether there is something to score is known before the first frame
            opened.gives_bad = not opened.leaves_out  # its policy decides
            job = Job(name, iter(()), inputs, sink, scorer, policy=on_bad_frame)
            job.named = Path(report.outs.get(name, "")).suffix.lower() in ROWS
            job.steps = inputs.steps(job.watched(opened))
            jobs.append(job)
        report.out = ", ".join(report.outs.values()) or None
        stages = [
            Stage(r, jobs[0].inputs if r is runners[0] else Inputs(r.signature, on_gap=on_gap), o)
            for r, o in zip(runners, outputs, strict=True)
        ]
        loop = Loop(
            stages,
            jobs,
            reset_on_gap=on_gap == "reset",
            beside=view is not None and view.input,
            observe=observe,
        )
        waits = follow or any(s.live for s in sources.values())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OutsideRange)
                for steps in loop.rounds():
                    for note in [n for r in runners for n in r.notes if n not in report.said]:
                        report.said = (*report.said, note)
                        if say is not None:
                            say(note)
                    if progress is not None:
                        progress(steps)
        except KeyboardInterrupt:
            if not waits:
                raise
        loop.counts.skipped += sum(job.left_out for job in jobs)
        if not (loop.counts.frames or loop.counts.skipped or waits):
            raise EdgeLstmError(
                f"{report.source}: no step of the model",
                found="fewer frames than one step takes",
                expected=f"at least {count_of(jobs[0].inputs.window or 1, 'frame')}",
                hint="Give a longer source, or a larger limit",
            )
        _count(report, loop.counts)
        report.scores = {name: scorer.result() for j in jobs for name, scorer in j.scorers.items()}
    return report


def _count(report: RunReport, counts: Counts) -> None:
    report.frames, report.skipped, report.resets = counts.frames, counts.skipped, counts.resets
    report.milliseconds = counts.milliseconds


def _outputs(
    signature: Any, ops: Any, units: Units | None, read: bool, postprocess: Preprocessing | None
) -> Outputs:
    from edgelstm.pipeline import Outputs, parse_postprocess
    from edgelstm.pipeline.outputs import readable

    if postprocess is not None and not isinstance(postprocess, Mapping):
        postprocess = parse_postprocess(postprocess, signature)
    if units is None and read:
        return readable(signature, ops, postprocess)
    return Outputs(signature, ops, units=units or "model", postprocess=postprocess)


def _begin(runners: Sequence[Runner], path: PathLike, sources: Mapping[str, Source]) -> None:
    """Let the one stream there is begin with the state in a file."""
    from edgelstm.pipeline.service.kept import state_of
    from edgelstm.pipeline.service.series import parted

    if len(sources) > 1 or any(s.streams > 1 for s in sources.values()):
        raise EdgeLstmError(
            "a state to begin with",
            found=f"{count_of(sum(s.streams for s in sources.values()), 'stream')}",
            expected="one",
        )
    state = state_of(path)
    if state.model and state.model != " ".join(r.model for r in runners):
        log.warning("the state in %s is of another model's file than the one that runs", path)
    states = parted(state, len(runners)) if len(runners) > 1 else [state]
    for runner, own in zip(runners, states, strict=True):
        runner.stream(next(iter(sources))).restore(own, any_model=True)


def _scorer(signature: Any, ops: Any, threshold: float | None, windows: bool) -> ForecastScorer:
    from edgelstm.pipeline.units import forecast_scorer

    found = None
    if signature.window is None:
        found = forecast_scorer(signature, signature, ops, threshold, windows)
    if found is None:
        frame = signature.inputs[0].frame_shape[int(windows) :]
        raise EdgeLstmError(
            "no forecast to score",
            found=", ".join(f"output {t.name} {list(t.frame_shape)}" for t in signature.outputs),
            expected=f"one input, and an output [K, {', '.join(map(str, frame))}] of a step graph",
        )
    return found
