"""Checkpoints: what is written is read, what is damaged is known for it, and a service goes on where a crash left it."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from edgelstm import Pipeline
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.checkpoint import MAGIC, Checkpoint, Folder, SectionPart, StreamPart

GOLDEN = Path(__file__).parents[2] / "golden" / "checkpoint-1.state"


def checkpoint(written: float = 1.5) -> Checkpoint:
    states = {"h": np.arange(6, dtype=np.float32).reshape(2, 3), "k": np.array(7, np.int8)}
    streams = {"a:1": StreamPart(4, 2.25, {"read": 5, "stepped": 5}, states), "a:2": StreamPart(3, 2.0)}
    return Checkpoint(
        written, {"a": SectionPart("hash", "setup", "frames[0]", 3, streams, {"a:0": 4}, {"a.jsonl": 99})}
    )


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return a.to_bytes() == b.to_bytes()


def test_what_is_written_is_read() -> None:
    read = Checkpoint.from_bytes(checkpoint().to_bytes())
    assert same(read, checkpoint())
    np.testing.assert_array_equal(
        read.sections["a"].streams["a:1"].states["h"], np.arange(6, dtype=np.float32).reshape(2, 3)
    )
    assert read.sections["a"].gone == {"a:0": 4}


def test_a_stamp_that_is_by_no_clock_stays_so() -> None:
    part = SectionPart("hash", "setup", None, 3, {"a": StreamPart(3, 2.0, timed=False)})
    read = Checkpoint.from_bytes(Checkpoint(1.5, {"a": part}).to_bytes())
    assert not read.sections["a"].streams["a"].timed


def test_the_first_schema_is_read_for_ever() -> None:
    assert same(Checkpoint.from_bytes(GOLDEN.read_bytes()), checkpoint())


@given(st.data())
@settings(deadline=None)
def test_damaged_files_are_known(data: st.DataObject) -> None:
    good = checkpoint().to_bytes()
    cut = data.draw(st.integers(0, len(good) - 1))
    with pytest.raises(EdgeLstmError):
        Checkpoint.from_bytes(good[:cut])
    place, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(good)
    flipped[place] ^= 1 << bit
    with pytest.raises(EdgeLstmError):
        Checkpoint.from_bytes(bytes(flipped))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["written", "sections", "model", "setup", "floor", "streams", "gone", "index", "stamp", "counts",
                        "states", "dtype", "shape", "begin", "end", "schema"]), JSON)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_headers_that_lie_are_one_error(key: str, value: Any) -> None:
    """With a right digest: another version, or somebody who wants to harm."""
    import hashlib

    good = checkpoint().to_bytes()
    begin = len(MAGIC) + 8
    length = int.from_bytes(good[len(MAGIC) : begin], "little")
    header = json.loads(good[begin : begin + length])

    def put(node: Any) -> None:
        for name, below in list(node.items()) if isinstance(node, dict) else ():
            if name == key:
                node[name] = value
            else:
                put(below)

    put(header)
    text = json.dumps(header).encode()
    body = MAGIC + len(text).to_bytes(8, "little") + text + good[begin + length : -32]
    try:
        read = Checkpoint.from_bytes(body + hashlib.sha256(body).digest())
    except EdgeLstmError:
        return
    assert math.isfinite(read.written)


def test_the_newest_that_is_whole_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Folder(tmp_path / "states")
    assert folder.load() is None
    for written in (1.0, 2.0, 3.0):
        folder.save(checkpoint(written))
    names = sorted(p.name for p in folder.path.iterdir())
    assert names == ["checkpoint-000002.state", "checkpoint-000003.state"], "the older ones are cleared away"
    newest = folder.path / names[1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING, "edgelstm.serve"):
        found = Folder(folder.path).load()
    assert found is not None
    assert found[0].written == 2.0
    assert "checkpoint-000003.state was cut short or changed" in caplog.text
    Folder(folder.path).save(checkpoint(4.0))
    again = folder.load()
    assert again is not None
    assert again[0].written == 4.0


# A service that is killed ------------------------------------------------------------------------------------------


def write(folder: Path, frames: int = 400, rate: int = 400, **more: Any) -> Path:
    pytest.importorskip("pydantic")
    zoo.running_sum().save(folder / "model.onnx")
    np.save(folder / "a.npy", np.ones(frames, np.float32))
    extra = "".join(f"{k} = {json.dumps(v)}\n" for k, v in more.items())
    lines = f'sink_overload = "block"\nrate = {rate}\n{extra}'
    (folder / "p.toml").write_text(
        f'[service]\ncheckpoint = "states"\ncheckpoint_every = 0.1\n[models.m]\npath = "model.onnx"\nmax_wait = 0\n'
        f'[streams.a]\nsource = "a.npy"\nsink = "a.jsonl"\n{lines}'
    )
    return folder / "p.toml"


def read(path: Path) -> list[tuple[int, float]]:
    made = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [(m["index"], m["outputs"]["y"]["values"]) for m in made]


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgelstm", "serve", "p.toml", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def written(folder: Path) -> int:
    """Lines so far."""
    path = folder / "a.jsonl"
    return len(read(path)) if path.exists() else 0


def newest(folder: Path) -> int:
    """Number of the newest checkpoint."""
    names = [p.stem for p in (folder / "states").glob("checkpoint-*.state")]
    return max((int(name.rpartition("-")[2]) for name in names), default=0)


@pytest.mark.thorough  # beside tests/faults/test_fault_kills.py
def test_after_kill_9_every_frame_is_delivered_once(tmp_path: Path) -> None:
    """Killed three times, at moments that nobody chose: the lines are those of a run that was never killed."""
    write(tmp_path)
    for saved in (0, 2, 2):  # the first before a checkpoint is due
        ahead, wanted = written(tmp_path) + 10, newest(tmp_path) + saved
        with start(tmp_path) as process:
            wait_for(lambda a=ahead, w=wanted: written(tmp_path) > a and newest(tmp_path) >= w)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL
    with start(tmp_path) as process:
        out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "stream a: goes on from checkpoint-" in error
    assert read(tmp_path / "a.jsonl") == [(k, 2.0 * (3 + k + 1)) for k in range(400)]
    counts = json.loads(out)["streams"]["a"]
    assert (counts["read"], counts["stepped"]) == (400, 400)


def test_lines_are_on_the_disk_before_the_states_that_passed_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a lost supply takes lines along which no restart writes again."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not say what a file's number stands for")
    synced: list[str] = []
    fsync = os.fsync

    def told(file: int) -> None:
        synced.append(Path(f"/proc/self/fd/{file}").readlink().name)
        fsync(file)

    monkeypatch.setattr(os, "fsync", told)
    Pipeline.from_file(write(tmp_path, frames=20)).run()
    kinds = ["lines" if name == "a.jsonl" else "states" for name in synced if not name.endswith(".lock")]
    assert kinds[:2] == ["lines", "states"]
    assert kinds == ["lines", "states"] * (len(kinds) // 2)


def test_sigterm_saves_exactly_where_it_stopped(tmp_path: Path) -> None:
    write(tmp_path)
    with start(tmp_path) as process:
        wait_for(lambda: (tmp_path / "a.jsonl").exists() and len(read(tmp_path / "a.jsonl")) > 20)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    stopped = len(read(tmp_path / "a.jsonl"))
    with start(tmp_path) as process:
        out, _ = process.communicate(timeout=120)
    counts = json.loads(out)["streams"]["a"]
    assert "written_before" not in counts
    assert counts["delivered"] == 400, "those of both runs"
    assert counts["stepped"] == 400
    assert stopped < 400
    assert read(tmp_path / "a.jsonl") == [(k, 2.0 * (3 + k + 1)) for k in range(400)]


def test_a_restart_amid_a_window_loses_no_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a window had gathered is read again: its outputs, and the counters, are those of one run."""
    from edgelstm.passes.unroll import unroll

    for limit in (5, 11, 23, None):  # it ends at once, a frame or more behind its last window
        more = {} if limit is None else {"limit": limit}
        write(tmp_path, frames=30, rate=2000, **more)
        unroll(zoo.running_sum(), 4).save(tmp_path / "model.onnx")
        report, _ = serve(tmp_path, caplog)
        read_so_far = limit or 30
        windows = read_so_far // 4
        assert report.streams["a"] == {
            "delivered": windows, "gathered": read_so_far - windows, "read": read_so_far, "stepped": windows,
        }  # fmt: skip
    lines = read(tmp_path / "a.jsonl")
    assert [index for index, _ in lines] == [4 * k + 3 for k in range(7)]
    assert [values for _, values in lines] == [[2.0 * (3 + 4 * k + i) for i in range(1, 5)] for k in range(7)]


