"""One section of the pipeline file at work."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from edgelstm.dtypes import CODED
from edgelstm.errors import EdgeLstmError
from edgelstm.files import sha256
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.context import context_of
from edgelstm.pipeline.inputs import Inputs, cut
from edgelstm.pipeline.optext import parse_preprocess
from edgelstm.pipeline.outputs import Outputs, readable
from edgelstm.pipeline.place import Context, Place
from edgelstm.pipeline.postprocess import parse_postprocess
from edgelstm.pipeline.service.alarm_writer import AlarmWriter
from edgelstm.pipeline.service.checkpoint import SectionPart, Whose
from edgelstm.pipeline.service.counters import Counts
from edgelstm.pipeline.service.feed import Arrived, Feed
from edgelstm.pipeline.service.guard import Guard, Ranges
from edgelstm.pipeline.service.kept import Keeper, KeepRules
from edgelstm.pipeline.service.loop import Loop
from edgelstm.pipeline.service.member import Member
from edgelstm.pipeline.service.policies import Clock, GapRule, Rules
from edgelstm.pipeline.service.pulse import Pulse
from edgelstm.pipeline.service.reader import Reader
from edgelstm.pipeline.service.redact import without_user
from edgelstm.pipeline.service.scene import Scene
from edgelstm.pipeline.service.series import Caller, Link, links, stages
from edgelstm.pipeline.service.writer import Writer
from edgelstm.pipeline.sources import Source, is_sound
from edgelstm.pipeline.wording import as_key

if TYPE_CHECKING:
    from edgelstm.pipeline.service.config import StreamSection

log = logging.getLogger("edgelstm.serve")


#: Frames whose names are kept, at least those that wait anywhere.
NAMED = 4096


class Channel:
    """A stream's section of the file at work: its source, its sinks, and its members, one for each key."""

    def __init__(
        self, name: str, section: StreamSection, loop: Loop, source: Source | None, ranges: Ranges
    ) -> None:
        self.name, self.section, self.loop = name, section, loop
        self.is_of(loop.runner)
        first, last = self._stages[0], self._stages[-1]
        self.ops = None if section.preprocess is None else parse_preprocess(_list(section.preprocess), first)
        self.postprocess = (
            None if section.postprocess is None else parse_postprocess(_list(section.postprocess), last)
        )
        #: Hash of the scales that its source brings frames to; None while that is not there.
        self.scales = None if source is None else source.scales
        self.source, self._hop = source, section.hop
        #: The source that is read now, and what it said last of time and place; who is told when that changes.
        self._current: Source | None = None
        #: Where its sinks are those of a channel before: the time that its frames' times count from.
        self.began: datetime | None = None
        self._place: Place | None = None
        self.learnt: Callable[[Channel], None] = lambda _: None
        if source is None and all(map(is_sound, section.sources.values())):
            self._hop = None  # of samples, not of frames in a window
        #: Of sound, (rate in Hz, samples from frame to frame).
        self.hop: tuple[int, int] | None = None
        if source is not None:
            self.source = self._current = self.cut(source)
            self._place = self.source.place
        self.writers: list[Writer] = []
        self.members: dict[str, Member] = {}
        self.counts: dict[str, Counts] = {}
        self.pulses: dict[str, Pulse] = {}
        self.reader: Reader | None = None
        self.ranges = ranges
        self._alarms: dict[str, Any] = {}
        self._goes_on = False
        #: Where, and how many, last frames are kept when a state goes bad.
        self.keep: KeepRules | None = None
        self.keepers: list[Keeper] = []
        #: Its members wait, those to come too; or the members of these names alone.
        self.paused = False
        self.paused_alone: frozenset[str] = frozenset()
        #: Whether somebody may look at its frames and outputs.
        self.shows = False
        #: Times that its source was opened again.
        self.reopened = 0
        self._over = self._removed = False
        #: Index of the last frame that a feed took; where the source's first frame is named.
        self._read = -1
        #: Indices and names of the last frames, among which is the oldest that is not dealt with. No pairs of them: Python's collector would go
        #: through these.
        self._indices: deque[int] = deque(maxlen=NAMED)
        self._names: deque[str] = deque(maxlen=NAMED)
        self._lefts: dict[str, Member] = {}
        self._gone: dict[str, int] = {}
        self._resumed: SectionPart | None = None
        self._lock = threading.Lock()
        self.inputs(), self.outputs(), self.links()  # what doesn't fit is said now

    def is_of(self, runner: Caller) -> None:
        """Its streams are those of ``runner``, whose models take and give the same as those before."""
        self.signature, self._stages = runner.signature, stages(runner)

    def cut(self, source: Source) -> Source:
        """Sound in the frames that the model takes; every other source as it is."""
        made, self._hop, self.hop = cut(source, self._stages[0], self.ops, self.section.hop)
        for outputs in (self.outputs(), *(link.outputs for link in self.links())):
            outputs.check_hop(self.hop)
        return made

    def inputs(self) -> Inputs:
        """Preprocessing, and windows, of one member."""
        return Inputs(self._stages[0], self.ops, hop=self._hop, say=as_key)

    def outputs(self) -> Outputs:
        """Units and postprocessing of one member."""
        units = self.section.units or "model"
        return Outputs(self._stages[-1], self._last_ops, units=units, postprocess=self.postprocess)

    @property
    def counts_from(self) -> datetime | None:
        """The time that its frames' times count from, where the source knows it."""
        return self.began or (None if self.source is None else self.source.place.start)

    @property
    def last(self) -> Signature:
        """Of the model whose outputs go to the sinks."""
        return self._stages[-1]

    @property
    def _last_ops(self) -> Any:
        """Preprocessing of the last model that the section has in place of its own."""
        return self.ops if len(self._stages) == 1 else None

    def context(self, model: str, outputs: Outputs) -> Context:
        """What is known of the outputs, for sinks that say it; nothing before the source is there."""
        if self.source is None:
            return Context()
        ops = next(iter(self.inputs().ops.values()), ())
        return context_of(
            self.source, self._stages, ops, outputs, model=model, start=self.counts_from, hop=self.hop
        )

    def links(self) -> list[Link]:
        """What lies between models in series, of one member."""
        return links(self._stages, self.ops)

    def readable(self) -> Outputs:
        """The same for maps and pictures with captions: physical units, unless the section says otherwise."""
        if self.section.units is not None:
            return self.outputs()
        return readable(self._stages[-1], self._last_ops, self.postprocess)

    def read(self, source: Source) -> Source:
        """A source that was opened, as it is read from here on. Raises EdgeLstmError for one on another map than that which
        sinks were told of."""
        made = self.cut(source)
        if self.source is None:
            self.source = made
        elif made.place.grid != self.source.place.grid:
            raise EdgeLstmError(
                f"{source.description}: its map is another than when the service began",
                found=made.place.grid,
                expected=f"{self.source.place.grid}",
                hint="Give it a stream of its own",
            )
        if self.scales not in (None, source.scales):
            log.warning("stream %s: its state begins anew: its source has other scales now", self.name)
            with self._lock:
                members = list(self.members.values())
            for member in members:
                member.feed.begin_anew()
        self.scales = source.scales
        self._current = made
        self._learn()
        return made

    def _learn(self) -> None:
        """What the source says of time and place may have changed: of a folder that began with one file, the interval has."""
        if self._current is None or self.source is None or self._current.place is self._place:
            return
        self._place = place = self._current.place
        if self._current is not self.source and place.interval is not None:
            self.source.place = replace(self.source.place, interval=place.interval)
        self.learnt(self)

    def deliver(self, arrived: Arrived) -> bool:
        """A frame came; called by the reader's thread alone."""
        if self._current is not None and self._current.place is not self._place:
            self._learn()
        key = arrived.frame.stream
        name = self.name if key is None else f"{self.name}:{key}"
        if key is not None and self._is_known(name, arrived.frame.index):
            return True
        member = self.members.get(name)
        if member is None:
            if self._removed:
                return False
            member = self.member(name)
            if self._resumed is not None and name in self._resumed.gone:
                member.counts.add("reset:restart")
                log.warning("stream %s: its state begins anew: it had ended before the restart", name)
        if arrived.frame.last:
            with self._lock:
                self.members.pop(name, None)
        with self.loop.wake.lock:  # a checkpoint sees the frame in the queue and here, or in neither
            taken = member.feed.add(arrived)
            if taken:
                self._read_up_to(arrived.frame.index, arrived.frame.name)
        return taken

    def _read_up_to(self, index: int, name: str) -> None:
        self._read = index
        self._indices.append(index)
        self._names.append(name)

    def _is_known(self, name: str, index: int) -> bool:
        """Whether a checkpoint's state has seen the frame: streams of one source are not equally far."""
        if self._resumed is None:
            return False
        part = self._resumed.streams.get(name)
        seen = part.index if part is not None else self._resumed.gone.get(name, -1)
        return index <= seen

    @property
    def setup(self) -> str:
        """Hash of what the state depends on beside the model. A hash, since a source's address may hold secrets."""
        s = self.section
        return sha256(without_user(json.dumps([s.source, s.preprocess, s.hop])).encode())

    @property
    def made(self) -> str:
        """Hash of all that is done to a frame before a model takes it: what the section says, and what the models declare."""
        first = self._stages[0]
        ops = [{**first.preprocessing, **(self.ops or {})}, *(s.preprocessing for s in self._stages[1:])]
        between = [s.postprocessing for s in self._stages[:-1]]
        return sha256(json.dumps([ops, between, first.window], sort_keys=True).encode())

    @property
    def origin(self) -> str:
        """Hash of its source alone, by whatever user and password it is reached."""
        return sha256(without_user(json.dumps(self.section.source)).encode())

    @property
    def clock(self) -> str:
        """What frames without a time are stamped by."""
        return f"rate {self.section.rate}"

    def mark(self, sink: str) -> int | None:
        """Bytes of a sink's file at the checkpoint that it goes on from; None without one."""
        return None if self._resumed is None else self._resumed.marks.get(sink)

    def start(self) -> dict[str, Any]:
        """Where the reader begins: arguments of :class:`Reader`."""
        part = self._resumed
        if part is None:
            return {}
        since = max((p.stamp for p in part.streams.values()), default=-math.inf)
        return {"after": part.floor, "since": since, "first_name": part.first, "last_name": part.last or None}

    def resume(self, part: SectionPart, clocks: bool = True, fresh: str | None = None) -> None:
        """Begin where a checkpoint left off; before anything runs. ``clocks``: time stamps too. ``fresh``: with states that begin anew, and why, in a
        word: what was read is passed over all the same. Raises EdgeLstmError when its states don't fit."""
        stream = self.loop.runner.stream(next(iter(part.streams), self.name))
        try:
            for each in part.streams.values() if fresh is None else ():
                stream.restore(each.states)
        finally:
            stream.close()
        self._resumed, self._read, self._gone = part, part.floor, dict(part.gone)
        self.scales = part.scales if self.scales is None else self.scales  # of a source that is not there yet
        if part.last:
            self._read_up_to(part.floor, part.last)
        for name, each in part.streams.items():
            member = self.member(name)
            if fresh is not None:
                resets = {f"reset:{fresh}": each.counts.get(f"reset:{fresh}", 0) + 1}
                each = replace(each, states=member.guard.initial(), counts={**each.counts, **resets})
            member.resume(each if clocks else replace(each, timed=False))

    def remember_alarms(self, part: SectionPart, goes_on: bool) -> None:
        """What its alarms knew, for when they are opened; ``goes_on``: the streams go on from there too."""
        self._alarms, self._goes_on = part.alarms, goes_on

    def resume_alarm(self, writer: AlarmWriter) -> None:
        """Let an alarm go on: one that had fired has fired, even where the streams begin anew, so that its end is told."""
        if writer.alarm not in self._alarms:
            return
        if not writer.alarms.resume(self._alarms[writer.alarm], self._goes_on):
            log.warning("stream %s: alarm %s begins anew: it is another rule", self.name, writer.alarm)
        for name in writer.alarms.streams:
            part = None if self._resumed is None else self._resumed.streams.get(name)
            writer.had_fired(name, -1 if part is None else part.index, self.counts.get(name) or Counts())

    def begin_anew(self) -> None:
        """The source begins elsewhere than before: what was said of its frames by number says nothing now."""
        self._resumed, self._read = None, -1
        for writer in self.writers:
            writer.forget_behind()
        with self.loop.wake:
            self._gone.clear()
        with self._lock:
            members = list(self.members.values())
        for member in members:
            member.feed.begin_anew()

    def moved(self, index: int) -> None:
        """The frame that was dealt with last has this index now, others may have other ones; before the first frame is delivered."""
        for writer in self.writers:
            writer.go_by_names()
        with self.loop.wake.lock:
            self._read = index
            self._indices.clear()
            self._names.clear()
            for name, member in self.members.items():
                member.moved_to(index)
                log.debug("stream %s: goes on behind frame %d", name, index)

    def left(self, member: Member) -> None:
        """A member is done; called by the loop's thread."""
        part = member.part()
        if member.has_ended:
            if part is not None:
                self._gone[member.name] = part.index
        else:
            self._lefts[member.name] = member

    def those_that_left(self) -> list[Member]:
        """Members that are done, whose states a checkpoint still keeps; for the loop's thread."""
        return list(self._lefts.values())

    def part(self, model: str, marks: dict[str, int]) -> SectionPart:
        """What a checkpoint keeps; called by the loop's thread, between two calls."""
        with self.loop.wake:
            mine = [m for m in self.loop.members if m.name in self.counts]
            opened = [i for m in (*self._lefts.values(), *mine) if (i := m.open_index()) is not None]
            floor = min(opened) - 1 if opened else self._read
            # A frame that was dropped for a newer one is dealt with: what is open never lies behind it.
            newest = len(self._gone) - NAMED
            gone = [(n, i) for k, (n, i) in enumerate(self._gone.items()) if i > floor or k >= newest]
            self._gone = dict(gone)
            parts = {m.name: p for m in (*self._lefts.values(), *mine) if (p := m.part()) is not None}
            names = zip(self._indices, self._names, strict=True)
            last = next((name for index, name in names if index == floor), "")
            first = None if self.reader is None else self.reader.first_name
            alarms = {w.alarm: w.alarms.state() for w in self.writers if isinstance(w, AlarmWriter)}
            whose = Whose.of(self.loop.file, self.loop.kin, self.signature)
            return SectionPart(
                model, self.setup, first, floor, parts, dict(gone), marks, alarms,
                self.clock, self.origin, whose, last, self.made, self.scales,
            )  # fmt: skip

    def member(self, name: str) -> Member:
        """A new stream."""
        s = self.section
        counts = self.counts.setdefault(name, Counts())
        feed = Feed(s.queue, s.overload, counts, self.loop.wake)
        rules = self.rules()
        clock = Clock(rules.gap, s.late, s.max_gap, s.rate)
        guard = Guard(self.signature, s.bad, s.keep_every, self.ranges)
        member = Member(name, rules, feed, clock, self.inputs(), self.outputs(), guard, counts, self.writers)
        member.paused = self.paused or name in self.paused_alone
        member.pulse.deadline, member.pulse.keeps = s.deadline, self.shows
        member.pulse.coded = {t.name: t.dtype for t in self._stages[0].inputs if t.dtype in CODED}
        member.links, member.new_links = self.links(), self.links
        if self.section.units is None:
            member.readable = self.readable()
        member.scene = None if s.cut_above is None else Scene(s.cut_above)
        if self.keep is not None:
            member.keeper = Keeper(name, self.loop.name, self.keep, counts)
            self.keepers.append(member.keeper)
        with self._lock:
            self.members[name] = member
            self.pulses[name] = member.pulse
            if self._removed:
                feed.end()
            else:
                self.loop.add(member)
        return member

    def rules(self) -> Rules:
        """What the section says of its members."""
        s = self.section
        return Rules(GapRule.parse(s.gap), s.loss, s.bad, s.lost_after)

    def follow(self, section: StreamSection) -> None:
        """Take over a section that differs in policies alone; called by the loop's thread, between two calls."""
        self.section = s = section
        rules = self.rules()
        for member in self.mine():
            member.rules, member.pulse.deadline = rules, s.deadline
            member.clock.follow(rules.gap, s.late, s.max_gap)
            member.guard.follow(s.bad, s.keep_every, self.ranges)
            member.feed.follow(s.queue, s.overload)
        self.loop.guard_by(self.ranges)
        if self.reader is not None:
            self.reader.follow(s.retries, s.retry, s.hang_after)

    def released(self) -> None:
        """A sink holds its streams no more; called by the sink's thread."""
        with self.loop.wake.lock:
            self.loop.wake.tell()

    def unpaired(self, input: str, index: int) -> None:
        """A frame of one of its sources has no partner; ``index``: of the next pair. Known ones are not counted again."""
        if self.reader is None or index > self.reader.last_index:
            self.counts.setdefault(self.name, Counts()).add(f"unpaired:{input}")

    def left_out(self, reason: str) -> None:
        """A frame of its source never became one."""
        self.counts.setdefault(self.name, Counts()).add(f"left_out:{reason}")

    def count(self, name: str) -> None:
        """Count what befell all of its streams."""
        for counts in list(self.counts.values()):
            counts.add(name)

    def mine(self) -> list[Member]:
        """Its members that have not left; for the loop's thread."""
        return [m for m in self.loop.members if m.name in self.counts]

    def pause(self, paused: bool, name: str | None = None) -> None:
        """Hold its members, or the one of that name, or let them go on; called by the loop's thread."""
        if name is None:
            self.paused, self.paused_alone = paused, frozenset()
        else:
            held = frozenset(m.name for m in self.mine()) if self.paused else self.paused_alone
            self.paused, self.paused_alone = False, held | {name} if paused else held - {name}
        for member in self.mine():
            before, member.paused = member.paused, self.paused or member.name in self.paused_alone
            if before and not member.paused:
                member.feed.wait_anew()

    def remove(self) -> None:
        """Nothing more is read, and its members leave with the next :meth:`drop`."""
        with self._lock:
            self._removed = True
            self._over = self._over or self.reader is None  # nobody waits for its end
        if self.reader is not None:
            self.reader.stop()
        self.ended()

    @property
    def rooms(self) -> int:
        """Streams that it may have at one time."""
        known = self.section.places(self.source)
        return max(known, len(self._resumed.streams) if self._resumed is not None else 0)

    def open_marks(self) -> dict[str, int]:
        """Of sinks that may still get outputs they have: :meth:`mark`."""
        behind = [w.mark for w in self.writers if w.is_catching_up]
        return {name: mark for name in behind if (mark := self.mark(name)) is not None}

    def drop(self) -> None:
        """Its members leave, whatever waits; called by the loop's thread."""
        self.loop.drop(self.mine())

    def let_go(self) -> None:
        """It is in nobody's list any more: nothing that it holds holds it, so that it goes now. What was there when the service began is not
        looked through for cycles, see :mod:`edgelstm.pipeline.service.settled`."""
        self.learnt = lambda _: None
        if self.reader is not None:
            self.reader.let_go()
        for member in (*self.members.values(), *self._lefts.values()):
            member.new_links = list
        self.members.clear()
        self._lefts.clear()

    @property
    def is_over(self) -> bool:
        """Whether its source gives nothing more."""
        return self._over

    def lost(self) -> None:
        """The source failed and is tried again."""
        with self._lock:
            members = list(self.members.values())
        for member in members:
            member.feed.lose()

    def ended(self) -> None:
        """The source gives nothing more; saying it again does nothing."""
        with self._lock:
            if self._over:
                return
            self._over = True
            members = list(self.members.values())
        for member in members:
            member.feed.end()
        self.loop.reader_ended()


def _list(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given
