"""A step that hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Steps of a frame of 7 end when the event is set."""
    from edgelstm.runtime.rows import RowProgram

    go, step = threading.Event(), RowProgram.step_row

    def slow(self: Any, frame: Any, *more: Any) -> Any:
        if float(frame) == 7:
            go.wait(60)
        return step(self, frame, *more)

    monkeypatch.setattr(RowProgram, "step_row", slow)
    yield go
    go.set()
