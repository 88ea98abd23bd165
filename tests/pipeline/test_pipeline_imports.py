"""A small device needs NumPy alone for the pipeline; other packages are named when they are wanted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source

HEAVY = ("torch", "onnx", "onnxruntime", "h5py", "av", "PIL", "typer", "rich")


def test_pipeline_imports_numpy_alone() -> None:
    code = f"import sys, edgelstm.pipeline; print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "file", "extra"),
    [("av", "a.mp4", "video"), ("h5py", "a_202001010000.h5", "radar"), ("PIL.Image", "a.png", "images")],
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, file: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / file).touch()
    with pytest.raises(EdgeLstmError) as caught:
        open_source(str(tmp_path / file if extra == "video" else tmp_path))
    assert f"needs the Python package {module.split('.')[0]}" in str(caught.value)
    assert f"pip install 'edgelstm[{extra}]'" in str(caught.value)
