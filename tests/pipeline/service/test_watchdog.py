"""What hangs or dies costs its own stream, for as long as it hangs: sources in processes of their own, sinks, steps, folders."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelstm import EdgeLstmError, Pipeline

pytest.importorskip("pydantic")

from edgelstm.pipeline.service.isolated import open_isolated
from running import MODEL, Running, folder_of_sums, sums, toml, until, values

linux = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")


def pid(running: Running, stream: str) -> int:
    """Of the stream's source."""
    (channel,) = [c for c in running.control.service.channels if c.name == stream]
    found = re.search(r"process (\d+)", channel.reader._source.description)  # type: ignore[union-attr]
    assert found
    return int(found.group(1))


@linux
@pytest.mark.parametrize(
    "what",
    [
        signal.SIGSEGV,
        *(pytest.param(s, marks=pytest.mark.thorough) for s in (signal.SIGKILL, signal.SIGSTOP)),
    ],
)
def test_a_source_that_dies_or_hangs_is_opened_again_and_costs_its_stream_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: signal.Signals
) -> None:
    """Killed by the signal that a decoder's bug sends, or stopped; no frame is lost or comes twice."""
    folder = folder_of_sums(tmp_path, a=300, b=300)
    more = {"rate": 300, "retries": 3, "retry": 0.01, "hang_after": 5.0 if what == signal.SIGSTOP else 60.0}
    text = MODEL + toml("a", isolate="process", **more) + toml("b", rate=300)
    with caplog.at_level(logging.WARNING, "edgelstm.serve"), Running(text, folder) as running:
        until(lambda: running.count("a", "stepped") > 20)
        os.kill(pid(running, "a"), what)
        report = running.ends()
    assert not report.failed
    assert report.streams["a"]["lost"] == report.streams["a"]["returned"] == 1
    assert "lost" not in report.streams["b"]
    for name in "ab":
        assert values(folder / f"{name}.jsonl") == sums(np.load(folder / f"{name}.npy"))
    if what == signal.SIGSTOP:
        assert report.streams["a"]["hung:source"] == 1
        assert "it hangs: found no frame for" in caplog.text
    else:
        assert f"the source's process ended: found killed by {what.name}" in caplog.text


@linux
def test_one_that_dies_beyond_its_budget_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    folder = folder_of_sums(tmp_path, a=3000, b=30)
    with Running(MODEL + toml("a", isolate="process", rate=20, retries=0) + toml("b"), folder) as running:
        until(lambda: running.count("a", "stepped") > 0)
        os.kill(pid(running, "a"), signal.SIGSEGV)
        report = running.ends()
    assert "killed by SIGSEGV" in report.failed["stream a"]
    assert report.streams["b"]["delivered"] == 30


