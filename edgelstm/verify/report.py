"""A Comparison in words and tables, as the command line prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from edgelstm.errors import count_of

if TYPE_CHECKING:
    from edgelstm.verify.compare import Comparison
    from edgelstm.verify.forecast import ForecastScores


def errors(result: Comparison) -> Table:
    """Every output and state: its errors and where they lead."""
    table = Table(
        title=escape(f"{result.b} against {result.a}, {count_of(result.frames, 'frame')}: relative error")
    )
    for column in ("kind", "tensor", "worst", "at frame", "last", "2-norm", "drift"):
        table.add_column(column, justify="left" if column in ("kind", "tensor", "drift") else "right")
    for t in result.tensors:
        drift = t.drift
        figures = (f"{t.worst:.2e}", str(t.worst_frame), f"{t.last:.2e}", f"{drift.level:.2e}")
        style = "bold" if t is result.worst else None
        table.add_row(t.kind, escape(t.name), *figures, drift.text, style=style)
    return table


def notes(result: Comparison) -> list[str]:
    """What else a user has to know, a line each."""
    lines = list(result.said)
    lines += [state.text() for state in result.states if state.growth.grows]
    if result.asked is not None:
        all_came = result.frames + result.left >= result.asked
        why = "too few for a window are left" if all_came else "the source has no more"
        compared = count_of(result.frames, "frame was", "frames were")
        lines.insert(0, f"{compared} compared, not {result.asked}: {why}")
    return lines


def forecast(scores: ForecastScores) -> Table:
    """MAE and CSI of both models at every lead, and what b loses."""
    title = f"output {scores.output}, {count_of(scores.forecasts, 'forecast')} against what came; CSI of {scores.threshold:g}"
    table = Table(title=escape(title), min_width=len(title))
    for column in ("frames ahead", "MAE a", "MAE b", "CSI a", "CSI b"):
        table.add_column(column, justify="right")
    leads = list(zip(scores.mae_a, scores.mae_b, scores.csi_a, scores.csi_b, strict=True))
    for lead, (mae_a, mae_b, csi_a, csi_b) in enumerate(leads, 1):
        table.add_row(str(lead), f"{mae_a:.4g}", f"{mae_b:.4g}", _csi(csi_a), _csi(csi_b))
    table.add_section()
    means = [_mean([row[k] for row in leads]) for k in range(4)]
    table.add_row("mean", *(f"{m:.4g}" for m in means[:2]), _csi(means[2]), _csi(means[3]), style="bold")
    loss, csi = scores.mae_loss_percent, scores.csi_loss
    table.caption = "b against a: MAE " + ("unknown" if loss is None else f"{loss:+.2f}%")
    if csi is not None:
        table.caption += f", CSI {round(-csi, 4) + 0.0:+.4f}"
    return table


def _mean(values: list[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return float(np.mean(there)) if there else None


def _csi(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
