"""Draw docs/proof.svg from what the proof finds: right graphs and planted faults, each against its allowance.

PYTHONPATH=.:tests/workflows python docs/_ext/proof_figure.py
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import planted
import test_planted_faults as cases

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.step import StepModel

WIDTH, LEFT, ROW, TOP = 760, 300, 34, 56
LOW, HIGH = -8, 1
ROWS: list[tuple[str, StepModel, StepModel]] = [
    ("a ConvLSTM, exported right", planted.model(), planted.model()),
    ("a head whose terms cancel, right", cases.cancelling(3000.0), cases.cancelling(3000.0, -1)),
    ("tanh off by 4e-4", planted.model(), planted.rational_tanh(planted.model(), 4)),
    ("a bias off by 1e-3", planted.model(), planted.wrong_bias(planted.model(), 1e-3)),
    ("a cell state in float16", planted.model(), planted.coarse_state(planted.model())),
    ("two gates of a channel swapped", planted.model(), planted.swapped_gates(planted.model())),
]


def figures(source: StepModel, graph: StepModel) -> tuple[float, float, float]:
    """Errors of source and graph where the graph comes nearest its limit, and that limit."""
    try:
        proof = planted.judged(source, graph, 200).proof
        assert proof is not None
        worst = proof.worst
        return worst.source, worst.graph, worst.graph / worst.share
    except EdgeLstmError as error:
        text = str(error).replace(",", "")
        found = re.search(r"graph (\S+) from float64 source (\S+);.*error is (\S+) times", text)
        assert found is not None, text
        g, s, times = map(float, found.groups())
        return s, g, g / times


def x(value: float) -> float:
    """Place of an error on the axis."""
    return LEFT + (math.log10(max(value, 10.0**LOW)) - LOW) / (HIGH - LOW) * (WIDTH - LEFT - 24)


def draw() -> str:
    """The figure."""
    height = TOP + ROW * len(ROWS) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        '<circle cx="20" cy="20" r="5" fill="#2a6fbb"/><text x="32" y="24">source, from float64</text>',
        '<path d="M178 14l6 6-6 6-6-6z" fill="#1a1a1a"/><text x="192" y="24">graph, passes</text>',
        '<path d="M298 14l6 6-6 6-6-6z" fill="#c62828"/><text x="312" y="24">graph, refused</text>',
        '<rect x="416" y="14" width="40" height="12" fill="#cfe8cf"/><text x="464" y="24">what passes</text>',
    ]
    bottom = TOP + ROW * len(ROWS)
    for exponent in range(LOW, HIGH + 1):
        at = x(10.0**exponent)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 10}" y2="{bottom}" stroke="#e4e4e4"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">1e{exponent}</text>'
        )
    for k, (label, source, graph) in enumerate(ROWS):
        s, g, limit = figures(source, graph)
        y = TOP + ROW * k + 10
        colour = "#1a1a1a" if g <= limit else "#c62828"
        parts.append(f'<text x="{LEFT - 14}" y="{y + 5}" text-anchor="end">{label}</text>')
        parts.append(
            f'<rect x="{LEFT}" y="{y - 7}" width="{x(limit) - LEFT:.1f}" height="14" fill="#cfe8cf"/>'
            f'<circle cx="{x(s):.1f}" cy="{y}" r="5" fill="#2a6fbb"/>'
            f'<path d="M{x(g):.1f} {y - 6}l6 6-6 6-6-6z" fill="{colour}"/>'
        )
    parts.append(
        f'<text x="{WIDTH - 24}" y="{height - 6}" text-anchor="end" fill="#555">relative error</text></svg>'
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(__file__).parents[1].joinpath("proof.svg").write_text(draw())
