"""The README's examples run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def test_the_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    (code,) = blocks("python")
    assert len(code.splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "plant.onnx").is_file()


def test_the_commands_exist_and_take_these_options() -> None:
    import typer.main

    from edgelstm.cli import app

    group = typer.main.get_command(app)
    lines = [
        shlex.split(line, comments=True)
        for block in blocks("")
        for line in block.splitlines()
        if line.startswith("edgelstm ")
    ]
    assert {words[1] for words in lines} == set(group.commands)  # type: ignore[attr-defined]
    for _, name, *arguments in lines:
        group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
