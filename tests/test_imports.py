"""What an import brings along, seen from a fresh interpreter: the base install and the device side stay small."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgelstm

EXTRAS = {
    "PIL",
    "av",
    "cuda",
    "h5netcdf",
    "h5py",
    "keras",
    "matplotlib",
    "mcap",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "pyarrow",
    "rasterio",
    "sklearn",
    "soxr",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "typer",
    "watchfiles",
}


def loaded_by(statements: str) -> set[str]:
    """Names in sys.modules after ``statements`` ran in a new interpreter."""
    code = f"{statements}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module", ["edgelstm", "edgelstm.graph.signature", "edgelstm.runtime", "edgelstm.pipeline"]
)
def test_import_brings_no_extra_along(module: str) -> None:
    modules = loaded_by(f"import {module}")
    assert module in modules
    assert not modules & EXTRAS
    assert not modules & {
        "edgelstm.graph.step",
        "edgelstm.graph.gates",
        "edgelstm.passes",
        "edgelstm.frontends",
    }


def test_command_line_starts_without_the_heavy_ones() -> None:
    """Help and a wrong option answer at once."""
    assert not loaded_by("import edgelstm.cli") & (EXTRAS - {"typer"})


def test_exporting_a_described_model_needs_no_torch() -> None:
    modules = loaded_by("import edgelstm.frontends.described.graph, edgelstm.workflows.export")
    assert not modules & {"torch", "onnxscript", "keras", "h5py"}


@pytest.mark.parametrize("name", edgelstm.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert name in dir(edgelstm)
    if name == "nn":
        pytest.importorskip("torch")
    assert getattr(edgelstm, name) is not None


def test_torch_modules_without_torch_name_the_extra() -> None:
    code = """
import sys
sys.modules["torch"] = None  # an import of it now fails, as if it were not installed
import edgelstm
try:
    edgelstm.nn
except edgelstm.EdgeLstmError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "this needs PyTorch, which is not installed. pip install 'edgelstm[torch]'\n"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'edgelstm' has no attribute 'LSTM'"):
        edgelstm.LSTM  # noqa: B018


def test_a_module_never_hides_the_function_of_its_name() -> None:
    for statements in (
        "import edgelstm.verify.compare",
        "from edgelstm.verify.compare import compare",
        "import edgelstm; edgelstm.verify; import edgelstm.verify.drift",
    ):
        loaded_by(f"{statements}\nimport edgelstm\nassert callable(edgelstm.verify), edgelstm.verify")


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    tree = ast.parse(Path(edgelstm.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {a.name for node in imports for a in node.names} == set(edgelstm.__all__) - {"__version__"}
