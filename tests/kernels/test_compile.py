"""The kernels' sources through both of CUDA's compilers, without a GPU, and the cache of what they made."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.kernels import compile as kernels
from edgelstm.kernels.compile import Code, Compiler, Nvcc, Nvrtc, code_of, cubin
from edgelstm.kernels.gates.launch import SOURCE, Plan

ARCHS = os.environ.get("EDGELSTM_CUDA_ARCHS", "87").split(",")
SOME = {
    "EDGELSTM_Z": 1,
    "EDGELSTM_RUN": 8,
    "EDGELSTM_WALK": 0,
    "EDGELSTM_VARIANT": 1,
    "EDGELSTM_PLAN_BYTES": 320,
}


def compilers() -> list[Compiler]:
    found: list[Compiler] = []
    for make in (Nvrtc, Nvcc):
        try:
            found.append(make())
        except EdgeLstmError:
            continue
    return found


@pytest.fixture(params=[Nvrtc, Nvcc])
def compiler(request: pytest.FixtureRequest) -> Compiler:
    try:
        made: Compiler = request.param()
    except EdgeLstmError as error:
        pytest.skip(str(error))
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "_compiled", {})
    return tmp_path / "edgelstm" / "kernels"


def test_every_kernel_of_fused_gates_compiles(compiler: Compiler) -> None:
    """Which are 42, as fused_gates_run.h chooses them; nvcc, which takes seconds each, is asked for two."""
    asked = []
    for z, walk, variant in itertools.product((0, 1, 7), (0, 1, 2), (0, 1, 2)):
        asked += [(z, 4 if z == 0 else 8, walk, variant)]
        asked += [(z, 4, walk, variant)] if z and walk == 0 else []
        asked += [(z, 1, walk, variant)] if variant == 0 else []
    assert len(asked) == 42 == len(set(asked))
    some = asked if isinstance(compiler, Nvrtc) else asked[::21]
    for z, run, walk, variant in some:
        code = code_of(SOURCE, {**SOME, "EDGELSTM_Z": z, "EDGELSTM_RUN": run, "EDGELSTM_WALK": walk, "EDGELSTM_VARIANT": variant}, (9, 0))  # fmt: skip
        binary = compiler.compile(code)
        assert binary[:4] == b"\x7fELF"
        assert b"edgelstm_fused_gates" in binary


def test_both_compilers_refuse_another_plan(compiler: Compiler) -> None:
    with pytest.raises(EdgeLstmError, match="the caller's plan is another one"):
        compiler.compile(code_of(SOURCE, {**SOME, "EDGELSTM_PLAN_BYTES": 328}, (8, 7)))


class Counting:
    """A compiler that counts."""

    name = "counting 1"

    def __init__(self) -> None:
        self.calls: list[Code] = []

    def compile(self, code: Code) -> bytes:
        self.calls.append(code)
        return b"\x7fELF of " + code.arch.encode()


def test_the_cache_is_read_checked_and_told_apart(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, code = Counting(), code_of(SOURCE, SOME, (8, 7))

    def again() -> bytes:
        kernels._compiled.clear()  # as another process would find it
        return cubin(code, made)

    first = cubin(code, made)
    assert again() == cubin(code, made) == first == b"\x7fELF of 87"
    assert len(made.calls) == 1
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for broken in (whole[:-1], whole[:-1] + b"?", b"", whole[:64]):
        file.write_bytes(broken)
        assert again() == first
        assert file.read_bytes() == whole
    assert len(made.calls) == 5
    # Another architecture, another macro, another compiler, other sources: other code.
    cubin(code_of(SOURCE, SOME, (9, 0)), made)
    cubin(code_of(SOURCE, {**SOME, "EDGELSTM_RUN": 4}, (8, 7)), made)
    made.name = "counting 2"
    cubin(code, made)
    monkeypatch.setattr(kernels, "_sources_digest", lambda: "others")
    cubin(code, made)
    assert len(made.calls) == 9
    assert len(list(cache.iterdir())) == 5


def test_without_a_place_for_the_cache_it_compiles_anyway(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_text("no folder")
    assert cubin(code_of(SOURCE, SOME, (8, 7)), Counting()).startswith(b"\x7fELF")
    assert "can't be kept" in caplog.text


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        def __init__(self) -> None:
            raise EdgeLstmError("it is not here")

    monkeypatch.setattr(kernels, "Nvrtc", Absent)
    monkeypatch.setattr(kernels, "Nvcc", Absent)
    kernels.find_compiler.cache_clear()
    with pytest.raises(EdgeLstmError, match=r"no compiler.*it is not here.*nvidia-cuda-nvrtc"):
        kernels.find_compiler()
    kernels.find_compiler.cache_clear()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("z", [0, 1])
def test_nothing_spills(arch: str, z: int, tmp_path: Path) -> None:
    try:
        nvcc = Nvcc()
    except EdgeLstmError as error:
        pytest.skip(str(error))
    defines = {**SOME, "EDGELSTM_Z": z, "EDGELSTM_RUN": 8 if z else 4}
    code = Code(SOURCE, tuple(sorted(defines.items())), arch)
    command = [
        str(nvcc.path),
        "-cubin",
        "-O3",
        *code.flags(),
        "-Xptxas",
        "-v,-warn-spills",
        "-o",
        str(tmp_path / "x"),
    ]
    done = subprocess.run([*command, str(kernels.sources() / "src" / SOURCE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill", done.stderr) == [("0", "0")]
    assert f"sm_{arch}" in done.stderr


def test_the_plan_is_as_large_as_the_macro_says() -> None:
    import ctypes

    assert ctypes.sizeof(Plan) == SOME["EDGELSTM_PLAN_BYTES"]


def test_a_wheel_brings_the_sources(tmp_path: Path) -> None:
    """Installed, without a checkout in sight."""
    pytest.importorskip("hatchling")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    root = Path(__file__).resolve().parents[2]
    options = ["--no-index", "--no-build-isolation", "-w", str(tmp_path), str(root)]
    subprocess.run([*pip, *options], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    code = (
        "from edgelstm.kernels.compile import sources, _sources_digest; print(sources(), _sources_digest())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    folder, digest = done.stdout.split()
    assert Path(folder) == tmp_path / "site" / "edgelstm" / "_plugins", done.stderr
    assert digest == kernels._sources_digest(), "not the files that are tested here"
