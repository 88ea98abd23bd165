"""What a service did, when it has ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgelstm.errors import count_of, some


@dataclass(repr=False)
class ServeReport:
    """What the service did. streams: counters of each (see :class:`edgelstm.pipeline.service.counters.Counts`). calls: engine calls
    of each model. failed: what ended a stream's source, a sink or a model for good. stopped: it was told to stop."""

    streams: dict[str, dict[str, int]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    def __repr__(self) -> str:
        stepped = sum(counts.get("stepped", 0) for counts in self.streams.values())
        failed = f", failed: {some(self.failed)}" if self.failed else ""
        return f"ServeReport({count_of(len(self.streams), 'stream')}, {stepped} stepped{failed})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "streams": self.streams,
            "calls": self.calls,
            "failed": self.failed,
            "stopped": self.stopped,
        }
