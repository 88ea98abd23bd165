"""The service: everything a pipeline file declares, opened, run in its threads, stopped and closed."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.inputs import Inputs, cut
from edgelstm.pipeline.optext import parse_preprocess
from edgelstm.pipeline.outputs import Outputs, frame_outputs
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.postprocess import parse_postprocess
from edgelstm.pipeline.service.counters import Counts
from edgelstm.pipeline.service.feed import Arrived, Feed
from edgelstm.pipeline.service.guard import Guard
from edgelstm.pipeline.service.loop import Loop
from edgelstm.pipeline.service.member import Member, Rules
from edgelstm.pipeline.service.policies import Clock, GapRule
from edgelstm.pipeline.service.reader import Reader
from edgelstm.pipeline.service.writer import Writer
from edgelstm.pipeline.sinks import Sink, open_sink
from edgelstm.pipeline.sources import Source, open_source
from edgelstm.runtime.runner import Runner

if TYPE_CHECKING:
    from edgelstm.pipeline.service.config import Config, StreamSection

log = logging.getLogger("edgelstm.serve")


@dataclass
class ServeReport:
    """What the service did. streams: counters of each (see :class:`edgelstm.pipeline.service.counters.Counts`). calls: engine calls
    of each model. failed: what ended a stream's source, a sink or a model for good. stopped: it was told to stop."""

    streams: dict[str, dict[str, int]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "streams": self.streams,
            "calls": self.calls,
            "failed": self.failed,
            "stopped": self.stopped,
        }


class Channel:
    """A stream's section of the file at work: its source, its sinks, and its members, one for each key."""

    def __init__(self, name: str, section: StreamSection, loop: Loop, source: Source | None) -> None:
        self.name, self.section, self.loop = name, section, loop
        self.signature = loop.runner.signature
        self.ops = (
            None
            if section.preprocess is None
            else parse_preprocess(_list(section.preprocess), self.signature)
        )
        self.postprocess = (
            None
            if section.postprocess is None
            else parse_postprocess(_list(section.postprocess), self.signature)
        )
        self.source, self._hop = source, section.hop
        #: Of sound, (rate in Hz, samples from frame to frame).
        self.hop: tuple[int, int] | None = None
        if source is not None:
            self.source = self.cut(source)
        self.writers: list[Writer] = []
        self.members: dict[str, Member] = {}
        self.counts: dict[str, Counts] = {}
        self.reader: Reader | None = None
        self._lock = threading.Lock()
        self.inputs(), self.outputs()  # what doesn't fit is said now

    def cut(self, source: Source) -> Source:
        """Sound in the frames that the model takes; every other source as it is."""
        made, self._hop, self.hop = cut(source, self.signature, self.ops, self.section.hop)
        return made

    def inputs(self) -> Inputs:
        """Preprocessing, and windows, of one member."""
        return Inputs(self.signature, self.ops, hop=self._hop)

    def outputs(self) -> Outputs:
        """Units and postprocessing of one member."""
        return Outputs(self.signature, self.ops, units=self.section.units, postprocess=self.postprocess)

    def deliver(self, arrived: Arrived) -> bool:
        """A frame came; called by the reader's thread alone."""
        key = arrived.frame.stream
        name = self.name if key is None else f"{self.name}:{key}"
        with self._lock:
            member = self.members.get(name)
        if member is None:
            member = self.member(name)
        if arrived.frame.last:
            with self._lock:
                self.members.pop(name, None)
        return member.feed.put(arrived)

    def member(self, name: str) -> Member:
        """A new stream."""
        s = self.section
        counts = self.counts.setdefault(name, Counts())
        feed = Feed(s.queue, s.overload, counts, self.loop.wake)
        rules = Rules(GapRule.parse(s.gap), s.loss, s.bad, s.lost_after)
        clock = Clock(rules.gap, s.late, s.max_gap, s.rate)
        guard = Guard(self.signature, s.bad, s.keep_every)
        member = Member(name, rules, feed, clock, self.inputs(), self.outputs(), guard, counts, self.writers)
        with self._lock:
            self.members[name] = member
        self.loop.add(member)
        return member

    def lost(self) -> None:
        """The source failed and is tried again."""
        with self._lock:
            members = list(self.members.values())
        for member in members:
            member.feed.lose()

    def ended(self) -> None:
        """The source gives nothing more."""
        with self._lock:
            members = list(self.members.values())
        for member in members:
            member.feed.end()
        self.loop.reader_ended()


