"""Policies: what is stepped, dropped, filled and reset is what was declared, and one stream's fault is nobody else's."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import frame, member, stream

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.checkpoint import StreamPart
from edgelstm.pipeline.service.counters import Counts, is_worth_a_line
from edgelstm.pipeline.service.feed import Arrived, Feed, Wake
from edgelstm.pipeline.service.loop import Loop
from edgelstm.pipeline.service.policies import Clock, GapRule
from edgelstm.runtime.runner import Runner

START = 3.0  # of zoo.running_sum


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    path = tmp_path_factory.mktemp("model") / "sum.onnx"
    zoo.running_sum().save(path)
    with Runner.open(path, streams=8, threads=1, on_bad_frame="pass") as opened:
        yield opened


def sums(values: list[float], start: float = START) -> list[float]:
    return [2 * (start + s) for s in np.cumsum(values)]


def one(runner: Runner, frames: list[tuple[float, float]], **policies: Any) -> tuple[Any, Any]:
    made, heard = stream(runner, {"a": (frames, policies)})["a"]
    return made.counts.to_json(), heard


def test_hold_goes_on_behind_a_gap(runner: Runner) -> None:
    counts, heard = one(runner, [(0, 1), (1, 1), (9, 1)], max_gap=2)
    assert heard.values == sums([1, 1, 1])
    assert (counts["gaps"], counts["stepped"]) == (1, 3)


def test_reset_begins_anew_behind_a_gap(runner: Runner) -> None:
    counts, heard = one(runner, [(0, 1), (1, 1), (9, 1), (10, 1)], gap="reset", max_gap=2)
    assert heard.values == sums([1, 1]) + sums([1, 1])
    assert counts["reset:gap"] == 1


def test_a_step_of_exactly_max_gap_is_none(runner: Runner) -> None:
    counts, _ = one(runner, [(0, 1), (2, 1)], gap="reset", max_gap=2)
    assert "gaps" not in counts


def test_a_step_of_max_gap_in_a_time_since_1970_is_none(runner: Runner) -> None:
    """Every other one was longer, by the rounding of such a time, and began the state anew."""
    stamps = [1.7e9 + 0.1 * k for k in range(200)]
    assert max(b - a for a, b in pairwise(stamps)) > 0.1
    counts, _ = one(runner, [(stamp, 1) for stamp in stamps], gap="reset", max_gap=0.1)
    assert "gaps" not in counts


def test_repeat_steps_the_last_frame_for_each_missing_one(runner: Runner) -> None:
    frames = [(0, 1), (1, 5), (2, 7), (6, 1)]  # 3, 4 and 5 are missing
    counts, heard = one(runner, frames, gap="repeat:10", max_gap=2)
    assert heard.values == [*sums([1, 5, 7]), 2 * (START + 13 + 3 * 7 + 1)]
    assert heard.frames == [0, 1, 2, 3], "what stands in for a frame is delivered nowhere"
    assert (counts["filled"], counts["stepped"]) == (3, 4)
    counts, heard = one(runner, frames, gap="repeat:2", max_gap=2)
    assert counts["filled"] == 2
    assert heard.values[-1] == 2 * (START + 13 + 2 * 7 + 1)


def test_blank_steps_zeros(runner: Runner) -> None:
    counts, heard = one(runner, [(0, 1), (1, 5), (6, 1)], gap="blank:9", max_gap=2)
    assert counts["filled"] == 4
    assert heard.values == sums([1, 5, 1])


@pytest.mark.parametrize("late", ["drop", "step", "reset"])
def test_late_and_duplicate_frames(runner: Runner, late: str) -> None:
    counts, heard = one(runner, [(0, 1), (2, 2), (2, 4), (1, 8), (3, 16)], late=late)
    if late == "drop":
        assert (counts["dropped:duplicate"], counts["dropped:late"]) == (1, 1)
        assert heard.values == sums([1, 2, 16])
    elif late == "step":
        assert counts["stepped_late"] == 2
        assert heard.values == sums([1, 2, 4, 8, 16])
    else:
        assert (counts["reset:duplicate"], counts["reset:late"]) == (1, 1)
        assert heard.values == [*sums([1, 2]), *sums([4]), *sums([8, 16])]


def test_a_clock_that_was_set_back_is_a_gap_and_not_the_end(runner: Runner) -> None:
    back = [(t, 1.0) for t in (100, 101, 102, 0, 1, 2)]
    counts, heard = one(runner, back, gap="reset", max_gap=5)
    assert counts["reset:gap"] == 1
    assert heard.values == sums([1, 1, 1]) * 2
    longer = [*back[:3], *((t / 10, 1.0) for t in range(30))]
    counts, _ = one(runner, longer)
    assert (counts["dropped:late"], counts["gaps"]) == (8, 1), "without max_gap after 8 in a row"


def test_a_camera_that_hangs_on_one_stamp_is_not_stepped(runner: Runner) -> None:
    counts, heard = one(runner, [(0, 1), *[(1, 1)] * 50])
    assert counts["dropped:duplicate"] == 49
    assert len(heard.frames) == 2


@pytest.mark.parametrize("stamp", [math.nan, math.inf])
def test_a_stamp_that_is_no_time_is_dropped(runner: Runner, stamp: float) -> None:
    counts, heard = one(runner, [(0, 1), (stamp, 1), (1, 1)])
    assert counts["dropped:no_time"] == 1
    assert heard.frames == [0, 2]


def test_bad_frames(runner: Runner) -> None:
    frames = [(float(t), math.nan if t == 5 else 1.0) for t in range(8)]
    for bad, after in (("skip", 5.0), ("rollback", 3.0), ("reset", 0.0)):
        counts, heard = one(runner, frames, bad=bad, keep=3)
        assert counts["dropped:not_finite"] == 1
        assert heard.values == [*sums([1] * 5), *sums([1, 1], START + after)], bad


def test_no_window_closes_over_a_bad_frame(tmp_path: Path) -> None:
    """It begins anew behind it, as `run --on-bad-frame skip` leaves out the windows that hold it."""
    from edgelstm.passes.unroll import unroll

    unroll(zoo.running_sum(), 4).save(tmp_path / "window.onnx")
    with Runner.open(tmp_path / "window.onnx") as windows:
        frames = [(float(t), math.nan if t == 6 else float(t)) for t in range(16)]
        counts, heard = one(windows, frames)
        assert heard.frames == [3, 10, 14], "0 to 3, 7 to 10, 11 to 14"
        assert counts["dropped:not_finite"] == 1
        assert counts["read"] == counts["stepped"] + counts["gathered"] + 1


def test_a_bad_state_is_caught_within_its_frame(runner: Runner) -> None:
    """1e38 four times is beyond float32 though every frame is finite."""
    big = 1.5e38
    frames = [(0, 1), (1, 1), (2, 1), (3, 1), (4, big), (5, big), (6, big), (7, -2 * big), (8, 1)]
    counts, heard = one(runner, frames, bad="skip")
    assert counts["guard:state"] == 1
    assert heard.frames == [0, 1, 2, 3, 4, 5, 7, 8], "the third makes infinity and is undone"
    counts, heard = one(runner, frames[:7], bad="rollback", keep=3)
    assert counts["dropped:state"] == 1
    counts, heard = one(runner, [*frames[:7], (7, 1)], bad="reset")
    assert heard.values[-1] == sums([1])[0]


def test_a_range_is_kept(runner: Runner) -> None:
    counts, heard = one(runner, [(0, 1), (1, 100), (2, 1)], ranges={"s": (-10, 10)})
    assert counts["guard:range"] == 1
    assert heard.values == sums([1, 1])


def test_a_state_that_is_spoilt_again_and_again_is_reset(runner: Runner) -> None:
    """Else a state at the edge of its range would refuse every frame for ever."""
    frames = [(0, 6.9), *[(float(t), 1.0) for t in range(1, 12)]]
    counts, heard = one(runner, frames, ranges={"s": (-10, 10)})
    assert counts["guard:range"] == 8
    assert heard.frames == [0, 9, 10, 11]
    assert heard.values[1:] == sums([1, 1, 1])


FRAMES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 30).map(float), st.just(math.nan)),
        st.sampled_from([1.0, 2.0, -1.0, 0.5, math.nan, math.inf]),
    ),
    max_size=25,
)
POLICIES = st.fixed_dictionaries(
    {
        "gap": st.sampled_from(["hold", "reset", "repeat:2", "blank:3"]),
        "late": st.sampled_from(["drop", "step", "reset"]),
        "bad": st.sampled_from(["skip", "rollback", "reset"]),
        "max_gap": st.sampled_from([None, 1.0, 4.0]),
        "overload": st.sampled_from(["block", "drop_oldest", "latest"]),
    }
)
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(st.lists(st.tuples(FRAMES, POLICIES), min_size=1, max_size=4))
def test_nothing_is_lost_or_delivered_twice_and_streams_do_not_meet(
    runner: Runner, streams: list[tuple[Any, Any]]
) -> None:
    """Each stream beside the others is what it is alone, bit for bit, counters too; every frame is accounted for."""
    together = stream(runner, {f"s{k}": given for k, given in enumerate(streams)})
    for k, given_alone in enumerate(streams):
        made, heard = together[f"s{k}"]
        alone, heard_alone = stream(runner, {"s": given_alone})["s"]
        assert heard == heard_alone
        counts = made.counts
        assert counts.to_json() == alone.counts.to_json()
        assert counts["read"] == len(given_alone[0]) == counts["stepped"] + counts.total("dropped")
        assert counts["delivered"] == counts["stepped"] == len(heard.frames)
        assert heard.frames == sorted(set(heard.frames))
        assert all(map(math.isfinite, heard.values))


@SETTINGS
@given(
    st.sampled_from(["drop_oldest", "latest"]),
    st.integers(1, 5),
    st.lists(st.sampled_from(["put", "take", "gap", "lose"]), max_size=40),
)
def test_a_full_queue_gives_way_as_declared(overload: Any, size: int, actions: list[str]) -> None:
    """Against a list: newest frames stay, in order, and what was said before a dropped frame is said before the next."""
    counts = Counts()
    feed = Feed(size, overload, counts, Wake())
    wanted: list[tuple[int, bool, bool]] = []
    put, away = 0, False
    for action in actions:
        if action == "take":
            taken = feed.take()
            expected = wanted.pop(0) if wanted else None
            found = taken and (taken.frame.index, taken.frame.gap is not None, taken.returned)
            assert (found or None) == expected
        elif action == "lose":
            assert feed.lose() is not away
            away = True
        else:
            feed.put(Arrived(frame(put, 0, "gap" if action == "gap" else None), 0.0, 0.0))
            wanted.append((put, action == "gap", away))
            put, away = put + 1, False
            while len(wanted) > (1 if overload == "latest" else size):
                _, gap, returned = wanted.pop(0)
                index, own, back = wanted[0]
                wanted[0] = (index, own or gap, back or returned)
    assert counts["read"] == put
    assert len(feed) == len(wanted)


def test_block_holds_the_source_up_and_loses_nothing() -> None:
    feed = Feed(2, "block", Counts(), Wake())
    thread = threading.Thread(
        target=lambda: [feed.put(Arrived(frame(k, 0), 0.0, 0.0)) for k in range(50)], daemon=True
    )
    thread.start()
    seen: list[int] = []
    while len(seen) < 50:
        taken = feed.take()
        assert len(feed) <= 2
        if taken is not None:
            seen.append(taken.frame.index)
    thread.join(60)
    assert seen == list(range(50))


def test_a_source_held_up_is_let_go_at_the_end() -> None:
    feed = Feed(1, "block", Counts(), Wake())
    feed.put(Arrived(frame(0, 0), 0.0, 0.0))
    taken: list[bool] = []
    thread = threading.Thread(
        target=lambda: taken.append(feed.put(Arrived(frame(1, 0), 0.0, 0.0))), daemon=True
    )
    thread.start()
    feed.end()
    thread.join(60)
    assert taken == [False]


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40), st.sampled_from([None, 1.0]))
def test_a_clock_never_steps_back_without_saying_so(stamps: list[float], max_gap: float | None) -> None:
    clock = Clock(GapRule.parse("repeat:5"), "drop", max_gap)
    last: float | None = None
    for stamp in stamps:
        verdict = clock.arrived(stamp)
        assert verdict.fill <= 5
        if verdict.drop is None:
            assert math.isfinite(stamp)
            assert last is None or stamp > last or verdict.gap
            last = stamp


@pytest.mark.parametrize("text", ["", "repeat", "repeat:0", "repeat:-1", "reset:3", "blank:99999", "hold "])
def test_a_gap_policy_that_is_none(text: str) -> None:
    with pytest.raises(EdgeLstmError, match="expected reset, hold, repeat:N or blank:N"):
        GapRule.parse(text)


def test_a_fault_in_every_frame_gets_a_line_now_and_then() -> None:
    assert [n for n in range(1, 2001) if is_worth_a_line(n)] == [1, 10, 100, 1000]


@pytest.mark.parametrize("loss", ["keep", "reset_on_loss", "reset_on_return"])
def test_a_source_that_was_lost_and_returned(runner: Runner, loss: Any) -> None:
    for name in runner.streams:
        runner.stream(name).close()
    loop = Loop("m", runner, 8, 0.0)
    made, heard = member(loop, "a", loss=loss)
    loop.add(made)
    made.feed.put(Arrived(frame(0, 1), 0.0, 0.0))
    made.feed.put(Arrived(frame(1, 1), 1.0, 0.0))
    assert made.feed.lose()
    made.feed.put(Arrived(frame(2, 1), 2.0, 0.0))
    made.feed.end()
    loop.run()
    assert loop.error is None
    assert heard.values == (sums([1, 1, 1]) if loss == "keep" else [*sums([1, 1]), *sums([1])])
    assert (made.counts["lost"], made.counts["returned"]) == (1, 1)
    assert made.counts.total("reset") == (loss != "keep")


def test_reset_on_loss_does_not_wait_for_the_return(runner: Runner) -> None:
    for name in runner.streams:
        runner.stream(name).close()
    loop = Loop("m", runner, 8, 0.0)
    made, _ = member(loop, "a", loss="reset_on_loss")
    made.join(runner)
    runner.step({"a": frame(0, 5).data})
    made.feed.lose()
    made.check_loss(0.0)
    made.check_loss(0.0)
    assert runner.stream("a").snapshot()["s"] == START
    assert made.counts["reset:loss"] == 1


@pytest.mark.parametrize("how", ["asked", "loss"])
def test_a_state_that_waits_for_its_first_frame_is_reset_too(runner: Runner, how: str) -> None:
    """After a restart, before the source has come back: what the checkpoint had must not come back with it."""
    for name in runner.streams:
        runner.stream(name).close()
    loop = Loop("m", runner, 8, 0.0)
    made, heard = member(loop, "a", loss="reset_on_loss")
    made.resume(StreamPart(6, 6.0, {"read": 7, "stepped": 7}, {"s": np.float32(99)}))
    if how == "asked":
        made.reset("asked")
    else:
        made.feed.lose()
        made.check_loss(0.0)
    part = made.part()
    assert part is not None
    assert (part.index, part.states["s"]) == (6, START), "and so a checkpoint of now"
    made.feed.put(Arrived(frame(7, 5), 7.0, 0.0))
    made.feed.end()
    loop.add(made)
    loop.run()
    assert heard.values == sums([5])
    assert made.counts[f"reset:{how}"] == 1


@pytest.mark.parametrize("gap", ["repeat:4", "blank:4"])
def test_nothing_stands_in_for_what_was_missing_before_the_state_began_anew(runner: Runner, gap: str) -> None:
    """A source that was away: the state began anew with its return, and then took four frames of before."""
    for name in runner.streams:
        runner.stream(name).close()
    loop = Loop("m", runner, 8, 0.0)
    made, heard = member(loop, "a", gap=gap, max_gap=2, loss="reset_on_return")
    loop.add(made)
    made.feed.put(Arrived(frame(0, 1), 0.0, 0.0))
    made.feed.lose()
    for index, (stamp, value) in enumerate([(6, 3), (7, 4), (10, 5)], 1):
        made.feed.put(Arrived(frame(index, value), float(stamp), 0.0))
    made.feed.end()
    loop.run()
    filler = 4 if gap[0] == "r" else 0
    assert heard.values == [*sums([1]), *sums([3, 4]), sums([3, 4, filler, filler, 5])[-1]]
    assert (made.counts["unfilled:reset"], made.counts["filled"]) == (4, 2)


@given(st.integers(0, 6), st.sampled_from(["repeat:4", "blank:4"]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_reset_amid_frames_that_stand_in(runner: Runner, when: int, gap: str) -> None:
    """Whenever it comes, the state is that of the frames which came after it, in a checkpoint too."""
    for name in runner.streams:
        runner.stream(name).close()
    loop = Loop("m", runner, 8, 0.0)
    made, heard = member(loop, "a", gap=gap, max_gap=2)
    for index, (stamp, value) in enumerate([(0, 1), (1, 2), (6, 3), (7, 4)]):
        made.feed.put(Arrived(frame(index, value), float(stamp), 0.0))
    made.feed.end()
    loop.add(made)
    real = [1.0, 2.0, *([2.0] if gap[0] == "r" else [0.0]) * 4, 3.0, 4.0]
    for _ in range(when):
        loop._round([(made, made.take())])
    made.reset("asked")
    part = made.part()
    assert part is None or part.states["s"] == START
    loop.run()
    left = [*real[when:2], *(real[2:6] if when < 2 else []), *real[max(when, 6) :]]
    assert heard.values[-1] == sums(left)[-1]
    counts = made.counts.to_json()
    assert counts["read"] == counts["stepped"] == 4
    assert counts.get("filled", 0) + counts.get("unfilled:reset", 0) == 4
