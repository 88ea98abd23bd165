"""The plugin's library: which file is taken, what it tells of itself, and what is refused. No file is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelstm.errors import EdgeLstmError
from edgelstm.runtime import plugin_library as module
from edgelstm.runtime.plugin_library import FILE_NAME, VARIABLE, find_plugin_library, read_plugin_library

Write = Callable[..., Path]


def library_bytes(**changes: Any) -> bytes:
    """What `build-plugin` writes, as far as this module looks at it."""
    info = {
        "schema": 1, "plugin": "FusedGates", "plugin_version": "1", "tensorrt": "10.3.0", "cuda": 12060,
        "architectures": [80, 87], "ptx": 87, "machine": platform.machine(), **changes,
    }  # fmt: skip
    return b"\x7fELF\0\0edgelstm-plugin " + json.dumps(info).encode() + b"\0\0\x01rest"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user's, and no variable set."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edgelstm" / "plugins"


def put(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    path.write_bytes(library_bytes(**changes))
    return path


# ---- Which file


def test_none_says_where_it_was_looked_for(cache: Path) -> None:
    with pytest.raises(EdgeLstmError, match="edgelstm build-plugin") as caught:
        find_plugin_library()
    assert VARIABLE in str(caught.value)
    assert str(cache) in str(caught.value)


def test_the_variable_comes_first_then_the_package_then_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = put(cache / "tensorrt10-x")
    assert find_plugin_library() == cached
    package = tmp_path / "site-packages" / "edgelstm"
    own = put(package)
    monkeypatch.setattr(module, "__file__", str(package / "runtime" / "plugin_library.py"))
    assert find_plugin_library() == own
    named = put(tmp_path / "named")
    monkeypatch.setenv(VARIABLE, str(named))
    assert find_plugin_library() == named


def test_a_named_file_is_the_only_one(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who names a file wants that one: a wrong name, or one that does not fit, is no reason to take another."""
    put(cache / "tensorrt10-x")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(EdgeLstmError, match=r"none.so names no file"):
        find_plugin_library()
    monkeypatch.setenv(VARIABLE, str(put(tmp_path / "named", tensorrt="11.1.0")))
    with pytest.raises(EdgeLstmError, match=r"named.*was built for another TensorRT"):
        find_plugin_library(tensorrt="10.3.0.26")


def test_of_several_in_the_cache_the_one_that_fits_is_taken(cache: Path) -> None:
    old, new = put(cache / "tensorrt10-x"), put(cache / "tensorrt11-x", tensorrt="11.1.0")
    assert find_plugin_library(tensorrt="10.13.0.35") == old
    assert find_plugin_library(tensorrt="11.4.1") == new
    with pytest.raises(EdgeLstmError, match=rf"{old}.*TensorRT 10\.3\.0; expected TensorRT 8, since 8\.6"):
        find_plugin_library(tensorrt="8.6.1")


def test_a_damaged_one_in_the_cache_does_not_hide_another(cache: Path) -> None:
    put(cache / "a").write_bytes(b"")
    good = put(cache / "b")
    assert find_plugin_library() == good


