"""A source that is opened again: every frame once, at the time that it was taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from edgelstm.pipeline import Frame, Place, Source
from edgelstm.pipeline.service.feed import Arrived
from edgelstm.pipeline.service.reader import Reader

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def source(names: list[int], timed: bool, breaks: bool) -> Source:
    """Frames taken at these minutes, after which it breaks or ends."""

    def frames() -> Iterator[Frame]:
        for index, minute in enumerate(names):
            seconds = (minute - names[0]) * 60.0 if timed else None
            yield Frame(index, seconds, str(minute), np.zeros(2, np.float32))
        if breaks:
            raise OSError("the share is gone")

    start = START + timedelta(minutes=names[0]) if timed else None
    return Source("test", frames, place=Place(start=start))


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize(
    ("first", "again"),
    [([0, 1, 2], [0, 1, 2, 3, 4]), ([0, 1, 2], [2, 3, 4]), ([0], [0]), ([0, 1, 2], [7])],
)
def test_opened_again(timed: bool, first: list[int], again: list[int]) -> None:
    opened = iter([source(first, timed, True), source(again, timed, False)])
    came: list[Arrived] = []
    elsewhere: list[int] = []
    lost: list[int] = []
    reader = Reader(
        "test",
        lambda: next(opened),
        lambda a: came.append(a) or True,  # type: ignore[func-returns-value]
        retries=1,
        retry=0.001,
        lost=lambda: lost.append(len(came)),
        ended=lambda: None,
        elsewhere=lambda: elsewhere.append(len(came)),
    )
    reader.start()
    reader.join(60)
    assert reader.error is None
    assert lost == [len(first)]
    names = [int(a.frame.name) for a in came]
    if timed or first[0] == again[0]:
        assert names == sorted({*first, *again}), "each once"
        assert not elsewhere
    else:
        assert names == first + again, "by number nobody can tell which were seen"
        assert elsewhere == [len(first)]
    if timed:
        assert [a.stamp for a in came] == [START.timestamp() + 60 * m for m in names]
        assert [a.frame.time for a in came] == [60.0 * m for m in names], (
            "from the first start, which sinks know"
        )


def test_a_gap_before_a_frame_that_is_left_out_is_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a live source that is quicker than ``rate``: what it lost on the way was forgotten with the frame that told."""
    gaps = [None, "lost", None, None, "again", None]
    frames = [Frame(k, None, str(k), np.zeros(2, np.float32), gap=gap) for k, gap in enumerate(gaps)]
    due = iter([True, False, False, True, True, True])
    came: list[Arrived] = []
    reader = Reader(
        "test",
        lambda: Source("test", lambda: iter(frames), live=True),
        lambda a: came.append(a) or True,  # type: ignore[func-returns-value]
        rate=1.0,
        lost=lambda: None,
        ended=lambda: None,
        elsewhere=lambda: None,
    )
    monkeypatch.setattr(reader, "_is_due", lambda: next(due))
    reader.start()
    reader.join(60)
    assert [(a.frame.index, a.frame.name, a.frame.gap) for a in came] == [
        (0, "0", None), (1, "3", "lost"), (2, "4", "again"), (3, "5", None),
    ]  # fmt: skip


def test_frames_without_a_time_are_stamped_by_a_clock_that_outlives_the_machine() -> None:
    """``time.monotonic`` is less after the machine was started again: the first frames were late for a checkpoint's, and dropped."""
    came: list[Arrived] = []
    reader = Reader(
        "test",
        lambda: source([0, 1], False, False),
        lambda a: came.append(a) or True,  # type: ignore[func-returns-value]
        lost=lambda: None,
        ended=lambda: None,
        elsewhere=lambda: None,
    )
    before = time.time()
    reader.start()
    reader.join(60)
    assert [before - 1 < a.stamp < time.time() + 1 for a in came] == [True, True]


def test_two_frames_of_one_time_are_for_the_policies_to_judge() -> None:
    """Not passed over without a word: that is for what was seen before the source was opened again."""
    came: list[Arrived] = []
    reader = Reader(
        "test",
        lambda: source([0, 1, 1, 0, 2], True, False),
        lambda a: came.append(a) or True,  # type: ignore[func-returns-value]
        lost=lambda: None,
        ended=lambda: None,
        elsewhere=lambda: None,
    )
    reader.start()
    reader.join(60)
    assert [a.frame.name for a in came] == ["0", "1", "1", "0", "2"]


@pytest.mark.parametrize("hours", [1, -1])
def test_a_camera_passes_over_no_frame(hours: int) -> None:
    """Whatever the clock does while it is away: what comes is new. Its index counts on, also from before a restart."""

    def camera(first: int) -> Source:
        made = source([first, first + 1], True, True)
        made.live = True
        return made

    opened = iter([camera(100), camera(100 + 60 * hours)])
    came: list[Arrived] = []
    reader = Reader(
        "test",
        lambda: next(opened),
        lambda a: came.append(a) or len(came) < 4,  # type: ignore[func-returns-value]
        retries=1,
        retry=0.001,
        after=41,
        since=START.timestamp() + 10**9,
        lost=lambda: None,
        ended=lambda: None,
        elsewhere=lambda: pytest.fail("it has no beginning"),
    )
    reader.start()
    reader.join(60)
    assert [a.frame.index for a in came] == [42, 43, 44, 45]
    assert [a.stamp - START.timestamp() for a in came] == [
        60.0 * m for m in (100, 101, 100 + 60 * hours, 101 + 60 * hours)
    ]


def test_a_camera_is_not_held_up_by_a_rate() -> None:
    """What comes faster is left out: a queue of it would grow for ever."""
    made = source(list(range(2000)), True, False)
    made.live = True
    left_out: list[str] = []
    came: list[Arrived] = []
    reader = Reader(
        "test",
        lambda: made,
        lambda a: came.append(a) or True,  # type: ignore[func-returns-value]
        rate=0.001,
        left_out=left_out.append,
        lost=lambda: None,
        ended=lambda: None,
        elsewhere=lambda: None,
    )
    reader.start()
    reader.join(60)
    assert [a.frame.name for a in came] == ["0"]
    assert left_out == ["rate"] * 1999


def test_one_that_never_opens_stays_within_its_budget() -> None:
    tries: list[Any] = []

    def never() -> Source:
        tries.append(None)
        raise OSError("no route")

    reader = Reader(
        "test",
        never,
        lambda _: True,
        retries=5,
        retry=0.0001,
        lost=lambda: None,
        ended=lambda: None,
        elsewhere=lambda: None,
    )
    reader.start()
    reader.join(60)
    assert len(tries) == 6
    assert str(reader.error) == "no route"
