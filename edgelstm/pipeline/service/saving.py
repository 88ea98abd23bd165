"""Checkpoints of a service that runs: what each loop keeps, read between two of its calls, and the outputs written before their states."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.channel import Channel
from edgelstm.pipeline.service.checkpoint import Checkpoint, Folder, SectionPart
from edgelstm.pipeline.service.counters import is_worth_a_line
from edgelstm.pipeline.service.loop import Loop
from edgelstm.pipeline.sinks import is_address

log = logging.getLogger("edgelstm.serve")

#: Seconds that a loop has to say what a checkpoint keeps of it.
ANSWER = 5.0


class Saver:
    """Writes checkpoints into a folder. channels, loops: those that there are now."""

    def __init__(
        self,
        folder: Folder,
        channels: Callable[[], Sequence[Channel]],
        loops: Callable[[], Mapping[str, Loop]],
    ) -> None:
        self._folder, self._channels, self._loops = folder, channels, loops
        self._parts: dict[str, dict[str, SectionPart]] = {}
        self._marks: dict[str, dict[str, int]] = {}
        self._wanted: set[str] = set()
        #: Checkpoints that could not be written since the last one that was.
        self._unsaved = 0

    def offer(self, loop: Loop) -> None:
        """What a checkpoint keeps of a loop, if one is wanted; called by its thread, between two calls."""
        if loop.name in self._wanted:
            self._parts[loop.name] = self._part(loop)
            self._wanted.discard(loop.name)

    def save(self) -> None:
        """Write a checkpoint: of a loop that doesn't answer, what it offered before."""
        channels, loops = self._channels(), self._loops()
        self._marks = {c.name: _sizes(c) for c in channels}
        self._wanted = {name for name, loop in loops.items() if not loop.is_idle and not loop.hangs}
        deadline = time.monotonic() + ANSWER
        while self._wanted and any(not o.is_idle for o in loops.values()) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._read_idle()
        # A state that is ahead of its outputs would lose them in a crash.
        for writer in [w for c in channels for w in c.writers]:
            if not writer.settle(max(0.0, deadline - time.monotonic())):
                log.warning("sink %s: behind the checkpoint that is written now", writer.name)
        self._read_idle()  # of what stands still, what was delivered meanwhile counts
        _keep(channels)
        there = {c.name for c in self._channels()}
        sections = {n: part for parts in self._parts.values() for n, part in parts.items() if n in there}
        try:
            self._folder.save(Checkpoint(time.time(), sections))
        except EdgeLstmError as error:  # a full disk: the next may succeed, and the last one stays
            self._unsaved += 1
            if is_worth_a_line(self._unsaved):
                log.error("no checkpoint: %s", error)
        else:
            if self._unsaved:
                log.info("checkpoints are written again; %d could not be", self._unsaved)
                self._unsaved = 0

    def _part(self, loop: Loop) -> dict[str, SectionPart]:
        return {
            c.name: c.part(loop.digest, self._marks.get(c.name, {}))
            for c in self._channels()
            if c.loop is loop
        }

    def _read_idle(self) -> None:
        """What a checkpoint keeps of loops that stand still."""
        for name, loop in self._loops().items():
            if loop.is_idle:
                self._parts[name] = self._part(loop)


def _keep(channels: Sequence[Channel]) -> None:
    """Lines reach the disk before the states that passed them over: else a lost supply would take them, and nobody would write them again."""
    for path in {w.path for c in channels for w in c.writers if _is_lines(w.path)}:
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def _is_lines(path: str) -> bool:
    return Path(path).suffix.lower() == ".jsonl" and not is_address(path)


def _sizes(channel: Channel) -> dict[str, int]:
    """Bytes of each file of lines."""
    sizes = {}
    for writer in channel.writers:
        mark = channel.mark(writer.mark)
        if writer.is_catching_up and mark is not None:
            sizes[writer.mark] = mark  # lines that lie before the end are of frames that are still to come
            continue
        with suppress(OSError):
            if _is_lines(writer.path):
                sizes[writer.mark] = Path(writer.path).stat().st_size
    return sizes
