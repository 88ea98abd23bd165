"""Streams that come, go, wait and are set back while the service runs: done between two steps, at no other stream's cost."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pydantic")

import zoo
from edgelstm import EdgeLstmError, Pipeline
from edgelstm.pipeline.service.control import Control, TakenName, UnknownStream
from edgelstm.pipeline.service.loop import Loop
from edgelstm.runtime.runner import Runner
from running import MODEL, Running, folder_of_sums, section, sums, toml, until, values

OTHERS = ("b", "c", "d")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of_sums(tmp_path, a=300, b=100000, c=50, d=100000)


def frames(folder: Path, name: str = "a") -> Any:
    return np.load(folder / f"{name}.npy")


DOINGS = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "reset", "pause", "resume", "policy", "snapshot"]),
        st.sampled_from(OTHERS),
    ),
    min_size=3,
    max_size=14,
)


def alone_beside(folder: Path, doings: list[tuple[str, str]]) -> None:
    """Stream a gives bit for bit what it gives alone, whatever is done to others."""
    folder_of_sums(folder, a=300, b=100000, c=50, d=100000)
    with Running(MODEL + toml("a", rate=2000), folder) as service:
        for what, name in doings:
            control = service.control
            try:
                if what == "add":
                    control.add(name, section(name, queue=2, sink=[]))
                elif what == "policy":
                    control.configure(name, section(name, queue=3, sink=[], gap="reset", bad="reset"))
                else:
                    getattr(control, what)(name)
            except (UnknownStream, TakenName):
                pass
        for name in OTHERS:
            with suppress(UnknownStream):
                service.control.remove(name)
        service.ends()
    assert values(folder / "a.jsonl") == sums(frames(folder))


@given(DOINGS)
@settings(max_examples=6, deadline=None)
def test_a_stream_beside_others_that_come_and_go_is_what_it_is_alone(
    tmp_path_factory: pytest.TempPathFactory, doings: list[tuple[str, str]]
) -> None:
    alone_beside(tmp_path_factory.mktemp("f"), doings)


@pytest.mark.thorough
@given(DOINGS)
@settings(max_examples=100, deadline=None)
def test_a_stream_beside_others_that_come_and_go_is_what_it_is_alone_at_length(
    tmp_path_factory: pytest.TempPathFactory, doings: list[tuple[str, str]]
) -> None:
    alone_beside(tmp_path_factory.mktemp("f"), doings)


@pytest.mark.thorough
def test_a_thousand_streams_that_came_and_went_leave_nothing(folder: Path) -> None:
    with Running(MODEL + toml("b", rate=50, sink=[]), folder) as service:

        def cycle(count: int) -> tuple[int, int]:
            for _ in range(count):
                service.control.add("c", section("c"))
                service.control.remove("c")
            until(lambda: not any(t.name == "source c" for t in threading.enumerate()))
            return len(threading.enumerate()), len(list(Path("/proc/self/fd").iterdir()))

        cycle(20)
        before = cycle(20)
        assert cycle(1000) == before


def test_many_threads_may_steer_at_a_time(folder: Path) -> None:
    wrong: list[BaseException] = []
    with Running("[service]\nstay = true\n" + MODEL + toml("a", rate=1000), folder) as service:
        control = service.control

        def steer(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(25):
                name = rng.choice(OTHERS)
                what = rng.choice(["add", "add", "remove", "reset", "pause", "resume", "snapshot", "policy"])
                try:
                    if what == "add":
                        control.add(name, section(name, queue=2, sink=[]))
                    elif what == "policy":
                        control.configure(name, section(name, queue=rng.randint(1, 9), sink=[]))
                    else:
                        getattr(control, what)(name)
                except (UnknownStream, TakenName):
                    pass
                except EdgeLstmError as error:
                    if "was removed before" not in str(error) and "changed by someone else" not in str(error):
                        wrong.append(error)
                except BaseException as error:
                    wrong.append(error)

        threads = [threading.Thread(target=steer, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        for name in OTHERS:
            with suppress(UnknownStream):
                control.remove(name)
        until(lambda: service.count("a", "stepped") == len(frames(folder)))
        service.pipeline.stop()
        service.ends()
    assert wrong == []
    assert values(folder / "a.jsonl") == sums(frames(folder))


def test_more_streams_than_there_was_room_for(folder: Path) -> None:
    with Running(MODEL + toml("a", rate=1000), folder) as service:
        for k in range(5):
            service.control.add(f"c{k}", section("c", sink=f"c{k}.jsonl"))
        report = service.ends()
    assert not report.failed
    assert values(folder / "a.jsonl") == sums(frames(folder)), "states moved along bit for bit"
    for k in range(5):
        assert values(folder / f"c{k}.jsonl") == sums(frames(folder, "c"))


def test_names_are_checked(folder: Path) -> None:
    with Running(MODEL + toml("a", rate=50), folder) as service:
        with pytest.raises(TakenName):
            service.control.add("a", section("b"))
        with pytest.raises(UnknownStream, match="found no such stream; expected a"):
            service.control.reset("z")
        with pytest.raises(EdgeLstmError, match=r"a\.jsonl, which stream a writes"):
            service.control.add("b", section("b", sink="a.jsonl"))
        with pytest.raises(EdgeLstmError, match=r"stream b.*nothing\.npy"):
            service.control.add("b", section("b", source="nothing.npy"))
        with pytest.raises(EdgeLstmError, match=r"streams\.b\.model"):
            service.control.add("b", section("b", model="other"))
        assert [c.name for c in service.control.service.channels] == ["a"]
    with pytest.raises(EdgeLstmError, match="not running"):
        _ = service.control


def test_a_paused_stream_waits_and_goes_on(folder: Path) -> None:
    with Running(MODEL + toml("a", rate=500) + toml("c", rate=300), folder) as service:
        service.control.pause("a")
        at = service.count("a", "stepped")
        until(lambda: service.count("c", "stepped") > 20)
        assert service.count("a", "stepped") == at
        service.control.resume("a")
        report = service.ends()
    assert report.streams["a"]["stepped"] == 300
    assert values(folder / "a.jsonl") == sums(frames(folder))


def test_one_stream_of_a_key_is_paused_alone(folder: Path) -> None:
    """All streams of its source were, without a word."""
    zoo.lstm().save(folder / "lstm.onnx")
    rows = "".join(f"{'ab'[k % 2]},{k},{k},{k}\n" for k in range(400))
    (folder / "t.csv").write_text("unit,x,y,z\n" + rows)
    text = '[models.m]\npath = "lstm.onnx"\nmax_wait = 0\n'
    with Running(text + toml("t", source="t.csv:key=unit", queue=400, rate=200), folder) as service:
        control = service.control
        until(lambda: service.count("t:a", "stepped") > 5 and service.count("t:b", "stepped") > 5)
        control.pause("t:a")
        at, other = service.count("t:a", "stepped"), service.count("t:b", "stepped")
        until(lambda: service.count("t:b", "stepped") > other + 20)
        assert service.count("t:a", "stepped") == at
        control.pause("t")
        control.resume("t:b")
        other = service.count("t:b", "stepped")
        until(lambda: service.count("t:b", "stepped") > other)
        assert service.count("t:a", "stepped") == at
        control.resume("t")  # all of them
        report = service.ends()
    assert [report.streams[f"t:{key}"]["stepped"] for key in "ab"] == [200, 200]


def test_paths_in_options_of_a_source_start_at_the_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales were read from the folder that the service was started in: another file of that name, if there was one."""
    zoo.lstm().save(tmp_path / "lstm.onnx")
    (tmp_path / "t.csv").write_text("x,y,z\n" + "".join(f"{k},{k},{k}\n" for k in range(5)))
    head = "key,column,min,max\n"
    (tmp_path / "scales.csv").write_text(head + "".join(f",{c},0,4\n" for c in "xyz"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "scales.csv").write_text(head + "".join(f",{c},0,8\n" for c in "xyz"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = '[models.m]\npath = "lstm.onnx"\n' + toml("t", source="t.csv:scale=scales.csv")
    Pipeline.from_text(text, tmp_path).run()
    with Runner.open(tmp_path / "lstm.onnx", threads=1) as runner:
        wanted = [runner.stream("a").step(np.full(3, k / 4, np.float32))["y"].copy() for k in range(5)]
    np.testing.assert_allclose(values(tmp_path / "t.jsonl"), wanted, rtol=1e-5)


def test_a_service_stops_though_a_stream_is_paused(folder: Path) -> None:
    with Running(MODEL + toml("a"), folder) as service:
        service.control.add("b", section("b", sink=[]))
        service.control.pause("b")
    assert service.report.stopped


def test_a_signal_from_outside_resets_the_state(folder: Path) -> None:
    with Running(MODEL + toml("a", rate=1000), folder) as service:
        until(lambda: service.count("a", "stepped") > 10)
        service.control.reset("a")
        assert service.count("a", "reset:asked") == 1
        service.ends()
    found, x = values(folder / "a.jsonl"), frames(folder)
    fits = [k for k in range(1, 300) if found == sums(x[:k]) + sums(x[k:])]
    assert len(fits) == 1, "the state began anew once, between two frames"


def test_a_snapshot_is_the_state_between_two_steps(folder: Path) -> None:
    with Running(MODEL + toml("a", rate=1000), folder) as service:
        until(lambda: service.count("a", "stepped") > 10)
        state = float(service.control.snapshot("a")["a"]["s"])
        service.ends()
    assert 2 * state in sums(frames(folder))


def test_a_removed_stream_can_come_again(folder: Path) -> None:
    with Running(MODEL + toml("a", rate=1000) + toml("c", rate=1000), folder) as service:
        until(lambda: service.count("c", "stepped") > 5)
        service.control.remove("c")
        assert "c" not in service.control.service.report().streams
        (folder / "c.jsonl").unlink()
        service.control.add("c", section("c"))
        service.ends()
    assert values(folder / "c.jsonl") == sums(frames(folder, "c"))


def test_without_a_stream_the_service_waits_for_others(folder: Path) -> None:
    with Running(MODEL + toml("b"), folder) as service:
        service.control.remove("b")
        service.control.add("a", section("a"))
        service.ends()
    assert values(folder / "a.jsonl") == sums(frames(folder))


def test_a_service_that_stays_outlives_its_sources(folder: Path) -> None:
    with Running("[service]\nstay = true\n" + MODEL + toml("c"), folder) as service:
        until(lambda: service.count("c", "stepped") == 50)
        until(lambda: service.control.service.loops["m"].is_idle)
        service.control.add("a", section("a"))
        until(lambda: service.count("a", "delivered") == 300)
    assert values(folder / "a.jsonl") == sums(frames(folder))


def test_a_stream_that_never_connected_is_removed_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgelstm.pipeline.service import opening as module

    hangs, opened = threading.Event(), module.open_source

    def hanging(path: str, **keys: Any) -> Any:
        if path.endswith("camera"):
            if hangs.is_set():
                threading.Event().wait(600)
            raise EdgeLstmError("no camera")
        return opened(path, **keys)

    monkeypatch.setattr(module, "open_source", hanging)
    with Running(MODEL + toml("a", rate=100), folder) as service:
        service.control.add("far", section("far", source="camera", retries=9, retry=0.01))
        hangs.set()
        time.sleep(0.1)
        before = time.monotonic()
        service.control.remove("far")
        assert time.monotonic() - before < 5

        def slow() -> None:
            with pytest.raises(EdgeLstmError):
                service.control.add("slow", section("slow", source="camera"))

        one = threading.Thread(target=slow, daemon=True)
        one.start()  # hangs in its source: nobody waits for it
        until(lambda: "slow" in service.control._coming)
        service.control.remove("slow")
        service.control.add("c", section("c"))
        until(lambda: service.count("c", "delivered") == 50)


def test_a_source_that_hangs_when_it_is_opened_again_holds_nobody_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hang_after it is told, and the service stops at once while it is waited for."""
    from edgelstm.pipeline.service import opening

    opened, gate = opening.open_source, threading.Event()
    text = MODEL + toml("a", rate=200) + toml("b", rate=200, retries=9, hang_after=0.5)
    try:
        with Running(text, folder) as service:
            until(lambda: service.count("b", "stepped") > 5)

            def hanging(path: str, **keys: Any) -> Any:
                gate.wait(60)
                return opened(path, **keys)

            monkeypatch.setattr(opening, "open_source", hanging)
            changed = section("b", rate=200, retries=9, hang_after=0.5, sink=[])
            service.control.configure("b", changed)
            assert service.control.find("b")[0].section == changed
            service.control.remove("b")

            def add() -> None:
                with suppress(EdgeLstmError):
                    service.control.add("c", section("c"))

            adds = threading.Thread(target=add)
            adds.start()
            service.pipeline.stop()
            service.ends()
            adds.join(60)
            assert not adds.is_alive()
        found = values(folder / "a.jsonl")
        assert found == sums(frames(folder))[: len(found)]
    finally:
        gate.set()


def test_a_policy_changes_while_the_stream_goes_on(folder: Path) -> None:
    with Running(MODEL + toml("a", rate=1000), folder) as service:
        until(lambda: service.count("a", "stepped") > 10)
        channel, _ = service.control.find("a")
        service.control.configure("a", section("a", rate=1000, gap="reset", deadline=2.0, queue=9))
        assert service.control.find("a")[0] is channel
        (member,) = channel.mine()
        assert (member.rules.gap.word, member.pulse.deadline) == ("reset", 2.0)
        service.ends()
    assert values(folder / "a.jsonl") == sums(frames(folder))


def test_other_keys_open_the_source_again_and_keep_the_state(folder: Path) -> None:
    with Running(MODEL + toml("a", rate=1000), folder) as service:
        until(lambda: service.count("a", "stepped") > 10)
        service.control.configure("a", section("a", rate=1500, sink=["a.jsonl", "more.jsonl"]))
        report = service.ends()
    assert values(folder / "a.jsonl") == sums(frames(folder)), "each frame once, the state went on"
    more = values(folder / "more.jsonl")
    assert more == sums(frames(folder))[-len(more) :]
    assert report.streams["a"]["stepped"] == 300, "counters go on"


def test_a_stream_that_is_being_changed_or_removed_still_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment it is not there. One of its name that was added then shared its state, and ended the model for all others."""
    with Running(MODEL + toml("a", rate=500) + toml("b", rate=50, sink=[]), folder) as service:
        control, close = service.control, Control._close
        refused: list[str] = []

        def add() -> None:
            try:
                control.add("a", section("a", sink=[]))
            except TakenName:
                refused.append("a")

        def closing(self: Control, writers: Any) -> None:
            adds.append(threading.Thread(target=add))
            adds[-1].start()
            until(lambda: "a" in control._coming or not adds[-1].is_alive())
            close(self, writers)

        monkeypatch.setattr(Control, "_close", closing)
        adds: list[threading.Thread] = []
        until(lambda: service.count("a", "stepped") > 5)
        control.configure("a", section("a", rate=1000, sink=["a.jsonl", "more.jsonl"]))
        adds[0].join(60)
        assert refused == ["a"]
        until(lambda: service.count("a", "stepped") == 300)
        control.remove("a")
        adds[1].join(60)
        assert refused == ["a", "a"]
        assert service.control.service.loops["m"].error is None
    assert values(folder / "a.jsonl") == sums(frames(folder))


def test_two_changes_before_a_frame_lose_none(folder: Path) -> None:
    """The first set another rate, by which the frames are stamped: those behind the second were late for the old stamp, eight of them."""
    with Running(MODEL + toml("a", rate=100), folder) as service:
        until(lambda: service.count("a", "stepped") > 10)
        service.control.pause("a")
        service.control.configure("a", section("a", rate=2000))
        service.control.configure("a", section("a", rate=2000, cut="reset", cut_above=1e6))
        service.control.resume("a")
        report = service.ends()
    assert values(folder / "a.jsonl") == sums(frames(folder))
    assert report.streams["a"]["stepped"] == 300


def test_another_preprocessing_begins_anew_and_delivers_nothing_twice(folder: Path) -> None:
    """As after a restart: all frames of the file were read once more."""
    with Running(MODEL + toml("a", rate=100), folder) as service:
        until(lambda: service.count("a", "stepped") > 10)
        service.control.configure("a", section("a", rate=2000, preprocess="scale=2"))
        report = service.ends()
    x = frames(folder)
    fits = [k for k in range(1, 300) if values(folder / "a.jsonl") == sums(x[:k]) + sums(2 * x[k:])]
    assert len(fits) == 1
    assert (report.streams["a"]["stepped"], report.streams["a"]["reset:changed"]) == (300, 1)


def test_times_count_on_from_where_the_sinks_began_though_the_source_is_opened_again(folder: Path) -> None:
    """Of a live source, which says when it began: each time it was opened, its frames were as early as the first."""

    def camera() -> Any:
        while True:
            time.sleep(0.005)
            yield np.array(1, np.float32)

    given = {"source": "python:x", "sink": ["a.jsonl", "a.npz"]}
    service = Running(MODEL + toml("a", **given), folder)
    service.pipeline._given = {"x": camera}
    with service:
        until(lambda: service.count("a", "delivered") > 20)
        service.control.configure("a", section("a", cut="reset", cut_above=100.0, **given))
        before = service.count("a", "delivered")
        until(lambda: service.count("a", "delivered") > before + 20)
    times = [json.loads(line)["time"] for line in (folder / "a.jsonl").read_text().splitlines()]
    assert times == sorted(times)
    with np.load(folder / "a.npz") as file:
        assert file["time"].tolist() == times


def test_another_source_begins_anew(folder: Path) -> None:
    with Running(MODEL + toml("a", rate=1000), folder) as service:
        until(lambda: service.count("a", "stepped") > 10)
        service.control.configure("a", section("a", source="c.npy"))
        service.ends()
    assert values(folder / "a.jsonl")[-50:] == sums(frames(folder, "c"))


def test_a_section_that_does_not_work_leaves_the_old_one(folder: Path) -> None:
    with Running(MODEL + toml("a", rate=1000), folder) as service:
        with pytest.raises(EdgeLstmError):
            service.control.configure("a", section("a", rate=1000, source="nothing.npy"))
        with pytest.raises(EdgeLstmError):
            service.control.configure("a", section("a", rate=1000, sink="no/such/folder/a.jsonl"))
        report = service.ends()
    assert not report.failed
    assert values(folder / "a.jsonl") == sums(frames(folder))


def test_a_step_that_hangs_is_said(folder: Path) -> None:
    zoo.running_sum().save(folder / "s.onnx")
    with Runner.open(folder / "s.onnx", threads=1) as runner:
        loop = Loop("m", runner, 1, 0.0)
        assert loop.ask(lambda: 7).result(0) == 7, "nothing runs: done at once"
        with pytest.raises(ZeroDivisionError):
            loop.ask(lambda: 1 // 0).result(0)


def write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def test_a_changed_file_touches_what_changed_and_nothing_else(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "pipeline.toml"
    head = "[service]\nreload = true\n" + MODEL
    write(path, head + toml("a", rate=300) + toml("b", rate=50, sink=[]))
    with caplog.at_level(logging.INFO, "edgelstm"), Running(path, folder) as service:
        inner = service.control.service
        untouched, old = (service.control.find(n)[0] for n in "ab")
        write(path, head + toml("a", rate=300) + toml("b", rate=60, sink=[]) + toml("c"))
        until(lambda: service.count("c", "delivered") == 50)
        until(lambda: "read again" in caplog.text)
        assert service.control.find("a")[0] is untouched
        assert service.control.find("b")[0] is not old
        write(path, head + "[streams.a]\nsauce = 3\n")
        until(lambda: "is not taken over, the old one goes on" in caplog.text)
        assert "line 7: streams.a.sauce" in caplog.text
        assert {c.name for c in inner.channels} == {"a", "b", "c"}
        write(path, head + toml("a", rate=300))
        until(lambda: [c.name for c in inner.channels] == ["a"])
        service.ends()
    assert values(folder / "a.jsonl") == sums(frames(folder))


def test_what_fails_is_tried_with_the_next_version(folder: Path) -> None:
    path = folder / "pipeline.toml"
    write(path, MODEL + toml("a", rate=100))
    with Running(path, folder) as service:
        write(path, MODEL + toml("a", rate=100) + toml("late"))
        failed = service.pipeline.reload()
        assert set(failed) == {"stream late"}
        np.save(folder / "late.npy", np.zeros(3, np.float32))
        assert service.pipeline.reload() == {}
        until(lambda: service.count("late", "delivered") == 3)


def test_another_model_takes_over(folder: Path) -> None:
    path = folder / "pipeline.toml"
    zoo.lstm().save(folder / "other.onnx")
    write(path, MODEL + toml("a", rate=1000))
    with Running(path, folder) as service:
        until(lambda: service.count("a", "stepped") > 10)
        write(path, MODEL.replace("sum.onnx", "other.onnx") + toml("a", rate=1000))
        assert "model m" in service.pipeline.reload(), "its frames are others"
        write(path, MODEL + "threads = 1\n" + toml("a", rate=1000))
        assert service.pipeline.reload() == {}
        report = service.ends()
    assert not report.failed
    assert values(folder / "a.jsonl") == sums(frames(folder)), "the same file: the state went on"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_a_hangup_reads_the_file_again(folder: Path) -> None:
    path = folder / "pipeline.toml"
    write(path, MODEL + toml("a", rate=20))
    process = subprocess.Popen(
        [sys.executable, "-m", "edgelstm", "serve", str(path)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "streams: a" in line:
                break
        write(path, MODEL + toml("c") + toml("a", rate=20))
        os.kill(process.pid, signal.SIGHUP)
        until(lambda: (folder / "c.jsonl").exists() and len(values(folder / "c.jsonl")) == 50)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("isolate", ["none", "process"])
def test_postprocessing_that_is_refused_changes_nothing(folder: Path, isolate: str) -> None:
    with Running(MODEL + toml("b", rate=400, isolate=isolate), folder) as service:
        until(lambda: service.count("b", "stepped") > 5)
        for post in ("nope", "overlap_add=0", "mask_spectrum", "z:threshold=1"):
            with pytest.raises(EdgeLstmError):
                service.control.configure("b", section("b", rate=400, isolate=isolate, postprocess=post))
        count = service.count("b", "delivered")
        until(lambda: service.count("b", "delivered") > count + 5)
        assert service.control.service.channels[0].section.postprocess is None
    found = values(folder / "b.jsonl")
    assert found == sums(frames(folder, "b"))[: len(found)]


def test_postprocessing_that_fails_costs_its_outputs_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises: the state goes on, the model's other streams too."""
    from edgelstm.pipeline.outputs import Outputs

    made = Outputs.__call__

    def fails(self: Outputs, outputs: Any, raw: Any = None, stream: str | None = None) -> Any:
        if stream == "b" and float(raw) > 0:
            raise ValueError("a bug")
        return made(self, outputs, raw, stream)

    monkeypatch.setattr(Outputs, "__call__", fails)
    with Running(MODEL + toml("a", limit=40) + toml("b", limit=40), folder) as service:
        report = service.ends()
    assert report.failed == {}
    assert report.streams["a"]["delivered"] == 40
    b = report.streams["b"]
    assert (b["stepped"], b["delivered"] + b["undelivered:postprocess"]) == (40, 40)
    assert 0 < b["delivered"] < 40
