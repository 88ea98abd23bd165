"""A full disk and a closed pipe cost what would have been written, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydantic")

from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import Frame, open_sink
from edgelstm.pipeline.service.checkpoint import Folder
from edgelstm.pipeline.sinks import Options, Undelivered, rotating
from running import MODEL, folder_of_sums, sums, toml, values

SIZE = 96 * 1024


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 96 KiB; None where it can't be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield None
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def limited() -> None:
    """No file of this process grows beyond the size: what a full disk says, EFBIG for ENOSPC."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))


def test_a_full_disk(tmp_path: Path, small: Path | None) -> None:
    """Lines and checkpoints on it: the stream goes on, what was written stays whole, and the end says what failed."""
    if small is None and sys.platform == "win32":
        pytest.skip("neither a file system of its own nor a limit")
    folder = folder_of_sums(tmp_path, a=2000, b=2000)
    there = small or folder / "small"
    more: dict[str, Any] = {"rate": 1500}
    lines = f'[service]\ncheckpoint = "{there}/states"\ncheckpoint_every = 0.2\n' + MODEL
    lines += toml("a", sink=f"{there}/a.jsonl", **more) + toml("b", **more)
    (folder / "p.toml").write_text(lines)
    done = subprocess.run(
        [sys.executable, "-m", "edgelstm", "serve", "p.toml", "--json"],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=limited if small is None else None,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    a, b = report["streams"]["a"], report["streams"]["b"]
    assert a["stepped"] == b["stepped"] == 2000
    lost = sum(n for name, n in a.items() if name.startswith("undelivered:"))
    assert a["delivered"] + lost == 2000
    assert lost > 0
    said = "No space left" if small else "File too large"
    assert said in json.dumps(report["failed"]) + done.stderr
    if small:
        assert b["delivered"] == 2000
        assert values(folder / "b.jsonl") == sums(np.load(folder / "b.npy"))
        assert "no checkpoint" in done.stderr
    whole = [
        json.loads(line)["index"]
        for line in (there / "a.jsonl").read_text().splitlines()
        if line.endswith("}}}")  # of a torn one, an inner object may be whole
    ]
    assert whole == sorted(set(whole)), "none twice, whatever is missing"
    assert len(whole) == a["delivered"]
    found = Folder(there / "states").load()
    assert found is not None, "the last one that fitted is whole"
    assert not list((there / "states").glob(".checkpoint*")), "no half of one"


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return ballast


def write(sink: Any, index: int, value: float, side: int = 16) -> str:
    """What became of an output: "", or why it was not written."""
    try:
        sink.write(
            Frame(index, None, f"f{index}", np.zeros(1)), {"y": np.full((side, side), value, np.float32)}, 0.0
        )
    except Undelivered as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["map.tif", "{index}.tif", "lines.jsonl"])
def test_no_file_is_torn_and_the_next_is_written_once_there_is_room(small: Path | None, name: str) -> None:
    if small is None:
        pytest.skip("no file system can be mounted here")
    if name.endswith("tif"):
        pytest.importorskip("rasterio")
    signature = Signature(
        (TensorSpec("x", "float32", ("N", 1)),), (TensorSpec("y", "float32", ("N", 16, 16)),), ()
    )
    with open_sink(small / name, signature, append=True) as sink:
        assert write(sink, 0, 1.0) == ""
        ballast = fill(small)
        lost = [write(sink, index, 2.0) for index in range(1, 40)]
        assert "No space left" in lost[-1]
        whole(small, 1 + lost.count(""))
        ballast.unlink()
        assert write(sink, 40, 3.0) == ""
    whole(small, 2 + lost.count(""))
    assert not [path for path in small.iterdir() if path.name.startswith(".")]


def whole(folder: Path, count: int) -> None:
    """Every line and every map is."""
    for path in folder.glob("*.jsonl"):
        text = path.read_text()
        assert text.endswith("\n")
        assert len([json.loads(line) for line in text.splitlines()]) == count
    maps = sorted(folder.glob("*.tif"))
    for path in maps:
        import rasterio

        with rasterio.open(path) as file:
            (value,) = np.unique(file.read())
            assert value in (1, 2, 3)
    if maps and maps[0].stem != "map":
        assert len(maps) == count


@pytest.mark.parametrize("suffix", ["csv", "npz", "parquet"])
def test_a_part_that_has_no_room_is_lost_and_a_later_one_is_written(
    small: Path | None, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small is None:
        pytest.skip("no file system can be mounted here")
    if suffix == "parquet":
        pytest.importorskip("pyarrow")

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(rotating, "time", clock)
    signature = Signature(
        (TensorSpec("x", "float32", ("N", 1)),), (TensorSpec("y", "float32", ("N", 4, 4)),), ()
    )
    with open_sink(small / f"a.{suffix}", signature, options=Options(rotate=10)) as sink:
        assert write(sink, 0, 1.0, 4) == ""
        clock.now = 11
        assert write(sink, 1, 1.0, 4) == "", "the first part is there"
        ballast, said = fill(small), []
        for index in range(2, 60):
            clock.now += 1
            said.append(write(sink, index, 2.0, 4))
        assert any("No space left" in each or "no part so far" in each for each in said)
        ballast.unlink()
        for _ in range(2):  # the first may find that the part before can't be finished
            clock.now += 100
            after = write(sink, 60, 3.0, 4)
        assert after == ""
    parts = sorted(path for path in small.iterdir() if path.suffix == f".{suffix}")
    assert not [path for path in parts if path.name.startswith(".")]
    assert len(parts) >= 2
    last = parts[-1]
    if suffix == "npz":
        with np.load(last) as made:
            assert made["y"][-1].max() == 3
    elif suffix == "csv":
        assert last.read_text().splitlines()[-1].endswith("3.0")
    else:
        import pyarrow.parquet

        assert pyarrow.parquet.read_table(last).column("y[0,0]").to_pylist()[-1] == 3


@pytest.mark.faults
def test_a_reader_that_goes_away_costs_its_sink_alone(tmp_path: Path) -> None:
    folder = folder_of_sums(tmp_path, a=3000, b=3000)
    (folder / "p.toml").write_text(MODEL + toml("a", sink="-", rate=3000) + toml("b", rate=3000))
    with subprocess.Popen(
        [sys.executable, "-m", "edgelstm", "serve", "p.toml"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        error = process.stderr.read()
        process.wait(120)
    assert process.returncode == 1
    assert "Traceback" not in error
    assert "sink a -> -: failed, nothing more is written to it" in error
    assert values(folder / "b.jsonl") == sums(np.load(folder / "b.npy"))
