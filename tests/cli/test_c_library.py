"""`edgelstm build-plugin --c` and `edgelstm config`, with a program that is compiled as they say."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import c_library
from c_program import compare, compiled
from command_line import Run
from edgelstm.engine.c_build import cached_folder
from edgelstm.runtime.native.library import machine_name


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the user's that has the library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = cached_folder(machine_name())
    shutil.copytree(c_library.built().prefix, folder)
    return folder


def test_a_program_compiled_as_config_says_finds_everything(run: Run, prefix: Path, tmp_path: Path) -> None:
    code, out, err = run("config", "--cflags", "--libs")
    assert code == 0, err
    program = compiled(tmp_path, *shlex.split(out))
    code, out, err = run("config", "--onnxruntime")
    assert code == 0, err
    compare(program, tmp_path, EDGELSTM_ONNXRUNTIME=out.strip())
    compare(program, tmp_path, EDGELSTM_ONNXRUNTIME=str(Path(out.strip()).parent))
    runtime = Path(out.strip())
    if Path(sys.prefix) in runtime.parents and runtime.parents[2].name == "site-packages":
        compare(program, tmp_path, EDGELSTM_ONNXRUNTIME="", VIRTUAL_ENV=sys.prefix)
    environment = {k: v for k, v in os.environ.items() if k not in ("EDGELSTM_ONNXRUNTIME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [program], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:  # unless the system has ONNX Runtime
        assert "EDGELSTM_ONNXRUNTIME" in done.stderr
    code, out, _ = run("config", "--json")
    assert code == 0
    assert json.loads(out)["prefix"] == str(prefix)


def test_pkg_config_and_cmake_find_it(prefix: Path, tmp_path: Path) -> None:
    runtime = str(c_library.find_onnxruntime())
    if shutil.which("pkg-config") is None or shutil.which("cmake") is None:
        pytest.skip("pkg-config or cmake is not here")
    done = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "edgelstm"],
        capture_output=True, text=True, check=True, env={**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")},
    )  # fmt: skip
    program = compiled(tmp_path, *shlex.split(done.stdout))
    compare(program, tmp_path, EDGELSTM_ONNXRUNTIME=runtime, LD_LIBRARY_PATH=str(prefix / "lib"))
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(program C)\nfind_package(edgelstm REQUIRED)\n"
        "add_executable(by_cmake program.c)\ntarget_link_libraries(by_cmake PRIVATE edgelstm::edgelstm)\n"
    )
    for command in (
        ["cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}"],
        ["cmake", "--build", tmp_path / "build"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    compare(tmp_path / "build" / "by_cmake", tmp_path, EDGELSTM_ONNXRUNTIME=runtime)


def test_a_library_of_other_sources_is_not_told_of(run: Run, prefix: Path) -> None:
    described = prefix / "lib" / "pkgconfig" / "edgelstm.pc"
    described.write_text(described.read_text().replace("# sources: ", "# sources: 0", 1)[:20])
    code, _, err = run("config", "--cflags")
    assert code == 2
    assert "build-plugin --c" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--c", "--cxx", "no-such-compiler"), "no C++ compiler at no-such-compiler"),
        (("--c", "--cuda", "/usr"), "--cuda with --c"),
        (("--c", "--ort"), "one of them"),
        (("--c", "--plugins", "."), "sources are not here"),
    ],
)
def test_what_can_not_be_built_is_said_and_nothing_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, _, err = run("build-plugin", *options)
    assert code == 2
    assert said in err
    assert not list(tmp_path.iterdir())


def test_json_of_what_was_built(run: Run, tmp_path: Path) -> None:
    """With a stand-in for the compiler, which takes seconds: the tests of the library run the real one."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {c_library.built().path} "$2"\n'
    )
    compiler.chmod(0o755)
    code, out, err = run("build-plugin", "--c", "--cxx", compiler, "-o", tmp_path / "here", "--json")
    assert code == 0, err
    assert json.loads(out)["library"] == str(tmp_path / "here" / "lib" / "libedgelstm.so")
    code, told, err = run("config", "--folder", tmp_path / "here", "--prefix")
    assert code == 0, err
    assert told.strip() == str(tmp_path / "here")


@pytest.mark.parametrize(
    ("system", "hint"), [("Darwin", "cmake -S plugins/native"), ("Windows", "finds ONNX Runtime by dlopen")]
)
@pytest.mark.parametrize("kind", ["--c", "--gst"])
def test_elsewhere_than_on_linux_it_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, hint: str, kind: str
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    code, out, err = run("build-plugin", kind, "-o", tmp_path / "c")
    assert (code, out) == (2, "")
    assert "the C library is built for Linux alone" in err
    assert hint in " ".join(err.split())
    assert not (tmp_path / "c").exists()