def test_another_rate_stamps_no_frame_late(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Frames without a time of their own are stamped by ``rate``: beside one from before, stamps by another say nothing."""
    write(tmp_path, frames=30, rate=50, limit=20, max_gap=60.0, gap="reset")
    serve(tmp_path, caplog)
    write(tmp_path, frames=30, rate=1000, max_gap=60.0, gap="reset")
    report, text = serve(tmp_path, caplog)
    assert "goes on from checkpoint-" in text
    assert report.streams["a"] == {"delivered": 30, "read": 30, "stepped": 30}
    assert read(tmp_path / "a.jsonl") == [(k, 2.0 * (3 + k + 1)) for k in range(30)]


def serve(folder: Path, caplog: pytest.LogCaptureFixture) -> tuple[Any, str]:
    from edgelstm import Pipeline

    caplog.clear()
    with caplog.at_level(logging.INFO, "edgelstm.serve"):
        report = Pipeline.from_file(folder / "p.toml").run()
    return report, caplog.text


def test_why_a_stream_begins_anew_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 20, 100000, max_gap=3600)
    _, log = serve(tmp_path, caplog)
    assert "no checkpoint in" in log
    report, log = serve(tmp_path, caplog)
    assert "stream a: goes on from" in log
    assert report.streams["a"]["stepped"] == 20, "nothing is left to read"
    states = tmp_path / "states"
    newest = sorted(states.iterdir())[-1]
    old = Checkpoint.from_bytes(newest.read_bytes())
    for written, why in (
        (time.time() - 4000, "s old, max_gap is 3600 s"),
        (time.time() + 4000, "in the future"),
    ):
        Folder(states).save(Checkpoint(written, old.sections))
        report, log = serve(tmp_path, caplog)
        assert "stream a: its state begins anew: " in log
        assert why in log
        assert len(read(tmp_path / "a.jsonl")) == 20, "what was delivered is not delivered again"
        assert report.streams["a"]["stepped"] == 20
    np.save(tmp_path / "a.npy", np.ones(5, np.float32))
    _, log = serve(tmp_path, caplog)
    assert "stream a: its source ends with frame 4, and frame 19 was seen: is it another one?" in log
    np.save(tmp_path / "other.npy", np.ones(25, np.float32))
    text = (tmp_path / "p.toml").read_text()
    (tmp_path / "p.toml").write_text(text.replace("a.npy", "other.npy"))
    report, log = serve(tmp_path, caplog)
    assert "stream a: begins anew: the checkpoint is of another source" in log
    assert report.streams["a"]["stepped"] == 25
    zoo.running_sum(outputs=("y",)).save(tmp_path / "other.onnx")
    (tmp_path / "model.onnx").write_bytes((tmp_path / "other.onnx").read_bytes() + b"\x72\x00")
    _, log = serve(tmp_path, caplog)
    assert "the checkpoint is of another model" in log
    for path in states.iterdir():
        path.write_bytes(path.read_bytes()[:200])
    _, log = serve(tmp_path, caplog)
    assert "was cut short or changed" in log
    assert "all streams begin anew" in log


def test_streams_of_a_table_go_on_each_from_its_own_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The table grows between two runs: ended streams don't begin again, others go on."""
    write(tmp_path)
    zoo.lstm().save(tmp_path / "model.onnx")
    from edgelstm import Runner

    rows = [
        f"{k},{t},{t / 20},{k == 'p':d},0.5" for t in range(30) for k in "pqr" if not (k == "r" and t > 3)
    ]
    (tmp_path / "p.toml").write_text(
        '[service]\ncheckpoint = "states"\n[models.m]\npath = "model.onnx"\n'
        '[streams.t]\nsource = "t.csv:key=unit:columns=x,y,z:time=time"\nsink = "t.jsonl"\nsink_overload = "block"\n'
        "limit = {limit}\n"
    )
    text = (tmp_path / "p.toml").read_text()
    (tmp_path / "t.csv").write_text("unit,time,x,y,z\n" + "\n".join(rows) + "\n")
    for limit in (1, 7, 8, 31, len(rows)):
        (tmp_path / "p.toml").write_text(text.replace("{limit}", str(limit)))
        report, _ = serve(tmp_path, caplog)
        assert not report.failed
    made = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert sorted(m["index"] for m in made) == list(range(len(rows)))
    with Runner.open(tmp_path / "model.onnx", threads=1) as runner:
        for key, count in (("p", 30), ("q", 30), ("r", 4)):
            got = [m["outputs"]["y"]["values"] for m in made if m["stream"] == f"t:{key}"]
            frames = np.array([[t / 20, key == "p", 0.5] for t in range(count)], np.float32)
            runner.stream("x").reset()
            wanted = [runner.stream("x").step(f)["y"].tolist() for f in frames]
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_source_that_begins_elsewhere_is_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder whose oldest files were cleared away: numbers say nothing of which frames were seen."""
    image = pytest.importorskip("PIL.Image")
    write(tmp_path)
    zoo.persistence(shape=(1, 4, 6)).save(tmp_path / "model.onnx")
    (tmp_path / "in").mkdir()
    for k in range(6):
        image.new("L", (6, 4), 10 * k).save(tmp_path / "in" / f"{k}.png")
    (tmp_path / "p.toml").write_text(
        '[service]\ncheckpoint = "states"\n[models.m]\npath = "model.onnx"\n'
        '[streams.a]\nsource = "in"\nsink = "a.jsonl"\nsink_overload = "block"\n'
    )
    serve(tmp_path, caplog)
    image.new("L", (6, 4), 60).save(tmp_path / "in" / "6.png")
    serve(tmp_path, caplog)
    names = [json.loads(line)["name"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert names == [f"{k}.png" for k in range(7)], "the new file alone"
    for k in range(5):
        (tmp_path / "in" / f"{k}.png").unlink()
    for new in (7, 8):
        image.new("L", (6, 4), 10 * new).save(tmp_path / "in" / f"{new}.png")
        report, log = serve(tmp_path, caplog)
        names = [json.loads(line)["name"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        assert names == [f"{k}.png" for k in range(new + 1)], (
            "the last that was seen is there: the new file alone"
        )
        assert ("begins with 5.png and no longer with 0.png: goes on behind 6.png" in log) is (new == 7)
    assert "reset:source" not in report.streams["a"]
    for k in range(5, 9):
        (tmp_path / "in" / f"{k}.png").unlink()
    for k in (1, 2):
        image.new("L", (6, 4), k).save(tmp_path / "in" / f"{k}.png")
    report, log = serve(tmp_path, caplog)
    assert "its source begins with 1.png and no longer with 5.png: all its frames are new" in log
    assert report.streams["a"]["reset:source"] == 1
    names = [json.loads(line)["name"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert names[9:] == ["1.png", "2.png"]


def test_a_checkpoint_that_can_not_be_written_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk."""
    write(tmp_path, 20, 100000)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    report, log = serve(tmp_path, caplog)
    assert report.streams["a"]["delivered"] == 20
    assert "no checkpoint: " in log
    assert "No space left on device" in log
    assert not list((tmp_path / "states").glob("*checkpoint*"))


def test_a_folder_that_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, 20, 100000)
    (tmp_path / "file").write_text("no folder")
    path.write_text(path.read_text().replace('"states"', '"file"'))
    with pytest.raises(EdgeLstmError, match="can't make the folder"):
        serve(tmp_path, caplog)
