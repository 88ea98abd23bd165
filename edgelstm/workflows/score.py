"""score: forecasts of a stream held against what came, beside repeating the last frame."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, refuse_overwrite, write_text
from edgelstm.renamed import renamed
from edgelstm.runtime.frames import BadFrame
from edgelstm.workflows.frames import Preprocessing, Progress
from edgelstm.workflows.run import RunReport, run
from edgelstm.workflows.streaming import named_sources

if TYPE_CHECKING:
    from edgelstm.pipeline.inputs import OnGap
    from edgelstm.verify.forecast import ForecastScores

COLUMNS = (
    "stream", "output", "unit", "lead", "lead_seconds", "forecasts", "mae", "mae_persistence", "threshold", "csi",
    "csi_persistence",
)  # fmt: skip


@dataclass(repr=False)
class ScoreReport:
    """What :func:`score` found: a row for each stream and lead time, as the CSV file has them; ``run``, how it ran."""

    run: RunReport
    rows: list[dict[str, Any]]

    def __repr__(self) -> str:
        return f"ScoreReport({count_of(len(self.rows), 'row')}, {self.run})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"scores": self.rows, "run": self.run.to_json()}


@renamed(out="output")
def score(
    model: PathLike,
    source: str | Sequence[str] | Mapping[str, str],
    output: PathLike | None = None,
    *,
    threshold: float | None = None,
    device: str | None = None,
    threads: int | None = None,
    limit: int | None = None,
    preprocess: Preprocessing | None = None,
    hop: int | None = None,
    on_gap: OnGap = "hold",
    on_bad_frame: BadFrame = "error",
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> ScoreReport:
    """Score a model that forecasts its own input, [K, *shape of a frame], on the frames that came.

    For each lead time the mean absolute error and the critical success index of ``threshold`` (default: 1 of what had its
    logarithm taken, else the middle), in physical units, for the model and for persistence: the last frame, repeated. A
    forecast counts when its farthest lead has come and no frame is missing on the way; "no data" does not count.
    With ``hop`` a window of frames forecasts, and the last of it is the last frame. ``output``: a CSV file. Other arguments as :func:`run`. Raises EdgeLstmError where there is nothing to score.
    """
    refuse_overwrite(output, (model, *named_sources(source).values()))
    report = run(
        model,
        source,
        device=device,
        threads=threads,
        limit=limit,
        preprocess=preprocess,
        hop=hop,
        on_gap=on_gap,
        on_bad_frame=on_bad_frame,
        score=True,
        threshold=threshold,
        progress=progress,
        say=say,
    )
    rows = [row for name, found in report.scores.items() for row in score_rows(name, found, report)]
    if not rows:
        raise EdgeLstmError(
            "nothing was scored",
            found=count_of(report.frames, "frame")
            + f", {count_of(len(report.gaps), 'gap')} in them" * bool(report.gaps),
            expected="more frames in a row than a forecast has lead times",
            hint="A forecast is scored when its farthest lead has come: give a longer source, or a larger limit",
        )
    if output is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(output, text.getvalue())
    return ScoreReport(report, rows)


def score_rows(stream: str, found: ForecastScores | None, report: RunReport) -> list[dict[str, Any]]:
    """Rows of a stream by ``COLUMNS``, one for each lead time; none where nothing was scored."""
    if found is None:
        return []
    leads = zip(found.mae_b, found.mae_a, found.csi_b, found.csi_a, strict=True)
    return [
        {
            "stream": stream,
            "output": found.output,
            "unit": report.frame_unit,
            "lead": k,
            "lead_seconds": None if report.interval is None else k * report.interval,
            "forecasts": found.forecasts,
            "mae": mae,
            "mae_persistence": repeated,
            "threshold": found.threshold,
            "csi": csi,
            "csi_persistence": csi_repeated,
        }
        for k, (mae, repeated, csi, csi_repeated) in enumerate(leads, 1)
    ]
