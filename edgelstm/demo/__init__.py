"""The demo: the trained examples exported, verified and streamed, with a page to look at.

May import: workflows and every room below it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm import __version__
from edgelstm.demo.recorded import TOLERANCE
from edgelstm.demo.report import write_report
from edgelstm.demo.stages import Streamed, digits, radar_nowcast, sensors
from edgelstm.errors import EdgeLstmError
from edgelstm.files import write_bytes

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["TOLERANCE", "DemoResult", "run_demo"]

#: Fewest frames that leave something to score: twice the farthest lead.
FEWEST_FRAMES = 20

#: ``progress(what, total)`` opens a bar; what it yields is called with the number of steps done.
Progress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


@dataclass
class DemoResult:
    """What the demo did: one entry an example, and the page."""

    report: Path
    examples: list[Streamed]
    command: str
    machine: dict[str, Any]
    created: str

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: what ``report.json`` holds."""
        return {
            "schema": 1,
            "edgelstm": __version__,
            "created": self.created,
            "command": self.command,
            "machine": self.machine,
            "report": str(self.report),
            "examples": [example.to_json() for example in self.examples],
        }

    def table(self) -> Table:
        """For the terminal."""
        from rich.table import Table

        rows: list[tuple[str, Callable[[Streamed], str]]] = [
            ("model", lambda e: f"{len(e.data) / 1e6:.2f} MB"),
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
    """Export, verify and stream the example models; write ``report.html``, ``report.json`` and the graphs to ``output``.

    Without ``radar``: moving_digits and sensor_lstm, ``frames`` frames of each. With it, a folder of KNMI radar files:
    the rain nowcast on them. Each export is compared with its NumPy reference over the example's own frames, the
    streamed outputs and states with what PyTorch gave when the weights were trained. Needs neither torch nor a plotting
    package. Nothing is written before all of it went well.

    Raises EdgeLstmError when the examples are not there, when an export differs from what PyTorch gave by more than
    ``TOLERANCE``, or when ``output`` can't be written.
    """
    output = Path(output)
    if frames < FEWEST_FRAMES:
        raise EdgeLstmError("frames of the demo", found=frames, expected=f"at least {FEWEST_FRAMES}")
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
    result = DemoResult(
        report=output / "report.html",
        examples=examples,
        command="edgelstm demo" + (" --radar DIR" if radar is not None else ""),
        machine=_machine(threads),
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    for example in examples:
        write_bytes(output / example.file, example.data)
    write_report(output, result.to_json(), [example.view for example in examples])
    return result


def _machine(threads: int | None) -> dict[str, Any]:
    import onnxruntime

    from edgelstm.machine import cpu

    processor = cpu()
    return {
        "processor": processor.model,
        "threads": threads or processor.usable,
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


class _Silent(AbstractContextManager[Callable[[int], None]]):
    def __init__(self, what: str, total: int | None) -> None:
        pass

    def __enter__(self) -> Callable[[int], None]:
        return lambda count: None

    def __exit__(self, *error: object) -> None:
        return None
