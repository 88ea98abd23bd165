"""A full disk and a closed pipe cost what would have been written, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import wave
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydantic")

from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import Frame, open_sink
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.service.checkpoint import Folder
from edgelstm.pipeline.sinks import Options, Undelivered, arrays, rotating, tables
from running import MODEL, folder_of_sums, sums, toml, values

SIZE = 96 * 1024


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 96 KiB; None where it can't be mounted."""
    yield from mounted(tmp_path / "small", SIZE)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One of 24 MiB, where there is room for what libraries keep until a file is closed."""
    for folder in mounted(tmp_path / "disk", 24 << 20):
        if folder is None:
            pytest.skip("no file system can be mounted here")
        yield folder


def mounted(folder: Path, size: int) -> Iterator[Path | None]:
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield None
        return
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
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


def write(sink: Any, index: int, value: float, shape: tuple[int, ...] = (16, 16)) -> str:
    """What became of an output: "", or why it was not written."""
    try:
        sink.write(
            Frame(index, None, f"f{index}", np.zeros(1)), {"y": np.full(shape, value, np.float32)}, 0.0
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
        assert write(sink, 0, 1.0, (4, 4)) == ""
        clock.now = 11
        assert write(sink, 1, 1.0, (4, 4)) == "", "the first part is there"
        ballast, said = fill(small), []
        for index in range(2, 60):
            clock.now += 1
            said.append(write(sink, index, 2.0, (4, 4)))
        assert any("No space left" in each or "no part so far" in each for each in said)
        ballast.unlink()
        for _ in range(2):  # the first may find that the part before can't be finished
            clock.now += 100
            after = write(sink, 60, 3.0, (4, 4))
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


KINDS = {"csv": [], "npz": [], "wav": [], "parquet": ["pyarrow"], "nc": ["h5netcdf"], "mp4": ["av"], "mcap": ["foxglove", "mcap"]}  # fmt: skip


def service_sink(folder: Path, suffix: str, shape: tuple[int, ...] = (16, 16)) -> Any:
    """As a service opens it."""
    for package in KINDS[suffix]:
        pytest.importorskip(package)
    signature = Signature(
        (TensorSpec("x", "float32", ("N", 1)),), (TensorSpec("y", "float32", ("N", *shape)),), ()
    )
    context = Context(hop=(8000, 256)) if suffix == "wav" else Context()
    return open_sink(folder / f"a.{suffix}", signature, append=True, context=context)


def steps_in(path: Path) -> list[float]:
    """The largest value of each step, by another reader."""
    suffix = path.suffix[1:]
    if suffix == "csv":
        return [max(map(float, row.split(",")[5:])) for row in path.read_text().splitlines()[1:]]
    if suffix == "npz":
        with np.load(path) as made:
            return [float(y.max()) for y in made["y"]]
    if suffix == "wav":
        with wave.open(str(path)) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").reshape(-1, 256)
        return [float(round(s.max() / 32768, 3)) for s in samples]
    if suffix == "parquet":
        import pyarrow.parquet

        return list(pyarrow.parquet.read_table(path).column("y[0,0]").to_pylist())
    if suffix == "nc":
        import h5netcdf

        with h5netcdf.File(path) as file:
            return [float(y.max()) for y in file["y"]]
    if suffix == "mp4":
        import av

        with av.open(str(path)) as video:
            return [float(round(f.to_ndarray(format="gray").max() / 255, 1)) for f in video.decode(video=0)]
    from mcap.reader import make_reader

    with path.open("rb") as file:
        found = [
            json.loads(m.data) for _, c, m in make_reader(file).iter_messages() if c.topic == "/stream/step"
        ]
    return [each["outputs"]["y"]["max"] for each in found]


@pytest.mark.parametrize("suffix", sorted(KINDS))
def test_a_file_goes_on_over_the_time_when_the_disk_was_full(disk: Path, suffix: str) -> None:
    """What was written before is in it, what came meanwhile is lost and nothing else."""
    with service_sink(disk, suffix) as sink:
        values = [0.25, 0.5, 0.25]
        assert [write(sink, k, value) for k, value in enumerate(values)] == ["", "", ""]
        ballast = fill(disk)
        lost = [write(sink, k, 0.75) for k in range(3, 9)]
        assert all("No space left" in each for each in lost)
        ballast.unlink()
        assert write(sink, 9, 1.0) == ""
    (made,) = disk.iterdir()
    expected = [*values, 1.0]
    assert steps_in(made) == pytest.approx(expected, abs=0.11 if suffix == "mp4" else 0.001)


@pytest.mark.parametrize("suffix", sorted(KINDS))
def test_a_file_that_ends_on_a_full_disk_has_what_was_written(disk: Path, suffix: str) -> None:
    with service_sink(disk, suffix) as sink:
        assert [write(sink, k, value) for k, value in enumerate((0.25, 0.5))] == ["", ""]
        fill(disk)
        assert "No space left" in write(sink, 2, 0.75)
    (made,) = [path for path in disk.iterdir() if path.name != "ballast"]
    assert made.name == f"a.{suffix}"
    assert steps_in(made) == pytest.approx([0.25, 0.5], abs=0.11 if suffix == "mp4" else 0.001)


@pytest.mark.parametrize("suffix", ["csv", "npz", "parquet"])
def test_a_file_that_was_torn_all_the_same_is_no_file_and_another_is_begun(
    disk: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else took the room between the look and the write."""
    for module in (arrays, tables):
        monkeypatch.setattr(module, "check_room", lambda folder, needed: None)
    monkeypatch.setattr(rotating, "PAUSE", 0.0)
    with service_sink(disk, suffix, (4, 16)) as sink:
        assert write(sink, 0, 0.25, (4, 16)) == ""
        ballast, said = fill(disk), []
        while not any(said):
            said.append(write(sink, 1, 0.5, (4, 16)))
        ballast.unlink()
        assert [write(sink, 2, value, (4, 16)) for value in (0.75, 1.0)] == ["", ""]
    (made,) = disk.iterdir()
    assert steps_in(made) == [0.75, 1.0]


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
