"""While a service runs, Python's collector goes through what is new alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import zoo
from edgelstm.pipeline.service.settled import settled
from running import MODEL, Running, folder_of_sums, section, toml, until


@pytest.fixture(autouse=True)
def thawed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests are such a program themselves."""
    monkeypatch.setattr(gc, "get_freeze_count", gc.get_freeze_count.__wrapped__)  # type: ignore[attr-defined]
    gc.unfreeze()
    yield
    gc.freeze()


class Ring:
    """Holds itself."""

    def __init__(self) -> None:
        self.own = self


def test_what_is_new_is_collected_and_everything_again_behind_it() -> None:
    assert gc.get_freeze_count() == 0
    old = Ring()
    with settled():
        assert gc.get_freeze_count() > 0
        new = Ring()
        refs = weakref.ref(old), weakref.ref(new)
        del old, new
        gc.collect()
        assert refs[0]() is not None
        assert refs[1]() is None
        with settled():  # another service in this process
            pass
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert refs[0]() is None


def test_where_the_program_did_so_itself_it_is_left_alone() -> None:
    gc.freeze()
    try:
        with settled():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_a_service_leaves_it_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pydantic")
    from edgelstm import Pipeline
    from edgelstm.pipeline.service.loop import Loop

    zoo.running_sum().save(tmp_path / "m.onnx")
    np.save(tmp_path / "a.npy", np.ones(3, np.float32))
    seen, run = [], Loop.run

    def looked(self: Loop) -> None:
        seen.append(gc.get_freeze_count())
        run(self)

    monkeypatch.setattr(Loop, "run", looked)
    text = '[models.m]\npath = "m.onnx"\n[streams.a]\nsource = "a.npy"\n'
    report = Pipeline.from_text(text, tmp_path).run()
    assert report.streams["a"]["stepped"] == 3
    assert seen[0] > 0
    assert gc.get_freeze_count() == 0


def test_a_stream_that_is_removed_leaves_nothing(tmp_path: Path) -> None:
    """What was there at the start is not looked through for cycles: a stream of then has to go without that."""
    folder_of_sums(tmp_path, a=100000, b=100000)
    text = MODEL + toml("a", rate=200) + toml("b", rate=200)
    text += '[streams.b.alarms.high]\nabove = 1e9\nsink = "alarms.jsonl"\n'
    with Running(text, tmp_path) as running:
        until(lambda: running.count("b", "stepped") > 5)
        service = running.pipeline._service
        assert service is not None
        held = []
        for name in "ab":
            (channel,) = (c for c in service.channels if c.name == name)
            each = (channel, channel.members[name], channel.reader, *channel.writers, channel.source)
            held.append([weakref.ref(one) for one in each])
        del channel, each
        gc.disable()
        try:
            running.control.configure(
                "a", section("a", rate=100)
            )  # another in its place, which has the sinks
            running.control.remove("b")
            until(lambda: not [r for refs in (held[0][:3], held[1]) for r in refs if r() is not None])
        finally:
            gc.enable()
        running.pipeline.stop()
        running.ends()
