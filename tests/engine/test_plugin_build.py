"""build-plugin: what it finds, what it says of what is missing, and a real build (with kernels that take no time)."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgelstm import machine
from edgelstm.cli import app
from edgelstm.engine import plugin_build as module
from edgelstm.engine.plugin_build import (
    HEADERS_VARIABLE,
    build_plugin,
    find_headers,
    find_nvcc,
    headers_version,
)
from edgelstm.errors import EdgeLstmError
from edgelstm.runtime.plugin_library import FILE_NAME, VARIABLE, find_plugin_library, read_plugin_library

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
OLD_STYLE = "#define NV_TENSORRT_MAJOR {} //!< major\n#define NV_TENSORRT_MINOR {} //!<\n#define NV_TENSORRT_PATCH {} //!<\n"
NEW_STYLE = (
    "#define TRT_MAJOR_ENTERPRISE {}\n#define TRT_MINOR_ENTERPRISE {}\n#define TRT_PATCH_ENTERPRISE {}\n"
    "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< TensorRT major version.\n"
)


def headers(folder: Path, version: str, style: str = NEW_STYLE) -> Path:
    folder.mkdir(parents=True)
    (folder / "NvInferRuntime.h").touch()
    (folder / "NvInferVersion.h").write_text(style.format(*version.split(".")))
    return folder


@pytest.fixture(autouse=True)
def own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, and nothing of TensorRT in the system's folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (HEADERS_VARIABLE, VARIABLE, "CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_SYSTEM_FOLDERS", (str(tmp_path / "system"),))


# ---- What is found


@pytest.mark.parametrize(
    ("version", "style"), [("8.5.2", OLD_STYLE), ("10.3.0", OLD_STYLE), ("11.1.0", NEW_STYLE)]
)
def test_version_of_headers(tmp_path: Path, version: str, style: str) -> None:
    assert headers_version(headers(tmp_path / "include", version, style)) == version
    (tmp_path / "include" / "NvInferVersion.h").write_text("#pragma once\n")
    assert headers_version(tmp_path / "include") is None
    assert headers_version(tmp_path) is None


def test_headers_are_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EdgeLstmError, match="TensorRT's headers are not here") as caught:
        find_headers()
    assert all(
        word in str(caught.value)
        for word in (HEADERS_VARIABLE, "--tensorrt-include", "libnvinfer-headers-dev")
    )
    cache = tmp_path / "cache" / "edgelstm" / "tensorrt-headers"
    headers(cache / "10.3", "10.3.0"), headers(cache / "10.13", "10.13.0"), headers(cache / "8.6", "8.6.1")
    monkeypatch.setattr(module, "_installed_tensorrt", lambda: None)
    assert find_headers().version == "10.13.0"  # the newest, counted as numbers
    monkeypatch.setattr(module, "_installed_tensorrt", lambda: "8.6.1")
    assert find_headers().version == "8.6.1"  # what goes with the TensorRT that is here
    headers(tmp_path / "system", "10.2.0")
    assert find_headers().version == "10.2.0"
    monkeypatch.setenv(HEADERS_VARIABLE, str(headers(tmp_path / "named", "11.1.0")))
    assert find_headers().version == "11.1.0"
    assert find_headers(headers(tmp_path / "given", "10.0.0")).version == "10.0.0"


def test_named_headers_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EdgeLstmError, match=r"expected a folder with NvInferRuntime\.h"):
        find_headers(tmp_path)
    monkeypatch.setenv(HEADERS_VARIABLE, str(tmp_path))
    with pytest.raises(EdgeLstmError, match=rf"{HEADERS_VARIABLE}={tmp_path} has no TensorRT headers"):
        find_headers()


def test_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    with pytest.raises(EdgeLstmError, match="no nvcc at"):
        find_nvcc(tmp_path / "cuda")  # not executable
    nvcc.chmod(0o755)
    assert find_nvcc(tmp_path / "cuda") == find_nvcc(nvcc.parent) == find_nvcc(nvcc) == nvcc
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert find_nvcc() == nvcc
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", str(nvcc.parent))
    assert find_nvcc() == nvcc
    monkeypatch.setenv("PATH", "")
    usual = str((tmp_path / "*" / "bin").relative_to("/"))
    monkeypatch.setattr(machine, "_NVCC_FOLDERS", (usual,))
    assert find_nvcc() == nvcc
    monkeypatch.setattr(machine, "_NVCC_FOLDERS", ())
    from_pypi = tmp_path / "site-packages" / "nvidia" / "cu13" / "bin" / "nvcc"
    from_pypi.parent.mkdir(parents=True)
    shutil.copy(nvcc, from_pypi)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    assert find_nvcc() == from_pypi
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(EdgeLstmError, match="CUDA's compiler, is not here"):
        find_nvcc()


def test_missing_tools_and_wrong_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    include = headers(tmp_path / "include", "10.3.0")
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    output = tmp_path / "out.so"
    monkeypatch.setenv("PATH", str(tmp_path))
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    for options, message in (
        ({}, "cmake is not here"),
        (
            {"architectures": ["8.7", "Orin"]},
            "GPU architecture 'Orin'; expected|GPU architecture 'Orin': expected",
        ),
        ({"target_machine": "mips"}, "machine to build for: found mips"),
        ({"target_machine": other}, "is not here|expected aarch64 on x86_64"),
        ({"cuda_target": tmp_path}, "CUDA for another machine"),
        ({"source": tmp_path}, "the plugin's sources are not here"),
    ):
        with pytest.raises(EdgeLstmError, match=message):
            build_plugin(output, tensorrt_include=include, nvcc=nvcc, **options)  # type: ignore[arg-type]
        assert not output.exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".so") == []


# ---- A build


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The plugin's sources, with kernels that nvcc compiles in a second: the adapters and the build are the real ones."""
    folder = tmp_path / "plugins"
    shutil.copytree(PLUGINS, folder, ignore=shutil.ignore_patterns("build", "bench"))
    (folder / "src" / "fused_gates.cu").write_text(
        '#include "edgelstm/fused_gates.h"\n'
        "namespace edgelstm {\n"
        "bool isSupported(FusedGatesForms const&) { return true; }\n"
        'char const* whyRefused(FusedGatesParams const&) { return "no kernels"; }\n'
        "cudaError_t fusedGates(FusedGatesParams const&, cudaStream_t) { return cudaErrorInvalidValue; }\n"
        "}\n"
    )
    return folder


