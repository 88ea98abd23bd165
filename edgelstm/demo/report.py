"""``report.html`` and ``report.json``: the page is one file that asks nothing of the network."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

from edgelstm.files import write_text
from edgelstm.machine import cpu

PAGE = Path(__file__).with_name("page.html")
MARK = "/*DATA*/"


def write_report(folder: Path, report: dict[str, Any], views: list[dict[str, Any]]) -> None:
    """Write both files into ``folder``, each whole or not at all."""
    import onnxruntime

    report["machine"] = {
        "processor": cpu().model,
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }
    write_text(folder / "report.json", json.dumps(report, indent=1, allow_nan=False))
    data = json.dumps({"report": report, "views": views}, separators=(",", ":"), allow_nan=False)
    # Inside a script element only this sequence could end it early.
    page = PAGE.read_text("utf-8").replace(MARK, data.replace("</", "<\\/"))
    write_text(folder / "report.html", page)
