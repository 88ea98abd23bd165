"""Tutorials as notebooks, written when the site is built from the pages themselves: no text stands twice.

A block of code that begins with a file's name writes that file; a console block runs its commands. What a page says that a
command prints is left out: the notebook shows it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

DOCS = Path(__file__).parents[1]
#: Beside the copied pages, which are never committed either.
PLACE = DOCS / "tree" / "notebooks"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"(?:#|//) (\S+\.\w+)\n")
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)$", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s:#]+)[^)]*\)")
FIRST = """\
# An empty folder, and the commands of this notebook's own Python.
import os
import sys
import tempfile

os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
os.chdir(tempfile.mkdtemp(prefix="edgelstm-"))"""


def cells(page: str) -> list[tuple[str, str]]:
    """("markdown" or "code", text) in the order of the page."""
    found: list[tuple[str, str]] = []
    place = 0
    for block in BLOCK.finditer(page):
        code = _code(*block.groups())
        if code is not None:
            found += [("markdown", page[place : block.start()]), ("code", code)]
            place = block.end()
    found.append(("markdown", page[place:]))
    first = next(k for k, (kind, _) in enumerate(found) if kind == "code")
    found.insert(first, ("code", FIRST))
    return [(kind, text.strip("\n")) for kind, text in found if text.strip()]


def _code(language: str, block: str) -> str | None:
    if language == "console":
        return "%%bash -e\n" + "\n".join(COMMAND.findall(block))
    named = NAMED.match(block)
    return f"%%writefile {named[1]}\n{block[named.end() :]}" if named else None


def notebook(page: str, docname: str) -> dict[str, Any]:
    """The page as a notebook of format 4.5; links to other pages become their names."""
    here = PurePosixPath(docname).parent

    def named(link: re.Match[str]) -> str:
        target = os.path.normpath(here / link[2])
        return link[1] if link[1] in target else f"{link[1]} (docs/{target})"

    made: list[dict[str, Any]] = []
    for k, (kind, text) in enumerate(cells(page)):
        text = LINK.sub(named, text) if kind == "markdown" else text
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": hashlib.sha256(f"{docname} {k}".encode()).hexdigest()[:8],
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        made.append({**cell, "execution_count": None, "outputs": []} if kind == "code" else cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def run(made: dict[str, Any], stem: str) -> dict[str, Any]:
    """The notebook with what its cells print, run in an empty folder; a cell that fails is a warning."""
    import nbclient
    import nbformat
    from sphinx.util import logging

    log = logging.getLogger(__name__)
    book = nbformat.reads(json.dumps(made), as_version=4)
    log.info("running the notebook %s", stem)
    with tempfile.TemporaryDirectory() as folder:
        try:
            nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute(cwd=folder)
        except nbclient.exceptions.CellExecutionError as error:
            log.warning("the notebook %s fails: %s", stem, error)
    return book


def write_notebooks(app: Any) -> None:
    """One for each tutorial, with what it prints where ``run_notebooks`` is set."""
    PLACE.mkdir(parents=True, exist_ok=True)
    for page in sorted((DOCS / "tutorials").glob("*.md")):
        made = notebook(page.read_text("utf-8"), f"tutorials/{page.stem}")
        if app.config.run_notebooks:
            made = run(made, page.stem)
        (PLACE / f"{page.stem}.ipynb").write_text(json.dumps(made, indent=1) + "\n", "utf-8")


def link_notebook(app: Any, docname: str, source: list[str]) -> None:
    """Below the title of a tutorial, where its notebook is."""
    if docname.startswith("tutorials/"):
        title, _, rest = source[0].partition("\n")
        stem = PurePosixPath(docname).name
        link = f"{{download}}`This page as a notebook </tree/notebooks/{stem}.ipynb>`"
        source[0] = f"{title}\n\n{link}\n{rest}"


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_config_value("run_notebooks", False, "env", bool)
    app.connect("builder-inited", write_notebooks, priority=200)  # the folder is made anew before
    app.connect("source-read", link_notebook)
    return {"parallel_read_safe": True}
