"""The README's and the first pages' examples run as they stand, and every command is among them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README, START = ROOT / "README.md", ROOT / "docs" / "start.md"


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("edgelstm ")]


def test_the_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    (code,) = blocks(START, "python")
    assert len(code.splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    exec(compile(code, START.name, "exec"), {})
    assert (tmp_path / "plant.onnx").is_file()


@pytest.mark.thorough  # `make demo` walks the same way
def test_the_readme_s_commands_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    lines = commands(README)
    assert [name for _, name, *_ in lines] == ["export", "run", "verify"]
    for _, *arguments in lines:
        command = [sys.executable, "-m", "edgelstm", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "forecast.npz").is_file()


def test_the_commands_exist_and_take_these_options() -> None:
    import typer.main

    from edgelstm.cli import app

    group = typer.main.get_command(app)
    lines = commands(START)
    assert {words[1] for words in lines} == set(group.commands)  # type: ignore[attr-defined]
    for _, name, *arguments in lines:
        group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def test_links_lead_somewhere() -> None:
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs" / "tutorials").glob("*.md"),
    ):
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
