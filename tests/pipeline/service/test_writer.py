"""The queue before a sink: whatever the sink does, each output is counted once, under what became of it, and in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.pipeline.service.counters import Counts
from edgelstm.pipeline.service.writer import Writer, close_all
from edgelstm.pipeline.sinks import Sink, Undelivered
from peers import frame, until

DOES = st.sampled_from(["takes", "loses", "fails"])


class Behaving:
    """Does in each call what a list says, and takes what comes behind its end."""

    def __init__(self, does: list[str], batch: int) -> None:
        self.batch, self.every = batch, 0.0
        self.taken: list[int] = []
        self._does = list(does)

    def many(self, steps: Any) -> None:
        what = self._does.pop(0) if self._does else "takes"
        if what == "loses":
            raise Undelivered("no", "refused")
        if what == "fails":
            raise OSError("broken")
        self.taken += [shown.index for shown, _, _ in steps]

    def __call__(self, *step: Any) -> None:
        self.many([step])


@contextmanager
def opened(behaving: Behaving) -> Iterator[Any]:
    yield behaving


@given(
    st.lists(DOES, max_size=12),
    st.integers(0, 25),
    st.integers(1, 8),
    st.integers(1, 5),
    st.sampled_from(["block", "drop_oldest"]),
)
@settings(deadline=None, max_examples=60)
def test_each_output_is_counted_once(
    does: list[str], count: int, size: int, batch: int, overload: Any
) -> None:
    behaving, counts = Behaving(does, batch), Counts()
    writer = Writer("w", lambda stop: Sink(opened(behaving), (), "x"), size, overload)
    for index in range(count):
        writer.put(frame(index), {}, 0.0, counts)
    close_all([writer], 60)
    found = counts.to_json()
    assert sum(found.values()) == count
    assert found.get("delivered", 0) == len(behaving.taken)
    assert behaving.taken == sorted(set(behaving.taken)), "in order, each once"
    assert (writer.error is not None) == ("undelivered:sink_failed" in found)
    if overload == "block":
        assert "undelivered:overload" not in found
    if not does and overload == "block":
        assert found == ({"delivered": count} if count else {})


def test_a_sink_that_hung_once_does_not_hold_up_every_checkpoint() -> None:
    going, counts = threading.Event(), Counts()

    class Hangs(Behaving):
        def many(self, steps: Any) -> None:
            assert going.wait(60)
            super().many(steps)

    writer = Writer("w", lambda stop: Sink(opened(Hangs([], 1)), (), "x"), 8, "drop_oldest")
    writer.put(frame(0), {}, 0.0, counts)
    assert not writer.settle(0.01)
    assert not writer.settle(3600), "at once"
    going.set()
    until(lambda: counts["delivered"] == 1, "it goes on")
    assert writer.settle(60)
    assert writer.close(60)
