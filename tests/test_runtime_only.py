"""What streams on a device needs NumPy and ONNX Runtime: no onnx, no torch; the library no command line either."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgelstm

ROOT = Path(__file__).resolve().parents[1]
STREAM = ROOT / "examples" / "sensor_lstm" / "test_stream.npz"
#: An import of these fails, as if they were not installed.
MODEL_SIDE = ("onnx", "torch", "safetensors", "onnxscript", "keras", "ml_dtypes")


def python(code: str, *arguments: object, without: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    missing = f"import sys\nfor name in {without!r}: sys.modules[name] = None\n"
    command = [sys.executable, "-c", missing + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return python("from edgelstm.cli import main; main()", *arguments, without=MODEL_SIDE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "plant.onnx"
    edgelstm.export(ROOT / "examples" / "sensor_lstm" / "model.safetensors", path, limit=2)
    return path


def test_run(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    done = command("run", model, "--source", STREAM, "-o", out, "--limit", 20)
    assert done.returncode == 0, done.stderr
    with np.load(out) as made:
        assert len(made["y"]) == 20


def test_serve(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("pydantic")
    pipeline = tmp_path / "pipeline.toml"
    pipeline.write_text(
        f"[models.plant]\npath = '{model}'\n[streams.north]\nsource = '{STREAM}'\nsink = 'north.jsonl'\nsink_overload = 'block'\n"
    )
    done = command("serve", pipeline)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "north.jsonl").read_text().splitlines()) == 200


def test_the_library_needs_numpy_and_onnxruntime_alone(model: Path) -> None:
    code = """
import numpy as np, edgelstm
with edgelstm.Runner.open(sys.argv[1]) as runner:
    inputs, stream = edgelstm.Inputs(runner.signature), runner.stream("north")
    y = stream.step(inputs(np.zeros(runner.signature.inputs[0].frame_shape, np.float32)))
    saved = stream.snapshot()
report = edgelstm.run(sys.argv[1], sys.argv[2], limit=5)
print(report.frames)
"""
    done = python(
        code, model, STREAM, without=(*MODEL_SIDE, "typer", "rich", "pydantic", "av", "PIL", "h5py")
    )
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "{model}"),
        ("export", "{example}", "-o", "out.onnx"),
        ("lower", "{model}", "-o", "out.onnx"),
    ],
)
def test_what_needs_onnx_says_so_in_one_line(model: Path, arguments: tuple[str, ...]) -> None:
    example = ROOT / "examples" / "sensor_lstm" / "model.safetensors"
    done = command(*(a.format(model=model, example=example) for a in arguments))
    assert done.returncode == 2
    assert (
        done.stderr
        == f"edgelstm: {arguments[0]} needs the Python package onnx, which is not installed. pip install onnx\n"
    )