class Service:
    """Opened by the constructor, which raises EdgeLstmError with nothing left open; then :meth:`run`, once, or :meth:`close`.

    models: where each model's step graph or engine lies, by name. base: the folder that relative paths in ``config`` start at.
    sinks: False opens none.
    """

    def __init__(self, config: Config, models: Mapping[str, Path], base: Path, *, sinks: bool = True) -> None:
        self.config, self._base = config, base
        self._writes = sinks
        self.channels: list[Channel] = []
        self.loops: dict[str, Loop] = {}
        self._stop = threading.Event()
        self._stack = ExitStack()
        try:
            self._open(models)
        except BaseException:
            self.close()
            raise

    def _open(self, models: Mapping[str, Path]) -> None:
        config = self.config
        sources = {name: self._source(name, section) for name, section in config.streams.items()}
        only = next(iter(config.models))
        threads = _share(config, models)
        for name, section in config.models.items():
            rooms = sum(
                1 if (source := sources[stream]) is None else source.streams
                for stream, s in config.streams.items()
                if (s.model or only) == name
            )
            if not rooms:
                log.warning("model %s: no stream uses it", name)
                continue
            runner = Runner.open(
                models[name], section.device, streams=rooms, threads=threads[name], on_bad_frame="pass"
            )
            self._stack.callback(runner.close)
            self.loops[name] = Loop(name, runner, rooms, section.max_wait)
        for name, stream in config.streams.items():
            loop = self.loops[stream.model or only]
            self.channels.append(Channel(name, stream, loop, sources[name]))
        for channel in self.channels if self._writes else ():
            self._sinks(channel, models[channel.loop.name])

    def _source(self, name: str, section: StreamSection) -> Source | None:
        try:
            source = self._opened(section)
        except EdgeLstmError as error:
            if not section.retries:
                raise EdgeLstmError(f"stream {name}: {error}") from error
            log.warning("stream %s: its source can't be opened yet: %s", name, error)
            return None
        self._stack.callback(source.close)
        for line in source.said:
            log.info("stream %s: %s", name, line)
        return source

    def _opened(self, section: StreamSection) -> Source:
        return open_source(placed(self._base, section.source), limit=section.limit, follow=section.follow)

    def _again(self, channel: Channel) -> Source:
        return channel.cut(self._opened(channel.section))

    def _sinks(self, channel: Channel, model: Path) -> None:
        fps = channel.section.rate or (channel.source.fps if channel.source else None)
        context = _context(channel, model)
        for sink in channel.section.sinks:
            path = placed(self._base, sink.replace("{stream}", channel.name))

            def opened(path: str = path) -> Sink:
                signature = channel.outputs().signature
                return open_sink(path, signature, fps=fps, context=context, append=True)

            try:
                writer = Writer(
                    f"{channel.name} -> {sink}",
                    opened,
                    channel.section.sink_queue,
                    channel.section.sink_overload,
                )
            except EdgeLstmError as error:
                raise EdgeLstmError(f"stream {channel.name}: {error}") from error
            channel.writers.append(writer)

    def run(self) -> ServeReport:
        """Until every source ended, or :meth:`stop`. Raises nothing for what happens to a stream: see the report."""
        for channel in self.channels:
            channel.loop.expect()
            section = channel.section
            channel.reader = Reader(
                channel.name,
                partial(self._again, channel),
                channel.deliver,
                first=channel.source,
                rate=section.rate,
                retries=section.retries,
                retry=section.retry,
                rooms=1 if channel.source is None else channel.source.streams,
                lost=channel.lost,
                ended=channel.ended,
            )
        threads = [
            threading.Thread(target=loop.run, name=f"model {loop.name}", daemon=True)
            for loop in self.loops.values()
        ]
        try:
            for thread in threads:
                thread.start()
            for channel in self.channels:
                if channel.reader is not None:
                    channel.reader.start()
            log.info("streams: %s", ", ".join(channel.name for channel in self.channels))
            self._watch(threads)
        finally:
            self._halt(threads)
            report = self.report()
            self.close()
        report.failed |= self._sink_failures()
        log.info("ended: %s", json.dumps(self.report().streams))
        report.streams = self.report().streams
        return report

    def _watch(self, threads: Iterable[threading.Thread]) -> None:
        every = self.config.service.report
        due = time.monotonic() + every
        while any(thread.is_alive() for thread in threads):
            if self._stop.wait(0.05):
                return
            if every and time.monotonic() >= due:
                due += every
                log.info("counters: %s", json.dumps(self.report().streams))

    def _halt(self, threads: Iterable[threading.Thread]) -> None:
        """Sources read no more, queued frames are stepped."""
        for channel in self.channels:
            if channel.reader is not None:
                channel.reader.stop()
        if any(thread.is_alive() for thread in threads):
            for loop in self.loops.values():
                loop.stop()
        deadline = time.monotonic() + self.config.service.drain
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.error("%s: not done within %g s, left behind", thread.name, self.config.service.drain)

    def stop(self) -> None:
        """End :meth:`run` soon; a signal handler may call it."""
        self._stop.set()

    def close(self) -> None:
        """Put what was written in its place and free the devices; calling it again does nothing."""
        deadline = time.monotonic() + self.config.service.drain
        for channel in self.channels:
            for writer in channel.writers:
                writer.close(max(0.1, deadline - time.monotonic()))
            if channel.reader is not None:
                channel.reader.join(1.0)
        self._stack.close()

    def report(self) -> ServeReport:
        """What was done so far."""
        failed = {
            f"stream {c.name}": str(c.reader.error)
            for c in self.channels
            if c.reader is not None and c.reader.error is not None
        }
        failed |= {f"model {n}": str(loop.error) for n, loop in self.loops.items() if loop.error is not None}
        return ServeReport(
            {name: counts.to_json() for c in self.channels for name, counts in list(c.counts.items())},
            {name: loop.calls for name, loop in self.loops.items()},
            failed,
            self._stop.is_set(),
        )

    def _sink_failures(self) -> dict[str, str]:
        return {
            f"sink {w.name}": str(w.error) for c in self.channels for w in c.writers if w.error is not None
        }


