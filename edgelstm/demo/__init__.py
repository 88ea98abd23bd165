"""The demo: the trained examples exported, verified and streamed, with a page to look at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm import __version__
from edgelstm.demo.report import write_report
from edgelstm.demo.stages import TOLERANCE, Streamed, digits, radar_nowcast, sensors
from edgelstm.errors import EdgeLstmError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["TOLERANCE", "DemoResult", "run_demo"]

#: ``progress(what, total)`` opens a bar; what it yields is called with the number of steps done.
Progress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


@dataclass
class DemoResult:
    """What the demo did: one entry an example, and the page."""

    report: Path
    examples: list[Streamed]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: what ``report.json`` holds."""
        return {
            "schema": 1,
            "edgelstm": __version__,
            "report": str(self.report),
            "examples": [example.to_json() for example in self.examples],
        }

    def table(self) -> Table:
        """For the terminal."""
        from rich.table import Table

        rows: list[tuple[str, Callable[[Streamed], str]]] = [
            ("model", lambda e: f"{e.model_bytes / 1e6:.2f} MB, {e.parameters:,} parameters"),
            ("export against its source, relative error", lambda e: f"{e.export_error:.1e}"),
            ("export against PyTorch, relative error", lambda e: f"{e.recorded_error:.1e}"),
            ("frames streamed", lambda e: str(e.frames)),
            (
                "time per frame, median (99%)",
                lambda e: f"{e.percentile(50):.3g} ms ({e.percentile(99):.3g} ms)",
            ),
            ("mean absolute error", lambda e: f"{e.mae:.4f}"),
            ("  of repeating the last frame", lambda e: f"{e.mae_persistence:.4f}"),
        ]
        table = Table("", *(e.name for e in self.examples), title="What the demo did")
        for name, value in rows:
            table.add_row(name, *(value(e) for e in self.examples))
        return table


def run_demo(
    output: Path,
    *,
    radar: Path | None = None,
    threads: int | None = None,
    frames: int = 200,
    progress: Progress | None = None,
) -> DemoResult:
    """Export, verify and stream the example models; write ``report.html`` and ``report.json`` into ``output``.

    Without ``radar``: moving_digits and sensor_lstm, ``frames`` frames of each. With it, a folder of KNMI radar files:
    the rain nowcast on them. Each export is compared with its NumPy reference over 200 frames, then with what
    PyTorch gave when the weights were trained. Needs neither torch nor a plotting package.

    Raises EdgeLstmError when the examples are not there, when an export differs from what PyTorch gave by more than
    ``TOLERANCE``, or when ``output`` can't be written.
    """
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeLstmError(
            f"can't write into {output}", found=error.strerror, expected="a folder"
        ) from error
    bars = progress or _Silent
    if radar is not None:
        examples = [radar_nowcast(radar, threads, bars)]
    else:
        examples = [digits(frames, threads, bars), sensors(frames, threads, bars)]
    result = DemoResult(output / "report.html", examples)
    write_report(output, result.to_json(), [example.view for example in examples])
    return result


class _Silent(AbstractContextManager[Callable[[int], None]]):
    def __init__(self, what: str, total: int | None) -> None:
        pass

    def __enter__(self) -> Callable[[int], None]:
        return lambda count: None

    def __exit__(self, *error: object) -> None:
        return None
