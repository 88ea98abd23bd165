"""doctor: what a machine has, and what it says of what is missing. Real processes, real missing packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgelstm import doctor as module
from edgelstm.doctor import PACKAGES, doctor

ROOT = Path(__file__).resolve().parents[1]
SHOW = "import json; from edgelstm.doctor import doctor; print(json.dumps(doctor().to_json()))"


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
    monkeypatch.delenv(module.PLUGIN_VARIABLE, raising=False)
    assert module.PLUGIN_VARIABLE in (doctor()["FusedGates plugin"].hint or "")
    library = tmp_path / "libplugin.so"
    monkeypatch.setenv(module.PLUGIN_VARIABLE, str(library))
    assert "names no file" in (doctor()["FusedGates plugin"].hint or "")
    library.touch()
    assert doctor()["FusedGates plugin"].found == str(library)


def test_every_extra_it_names_is_one_of_the_project_s() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra in {"cpu", "gpu", "tensorrt", "rtx", *(extra for _, _, extra, _ in PACKAGES)}:
        assert f"\n{extra} = [" in text


def test_the_table_shows_every_finding() -> None:
    report = doctor()
    assert report.table().row_count == len(report.findings)
