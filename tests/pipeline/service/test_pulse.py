"""What a stream shows of its steps: the same numbers whoever reads them, and however often."""

from __future__ import annotations

import json
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from edgelstm import Pipeline
from edgelstm.passes.unroll import unroll
from edgelstm.pipeline import Frame
from edgelstm.pipeline.preprocess import Preprocess
from edgelstm.pipeline.service.pulse import BOUNDS, TOGETHER, Pulse
from running import Running, until
from stepping import from_text

FRAME = Frame(0, None, "0", np.zeros(2, np.float32))
SECONDS = st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(SECONDS, SECONDS, st.floats(0, 3), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 40),
)
def test_steps_are_counted_as_one_by_one(
    steps: list[tuple[float, float, float, bool]], repeated: int
) -> None:
    pulse = Pulse()
    pulse.deadline = 2.0
    counts: list[list[int]] = [[0] * (len(BOUNDS) + 1) for _ in range(2)]
    history: dict[int, list[Any]] = {}
    now, overdue = 1000.0, 0
    for seconds, age, passed, looked in steps * repeated:
        now += passed
        pulse.stepped(seconds, now - age, now)
        exact = now - (now - age)
        counts[0][bisect_left(BOUNDS, seconds)] += 1
        counts[1][bisect_left(BOUNDS, exact)] += 1
        overdue += exact > 2.0
        entry = history.setdefault(int(now), [0, 0.0, 0.0])
        entry[:] = entry[0] + 1, max(entry[1], seconds), max(entry[2], exact)
        if looked:
            assert pulse.last == (seconds, exact, now)
    assert [h.counts for h in pulse.histograms] == counts
    assert pulse.histograms[0].sum == pytest.approx(sum(s for s, *_ in steps) * repeated)
    assert pulse.overdue == overdue
    assert pulse.recent() == [(second, *entry) for second, entry in history.items()][-300:]


def test_what_nobody_reads_takes_no_more_and_no_more_memory() -> None:
    pulse = Pulse()
    for k in range(10 * TOGETHER):
        pulse.stepped(0.001, 0.0, 1.0 + k * 1e-6)
        assert len(pulse._noted) < 3 * TOGETHER
    assert sum(pulse.histograms[0].counts) == 10 * TOGETHER


def test_a_deadline_that_changes_judges_what_comes_behind_it() -> None:
    pulse = Pulse()
    pulse.deadline = 1.0
    pulse.stepped(0.1, 0.0, 2.0)
    pulse.deadline = 3.0
    pulse.stepped(0.1, 0.0, 2.0)
    assert pulse.overdue == 1


def test_frames_and_outputs_are_kept_where_somebody_may_look_alone() -> None:
    pulse, y = Pulse(), {"y": np.zeros(1, np.float32)}
    pulse.show(FRAME, {}, y)
    assert (pulse.frame, pulse.shown) == (FRAME, None)
    pulse.keeps = True
    pulse.show(FRAME, {}, y)
    assert pulse.shown is not None
    assert pulse.shown.outputs is y


def test_what_is_shown_is_what_sinks_would_get(tmp_path: Path) -> None:
    """Without a sink too, bits of bfloat16 are numbers, and postprocessing is done."""
    pytest.importorskip("fastapi")
    step = from_text(
        "g (bfloat16[N,4,4] x, float[N,4,4] s) => (bfloat16[N,4,4] y, float[N,4,4] n)"
        " { f = Cast<to=1>(x) n = Add(f, s) y = Cast<to=16>(n) }",
        s="n",
    )
    step.save(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.full((3, 4, 4), 1.5, np.float32))
    text = '[service]\nhttp = "127.0.0.1:0"\nstay = true\n[models.m]\npath = "m.onnx"\n[streams.s]\nsource = "x.npy"\n'
    for more, value in (("", 4.5), ('postprocess = "threshold=2"\n', 1.0)):
        with Running(text + more, tmp_path) as running:
            until(lambda: running.count("s", "stepped") == 3)
            service = running.pipeline._service
            assert service is not None
            shown = service.channels[0].pulses["s"].shown
            assert shown is not None
            assert shown.taken["x"].tolist() == [[1.5] * 4] * 4
            assert shown.outputs["y"].tolist() == [[value] * 4] * 4
            running.pipeline.stop()
            running.ends()


def test_a_frame_of_a_window_is_preprocessed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unroll(zoo.running_sum(), 4).save(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.arange(8, dtype=np.float64))
    done: list[Any] = []
    once = Preprocess.__call__
    monkeypatch.setattr(Preprocess, "__call__", lambda self, raw: done.append(raw) or once(self, raw))
    text = '[models.m]\npath = "m.onnx"\n[streams.s]\nsource = "x.npy"\nsink = "o.jsonl"\n'
    report = Pipeline.from_text(text, tmp_path).run()
    assert report.streams["s"] == {"delivered": 2, "gathered": 6, "read": 8, "stepped": 2}
    assert [float(raw) for raw in done] == [0, 1, 2, 3, 4, 5, 6, 7]
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    sums = np.float32(2) * (3 + np.cumsum(np.arange(8)))
    assert [line["outputs"]["y"]["values"] for line in lines] == [sums[:4].tolist(), sums[4:].tolist()]