@linux
def test_one_that_is_told_to_stop_has_not_failed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the end of the service, and when its stream is removed."""
    folder = folder_of_sums(tmp_path, a=1000000, b=1000000)
    more = {"isolate": "process", "overload": "latest", "retries": 5, "sink": []}
    with Running(MODEL + toml("a", **more) + toml("b", **more), folder) as running:
        until(lambda: running.count("a", "stepped") and running.count("b", "stepped"))
        running.control.remove("b")
        running.pipeline.stop()
        report = running.ends()
    assert not report.failed
    assert "lost" not in report.streams["a"]
    assert "its source failed" not in caplog.text


@linux
def test_a_process_gives_what_the_source_gives(tmp_path: Path) -> None:
    """Types, several arrays, growing sizes, words; and errors as they are."""
    from edgelstm.pipeline.sources import open_source

    np.savez(tmp_path / "m.npz", x=np.arange(24.0).reshape(6, 4), z=np.arange(6, dtype=np.int16))
    (tmp_path / "t.csv").write_text(
        "unit,time,x\n" + "".join(f"{k},{t},{t / 2}\n" for t in range(9) for k in "pq")
    )
    for spec in ("m.npz", "t.csv:key=unit:columns=x:time=time"):
        with open_isolated(str(tmp_path / spec)) as far, open_source(str(tmp_path / spec)) as near:
            assert (far.length, far.streams, far.live) == (near.length, near.streams, near.live)
            for _ in range(2 if spec == "m.npz" else 1):  # opened anew
                for a, b in zip(far, near, strict=True):
                    assert (a.index, a.time, a.name, a.values, a.notes, a.gap, a.stream, a.last) == (
                        b.index, b.time, b.name, b.values, b.notes, b.gap, b.stream, b.last,
                    )  # fmt: skip
                    assert str(a.data) == str(b.data)
    for spec, said in (("m.npz:q", "no array 'q'"),):
        with pytest.raises(EdgeLstmError, match=said):
            open_isolated(str(tmp_path / spec))


LIES: tuple[dict[str, Any], ...] = (
    {"dtype": "O"}, {"shape": [-1]}, {"shape": [10**12]}, {"place": 10**9}, {"place": -1}, {"shape": "x"}, {"dtype": "<f8", "shape": [100000]},
)  # fmt: skip


@linux
def test_a_process_that_lies_is_not_believed(tmp_path: Path) -> None:
    np.save(tmp_path / "u.npy", np.zeros((2, 3), np.float32))
    with open_isolated(str(tmp_path / "u.npy")) as source:
        child = source._child  # type: ignore[attr-defined]
        good = child._message()
        assert child._frame(good).data.shape == (3,)
        for lie in LIES:
            with pytest.raises(EdgeLstmError, match="makes no sense"):
                child._frame({**good, "arrays": [{**good["arrays"][0], **lie}]})
        for more in ({"arrays": []}, {"index": "x"}, {"values": [1]}, {"arrays": None}):
            with pytest.raises(EdgeLstmError, match="makes no sense"):
                child._frame({**good, **more})


@linux
@pytest.mark.thorough
def test_no_process_stays_when_the_service_is_gone(tmp_path: Path) -> None:
    folder = folder_of_sums(tmp_path, a=3000)
    (folder / "p.toml").write_text(MODEL + toml("a", isolate="process", rate=50))
    with subprocess.Popen(
        [sys.executable, "-m", "edgelstm", "serve", "p.toml"], cwd=folder, stderr=subprocess.PIPE
    ) as process:
        until(lambda: (folder / "a.jsonl").exists() and len(values(folder / "a.jsonl")) > 3)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found = [
            int(c)
            for t in Path(f"/proc/{process.pid}/task").iterdir()
            for c in (t / "children").read_text().split()
        ]
        assert found or children
        process.kill()
        process.communicate(timeout=60)
    until(lambda: not any(_is_alive(p) for p in found))


def _is_alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False


def test_a_sink_that_hangs_in_a_write_is_given_up(tmp_path: Path) -> None:
    """Standard output that nobody reads: it takes 64 KiB."""
    folder = folder_of_sums(tmp_path, a=3000, b=50)
    (folder / "p.toml").write_text(MODEL + toml("a", hang_after=0.5, sink="-") + toml("b"))
    with subprocess.Popen(
        [sys.executable, "-m", "edgelstm", "serve", "p.toml", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = ""
        while "ended:" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.communicate(timeout=60)
    assert process.returncode == 1
    assert "sink a -> -: hangs, nothing more is written to it" in said
    report = json.loads(said.rpartition("ended: ")[2])
    counts = report["a"]
    assert counts["hung:sink"] == 1
    assert counts["stepped"] == 3000, "though the sink held its stream up"
    assert counts["delivered"] + counts["undelivered:sink_failed"] == 3000
    assert report["b"]["delivered"] == 50


def test_a_step_that_hangs_ends_its_model_alone(tmp_path: Path, hanging: threading.Event) -> None:
    folder = folder_of_sums(tmp_path, b=50)
    np.save(folder / "a.npy", np.array([1, 7, 1], np.float32))
    models = MODEL.replace("max_wait = 0", "max_wait = 0\nhang_after = 0.5") + MODEL.replace(
        "models.m", "models.n"
    )
    with Running(models + toml("a", model="m") + toml("b", model="n"), folder) as running:
        report = running.ends()
    assert "a step hangs" in report.failed["model m"]
    assert report.streams["a"]["hung:engine"] == 1
    assert report.streams["b"]["delivered"] == 50


def test_a_service_whose_every_model_hangs_ends(tmp_path: Path, hanging: threading.Event) -> None:
    """Though it was to stay: whoever watches the process starts another one."""
    folder = folder_of_sums(tmp_path)
    np.save(folder / "a.npy", np.array([1, 7, 1], np.float32))
    models = MODEL.replace("max_wait = 0", "max_wait = 0\nhang_after = 0.3")
    service = '[service]\nstay = true\ndrain = 0.2\ncheckpoint = "states"\n'
    with Running(service + models + toml("a"), folder) as running:
        report = running.ends()
    assert "a step hangs" in report.failed["model m"]


def test_a_step_that_is_left_behind_at_the_end_is_a_failure(tmp_path: Path, hanging: threading.Event) -> None:
    folder = folder_of_sums(tmp_path)
    np.save(folder / "a.npy", np.array([1, 7, 1], np.float32))
    with Running("[service]\ndrain = 0.2\n" + MODEL + toml("a"), folder) as running:
        (loop,) = running.control.service.loops.values()
        until(lambda: loop.stepping_since is not None and loop.calls == 2)
        running.pipeline.stop()
        report = running.ends()
    assert "left behind at the end" in report.failed["model m"]


def test_a_step_that_hung_and_ends_goes_on(tmp_path: Path, hanging: threading.Event) -> None:
    folder = folder_of_sums(tmp_path, b=3000)
    np.save(folder / "a.npy", np.array([1, 7, 1], np.float32))
    models = MODEL.replace("max_wait = 0", "max_wait = 0\nhang_after = 0.3") + MODEL.replace(
        "models.m", "models.n"
    )
    with Running(models + toml("a", model="m") + toml("b", model="n", rate=100), folder) as running:
        until(lambda: running.count("a", "hung:engine") == 1)
        hanging.set()
        until(lambda: running.count("a", "stepped") == 3)
        running.pipeline.stop()
        report = running.ends()
    assert not report.failed


HOLDER = "import sys; from pathlib import Path; from edgelstm.pipeline.service.lock import FolderLock; l = FolderLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


def test_a_folder_of_checkpoints_has_one_service(tmp_path: Path) -> None:
    """Whoever holds it; and nobody does once that process is dead."""
    folder = folder_of_sums(tmp_path, a=3000)
    (folder / "p.toml").write_text('[service]\ncheckpoint = "states"\n' + MODEL + toml("a", rate=100))
    command = [sys.executable, "-c", HOLDER, str(folder / "states")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(
            EdgeLstmError, match=f"another service keeps its checkpoints in .*process {process.pid}"
        ):
            Pipeline.from_file(folder / "p.toml").run()
        process.kill()  # its lock is stale
        process.communicate(timeout=60)
    with Running(folder / "p.toml", folder) as running:
        until(lambda: running.count("a", "stepped") > 0)
        with pytest.raises(EdgeLstmError, match="another service keeps its checkpoints"):
            Pipeline.from_file(folder / "p.toml").run()
    with Running(folder / "p.toml", folder) as running:
        until(lambda: running.count("a", "stepped") > 0)
    lines = [json.loads(line)["index"] for line in (folder / "a.jsonl").read_text().splitlines()]
    assert lines == list(range(len(lines)))
