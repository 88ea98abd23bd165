"""What reads files in the C library, given anything: the targets of fuzz/, which libFuzzer runs for as long as one likes.

By hand, for ten minutes:

    PYTHONPATH=.:tests python tests/native/fuzz/corpus.py /tmp/corpus
    PYTHONPATH=.:tests python -c "import native.test_c_fuzz as f; print(f.compiled('snapshot', '/tmp/fuzz'))"
    /tmp/fuzz /tmp/corpus/snapshot -dict=/tmp/corpus/snapshot.dict -max_total_time=600

A file that breaks one goes to fuzz/found/TARGET/, and is run again here for ever.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import c_library
from edgelstm.engine.c_build import find_onnxruntime

FUZZ = Path(__file__).parent / "fuzz"
#: Sources of each target.
TARGETS = {
    "signature": ("signature.cpp", "json.cpp"),
    "sidecar": ("sidecar.cpp", "signature.cpp", "json.cpp", "digest.cpp"),
    "snapshot": ("snapshot.cpp", "signature.cpp", "json.cpp", "digest.cpp"),
    "model": tuple(path.name for path in sorted(c_library.SOURCES.glob("*.cpp"))),
}
#: Those of the short form, which are run on files alone, and how they are compiled for it.
REPLAYED, REPLAY = ("signature", "sidecar", "snapshot"), FUZZ / "replay.cpp"
REPLAY_FLAGS = ("-O0", "-D_GLIBCXX_ASSERTIONS")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("fuzz_corpus", FUZZ / "corpus.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("corpus")
    module.write(folder)
    return folder


def compiled(
    target: str, program: Path | str, compiler: str = "clang++", *flags: str, parts: Sequence[str] = ()
) -> str:
    """What the compiler had to say against it; empty: it is there."""
    fuzzing = [
        "-fsanitize=fuzzer,address,undefined",
        "-fno-sanitize-recover=all",
        "-O1",
        "-DEDGELSTM_FUZZING",
    ]
    command = [
        compiler, "-std=c++17", "-g", *(flags or fuzzing), f"-I{c_library.SOURCES}", str(FUZZ / f"{target}.cpp"),
        *(parts or (str(c_library.SOURCES / name) for name in TARGETS[target])),
        "-o", str(program), "-ldl", "-pthread",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The library's sources of the short form, by name, and what runs files: each is compiled once, not for every target."""
    c_library.built()
    folder = tmp_path_factory.mktemp("objects")
    made = {}
    for name in (*sorted({name for target in REPLAYED for name in TARGETS[target]}), REPLAY.name):
        made[name] = str(folder / f"{name}.o")
        source = REPLAY if name == REPLAY.name else c_library.SOURCES / name
        command = ["c++", "-std=c++17", *REPLAY_FLAGS, f"-I{c_library.SOURCES}", "-c", str(source)]
        done = subprocess.run([*command, "-o", made[name]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return made


def surroundings(corpus: Path) -> dict[str, str]:
    return {
        **os.environ,
        "EDGELSTM_ONNXRUNTIME": str(find_onnxruntime()),
        "EDGELSTM_FUZZ_GRAPH": str(corpus / "graph.onnx"),
    }


def damaged(whole: bytes) -> list[bytes]:
    """Cut at many places, and with every byte of many changed."""
    step = max(1, len(whole) // 40)
    cut = [whole[:k] for k in range(0, len(whole), step)]
    return cut + [
        whole[:k] + bytes([whole[k] ^ 1 << k % 8]) + whole[k + 1 :] for k in range(0, len(whole), step)
    ]


@pytest.mark.parametrize("target", REPLAYED)
def test_what_was_found_and_damaged_files_break_nothing(
    target: str, corpus: Path, objects: dict[str, str], tmp_path: Path
) -> None:
    program, parts = tmp_path / target, [objects[name] for name in (*TARGETS[target], REPLAY.name)]
    assert not compiled(target, program, "c++", *REPLAY_FLAGS, parts=parts)
    files = [
        p
        for folder in (corpus / target, FUZZ / "found" / target)
        if folder.is_dir()
        for p in sorted(folder.iterdir())
    ]
    for k, data in enumerate(d for path in files for d in damaged(path.read_bytes())):
        (tmp_path / f"{k}.damaged").write_bytes(data)
    files += sorted(tmp_path.glob("*.damaged"))
    done = subprocess.run([program, *files], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{len(files)} files\n"


@pytest.mark.thorough
@pytest.mark.parametrize("target", list(TARGETS))
def test_libfuzzer_finds_nothing_in_a_minute(target: str, corpus: Path, tmp_path: Path) -> None:
    if shutil.which("clang++") is None:
        pytest.skip("clang++ is not here: apt install clang")
    said = compiled(target, tmp_path / "fuzz")
    if "cannot find" in said:
        pytest.skip("libFuzzer is not here: apt install libclang-rt-14-dev, of clang's version")
    assert not said
    found = FUZZ / "found" / target
    (tmp_path / "made").mkdir()
    words = [f"-dict={path}"] if (path := corpus / f"{target}.dict").is_file() else []
    done = subprocess.run(
        [
            tmp_path / "fuzz", tmp_path / "made", corpus / target, *([found] if found.is_dir() else []), *words, "-max_total_time=60",
            "-max_len=8192", "-timeout=60", "-rss_limit_mb=4096", f"-artifact_prefix={tmp_path}/", "-print_final_stats=1", "-seed=1",
        ],
        capture_output=True, text=True, check=False, timeout=250, env=surroundings(corpus),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(re.findall(r"number_of_executed_units: (\d+)", done.stderr)[0]) > 50