@pytest.fixture
def real_headers() -> Path:
    """Some release's headers, where the tests of the adapters look for them."""
    beside = PLUGINS.parent.parent / "shared" / "tensorrt-headers"
    usual = beside if beside.is_dir() else Path.home() / ".cache" / "edgelstm" / "tensorrt-headers"
    base = Path(os.environ.get("EDGELSTM_TENSORRT_HEADERS") or usual)
    found = [folder for folder in sorted(base.glob("*")) if headers_version(folder)]
    if not found:
        pytest.skip(f"no TensorRT headers below {base}")
    try:
        find_nvcc()
    except EdgeLstmError as error:
        pytest.skip(str(error))
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        pytest.skip("cmake or g++ is not here")
    return found[0]


def test_builds_into_the_cache_where_it_is_found(source: Path, real_headers: Path, tmp_path: Path) -> None:
    command = ["build-plugin", "--source", str(source), "--tensorrt-include", str(real_headers), "--json"]
    done = CliRunner().invoke(app, [*command, "--arch", "8.7", "--arch", "80"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["architectures"] == ["8.0", "8.7"]
    assert told["ptx"] == "8.7"
    found = find_plugin_library(tensorrt=told["tensorrt"], capability="8.7")
    assert str(found) == told["path"]
    assert found.is_relative_to(tmp_path / "cache")
    assert read_plugin_library(found).to_json() == told
    assert [p.name for p in found.parent.iterdir()] == [FILE_NAME]  # no temporary file is left


def test_a_build_that_fails_says_why_and_writes_nothing(
    source: Path, real_headers: Path, tmp_path: Path
) -> None:
    output = tmp_path / "old.so"
    output.write_bytes(b"the library of before")
    (source / "src" / "fused_gates.cu").write_text("#error this can not be compiled\n")
    phases = []
    with pytest.raises(
        EdgeLstmError, match=r"compiling the plugin failed: found .*this can not be compiled"
    ) as caught:
        build_plugin(
            output,
            tensorrt_include=real_headers,
            architectures=["80"],
            source=source,
            progress=lambda phase, done, of: phases.append(phase),
        )
    assert "cmake --build build/plugin" in str(caught.value)
    assert output.read_bytes() == b"the library of before"
    assert set(phases) == {"configuring", "compiling"}
