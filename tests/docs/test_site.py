"""The documentation site builds without a warning, and names every command and flag."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.thorough,  # half a minute; `make docs` fails on a warning too
    pytest.mark.skipif(sys.version_info < (3, 11), reason="the site is built with Python 3.11 or later"),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    pytest.importorskip("torch")  # the modules of edgelstm.nn are documented too
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run([*command, ROOT / "docs", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _commands() -> dict[str, Any]:
    import typer

    from edgelstm.cli import app

    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_flag_of_every_command_is_there(site: Path) -> None:
    text = (site / "commands.html").read_text(encoding="utf-8")
    for name, command in _commands().items():
        assert f'id="{name}"' in text, name
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                for flag in parameter.opts:
                    assert f">{flag}</span>" in text or f">{flag}<" in text, (name, flag)


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    import edgelstm

    text = (site / "api.html").read_text(encoding="utf-8")
    for name in set(edgelstm.__all__) - {"__version__", "nn"}:
        assert f'id="edgelstm.{name}"' in text or f".{name}" in text, name


def test_every_tutorial_can_be_had_as_a_notebook(site: Path) -> None:
    pages = [page.stem for page in (ROOT / "docs" / "tutorials").glob("*.md")]
    assert pages
    for stem in pages:
        found = re.search(
            rf'href="\.\./(_downloads/\w+/{stem}\.ipynb)"',
            (site / "tutorials" / f"{stem}.html").read_text("utf-8"),
        )
        assert found, stem
        assert json.loads((site / found[1]).read_text("utf-8"))["nbformat"] == 4


def test_nothing_is_fetched_from_the_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for mark in ('src="http', "src='http", 'rel="stylesheet" href="http', "@import url(http"):
            assert mark not in text, (page.name, mark)
