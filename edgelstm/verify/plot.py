"""A Comparison drawn: errors over time with what was fitted to them, and the range of every state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.dtypes import LARGEST
from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, atomic_path

if TYPE_CHECKING:
    from edgelstm.verify.compare import Comparison

SUFFIXES = (".png", ".svg", ".pdf")
#: Points drawn of one curve; of the frames between two of them, the largest value is shown.
POINTS = 1000
#: Errors are drawn on a logarithmic scale: what is smaller, or zero, lies on its lower edge.
LEAST = 1e-12


def check_plot(path: PathLike) -> None:
    """Raise EdgeLstmError unless a plot can be written to ``path``; for use before hours of streaming."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise EdgeLstmError(
            f"can't draw {path}", found=f"suffix {target.suffix or 'none'}", expected=", ".join(SUFFIXES)
        )
    if not target.absolute().parent.is_dir():
        raise EdgeLstmError(f"can't write {path}", found="no such folder", hint="Create the folder first")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise EdgeLstmError(
            "plots need matplotlib", hint="pip install 'edgelstm[bench]', or leave --plot out"
        ) from error


def draw(result: Comparison, path: PathLike) -> None:
    """Write the figure to ``path``. Raises EdgeLstmError as :func:`check_plot` does."""
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8 if result.states else 4.5), layout="constrained")
    panels = figure.subplots(2 if result.states else 1, 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle(f"{result.b} against {result.a}")
    _errors(panels[0], result)
    if result.states:
        _ranges(panels[1], result)
    for axes in panels:
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    panels[-1].set_xlabel("frame")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _errors(axes: Any, result: Comparison) -> None:
    for number, tensor in enumerate(result.tensors):
        color = f"C{number % 10}"
        drift = tensor.drift
        label = f"{tensor.kind} {tensor.name}: {drift.text}"
        axes.plot(*_thin(tensor.frames, tensor.norms), color=color, label=label, linewidth=1)
        axes.plot(*_thin(tensor.frames, tensor.errors), color=color, linewidth=0.6, linestyle=":")
        later = np.linspace(tensor.frames[2 * len(tensor.frames) // 3], tensor.frames[-1], 50)
        middle = later - later.mean()
        if drift.slope_per_1000 is not None:
            fitted = drift.level + middle * drift.slope_per_1000 / 1000
        elif drift.doubling_frames is not None:
            fitted = drift.level * 2 ** (middle / drift.doubling_frames)
        elif drift.kind == "settles":
            fitted = np.full(len(later), drift.level)
        else:
            continue
        axes.plot(later, np.maximum(fitted, LEAST), color=color, linewidth=3, alpha=0.4)
    axes.set(
        ylabel="relative error", yscale="log", title="2-norm (solid), largest (dotted), verdict (broad line)"
    )


def _ranges(axes: Any, result: Comparison) -> None:
    least = 1e-6 * max((max(s.largest) for s in result.states), default=0.0) or LEAST
    for number, state in enumerate(result.states):
        found = state.growth
        label = f"{state.name}: {found.drift.text}"
        drawn = _thin(state.frames, state.largest, least)
        axes.plot(*drawn, color=f"C{number % 10}", label=label, linewidth=1)
    limit = LARGEST["float16"]
    axes.axhline(limit, color="black", linestyle="--", linewidth=1, label=f"float16 ends at {limit:,.0f}")
    axes.set(ylabel="largest |value|", yscale="log", title=f"range of the states of {result.a}")


def _thin(
    frames: Any, values: Any, least: float = LEAST
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """At most ``POINTS`` points that keep every peak."""
    x, y = np.asarray(frames), np.clip(np.asarray(values, np.float64), least, None)
    starts = np.arange(0, len(y), -(-len(y) // POINTS))
    return x[starts], np.maximum.reduceat(y, starts)
