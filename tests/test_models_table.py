"""docs/models.md: every kind there is has a row, and no cell is empty; one row made again is the row in the file."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

MISSING = [m for m in ("torch", "tensorrt_rtx", "keras") if importlib.util.find_spec(m) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

ROOT = Path(__file__).parents[1]
TABLE = (
    (ROOT / "docs" / "models.md")
    .read_text("utf-8")
    .split("<!-- table -->")[1]
    .split("<!-- end of table -->")[0]
)
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.strip().splitlines()]


def test_no_cell_is_empty() -> None:
    assert len(ROWS) > 40
    assert {len(row) for row in ROWS} == {7}
    for row in ROWS[2:]:
        for cell in row[2:]:
            assert re.fullmatch(r"yes, \d.*|\d+|builds|none: .+|no: .+|no product large enough", cell), row


@pytest.mark.thorough
def test_a_row_made_again() -> None:
    """Errors are roundings, so only their order of size counts."""
    name = "LSTM operators that start anew"
    done = subprocess.run(
        [sys.executable, "benchmarks/models/run.py", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    made = [cell.strip() for cell in done.stdout.strip().splitlines()[-1].strip("|").split("|")]
    (told,) = [row for row in ROWS if row[1] == name]
    assert [re.sub(r", .*", "", cell) for cell in made] == [re.sub(r", .*", "", cell) for cell in told]


@pytest.mark.thorough
def test_every_kind_has_a_row() -> None:
    code = "import sys; sys.path.insert(0, 'benchmarks/models'); from kinds import kinds; print('\\n'.join(k.name for k in kinds()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.strip().splitlines()) <= {row[1] for row in ROWS}
