"""Our docstrings, which are plain text to be read in an editor, as reStructuredText.

A section underlined with dashes lists ``name, other: what it is`` lines; a line further in goes on with the one before. Text in
columns (indented further than the rest) stays as it is written.
"""

from __future__ import annotations

import re
from typing import Any

#: A star that stands for repetition, as in [N, *spatial]: no emphasis begins there.
STAR = re.compile(r"(?<![*\w`])\*(?=\w)")
FIELD = re.compile(r"^(?P<names>[\w*]+(?:, [\w*]+)*): (?P<text>.*)$")


def _escaped(found: re.Match[str]) -> str:
    return "\\*"


def rewritten(lines: list[str]) -> list[str]:
    """The docstring's lines as reStructuredText."""
    out: list[str] = []
    literal = False
    for line in lines:
        if re.fullmatch(r"-{3,}", line.strip()) and out:
            title = out.pop()
            out += [f"**{title.strip()}**", ""]
            continue
        indented = line.startswith("    ")
        if indented and not literal and (not out or not out[-1].strip()):
            out += ["::", ""]
            literal = True
        elif line.strip() and not indented:
            literal = False
        found = None if literal else FIELD.match(line)
        if found:
            if out and out[-1].strip() and not out[-1].startswith("|"):
                out.append("")
            out.append(f"- ``{found['names']}``: {STAR.sub(_escaped, found['text'])}")
            continue
        if not literal and line.startswith("    ") and out and out[-1].startswith(("- ", "  ")):
            line = "  " + line.strip()
        elif not literal and out and out[-1].startswith("- ") and line.strip() and not indented:
            out.append("")
        out.append(line if literal else STAR.sub(_escaped, line))
    return out


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = rewritten(lines)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
