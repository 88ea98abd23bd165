"""roofline: FLOPs and bytes counted by hand, devices as their makers describe them, and the table of docs/jetson.md."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import zoo
from edgelstm.bench.roofline import DEVICES, Kernel, Work, bound, work
from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.described.architecture import ConvLstm
from edgelstm.graph.step import StepModel
from edgelstm.quantize.precision import to_half

ROOT = Path(__file__).resolve().parents[2]
MAP = 64 * 64
WEIGHTS = 256 * (16 + 64) * 9


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roofline_table", ROOT / "benchmarks" / "roofline.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference(script: ModuleType) -> StepModel:
    """ConvLSTM 16 -> 64, 3x3, 64x64: the sizes are known, so its work can be counted by hand."""
    step: StepModel = script.random_weights(ConvLstm(16, (64,), 3, (64, 64)))
    return step


def test_flops_and_bytes_of_the_reference_cell(reference: StepModel) -> None:
    done = work(reference)
    x, state, z = 16 * MAP * 4, 64 * MAP * 4, 256 * MAP * 4
    assert done.flops == 2 * WEIGHTS * MAP
    assert done.once == WEIGHTS * 4 + 256 * 4 + x + 4 * state  # h and c, in and out
    joined, conv, gates = done.kernels
    assert joined.bytes == 2 * (x + state)
    assert conv.bytes == x + state + WEIGHTS * 4 + 256 * 4 + z
    assert (conv.math, gates.bytes) == ("float32", z + 3 * state)


def test_sixteen_bits_halve_what_is_stored_in_them(reference: StepModel) -> None:
    done = work(to_half(reference, "fp16"))
    x, state, z = 16 * MAP * 2, 64 * MAP * 2, 256 * MAP * 2
    # The frame and the output stay float32 at the border, and so does c; h goes in and out in fp16.
    assert done.once == WEIGHTS * 2 + 256 * 2 + 2 * x + 2 * state + 2 * (2 * state) + 2 * state
    conv, gates = (k for k in done.kernels if k.op_type in ("Conv", "FusedGates_lstm"))
    assert conv.math == "float16"
    assert conv.bytes == x + state + WEIGHTS * 2 + 256 * 2 + z
    assert gates.bytes == z + 2 * (2 * state) + state + 2 * state  # h in both forms


def test_codes_are_multiplied_as_codes(script: ModuleType) -> None:
    done = work(script.in_precision(zoo.conv_lstm(), "int8"))
    assert "int8" in {k.math for k in done.kernels}
    assert done.once < work(to_half(zoo.conv_lstm(), "fp16")).once


def test_streams_multiply_all_but_the_weights(reference: StepModel) -> None:
    one, eight = work(reference), work(reference, 8)
    weights = (WEIGHTS + 256) * 4
    assert eight.flops == 8 * one.flops
    assert eight.once - weights == 8 * (one.once - weights)


@pytest.mark.parametrize("step", [zoo.lstm(), zoo.conv_lstm()])
def test_caches_can_only_help(step: StepModel) -> None:
    for device in DEVICES:
        b = bound(work(step), device)
        assert 0 < b.best <= b.kernels


def test_a_bound_is_the_slower_of_arithmetic_and_memory() -> None:
    device = DEVICES[0]
    second = int(device.peak("float32"))
    gigabytes = int(device.bandwidth * 1e9)
    work_ = Work(
        (Kernel("a", "Conv", 2 * second, gigabytes, "float32"), Kernel("b", "Concat", 0, 3 * gigabytes)),
        gigabytes,
        1,
    )
    b = bound(work_, device)
    assert (round(b.best, 6), round(b.kernels, 6), b.memory) == (2, 5, False)
    assert bound(Work(work_.kernels[1:], gigabytes, 1), device).memory


@pytest.mark.parametrize(
    ("device", "dtype", "published"),
    [
        ("Orin Nano 8GB", "int8", 33e12),
        ("Orin Nano 8GB", "float16", 17e12),
        ("AGX Orin 64GB", "int8", 171e12 / 2),
        ("AGX Orin 64GB", "float32", 5.3e12),
        ("Thor T5000", "float8e4m3fn", 517e12),
        ("Thor T5000", "int8", 1035e12 / 2),
        ("Thor T5000", "float16", 517e12 / 2),
    ],
)
def test_peaks_are_those_that_are_published(device: str, dtype: str, published: float) -> None:
    (found,) = (d for d in DEVICES if d.name == device)
    assert found.peak(dtype) == pytest.approx(published, rel=0.03)


def test_a_type_the_device_lacks_is_said() -> None:
    with pytest.raises(EdgeLstmError, match="Orin Nano 8GB has no float8e4m3fn"):
        bound(Work((Kernel("a", "Conv", 1, 1, "float8e4m3fn"),), 1, 1), DEVICES[0])


def test_the_table_in_the_docs_is_current(script: ModuleType) -> None:
    text = script.PAGE.read_text("utf-8")
    (block,) = re.findall(r"<!-- roofline -->\n(.*?)\n<!-- /roofline -->", text, re.DOTALL)
    rows = {tuple(cells[:2]): cells[2:] for cells in map(_cells, block.splitlines()) if len(cells) > 8}
    models = dict(script.models())
    assert {name for name, _ in rows} - {"model", "---"} == set(models)
    for name, step in models.items():
        # Quantising takes seconds for large models; what they share is checked on a small one.
        for precision in ("fp32", "fp16", *(("int8",) if name == "examples/sensor_lstm" else ())):
            expected = script.bounds(script.in_precision(step, precision))
            assert rows[name, precision] == expected, "run: python benchmarks/roofline.py --write"
    assert script.devices().strip() in block


def test_the_script_prints_the_bounds_of_a_model(tmp_path: Path) -> None:
    zoo.lstm().save(tmp_path / "lstm.onnx")
    command = [sys.executable, str(ROOT / "benchmarks" / "roofline.py")]
    done = subprocess.run([*command, str(tmp_path / "lstm.onnx")], capture_output=True, text=True, check=True)
    assert re.search(r"AGX Orin 64GB +\S+ us", done.stdout)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    done = subprocess.run([*command, str(tmp_path / "bad.onnx")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not an ONNX file" in done.stderr
    assert "Traceback" not in done.stderr


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
