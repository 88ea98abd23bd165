"""``report.html`` and ``report.json``: the page is one file that asks nothing of the network."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgelstm.files import write_text


def write_report(folder: Path, report: dict[str, Any], views: list[dict[str, Any]]) -> None:
    """Write both files into ``folder``, each whole or not at all."""
    write_text(folder / "report.json", json.dumps(report, indent=1, allow_nan=False))
    write_text(folder / "report.html", page({"report": report, "views": views}))


def page(data: dict[str, Any], name: str = "page") -> str:
    """The page with its style, its script and ``data`` inside."""
    assets = files("edgelstm.demo")
    text = assets.joinpath(f"{name}.html").read_text("utf-8")
    for mark, parts in (("/*STYLE*/", ["page.css"]), ("/*SCRIPT*/", ["shared.js", f"{name}.js"])):
        text = text.replace(mark, "\n".join(assets.joinpath(part).read_text("utf-8") for part in parts))
    packed = json.dumps(data, separators=(",", ":"), allow_nan=False)
    # Inside a script element only this sequence could end it early.
    return text.replace("/*DATA*/", packed.replace("</", "<\\/"))
