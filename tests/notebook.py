"""A tutorial of docs/ as the notebook that the site offers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

EXTENSION = Path(__file__).resolve().parents[1] / "docs" / "_ext" / "notebooks.py"


def made(page: Path) -> Any:
    """The notebook of a page, valid."""
    nbformat = pytest.importorskip("nbformat")
    spec = importlib.util.spec_from_file_location("notebooks", EXTENSION)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = module.notebook(page.read_text("utf-8"), f"tutorials/{page.stem}")
    book = nbformat.reads(json.dumps(written), as_version=4)
    nbformat.validate(book)
    return book
