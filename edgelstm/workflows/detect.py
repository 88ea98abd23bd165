"""fit_detector and detect: what a model did not foretell, or could not give back, is an anomaly."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, atomic_path, refuse_overwrite
from edgelstm.renamed import renamed
from edgelstm.runtime.frames import BadFrame
from edgelstm.runtime.identity import model_identity
from edgelstm.runtime.outside import Outside, Seen
from edgelstm.runtime.protocol import Array
from edgelstm.verify.anomaly import Detector, Method, Target, check_out, error_vector
from edgelstm.verify.step_errors import Errors
from edgelstm.workflows.run import RunReport, run
from edgelstm.workflows.streaming import Step, named_sources

if TYPE_CHECKING:
    from edgelstm.pipeline.inputs import OnGap
    from edgelstm.workflows.frames import Preprocessing, Progress

log = logging.getLogger(__name__)

#: Columns of what is written.
HEAD = ("stream", "index", "name", "time", "score", "threshold", "anomaly")
#: Steps of a stream in which a new state is looked at apart, and how much higher they may make the threshold before it is said.
NEW, HIGHER = 10, 1.5


@dataclass(repr=False)
class Detections:
    """What :func:`detect` found: steps scored and above the threshold, and of each stream (steps, anomalies, highest score)."""

    run: RunReport
    detector: Detector
    steps: int = 0
    anomalies: int = 0
    streams: dict[str, tuple[int, int, float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Detections({self.anomalies} of {count_of(self.steps, 'step')} above {self.detector.threshold:.4g}, {self.run})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "steps": self.steps,
            "anomalies": self.anomalies,
            "threshold": self.detector.threshold,
            "streams": {
                name: {"steps": n, "anomalies": a, "highest": h if np.isfinite(h) else None}
                for name, (n, a, h) in self.streams.items()
            },
            "run": self.run.to_json(),
        }


@renamed(out="output")
def fit_detector(
    model: PathLike,
    source: PathLike | Sequence[PathLike] | Mapping[str, PathLike],
    output: PathLike | None = None,
    *,
    method: Method = "mae",
    quantile: float = 0.999,
    target: Target | None = None,
    settle: int = 0,
    hop: int | None = None,
    preprocess: Preprocessing | None = None,
    on_bad_frame: BadFrame = "error",
    on_gap: OnGap = "hold",
    device: str | None = None,
    threads: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Detector:
    """Fit a :class:`Detector` on normal data: stream it through ``model`` and see how large its errors are.

    target: ``input`` for a model that gives its input back, ``next`` for one that foretells it; by default told from the
    shapes, where they tell. settle: steps that are not scored after the state of a stream began, here and in :func:`detect`;
    a warning says where the threshold is made by such steps. ``output``: a JSON file for :func:`detect`. Other arguments as :func:`run`.
    """
    # Of each step what the method needs, no more: normal data may be long.
    reductions: dict[str, Callable[[Array], Any]] = {
        "mae": lambda e: np.abs(e).mean(),
        "mse": lambda e: np.sqrt(np.square(e).mean()),
        "mahalanobis": lambda e: error_vector(e).astype(np.float32),
    }
    if method not in reductions:
        raise EdgeLstmError("method", found=method, expected=" or ".join(get_args(Method)))
    if output is not None:
        check_out(output)
    refuse_overwrite(output, (model, *named_sources(source).values()))
    if not 0 < quantile <= 1:
        raise EdgeLstmError("quantile", found=quantile, expected="above 0, at most 1")
    if settle < 0:
        raise EdgeLstmError("settle", found=settle, expected="at least 0 steps")
    small = reductions[method]
    errors: list[Array] = []
    ages: list[int] = []

    def take(step: Step, error: Array) -> None:
        errors.append(np.asarray(small(error)))
        ages.append(watch.age(step))

    watch = Errors(target, take, settle)
    seen: list[Seen] = []

    def observe(step: Step) -> None:
        if not seen:
            seen.append(Seen(step.signature))
        seen[0].add(step.inputs)
        watch(step)

    run(
        model,
        source,
        hop=hop,
        preprocess=preprocess,
        on_bad_frame=on_bad_frame,
        on_gap=on_gap,
        device=device,
        threads=threads,
        limit=limit,
        observe=observe,
        progress=progress,
        say=say,
    )
    detector = Detector.fit(errors, method=method, quantile=quantile, target=watch.target or "next")
    ranges = seen[0].ranges() if seen else {}
    detector = replace(detector, model=model_identity(model), ranges=ranges, settle=settle)
    _look_at_new_states(detector, errors, ages)
    if output is not None:
        detector.save(output)
    return detector


@renamed(out="output")
def detect(
    model: PathLike,
    detector: Detector | PathLike,
    source: PathLike | Sequence[PathLike] | Mapping[str, PathLike],
    output: PathLike | None = None,
    *,
    hop: int | None = None,
    preprocess: Preprocessing | None = None,
    on_bad_frame: BadFrame = "error",
    on_gap: OnGap = "hold",
    device: str | None = None,
    threads: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Detections:
    """Score every step of ``source`` with a fitted detector, and write a row for each to ``output`` (.csv).

    A step whose score is above the threshold is an anomaly. Steps without a score (the first of a stream for a model that
    foretells) are left out. Where the first frames lie far outside what the detector was fitted on, a warning says so.
    """
    refuse_overwrite(output, (model, detector, *named_sources(source).values()))
    found = detector if isinstance(detector, Detector) else Detector.load(detector)
    if output is not None and Path(output).suffix.lower() != ".csv":
        raise EdgeLstmError(f"output {output}", expected="a .csv file")
    if found.model and found.model != model_identity(model):
        log.warning(
            "the detector was fitted with another model than %s: its threshold is for the other's errors. Fit one with "
            "this model, or expect its alarms to differ",
            model,
        )
    counts: dict[str, list[float]] = {}
    outside, notes = Outside(found.ranges, "what the detector was fitted on"), []

    def observe(step: Step) -> None:
        if not outside.done and (note := outside.look(step.inputs)) is not None:
            notes.append(note)
            log.warning("%s", note)
        watch(step)

    with _rows(output) as add:

        def scored(step: Step, error: Array) -> None:
            value = found.score(error)
            alarm = found.is_anomaly(value)
            of = counts.setdefault(step.stream, [0, 0, -np.inf])
            of[0], of[1], of[2] = of[0] + 1, of[1] + alarm, max(of[2], value)
            frame = step.frame
            add((step.stream, frame.index, frame.name, frame.time, value, found.threshold, int(alarm)))

        watch = Errors(found.target, scored, found.settle)
        report = run(
            model,
            source,
            hop=hop,
            preprocess=preprocess,
            on_bad_frame=on_bad_frame,
            on_gap=on_gap,
            device=device,
            threads=threads,
            limit=limit,
            observe=observe,
            progress=progress,
            say=say,
        )
        if not counts:
            raise EdgeLstmError(
                "nothing was scored",
                found=count_of(report.frames, "step"),
                expected="two in a row of a stream, for a model that foretells the next frame"
                if found.target == "next"
                else "at least one",
                hint="Give a longer source, or a larger limit",
            )
    report.said = (*report.said, *notes)
    streams = {name: (int(n), int(a), h) for name, (n, a, h) in counts.items()}
    steps, alarms = (sum(s[k] for s in streams.values()) for k in (0, 1))
    return Detections(report, found, int(steps), int(alarms), streams)


def _look_at_new_states(detector: Detector, errors: Sequence[Array], ages: Sequence[int]) -> None:
    """Warn where steps whose state was new make the threshold: what is as large later is missed."""
    scores = np.array([detector.score(error) for error in errors])
    later = scores[np.array(ages) >= NEW + detector.settle]
    if len(later) < max(2 * NEW, len(scores) / 2):
        return
    without = float(np.quantile(later, detector.quantile, method="higher"))
    if detector.threshold > HIGHER * without:
        log.warning(
            "the threshold %.4g is made by the first steps of streams, whose state was new: without %d of each it is %.4g. "
            "Leave them out (--settle %d, settle=), or errors as large later are no anomalies",
            detector.threshold,
            NEW,
            without,
            NEW + detector.settle,
        )


@contextmanager
def _rows(out: PathLike | None) -> Iterator[Callable[[tuple[Any, ...]], Any]]:
    if out is None:
        yield lambda row: None
        return
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEAD)
        yield writer.writerow
