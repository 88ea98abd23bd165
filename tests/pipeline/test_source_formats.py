"""Every format in every depth keeps its values or is refused; docs/sources.md says what this file finds.

``EDGELSTM_WRITE_TABLE=1 pytest tests/pipeline/test_source_formats.py`` writes the table anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source
from pipeline.source_files import Case, image_cases, radar_cases, tiff_cases, video_cases

av = pytest.importorskip("av")
for module in ("PIL", "tifffile", "imagecodecs", "h5py"):
    pytest.importorskip(module)
if missing := {"libx264", "libx265", "ffv1"} - av.codecs_available:
    pytest.skip(f"PyAV without {', '.join(missing)}", allow_module_level=True)

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"
MARKS = "<!-- table -->", "<!-- end of table -->"
CASES = [*video_cases(), *image_cases(), *tiff_cases(), *radar_cases()]
HEAD = ["| format | stored | read as | values | |", "| --- | --- | --- | --- | --- |"]


def row(case: Case, found: str, values: str) -> str:
    return f"| {case.kind} | {case.stored} | {found} | {values} | {case.note} |"


def read(case: Case, folder: Path) -> str:
    """The row of the table, once the pixels are right."""
    spec = case.write(folder)
    if case.expect is None:
        with pytest.raises(EdgeLstmError) as caught, open_source(spec) as source:
            list(source)
        assert caught.value.expected or caught.value.hint, "a refusal says what would do"
        return row(case, "refused", "")
    with open_source(spec) as source:
        frames = list(source)
        assert source.said, "how it is read is said"
    data = frames[0].data
    assert (data.dtype, data.shape) == (case.expect.dtype, case.expect.shape)
    assert data.flags.c_contiguous
    assert source.values == frames[0].values
    if not case.tolerance:
        np.testing.assert_array_equal(data, case.expect)
    else:
        scale = 1 if data.dtype.kind == "f" else source.values[1]
        np.testing.assert_allclose(
            data.astype(np.float64), case.expect, rtol=0, atol=case.tolerance * scale + 1e-9
        )
    shape = {2: "[H, W]", 3: f"[H, W, {data.shape[-1]}]"}[data.ndim]
    values = "" if source.values is None else f"{source.values[0]:.0f} to {source.values[1]:.0f}"
    return row(case, f"{data.dtype} {shape}", values)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.stored}")
def test_values_are_kept_or_refused_and_the_page_says_so(case: Case, tmp_path: Path) -> None:
    line = read(case, tmp_path)
    if os.environ.get("EDGELSTM_WRITE_TABLE"):
        return
    assert line in PAGE.read_text("utf-8").splitlines(), "write the table anew: see the top of this file"


def test_the_table_is_complete_and_holds_nothing_else(tmp_path_factory: pytest.TempPathFactory) -> None:
    page = PAGE.read_text("utf-8")
    before, rest = page.split(MARKS[0])
    table, after = rest.split(MARKS[1])
    if os.environ.get("EDGELSTM_WRITE_TABLE"):
        lines = [*HEAD, *(read(case, tmp_path_factory.mktemp("table")) for case in CASES)]
        PAGE.write_text(f"{before}{MARKS[0]}\n" + "\n".join(lines) + f"\n{MARKS[1]}{after}", "utf-8")
        return
    lines = table.strip().splitlines()
    assert lines[:2] == HEAD
    assert [tuple(line.split(" | ")[:2]) for line in lines[2:]] == [
        (f"| {case.kind}", case.stored) for case in CASES
    ]
