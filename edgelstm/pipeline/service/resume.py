"""What happens to a checkpoint when the service starts: which streams go on from it, and which begin anew, and why."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.channel import Channel
from edgelstm.pipeline.service.checkpoint import Folder, SectionPart
from edgelstm.pipeline.service.swap import Carry

log = logging.getLogger("edgelstm.serve")

#: A checkpoint so many seconds in the future is one of another clock.
AHEAD = 60.0


def resume(folder: Folder, channels: Sequence[Channel], same: Callable[[str, str], bool]) -> None:
    """Let every channel go on from the newest checkpoint that is whole, if it fits and is younger than ``max_gap``.

    same: of a model and the hash of the one that the states are of, whether it was said that they mean the same to it. That holds
    too where this one was swapped for the other while the service ran."""
    found = folder.load()
    if found is None:
        log.info("no checkpoint in %s: all streams begin anew", folder.path)
        return
    checkpoint, path = found
    age = time.time() - checkpoint.written
    for channel in channels:
        part = checkpoint.sections.get(channel.name)
        if part is None:
            log.warning("stream %s: begins anew: the checkpoint does not know it", channel.name)
            continue
        part = _carried(part, channel, same)
        why = _why_not(part, channel, age, channel.loop.digest)
        clocks = part.clock in ("", channel.clock)
        if why is None:
            try:
                channel.resume(part, clocks)
            except EdgeLstmError as error:
                why = str(error)
        channel.remember_alarms(part, goes_on=why is None and clocks)
        if why is None:
            log.info("stream %s: goes on from %s, %.1f s old", channel.name, path.name, age)
        elif not is_of_source(part, channel):
            log.warning("stream %s: begins anew: %s", channel.name, why)
        else:  # what was delivered is not delivered again
            channel.resume(part, clocks=False, fresh="restart")
            log.warning(
                "stream %s: its state begins anew: %s. Frames that were read are passed over",
                channel.name,
                why,
            )


def _carried(part: SectionPart, channel: Channel, same: Callable[[str, str], bool]) -> SectionPart:
    """The states of another model as this one takes them, where they mean the same; what can't be carried stays as it was."""
    loop, whose = channel.loop, part.whose
    if part.model == loop.digest or not whose.file:
        return part
    if loop.digest not in whose.kin and not same(loop.name, part.model):
        return part
    try:
        carry = Carry(whose.specs(channel.signature), channel.signature)
        streams = {name: carry.part(each) for name, each in part.streams.items()}
    except (EdgeLstmError, ValueError, KeyError, TypeError) as error:
        log.warning("stream %s: states of %s don't fit %s: %s", channel.name, whose.file, loop.file, error)
        return part
    if not is_made_alike(part, channel):  # which is said
        return replace(part, model=loop.digest, streams=streams)
    told = "had taken over from it" if loop.digest in whose.kin else "is said to be compatible"
    log.info(
        "stream %s: its states are of %s, which %s: their values go on in %s",
        channel.name,
        whose.file,
        told,
        loop.file,
    )
    return replace(part, model=loop.digest, streams=streams)


def _why_not(part: SectionPart, channel: Channel, age: float, model: str) -> str | None:
    if not is_of_source(part, channel):
        return "the checkpoint is of another source"
    if part.model != model:
        return f"the checkpoint is of another model{_of(part, channel)}"
    if not is_made_alike(part, channel):
        return "the checkpoint is of another preprocessing"
    if age < -AHEAD:
        return f"the checkpoint was written {-age:.0f} s in the future: the clock was set"
    limit = channel.section.max_gap
    if limit is not None and age > limit:
        return f"the checkpoint is {age:.1f} s old, max_gap is {limit:g} s"
    return None


def is_made_alike(part: SectionPart, channel: Channel) -> bool:
    """Whether the frames that its states have seen were made as the channel's are; older files tell only what the section said."""
    scales = None in (part.scales, channel.scales) or part.scales == channel.scales
    return part.setup == channel.setup and part.made in ("", channel.made) and scales


def is_of_source(part: SectionPart, channel: Channel) -> bool:
    """Whether its numbers of frames are those of the channel's source; of older files, only with all that is done to them."""
    return part.origin == channel.origin if part.origin else part.setup == channel.setup


def _of(part: SectionPart, channel: Channel) -> str:
    if not part.whose.file:
        return ""
    swapped = ", which was swapped in while the service ran" if part.whose.kin else ""
    return f", {part.whose.file}{swapped}; the file says {channel.loop.file}, and not compatible = true"


def behind(path: Path, mark: int, alarm: str | None = None) -> dict[str, dict[int, str]]:
    """Index and name of the frames, by stream, that a .jsonl file has lines of behind ``mark`` bytes, or events of ``alarm``: they are not written again."""
    found: dict[str, dict[int, str]] = {}
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return found
    with path.open("rb") as file:
        file.seek(mark if mark <= file.seek(0, 2) else 0)  # shorter: another file since
        for line in file:
            try:
                made = json.loads(line)
                if made.get("alarm") != alarm:
                    continue
                found.setdefault(str(made["stream"]), {})[int(made["index"])] = str(made["name"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # cut short
    return found
