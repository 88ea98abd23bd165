"""The pages about people's own data: every command on them exists and takes these options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from edgelstm.pipeline import parse_ops
from edgelstm.pipeline.postprocess import POST_OPERATIONS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def commands(page: str) -> list[list[str]]:
    text = (DOCS / page).read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```(?:console)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    lines = [line.partition(" > ")[0] for line in lines if line.startswith("edgelstm ")]
    lines += re.findall(
        r"`(edgelstm [a-z-]+ [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize(
    "page",
    [
        "preprocessing.md",
        "tables.md",
        "sound.md",
        "sources.md",
        "runner.md",
        "pictures.md",
        "recipes.md",
        "install.md",
    ],
)
def test_the_commands_exist_and_take_these_options(page: str) -> None:
    import typer.main

    from edgelstm.cli import app

    group = typer.main.get_command(app)
    found = commands(page)
    assert found
    for name, *arguments in found:
        command = group.commands[name]  # type: ignore[attr-defined]
        command.make_context(name, arguments)
        for option, vocabulary in (("--preprocess", None), ("--postprocess", POST_OPERATIONS)):
            for k, word in enumerate(arguments):
                if word == option:
                    assert (
                        parse_ops(arguments[k + 1], vocabulary) if vocabulary else parse_ops(arguments[k + 1])
                    )