@pytest.mark.parametrize("value", ["", "relative/cache"])
def test_the_cache_is_where_xdg_says(value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert module.cache_folder() == tmp_path / ".cache" / "edgelstm"


# ---- What it tells


def test_what_a_library_tells(tmp_path: Path) -> None:
    path = put(tmp_path, architectures=[75, 87, 110], cuda=13000, ptx=110)
    library = read_plugin_library(path)
    assert library.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert library.tensorrt == "10.3.0"
    assert (library.cuda, library.ptx) == ("13.0", "11.0")
    assert library.architectures == ("7.5", "8.7", "11.0")
    assert "TensorRT 10.3.0, CUDA 13.0, compute capabilities 7.5, 8.7, 11.0" in library.summary()
    assert json.loads(json.dumps(library.to_json()))["path"] == str(path)


@pytest.mark.parametrize(
    ("architectures", "ptx", "capability", "runs"),
    [
        ([80], 80, "8.0", True),
        ([80], 90, "8.6", True),  # machine code of the same generation
        ([80], 90, "8.9", True),
        ([86], 90, "8.0", False),  # an older GPU
        ([80], 90, "8.7", False),  # Jetsons run code for their own chip only
        ([87], 90, "8.9", False),
        ([87], 87, "8.9", True),  # through PTX
        ([75], 75, "12.1", True),
        ([100], 100, "11.0", True),  # Thor, through PTX
        ([110], 110, "12.0", True),
        ([120], 120, "11.0", False),
        ([90], 90, "8.9", False),
    ],
)
def test_which_gpus_it_runs_on(
    tmp_path: Path, architectures: list[int], ptx: int, capability: str, runs: bool
) -> None:
    library = read_plugin_library(put(tmp_path, architectures=architectures, ptx=ptx))
    assert library.runs_on(capability) == runs
    if runs:
        library.check(capability=capability)
    else:
        with pytest.raises(EdgeLstmError, match=f"built for other GPUs.*expected {capability}"):
            library.check(capability=capability)


@pytest.mark.parametrize(
    ("changes", "asked", "message"),
    [
        ({"machine": "riscv64"}, {}, "built for another processor: found riscv64"),
        ({}, {"tensorrt": "8.6.1"}, "built for another TensorRT: found TensorRT 10.3.0; expected TensorRT 8"),
        ({"cuda": 13000}, {"driver": "12.6"}, "built for a later CUDA: found CUDA 13.0; expected at most CUDA 12.6"),
    ],
    ids=str,
)  # fmt: skip
def test_a_library_for_another_machine(
    tmp_path: Path, changes: dict[str, Any], asked: dict[str, str], message: str
) -> None:
    library = read_plugin_library(put(tmp_path, **changes))
    with pytest.raises(EdgeLstmError, match=message) as caught:
        library.check(**asked)
    assert str(library.path) in str(caught.value)
    assert "edgelstm build-plugin" in str(caught.value)


def test_a_driver_of_the_same_cuda_generation_will_do(tmp_path: Path) -> None:
    read_plugin_library(put(tmp_path, cuda=12080)).check(driver="12.6")


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2}, {"schema": None}, {"tensorrt": 10}, {"tensorrt": "ten"}, {"cuda": "13"}, {"cuda": True},
        {"architectures": []}, {"architectures": "87"}, {"architectures": [8.7]}, {"architectures": None}, {"ptx": None},
        {"machine": ["x"]},
    ],
    ids=str,
)  # fmt: skip
def test_build_information_of_another_kind(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(EdgeLstmError, match="this version of edgelstm can't read"):
        read_plugin_library(put(tmp_path, **changes))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x7fELF", b"edgelstm-plugin {", b'edgelstm-plugin {"schema": 1', b"edgelstm-plugin {" + b" " * 9000 + b"}\0"],
    ids=repr,
)  # fmt: skip
def test_a_file_that_is_no_plugin(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(data)
    with pytest.raises(EdgeLstmError, match="is not the FusedGates plugin"):
        read_plugin_library(path)


@given(st.data())
def test_no_damage_to_the_text_gets_past(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A library whose bytes were changed is read as what it says now, or refused with the one error."""
    content = bytearray(library_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / FILE_NAME
    path.write_bytes(content)
    refused = None
    try:
        library = read_plugin_library(path)
        library.summary()
        library.runs_on("8.7")
    except EdgeLstmError as error:
        refused = str(error)
    assert refused is None or str(path) in refused


def test_it_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; sys.modules['numpy'] = None; import importlib.util as u\n"
        "import types; package = types.ModuleType('edgelstm.runtime'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['edgelstm.runtime'] = package\n"
        "import edgelstm.runtime.plugin_library as p; print(p.FILE_NAME)"
    )
    folder = Path(module.__file__).parent
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(folder.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == FILE_NAME, done.stderr
