"""serve --check: what a pipeline file would run, and whether the first frame of what is there already can be taken."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError, some

if TYPE_CHECKING:
    from edgelstm.pipeline.service.channel import Channel

#: Seconds that the first frame is waited for, of a folder or table that grows: what is there comes sooner.
PATIENCE = 5.0


@dataclass(frozen=True, repr=False)
class Checked:
    """A pipeline file that would run. streams: by name, model, source, sinks and policies in words."""

    path: str
    streams: dict[str, dict[str, str]]

    def __repr__(self) -> str:
        return f"Checked({self.path}, streams {some(self.streams)})"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"path": self.path, "streams": self.streams}


def try_first(channel: Channel, base: Path) -> None:
    """Raise EdgeLstmError where the first frame is not what the model takes: of files, of folders, and of cameras, which were opened with it.

    What else comes in its own time (sound, this program's frames) is not waited for, what grows for ``PATIENCE`` seconds.
    """
    from edgelstm.pipeline.sources import is_live
    from edgelstm.pipeline.sources.source import LOOKED_AT

    source = channel.source
    if source is None:
        return
    timer = threading.Timer(PATIENCE, source.stop)
    timer.daemon = True
    timer.start()
    try:
        if any(map(is_live, channel.section.sources.values())):
            frame = source.peeked
        else:
            frame = next((f for f in islice(source, LOOKED_AT) if f.bad is None), None)
        if frame is not None and frame.bad is None:
            channel.inputs()(frame)
    except EdgeLstmError as error:
        raise EdgeLstmError(
            f"stream {channel.name}: {error.what}",
            found=error.found,
            expected=error.expected,
            hint=error.hint,
        ) from error
    finally:
        timer.cancel()
