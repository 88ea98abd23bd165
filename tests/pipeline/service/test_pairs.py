"""Several sources as one, scene cuts, and sources that fall silent."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from edgelstm import EdgeLstmError, Pipeline, Runner
from edgelstm.pipeline import Frame, Source
from edgelstm.pipeline.service.pair import pair
from edgelstm.pipeline.service.scene import Scene

pytest.importorskip("pydantic")

from running import MODEL, Running, folder_of_sums, toml, until


def source(times: Sequence[float], breaks: bool = False, gap: int = -1) -> Source:
    def frames() -> Iterator[Frame]:
        for k, t in enumerate(times):
            yield Frame(k, t, str(k), np.array([k], np.float32), gap="lost" if k == gap else None)
        if breaks:
            raise OSError("gone")

    return Source("test", frames)


def paired(
    left: Sequence[float], right: Sequence[float], within: float
) -> tuple[list[tuple[int, int]], Counter[str]]:
    lost: Counter[str] = Counter()

    def count(name: str, index: int) -> None:
        lost[name] += 1

    found = []
    both = pair({"left": source(left), "right": source(right)}, within, count)
    with suppress(EdgeLstmError), both:  # where there is no pair
        for f in both:
            found.append((int(f.data["left"][0]), int(f.data["right"][0])))  # type: ignore[call-overload]
    return found, lost


@pytest.mark.parametrize("earlier", [0, 1, 3])
def test_a_clock_that_is_set_back_costs_the_frames_between(earlier: int) -> None:
    """Both clocks go back by an hour, one of them some frames before the other: what has no partner is dropped, and no more."""
    before, behind = [k * 0.1 for k in range(20)], [k * 0.1 - 3600 for k in range(60)]
    early = before[: 20 - earlier] + [k * 0.1 - 3600 for k in range(-earlier, 60)]
    for left, right in ((before + behind, early), (early, before + behind)):
        found, lost = paired(left, right, 0.02)
        assert found == [(k, k) for k in range(80) if not 20 - earlier <= k < 20]
        assert lost == ({"left": earlier, "right": earlier} if earlier else {})


def test_frames_of_one_time_go_together_and_others_are_dropped() -> None:
    found, lost = paired([0, 1, 2, 3, 5], [0.01, 0.99, 2.2, 3.0, 4, 5.01], 0.02)
    assert found == [(0, 0), (1, 1), (3, 3), (4, 5)]
    assert lost == {"left": 1, "right": 2}


def test_a_gap_before_a_frame_without_a_partner_is_before_the_next_pair() -> None:
    both = pair({"left": source([0, 1, 2, 3], gap=1), "right": source([0, 2, 3])}, 0.1)
    with both:
        assert [f.gap for f in both] == [None, "lost", None]


def test_the_nearest_is_taken() -> None:
    """The first of the right is near enough, the second nearer."""
    found, lost = paired([1.0, 2.0], [0.985, 1.001, 2.0], 0.02)
    assert found == [(0, 1), (1, 2)]
    assert lost == {"right": 1}


TIMES = st.lists(st.integers(1, 30), min_size=1, max_size=30).map(
    lambda steps: [s / 100 for s in np.cumsum(steps).tolist()]
)


@settings(max_examples=80, deadline=None)
@given(TIMES, TIMES, st.sampled_from([0.005, 0.02, 0.1]))
def test_pairs_are_in_order_near_in_time_and_the_same_every_time(
    left: list[float], right: list[float], within: float
) -> None:
    found, lost = paired(left, right, within)
    assert all(abs(left[a] - right[b]) <= within + 1e-9 for a, b in found)
    assert found == sorted(found)
    assert len({a for a, _ in found}) == len({b for _, b in found}) == len(found)
    # What lies behind the end of the other is not read to its end.
    assert len(found) + lost["left"] <= len(left)
    assert len(found) + lost["right"] <= len(right)
    assert min(len(left) - len(found) - lost["left"], len(right) - len(found) - lost["right"]) == 0
    assert paired(left, right, within)[0] == found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-0.02, 0.02), st.floats(-0.02, 0.02)), min_size=1, max_size=25))
def test_two_cameras_of_one_rate_lose_nothing(jitter: list[tuple[float, float]]) -> None:
    left = [k * 0.1 + a for k, (a, _) in enumerate(jitter)]
    right = [k * 0.1 + b for k, (_, b) in enumerate(jitter)]
    found, lost = paired(left, right, 0.041)
    assert found == [(k, k) for k in range(len(jitter))]
    assert not lost


def test_sources_that_never_meet_are_an_error() -> None:
    with (
        pair({"left": source([0, 1]), "right": source([0.5, 1.5])}, 0.1) as both,
        pytest.raises(
            EdgeLstmError, match=r"no two frames of one time: expected times that differ by at most 0\.1 s"
        ),
    ):
        list(both)


def test_one_that_fails_fails_the_pair() -> None:
    with (
        pair({"left": source([0, 1, 2], breaks=True), "right": source([0, 1, 2, 3, 4])}, 0.1) as both,
        pytest.raises(OSError, match="gone"),
    ):
        list(both)


def write(folder: Path, count: int = 40) -> None:
    zoo.two_inputs().save(folder / "model.onnx")
    for name, late in (("l", 0.0), ("r", 0.004)):
        rows = [f"{k / 10 + late},{k},{2 * k}" for k in range(count) if not (name == "r" and k in (7, 8))]
        (folder / f"{name}.csv").write_text("t,p,q\n" + "\n".join(rows) + "\n")


PAIR = """[models.m]
path = "model.onnx"
[streams.s]
source = { b = "l.csv:columns=p,q:time=t", a = "r.csv:columns=p,q:time=t" }
pair_within = 0.01
sink = "s.npz"
"""


def test_two_inputs_of_a_model_are_fed_by_two_sources(tmp_path: Path) -> None:
    write(tmp_path)
    report = Pipeline.from_text(PAIR, tmp_path).run()
    assert not report.failed
    counts = report.streams["s"]
    assert counts["unpaired:b"] == 2
    assert counts["stepped"] == counts["read"] == 38
    rows = [np.array([k, 2 * k], np.float32) for k in range(40) if k not in (7, 8)]
    with Runner.open(tmp_path / "model.onnx") as runner:
        wanted = [runner.stream("x").step({"a": x, "b": x}, copy=True)["total_next"] for x in rows]
    with np.load(tmp_path / "s.npz") as file:
        np.testing.assert_array_equal(file["total_next"], np.array(wanted))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_a_pair_of_processes_goes_on_when_one_of_them_dies(tmp_path: Path) -> None:
    write(tmp_path, 400)  # far more than are read ahead: the process that dies is not done
    text = PAIR + 'isolate = "process"\nretries = 5\nretry = 0.01\nrate = 400\n'
    with Running(text, tmp_path) as running:
        until(lambda: running.count("s", "stepped") > 3)
        reader: Any = running.control.service.channels[0].reader
        found = re.findall(r"process (\d+)", reader._source.description)
        assert len(found) == 2
        os.kill(int(found[1]), signal.SIGSEGV)
        report = running.ends()
    counts = report.streams["s"]
    assert not report.failed
    assert counts["stepped"] == counts["read"] == 398
    assert counts["lost"] == counts["returned"] == 1
    assert counts["unpaired:b"] == 2, "those before it was lost are not counted again"


def test_what_is_wrong_with_one_of_a_pair_is_said(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "n.csv").write_text("p,q\n1,2\n")
    for old, new, said in (
        ('"r.csv', '"none.csv', "stream s: a: "),
        ('columns=p,q:time=t" }', 'columns=p:time=t" }', "refused"),
        ('a = "r.csv:columns=p,q:time=t"', 'c = "r.csv:columns=p,q:time=t"', "refused"),
    ):
        assert old in PAIR
        if said == "refused":
            counts = Pipeline.from_text(PAIR.replace(old, new), tmp_path).run().streams["s"]
            assert counts["dropped:refused"] == counts["read"]
            continue
        with pytest.raises(EdgeLstmError, match=said):
            Pipeline.from_text(PAIR.replace(old, new), tmp_path).run()


def test_a_scene_cut_resets_the_state(tmp_path: Path) -> None:
    zoo.persistence(shape=(1, 48, 40)).save(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 255, (1, 48, 40)) for _ in range(3)]
    frames = [scenes[k // 10] + rng.normal(0, 3, (1, 48, 40)) for k in range(30)]
    np.save(tmp_path / "a.npy", np.array(frames, np.float32))
    text = '[models.m]\npath = "model.onnx"\n[streams.a]\nsource = "a.npy"\n{}'
    report = Pipeline.from_text(text.format('cut = "reset"\ncut_above = 15\n'), tmp_path).run()
    assert report.streams["a"] == {"read": 30, "stepped": 30, "reset:cut": 2}
    assert "reset:cut" not in Pipeline.from_text(text.format(""), tmp_path).run().streams["a"]
    with pytest.raises(EdgeLstmError, match=r"streams\.a\.cut: found cut without cut_above"):
        Pipeline.from_text(text.format('cut = "reset"\n'), tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(7,), (3, 5), (100, 90), (3, 65, 40), (130, 70, 3), (1, 1)]),
    st.sampled_from(["uint8", "uint16", "float32", "int16"]),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_a_cut_is_the_mean_difference(shape: tuple[int, ...], dtype: Any, a: int, b: int) -> None:
    scene = Scene(20)
    assert not scene.is_cut(Frame(0, None, "", np.full(shape, a, dtype)))
    assert scene.is_cut(Frame(1, None, "", np.full(shape, b, dtype))) is (abs(a - b) > 20)
    assert not scene.is_cut(
        Frame(
            2,
            None,
            "",
            np.full(shape, np.nan, np.float32) if dtype == "float32" else np.full(shape, b, dtype),
        )
    )
    assert not scene.is_cut(Frame(3, None, "", np.zeros((2, *shape), dtype)))


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_a_source_that_falls_silent_is_lost_and_returns(tmp_path: Path) -> None:
    """Its process is stopped for a while."""
    folder = folder_of_sums(tmp_path, a=2000)
    more = {"rate": 100, "isolate": "process", "lost_after": 0.5, "loss": "reset_on_loss"}
    with Running(MODEL + toml("a", **more), folder) as running:
        until(lambda: running.count("a", "stepped") > 5)
        reader: Any = running.control.service.channels[0].reader
        found = re.search(r"process (\d+)", reader._source.description)
        assert found
        before = running.count("a", "reset:loss")
        os.kill(int(found.group(1)), signal.SIGSTOP)
        until(lambda: running.count("a", "reset:loss") > before)
        assert running.count("a", "lost") == running.count("a", "returned") + 1
        os.kill(int(found.group(1)), signal.SIGCONT)
        until(lambda: running.count("a", "returned") == running.count("a", "lost"))
