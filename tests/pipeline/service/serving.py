"""Streams for tests of the service: frames with time stamps, members without threads, sinks that remember."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.pipeline import Frame, Inputs, Outputs
from edgelstm.pipeline.service.counters import Counts
from edgelstm.pipeline.service.feed import Arrived, Feed
from edgelstm.pipeline.service.guard import Guard
from edgelstm.pipeline.service.loop import Loop
from edgelstm.pipeline.service.member import Member
from edgelstm.pipeline.service.policies import Clock, GapRule, Rules
from edgelstm.runtime.runner import Runner


@dataclass
class Heard:
    """A writer that keeps what it gets."""

    frames: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    holds: bool = False
    readable = beside = False

    def put(self, frame: Frame, outputs: Mapping[str, Any], seconds: float, counts: Counts) -> None:
        self.frames.append(frame.index)
        self.values.append(float(outputs["y"].ravel()[0]))
        counts.add("delivered")

    def judge(self, frame: Frame, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """It is no alarm."""

    def interrupted(self, stream: str, anew: bool) -> None:
        """Nor here."""


def frame(index: int, value: float, gap: str | None = None) -> Frame:
    return Frame(index, None, str(index), np.array(value, np.float32), gap=gap)


def member(
    loop: Loop,
    name: str,
    *,
    gap: str = "hold",
    late: Any = "drop",
    loss: Any = "keep",
    bad: Any = "skip",
    max_gap: float | None = None,
    overload: Any = "block",
    queue: int = 1000,
    keep: int = 3,
    ranges: Any = None,
) -> tuple[Member, Heard]:
    counts, heard, signature = Counts(), Heard(), loop.runner.signature
    rule = GapRule.parse(gap)
    made = Member(
        name,
        Rules(rule, loss, bad),
        Feed(queue, overload, counts, loop.wake),
        Clock(rule, late, max_gap),
        Inputs(signature),
        Outputs(signature),
        Guard(signature, bad, keep, ranges),
        counts,
        [heard],  # type: ignore[list-item]
    )
    return made, heard


def stream(
    runner: Runner, streams: Mapping[str, tuple[Sequence[tuple[float, float]], Mapping[str, Any]]]
) -> dict[str, tuple[Member, Heard]]:
    """Run (time stamp, value) frames of several streams, each with its policies, to their end in this thread."""
    for name in runner.streams:
        runner.stream(name).close()
    ranges = next(
        (p["ranges"] for _, p in streams.values() if "ranges" in p), None
    )  # a model's, not a stream's
    loop = Loop("m", runner, 8, 0.0, ranges)
    made = {}
    for name, (frames, policies) in streams.items():
        made[name] = member(loop, name, **policies)
        for index, (stamp, value) in enumerate(frames):
            made[name][0].feed.put(Arrived(frame(index, value), stamp, 0.0))
        made[name][0].feed.end()
        loop.add(made[name][0])
    loop.run()
    assert loop.error is None, loop.error
    return made


def write_pipeline(folder: Path, text: str) -> Path:
    path = folder / "pipeline.toml"
    path.write_text(text, encoding="utf-8")
    return path