def placed(base: Path, spec: str) -> str:
    """``spec`` with its path starting at ``base``; what is no path stays."""
    if spec == "-" or "://" in spec or Path(spec).is_absolute():
        return spec
    return os.path.join(base, spec)  # noqa: PTH118 (keeps the slash at the end of a folder)


def _list(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _share(config: Config, models: Mapping[str, Path]) -> dict[str, int | None]:
    """Threads of each model: as it says, else an even share of the processors, for those that run on them."""
    cpu = {n for n, m in config.models.items() if m.device in (None, "cpu") and models[n].suffix == ".onnx"}
    total = config.service.threads or _processors()
    even = max(1, total // max(1, len(cpu)))
    return {n: m.threads or (even if n in cpu else None) for n, m in config.models.items()}


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _context(channel: Channel, model: Path) -> Context:
    """What is known of the outputs, for sinks that say it."""
    signature, source = channel.signature, channel.source
    if source is None:
        return Context()
    own = 0 if signature.window is None else 1
    frame = len(signature.inputs[0].frame_shape) - own
    leads = {
        t.name: t.frame_shape[own]
        for t in signature.outputs
        if t.name in frame_outputs(signature) and len(t.frame_shape) - own == frame + 1
    }
    place, ops = source.place, next(iter(channel.inputs().ops.values()), ())
    unit = place.unit(ops)
    units = {} if unit is None else dict.fromkeys(channel.outputs().converted, unit)
    grid = None if place.grid is None else place.grid.through(ops)
    return Context(
        place.start, place.interval, grid, units, leads, channel.hop, model.name, source.description
    )
