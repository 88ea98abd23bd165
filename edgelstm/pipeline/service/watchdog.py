"""What hangs is noticed: a source that gives nothing, a sink that never comes back from a write, a step that doesn't end."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.channel import Channel
from edgelstm.pipeline.service.loop import Loop

log = logging.getLogger("edgelstm.serve")


def look(
    channels: Sequence[Channel], loops: Mapping[str, Loop], hang_after: Mapping[str, float | None]
) -> None:
    """Leave behind what hangs, and count it. hang_after: seconds for a step, by model; for sources and sinks their section says."""
    now = time.monotonic()
    for channel in channels:
        after = channel.section.hang_after
        if after is None:
            continue
        if channel.reader is not None and channel.reader.check_hang(now):
            channel.count("hung:source")
        for writer in channel.writers:
            if writer.check_hang(now, after):
                channel.count("hung:sink")
    for name, loop in loops.items():
        since, limit = loop.stepping_since, hang_after.get(name)
        if since is None or limit is None or loop.hangs or time.perf_counter() - since <= limit:
            continue
        loop.hangs = True
        loop.error = EdgeLstmError(f"model {name}: a step hangs", expected=f"its end within {limit:g} s")
        log.error("%s", loop.error)
        for channel in channels:
            if channel.loop is loop:
                channel.count("hung:engine")
