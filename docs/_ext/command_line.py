"""The page of the command line, written from the commands themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
PAGE = DOCS / "commands.md"


def page() -> str:
    """Every command with its arguments, options and examples, as Markdown."""
    import typer

    from edgelstm.cli import app
    from edgelstm.cli.command import fill_help

    root: Any = typer.main.get_command(app)
    lines = [
        "# The command line",
        "",
        "`edgelstm COMMAND --help` says the same. Bad input ends with exit code 2 and one line.",
        "",
    ]
    for name, command in root.commands.items():
        fill_help(command)
        lines += [f"## {name}", "", command.help or "", ""]
        lines += ["| argument or option | |", "| --- | --- |"]
        for parameter in command.params:
            if getattr(parameter, "hidden", False):
                continue
            is_option = parameter.param_type_name == "option"
            names = [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.name.upper()]
            text = (getattr(parameter, "help", None) or "").replace("|", "\\|").replace("\n", " ")
            if parameter.required:
                text += " Required."
            elif (
                is_option
                and parameter.default not in (None, False, (), [])
                and not callable(parameter.default)
            ):
                text += f" Default: {parameter.default}."
            lines.append(f"| {', '.join(f'`{n}`' for n in names)} | {text.strip()} |")
        lines.append("")
        if command.epilog:
            examples = re.findall(r"`([^`]+)`", command.epilog)
            lines += ["```", *examples, "```", ""]
    return "\n".join(lines)


def _write(app: Any) -> None:
    text = page()
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("builder-inited", _write, priority=100)
    return {"parallel_read_safe": True}
