"""`edgelstm build-plugin --ort`, and what `doctor` says of its library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import native_library
from command_line import Run
from edgelstm.runtime.native.library import VARIABLE, cached_place
from edgelstm.workflows.doctor import doctor


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("EDGELSTM_NATIVE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cached_place()


def test_doctor_says_which_kernels_there_are_or_how_to_build_them(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = doctor()["onnxruntime operators"]
    assert finding.found is None
    assert "edgelstm build-plugin --ort" in (finding.hint or "")
    cache.parent.mkdir(parents=True)
    cache.write_bytes(native_library.built().read_bytes())
    finding = doctor()["onnxruntime operators"]
    assert (finding.found or "").split(":")[0] in (
        "avx512vnni",
        "avx512",
        "avx2",
        "portable",
        "neondot",
        "neon",
    )
    assert finding.hint is None
    monkeypatch.setenv("EDGELSTM_NATIVE", "0")
    assert "off" in (doctor()["onnxruntime operators"].hint or "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ort", "--cxx", "no-such-compiler"), "no C++ compiler at no-such-compiler"),
        (("--ort", "--cuda", "/usr"), "--cuda with --ort"),
        (("--cxx", "g++"), "one of them, whose library it compiles"),
        (("--ort", "--source", "."), "sources are not here"),
    ],
)
def test_what_can_not_be_built_is_said_and_nothing_is_written(
    run: Run, cache: Path, options: tuple[str, ...], said: str
) -> None:
    code, _, err = run("build-plugin", *options)
    assert code == 2
    assert said in err
    assert not cache.exists()


def test_the_compiler_s_words_are_told_and_nothing_is_written(run: Run, cache: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'kernels.cpp:1: error: the compiler is broken' >&2\nexit 1\n")
    compiler.chmod(0o755)
    code, _, err = run("build-plugin", "--ort", "--cxx", compiler, "-o", tmp_path / "out.so")
    assert code == 2
    assert "the compiler is broken" in err
    assert not (tmp_path / "out.so").exists()


def test_json_of_what_was_built(run: Run, cache: Path, tmp_path: Path) -> None:
    """With a stand-in for the compiler, which takes seconds: the tests of the operators run the real one."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {native_library.built()} "$2"\n'
    )
    compiler.chmod(0o755)
    code, out, err = run("build-plugin", "--ort", "--cxx", compiler, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["path"] == str(cache)
    assert told["instructions"] in ("avx512vnni", "avx512", "avx2vnni", "avx2", "portable", "neondot", "neon")
