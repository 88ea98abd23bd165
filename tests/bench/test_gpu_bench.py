"""benchmarks/gpu: the script on the processor, with small sizes. What it would find on a GPU is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgelstm import machine

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by name."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(GPU)
    yield
    for name in set(sys.modules) - before:
        if str(GPU) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GPU / "run.py"), *arguments],
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path: Path) -> None:
    cuda = machine.cuda()
    if cuda and cuda.gpus:
        pytest.skip("there is a GPU")
    done = run("--results", str(tmp_path))
    assert done.returncode == 3
    assert done.stderr.startswith("no GPU: ")
    assert "--device cpu --quick" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_on_the_processor(tmp_path: Path) -> None:
    """Every kind of contestant but torch.compile, which needs half a minute."""
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    names = [
        "torch",
        "torch, graphs",
        "cuDNN LSTM",
        "ONNX Runtime",
        "edgelstm, ONNX Runtime",
        "edgelstm, TensorRT native",
    ]
    options = ["--cases", "lstm_32", "--streams", "2", "--rounds", "2", "--contestants", ";".join(names)]
    done = run("steps", "--device", "cpu", "--quick", "--results", str(tmp_path), *options)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "gpu-cpu.json").read_text())
    assert data["quick"]
    assert "torch" in data["versions"]
    (race,) = data["steps"]
    entries = {e["contestant"]: e for e in race["entries"]}
    assert list(entries) == names
    for name in ("torch", "cuDNN LSTM", "ONNX Runtime", "edgelstm, ONNX Runtime"):
        assert entries[name]["status"] == "measured", entries[name]
        assert 0 < entries[name]["error"] < 1e-5, "against float64"
        assert len(entries[name]["rounds"]) == 2
    assert entries["torch, graphs"]["note"] == "CUDA graphs need a GPU"
    assert entries["edgelstm, TensorRT native"]["status"] == "missing"
    assert "A TRY WITH SMALL SIZES" in done.stdout
    assert (tmp_path / "gpu-cpu.svg").read_text().startswith("<?xml")


def test_parts_measured_before_are_kept_and_replaced_one_by_one(tmp_path: Path) -> None:
    import run as script

    path = tmp_path / "gpu-cpu.json"
    assert script.kept(path, False) == {"kernels": [], "steps": []}
    race = {"case": "lstm_256", "precision": "fp16", "streams": 8}
    path.write_text(json.dumps({"schema": script.SCHEMA, "quick": False, "kernels": [1], "steps": [race]}))
    assert script.kept(path, False) == {"kernels": [1], "steps": [race]}
    assert script.kept(path, True)["steps"] == [], "a try does not mix with a measurement"
    path.write_text("{")
    assert script.kept(path, False)["steps"] == []


def test_wrong_options_name_what_there_is() -> None:
    done = run("--device", "cpu", "--quick", "--cases", "lstm_33")
    assert done.returncode == 2
    assert "--cases: unknown lstm_33; there are conv_lstm, lstm_32" in done.stderr
    done = run("kernel")
    assert done.returncode == 2


def printed(*, failed: int = 0) -> list[str]:
    """The lines that plugins/bench prints on a GPU."""
    time = {
        "streams": 1,
        "channels": 64,
        "spatial": 4096,
        "bytes": 1_000_000,
        "seconds": 1e-6,
        "gb_per_s": 1000.0,
    }
    time |= {"memcpy_gb_per_s": 1900.0, "copy_kernel_gb_per_s": 2000.0, "of_best_copy": 0.5}
    lines = [
        {"device": "GPU"},
        {"checks": 480, "checks_failed": failed, "worst_of_allowed": 0.7},
        {"case": "fp16 linear, c fp32", **time},
        {"case": "fp16 linear, c fp32", **time, "streams": 110, "bytes": 190_000_000, "seconds": 1e-4},
        {"case": "fp16 hwc8, c fp32", **time, "streams": 110, "bytes": 170_000_000, "seconds": 1e-4},
    ]
    return [json.dumps(line) + "\n" for line in lines]


def test_what_is_read_is_what_the_program_prints() -> None:
    source = (GPU.parents[1] / "plugins" / "bench" / "fused_gates_bench.cu").read_text()
    for line in printed():
        for key in json.loads(line):
            assert f'\\"{key}\\":' in source, key


def test_a_program_that_is_cut_short_keeps_what_it_said() -> None:
    import standalone

    rows = list(standalone.rows([*printed()[:3], '{"case": "fp1', -9]))
    assert [r.get("status", "timed") for r in rows] == ["passed", "timed", "failed"]
    assert "ended with code -9" in rows[-1]["note"]


def gpu_of(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    gpus = (machine.Gpu("a GPU", capability, 2**36),)
    monkeypatch.setattr(machine, "cuda", lambda: machine.Cuda("13.0", gpus))


@pytest.mark.parametrize("gates", ["native", "plugin"])
@pytest.mark.parametrize("installed", [[], ["tensorrt-rtx"]])
def test_on_a_gpu_without_tensorrt_its_contestants_are_missing_and_say_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gates: str, installed: list[str]
) -> None:
    """The branch that a bare machine with an H100 takes; TensorRT for RTX, where it is there, does not compile for one."""
    import contestants

    from edgelstm.bench.job import Job, Missing
    from edgelstm.engine import versions

    gpu_of(monkeypatch, "9.0")
    monkeypatch.setattr(versions, "installed", lambda: installed)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    if installed and gates == "native":
        pytest.importorskip("tensorrt_rtx")
    job = Job("", "model.onnx", "", "{}", str(tmp_path), device="cuda")
    with pytest.raises(Missing) as caught:
        contestants._engine(job, gates)
    if installed and gates == "native":
        assert "TensorRT for RTX compiles for compute capabilities 7.5" in str(caught.value)
        assert "9.0 (Hopper)" in str(caught.value)
    else:
        assert "TensorRT is not installed. pip install 'edgelstm[tensorrt]'" in str(caught.value)


def test_the_kernel_is_held_against_the_copies_of_its_own_run() -> None:
    import report
    import standalone

    compiled = {
        "name": "torch compile",
        "size": "64 streams",
        "dtype": "fp16",
        "bytes": 95_000_000,
        "microseconds": [100.0],
    }
    rows = [*standalone.rows(printed()), compiled]
    figures = {f["name"]: f for f in report.figures({"kernels": rows, "steps": []})}
    linear = figures["FusedGates kernel fp16 linear, c fp32: share of the copy bandwidth"]
    assert (round(linear["measured"], 3), linear["aim"], linear["reached"]) == (0.95, 0.9, True)
    assert not figures["FusedGates kernel fp16 hwc8, c fp32: share of the copy bandwidth"]["reached"]
    assert figures["FusedGates kernel fp16 linear, c fp32: GB/s over torch.compile's"][
        "measured"
    ] == pytest.approx(2)
    text = report.text(
        {
            "device": {"name": "GPU"},
            "versions": {},
            "quick": False,
            "kernels": rows,
            "steps": [],
            "figures": [],
        }
    )
    assert "480 results against the host's, 0 of them wrong" in text


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ('{"error": "no usable GPU: no driver"}', 2, "no usable GPU"),
        ("", -11, "ended with code -11"),
        ("[]", 0, "it ended with code 0"),
        ('{"checks": 4}', 0, "it ended with code 0"),
        ("".join(printed(failed=3)), 1, "3 of them wrong"),
    ],
)
def test_a_kernel_program_that_fails_is_a_row_that_says_why(text: str, code: int, said: str) -> None:
    import standalone

    rows = list(standalone.rows([*text.splitlines(keepends=True), code]))
    assert rows[0]["status"] == "failed"
    assert said in rows[0]["note"]


def test_steps_are_held_against_the_faster_of_our_engines() -> None:
    import report

    def measured(name: str, *rounds: float) -> dict[str, Any]:
        return {"contestant": name, "status": "measured", "rounds": list(rounds)}

    entries = [measured("torch", 90, 90, 90), measured("torch.compile, graphs", 24, 24, 36)]
    entries += [
        measured("edgelstm, TensorRT native", 30, 30, 30),
        measured("edgelstm, TensorRT plugin", 20, 20, 20),
    ]
    race = {"title": "LSTM", "precision": "fp16", "streams": 1, "entries": entries}
    eager, compiled = report.figures({"kernels": [], "steps": [race, {**race, "streams": 8}]})
    assert (eager["measured"], eager["reached"]) == (4.5, True)
    assert eager["name"] == "LSTM, fp16: torch / edgelstm, TensorRT plugin"
    assert (compiled["measured"], compiled["reached"]) == (1.2, False)
