"""Libraries that are built already (the package edgelstm-native): where they are found, what goes first, what is refused; and that CMake
builds what `edgelstm build-plugin` builds. test_native_wheel.py makes the packages."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import c_library
import edgelstm
import native_library
import zoo
from command_line import Run
from edgelstm.engine import c_build, native_build
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime import Runner
from edgelstm.runtime.native.library import (
    FILE_NAME,
    SCHEMA,
    VARIABLE,
    cached_place,
    find_native_library,
    machine_name,
)
from edgelstm.workflows.doctor import doctor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
FRAME = np.array([0.1, 0.2, 0.3, 0.4], np.float32)


@pytest.fixture
def prebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package edgelstm_native as its wheel installs it, and a cache in which nothing was built."""
    for name in (VARIABLE, "EDGELSTM_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package = tmp_path / "site" / "edgelstm_native"
    shutil.copytree(c_library.built().prefix, package)
    shutil.copy(native_library.built(), package / "lib" / FILE_NAME)
    shutil.copy(ROOT / "plugins" / "native" / "edgelstm_native" / "__init__.py", package)
    monkeypatch.syspath_prepend(str(package.parent))
    importlib.invalidate_caches()
    return package


def test_a_runner_takes_prebuilt_operators(
    prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_native_library()
    assert found is not None
    assert found.path == prebuilt / "lib" / FILE_NAME
    assert found.prebuilt
    with monkeypatch.context() as barred:
        barred.setitem(sys.modules, "edgelstm_native", None)
        assert find_native_library() is None
    zoo.lstm(4, head=2).save(tmp_path / "model.onnx")
    with Runner.open(tmp_path / "model.onnx", native=True) as runner:
        runner.stream("s").step(FRAME)


def test_an_own_build_goes_first(prebuilt: Path) -> None:
    own = cached_place()
    own.parent.mkdir(parents=True)
    shutil.copy(native_library.built(), own)
    found = find_native_library()
    assert found is not None
    assert found.path == own
    assert not found.prebuilt
    folder = c_build.cached_folder(machine_name())
    shutil.copytree(c_library.built().prefix, folder)
    assert c_build.find_c_library().prefix == folder
    # One of other sources is no reason to go without.
    described = folder / "lib" / "pkgconfig" / "edgelstm.pc"
    described.write_text(re.sub("sources: ....", "sources: 0000", described.read_text()))
    assert c_build.find_c_library().prefix == prebuilt


def of_another_version(prebuilt: Path) -> None:
    for path in (prebuilt / "lib" / FILE_NAME, prebuilt / "lib" / "pkgconfig" / "edgelstm.pc"):
        old = path.read_bytes()
        new = old.replace(b'"version": "0.1.0"', b'"version": "0.0.9"').replace(
            b"\nVersion: 0.1.0", b"\nVersion: 0.0.9"
        )
        assert new != old
        path.write_bytes(new)


def test_a_prebuilt_one_of_another_version_is_refused(prebuilt: Path, run: Run, tmp_path: Path) -> None:
    of_another_version(prebuilt)
    with pytest.raises(EdgeLstmError, match=r"found edgelstm-native 0\.0\.9.*expected 0\.1\.0"):
        find_native_library()
    with pytest.raises(EdgeLstmError, match=r"found edgelstm-native 0\.0\.9.*expected 0\.1\.0"):
        c_build.find_c_library()
    code, _, err = run("config", "--cflags")
    assert code == 2
    assert "pip install edgelstm-native==0.1.0" in err
    for name in ("onnxruntime operators", "C library"):
        finding = doctor()[name]
        assert finding.found is None
        assert "edgelstm-native 0.0.9" in (finding.hint or "")
    # The model runs without.
    zoo.lstm(4, head=2).save(tmp_path / "model.onnx")
    with Runner.open(tmp_path / "model.onnx") as runner:
        runner.stream("s").step(FRAME)


def test_config_and_doctor_tell_of_it(prebuilt: Path, run: Run) -> None:
    code, out, err = run("config", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["prefix"] == str(prebuilt)
    assert (Path(told["pkgconfigdir"]) / "edgelstm.pc").is_file()
    assert (Path(told["cmakedir"]) / "edgelstm-config.cmake").is_file()
    code, out, _ = run("config", "--cmakedir")
    assert (code, out.strip()) == (0, told["cmakedir"])
    code, out, _ = run("config", "--operators")
    assert (code, out.strip()) == (0, str(prebuilt / "lib" / FILE_NAME))
    report = doctor()
    assert report["onnxruntime operators"].found == (
        f"{find_native_library().instructions()}: {prebuilt / 'lib' / FILE_NAME} (prebuilt)"  # type: ignore[union-attr]
    )
    assert report["C library"].found == f"interface 1: {prebuilt / 'lib' / 'libedgelstm.so'} (prebuilt)"


def test_what_is_not_here_is_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not Path(p, "edgelstm_native").is_dir()])
    for option, how in (("--operators", "build-plugin --ort"), ("--cflags", "build-plugin --c")):
        code, _, err = run("config", option)
        assert code == 2
        assert how in err
        assert "pip install 'edgelstm[native]'" in err


def test_the_best_kernels_are_taken(prebuilt: Path) -> None:
    """As the system counts the processor's sets of instructions."""
    listed = Path("/proc/cpuinfo")
    flags = (
        set(re.findall(r"^flags\s*:(.*)", listed.read_text(), re.MULTILINE)[0].split())
        if machine_name() == "x86_64" and listed.is_file()
        else set()
    )
    if not flags:
        pytest.skip("no /proc on this machine that lists x86-64's flags")
    best = "portable"
    if {"avx2", "fma"} <= flags:
        best = "avx512" if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags else "avx2"
        best += "vnni" if ("avx512_vnni" if best == "avx512" else "avx_vnni") in flags else ""
    found = find_native_library()
    assert found is not None
    assert found.instructions() == best


def test_one_version_everywhere() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "plugins" / "pyproject.toml").read_text())["project"]
    assert project["version"] == edgelstm.__version__
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (pinned,) = extras["native"]
    assert pinned.split(";")[0] == f"edgelstm-native=={edgelstm.__version__}"
    assert (ROOT / "plugins" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_cmake_builds_what_build_plugin_builds(tmp_path: Path) -> None:
    """The same sources, the same flags, the same words in the files."""
    if shutil.which("cmake") is None:
        pytest.skip("pkg-config or cmake is not here")
    plugins = ROOT / "plugins"
    configure = [
        "cmake", "-S", str(plugins / "native"), "-B", str(tmp_path), "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        "-DCMAKE_INSTALL_PREFIX=/usr",
    ]  # fmt: skip
    done = subprocess.run(configure, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands = [
        (Path(entry["file"]), shlex.split(entry["command"]))
        for entry in json.loads((tmp_path / "compile_commands.json").read_text())
    ]
    for path, flags in commands:
        missing = {*native_build.FLAGS} - {*flags}
        assert not missing, path
        # Nothing that changes numbers beside: what is left of the flags is what follows.
        extra = {f for f in flags[1:] if f.startswith(("-f", "-m", "-O", "-std"))} - {*native_build.FLAGS}
        if path.name not in ("kernels.cpp", "dot.cpp"):
            assert not extra, path
    sources = {path for path, _ in commands}
    assert sources == {*(plugins / "onnxruntime").glob("*.cpp"), *(plugins / "c").glob("*.cpp")}
    kernels = {
        tuple(f for f in flags if f.startswith(("-D", "-m")) and "operators_EXPORTS" not in f)
        for path, flags in commands
        if path.name == "kernels.cpp"
    }
    assert {frozenset(flags) for flags in kernels} == {
        frozenset([f"-DKERNELS={table}", f"-DLANES={lanes}", f'-DNAME="{name}"', f"-DROWS={rows}", *flags])
        for name, table, lanes, rows, flags in native_build.VARIANTS[machine_name()]
    }
    dots = {
        frozenset(f for f in flags if f.startswith(("-D", "-m")) and "operators_EXPORTS" not in f)
        for path, flags in commands
        if path.name == "dot.cpp"
    }
    assert dots == {*map(frozenset, native_build.DOT_FLAGS.get(machine_name(), ()))}
    (info,) = (f for path, flags in commands for f in flags if f.startswith("-DEDGELSTM_BUILD="))
    assert json.loads(json.loads(info.partition("=")[2])) == {
        "schema": SCHEMA,
        "machine": machine_name(),
        "sources": native_build.sources_hash(plugins / "onnxruntime"),
        "version": edgelstm.__version__,
    }
    described = (tmp_path / "edgelstm.pc").read_text()
    assert f"# sources: {c_build.sources_hash(plugins)}\n" in described
    assert f"\nVersion: {edgelstm.__version__}\n" in described


def test_cmake_finds_a_version_that_fits(tmp_path: Path) -> None:
    """What build_c writes answers as CMake's own file does."""
    if shutil.which("cmake") is None:
        pytest.skip("pkg-config or cmake is not here")
    prefix = c_library.built().prefix
    script = tmp_path / "CMakeLists.txt"
    asked = {"": True, "0.1": True, "0.1.0": True, "0.2": False, "0.1.7": False, "1": False, "0.0": False}
    lines = [
        "cmake_minimum_required(VERSION 3.16)",
        "project(p LANGUAGES NONE)",
        "set(CMAKE_SHARED_LIBRARY_SUFFIX .so)",
    ]
    for version in asked:
        lines += [
            f"find_package(edgelstm {version} QUIET)",
            f'message(STATUS "asked {version}: ${{edgelstm_FOUND}}")',
            "unset(edgelstm_FOUND)\nunset(edgelstm_DIR CACHE)",
        ]
    script.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "b"), f"-DCMAKE_PREFIX_PATH={prefix}"],
        capture_output=True, text=True, check=True, env=dict(os.environ),
    )  # fmt: skip
    said = dict(re.findall(r"asked (\S*): (\d)", done.stdout))
    assert {version: said[version] == "1" for version in asked} == asked
