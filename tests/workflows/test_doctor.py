"""doctor: what a machine has, and what it says of what is missing. Real processes, real missing packages."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.plugin_library import VARIABLE
from edgelstm.workflows.doctor import PACKAGES, doctor

ROOT = Path(__file__).resolve().parents[2]
SHOW = "import json; from edgelstm.workflows.doctor import doctor; print(json.dumps(doctor().to_json()))"


def in_another_python(*flags: str, path: Path = ROOT, **environment: str) -> dict[str, dict[str, Any]]:
    """Findings by name, of a Python started with ``flags`` that sees ``path`` besides its own library."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", SHOW],
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return {f["name"]: f for f in json.loads(done.stdout)["findings"]}


def check(*flags: str) -> subprocess.CompletedProcess[str]:
    """What ``doctor().check()`` does in a Python started with ``flags``."""
    return subprocess.run(
        [sys.executable, *flags, "-c", "from edgelstm.workflows.doctor import doctor; doctor().check()"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_knows_this_machine() -> None:
    report = doctor()
    assert report.ready
    assert "CPU" in (report["onnxruntime providers"].found or "")
    assert f"{len(os.sched_getaffinity(0))} usable" in (report["processors"].found or "")
    assert "GiB" in (report["memory"].found or "")
    assert report["features"].found


def test_it_is_quick() -> None:
    start = time.perf_counter()
    doctor()
    assert time.perf_counter() - start < 5


def test_without_any_package_everything_missing_says_what_to_install() -> None:
    found = in_another_python("-S")  # no site-packages: the standard library is all there is
    assert found["onnxruntime"]["state"] == "missing"
    assert "edgelstm[cpu]" in found["onnxruntime"]["hint"]
    for _, name, extra, _ in PACKAGES:
        assert found[name]["state"] == "missing"
        assert f"edgelstm[{extra}]" in found[name]["hint"]
    assert "edgelstm[tensorrt]" in found["tensorrt"]["hint"]


def test_a_runtime_that_is_installed_but_broken_is_told_from_a_missing_one(tmp_path: Path) -> None:
    package = tmp_path / "onnxruntime"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise ImportError('libbroken.so.1: cannot open shared object file')"
    )
    finding = in_another_python(path=tmp_path)["onnxruntime"]
    assert finding["state"] == "missing"
    assert "libbroken.so.1" in finding["hint"]


def test_plugin_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "edgelstm build-plugin" in (doctor()["FusedGates plugin"].hint or "")
    library = tmp_path / "libplugin.so"
    monkeypatch.setenv(VARIABLE, str(library))
    assert "names no file" in (doctor()["FusedGates plugin"].hint or "")
    library.touch()
    assert "is not the FusedGates plugin" in (doctor()["FusedGates plugin"].hint or "")
    info = {"schema": 1, "tensorrt": "10.3.0", "cuda": 12060, "architectures": [87], "ptx": 87}
    text = json.dumps({**info, "machine": platform.machine()})
    library.write_bytes(b"ELF\0edgelstm-plugin " + text.encode() + b"\0")
    found = doctor()["FusedGates plugin"].found or ""
    assert str(library) in found
    assert "TensorRT 10.3.0" in found


def test_a_machine_without_any_runtime_is_not_ready() -> None:
    done = check("-S")
    assert done.returncode == 1
    assert "can't stream on cpu or cuda" in done.stderr
    assert "edgelstm[cpu]" in done.stderr


def test_this_machine_streams_on_the_cpu() -> None:
    report = doctor()
    assert "cpu" in report.devices
    report.check()
    report.check("cpu")
    with pytest.raises(EdgeLstmError, match="device: found gpu; expected one of cpu, cuda"):
        report.check("gpu")


@pytest.mark.parametrize(
    ("tensorrt", "bindings", "ready", "said"),
    [
        ("", "", True, "TensorRT 10.3.0 on Orin"),
        ("raise OSError('libnvinfer.so.10: not found')", "", False, "libnvinfer.so.10: not found"),
        ("import os; os.abort()", "", False, "do not load"),
        ("", None, False, "cuda"),
        (None, "", False, "edgelstm[tensorrt]"),
    ],
)
def test_streaming_on_a_gpu_takes_a_tensorrt_that_loads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tensorrt: str | None,
    bindings: str | None,
    ready: bool,
    said: str,
) -> None:
    """The driver is this machine's one thing that can't be had without a GPU; the packages are files that load or don't."""
    for name, code in (("tensorrt", tensorrt), ("cuda", ""), ("cuda/bindings", bindings)):
        if code is not None:
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(code)
    if tensorrt is not None:
        information = tmp_path / "tensorrt-10.3.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 10.3.0\n")
    show = f"from edgelstm import machine; machine.cuda = lambda: machine.Cuda('12.6', (machine.Gpu('Orin', '8.7', 8),)); {SHOW}"
    done = subprocess.run(
        [sys.executable, "-c", show],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    (finding,) = (
        f for f in json.loads(done.stdout)["findings"] if (f["area"], f["name"]) == ("stream", "cuda")
    )
    assert (finding["state"] == "ok") == ready
    assert said in (finding["found"] or finding["hint"])


def test_every_extra_it_names_is_one_of_the_project_s() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra in {"cpu", "gpu", "tensorrt", "rtx", *(extra for _, _, extra, _ in PACKAGES)}:
        assert f"\n{extra} = [" in text


def test_the_table_shows_every_finding() -> None:
    report = doctor()
    assert report.table().row_count == len(report.findings)


def test_it_says_what_the_tensorrt_that_is_here_can_do() -> None:
    """The row of the capability table, which build-engine refuses by."""
    pytest.importorskip("tensorrt_rtx")
    told = doctor()["tensorrt-rtx can"].found
    assert told is not None
    assert "strongly typed" in told
    assert "no plugins" in told


def test_capabilities_of_gpus_and_of_versions_that_are_too_old() -> None:
    from edgelstm.workflows import doctor as module

    assert module._gpu_capability("8.7").found == "Orin: bf16, fp16, fp32, int8"
    assert "expected one of" in str(module._gpu_capability("3.5").hint)
    (finding,) = module._capability("tensorrt", "7.1.3")
    assert "too old" in str(finding.hint)
    (finding,) = module._capability("tensorrt", "8.5.2")
    assert "refuses it" in str(finding.found)
    assert list(module._capability("tensorrt", None)) == []
