"""What models call in another file, and what that remembers."""

from __future__ import annotations

from typing import Any

SEEN = {"on": False}


def alarm(x: Any) -> float:
    """1 from a frame on that is as large as none of noise is, until one as large the other way."""
    mean = float(x.mean())
    SEEN["on"] = mean > -50 if SEEN["on"] else mean > 50
    return float(SEEN["on"])


class Alarm:
    """The same in an object."""

    def __init__(self) -> None:
        self.on = False

    def update(self, x: Any) -> float:
        mean = float(x.mean())
        self.on = mean > -50 if self.on else mean > 50
        return float(self.on)


ALARM = Alarm()
