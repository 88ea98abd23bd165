"""Outputs that are kept stay as they are, whoever keeps them and for how long; memory is used again only when nobody does."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelstm.pipeline.service.copies import LARGE, Copies

SIZES = (3, LARGE // 4, LARGE // 4 + 10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(SIZES), st.sampled_from(["drop", "keep", "keep a view", "let one go"])),
        max_size=40,
    )
)
def test_what_is_held_never_changes(steps: list[tuple[int, str]]) -> None:
    copies = Copies()
    held: list[tuple[Any, int]] = []
    last: Any = None
    for number, (size, what) in enumerate(steps):
        source = np.full(size, number, np.float32)
        last = copies.of({"y": source, "z": source[:1]})
        source[:] = -1
        assert (last["y"] == number).all()
        assert last["y"].shape == (size,)
        if what == "keep":
            held.append((last["y"], number))
        elif what == "keep a view":
            held.append((last["y"][1:], number))
        elif what == "let one go" and held:
            held.pop(0)
        for array, value in held:
            assert (array == value).all()
    del last


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    copies = Copies()
    source = np.zeros(LARGE, np.float32)
    places = set()
    shown: Any = None
    for _ in range(50):
        shown = copies.of({"y": source})  # as a page does: the last one is held while the next is made
        places.add(shown["y"].ctypes.data)
    assert len(places) == 2
