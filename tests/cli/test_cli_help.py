"""Help texts name every kind of source and sink there is."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from edgelstm.cli import app
from edgelstm.pipeline import sinks, sources


def test_run_names_all_kinds() -> None:
    result = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    text = re.sub(r"[\s│]+", " ", result.output)
    for kind in (*sources.FILES, *sinks.FILES):
        assert kind.what[2:] in text, kind.what
    assert "{" not in re.sub(r"\{model\}|\{stream\}|\{time\}|\{index\}", "", text)
