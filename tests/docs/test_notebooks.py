"""Tutorials are notebooks too, made of the pages themselves. That they run: test_tutorials.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from notebook import made

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_nothing_of_the_page_is_lost(page: Path) -> None:
    book = made(page)
    text = page.read_text("utf-8")
    said = "\n".join(cell.source for cell in book.cells)
    for word in ("$ ", "```console", "```python\n#", "](../", ".md)"):
        assert word not in re.sub(r"\(docs/\S+\)", "", said), word
    commands = re.findall(r"^\$ (.*?)\\?$", text, re.MULTILINE)
    files = re.findall(r"^```\w+\n(?:#|//) (\S+\.\w+)$", text, re.MULTILINE)
    assert commands
    assert files
    assert all(command in said for command in commands)
    written = [cell.source for cell in book.cells if cell.source.startswith("%%writefile ")]
    assert [source.split()[1] for source in written] == files
    for heading in re.findall(r"^## .*$", text, re.MULTILINE):
        assert heading in said
