"""The service steered while it runs: streams added, removed, paused, reset and changed, between two steps of their model.

What touches a stream is done by the thread that steps it, so that no other stream waits longer than for one of its own steps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotInTime
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.alarm_writer import AlarmWriter
from edgelstm.pipeline.service.channel import Channel
from edgelstm.pipeline.service.checkpoint import SectionPart
from edgelstm.pipeline.service.config import StreamSection, cross_check
from edgelstm.pipeline.service.loop import Loop
from edgelstm.pipeline.service.member import Member
from edgelstm.pipeline.service.resume import is_made_alike, is_of_source
from edgelstm.pipeline.service.saving import ANSWER
from edgelstm.pipeline.service.service import Service
from edgelstm.pipeline.service.writer import close_all
from edgelstm.pipeline.sources.source import Array, Source

if TYPE_CHECKING:
    from edgelstm.pipeline.service.writer import Writer

log = logging.getLogger("edgelstm.serve")

T = TypeVar("T")
#: Streams that may be opened at one time by those who add them: each has a thread of the API until it is there.
OPENING = 16
#: Seconds that opening a source may take while others wait for it.
LONGEST = 30.0
#: Keys of a stream that change while it goes on; for any other, its source is opened again.
POLICIES = frozenset(
    ("queue", "overload", "max_gap", "gap", "late", "lost_after", "loss", "bad", "keep_every", "retries", "retry", "deadline", "hang_after")
)  # fmt: skip
#: Keys that say what its sinks get.
WRITTEN = (
    "model",
    "sink",
    "alarms",
    "preprocess",
    "postprocess",
    "hop",
    "units",
    "rate",
    "sink_queue",
    "sink_overload",
    "source",
)


class UnknownStream(EdgeLstmError):
    """There is no stream of that name."""


class TakenName(EdgeLstmError):
    """There is a stream of that name."""


class Control:
    """Any thread may call it while the service runs; each method is done when it returns.

    Streams go by the name of their section, or by that of one stream of a source with a key, ``pumps:7``.
    Raises EdgeLstmError, and nothing changes, when something is wrong.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        #: Streams whose sources are being opened; set: nobody waits for it any more.
        self._coming: dict[str, threading.Event] = {}
        #: Streams that are gone and whose sinks are not closed yet: two would write to one file.
        self._going: set[str] = set()
        self._names = threading.Lock()

    # ---- one stream ----

    def pause(self, name: str) -> None:
        """Its frames wait, as those of a full queue do: ``overload`` says whether the source does too."""
        channel, own = self.find(name)
        self.do(channel.loop, lambda: channel.pause(True, own))
        log.info("stream %s: paused", name)

    def resume(self, name: str) -> None:
        """Go on. What was missed is a gap, where ``max_gap`` is declared."""
        channel, own = self.find(name)
        self.do(channel.loop, lambda: channel.pause(False, own))
        log.info("stream %s: goes on", name)

    def reset(self, name: str, cause: str = "asked") -> None:
        """Its state begins anew with the next frame: a scene changed, a patient left, a machine was restarted."""
        channel, own = self.find(name)

        def job() -> None:
            for member in _those(channel, own):
                member.reset(cause)

        self.do(channel.loop, job)

    def snapshot(self, name: str) -> dict[str, dict[str, Array]]:
        """What its state is worth now, by stream (one, or one for each key) and state; quantised states as float32."""
        channel, own = self.find(name)

        def job() -> dict[str, dict[str, Array]]:
            return {m.name: m.stream.values() for m in _those(channel, own) if m.stream is not None}

        return self.do(channel.loop, job)

    # ---- streams that come and go ----

    def add(self, name: str, section: StreamSection) -> None:
        """A stream more, as if it stood in the file. Its source is opened before anything else changes."""
        service = self.service
        with self._names:
            if name in self._coming or name in self._going:
                raise _taken(name)
            self._check_free(name)
            if len(self._coming) >= OPENING:
                raise EdgeLstmError(
                    f"stream {name}",
                    found=f"{OPENING} streams whose sources are being opened",
                    expected="fewer: wait, or remove one of them",
                )
            gone = self._coming[name] = threading.Event()
        source: Source | None = None
        try:
            self._check(name, section)
            source = service.source(name, section, gone=gone)
            with service.changing:
                self._check_running()
                if gone.is_set():
                    raise EdgeLstmError(f"stream {name} was removed before its source was there")
                self._check_free(name)  # one that was just being changed is there again
                self._start(name, section, source)
        except BaseException:
            if source is not None:
                source.close()
            raise
        finally:
            with self._names:
                if self._coming.get(name) is gone:
                    del self._coming[name]
        log.info("stream %s: added", name)

    def remove(self, name: str) -> None:
        """Its source is read no more, what waits is dropped, its sinks are closed. A source that hangs is left behind."""
        with self._names:
            coming = self._coming.pop(name, None)
        if coming is not None:
            coming.set()
            log.info("stream %s: removed before its source was there", name)
            return
        service = self.service
        with service.changing:
            self._check_running()
            channel, own = self.find(name)
            if own is not None:
                raise EdgeLstmError(f"stream {name}", expected=f"{channel.name}, all streams of its source")
            try:
                self._stop(channel)
            except EdgeLstmError as error:  # its step hangs: it leaves when that is over
                log.error("stream %s: %s", name, error)
            streams = {n: s for n, s in service.config.streams.items() if n != name}
            service.config = service.config.model_copy(update={"streams": streams})
            if not service.channels:
                service.waits = True
                log.info("no stream is left: the service waits for others")
            with self._names:
                self._going.add(name)
        try:
            for writer in channel.writers:
                writer.removed()
            self._close(channel.writers)
        finally:
            with self._names:
                self._going.discard(name)
            for writer in channel.writers:
                writer.let_go()
            channel.let_go()
        log.info("stream %s: removed", name)

    def configure(self, name: str, section: StreamSection) -> None:
        """Another section for a stream. Policies change while it goes on; else its source is opened again, and the state stays
        where source, preprocessing and model do. When that fails, the old section goes on."""
        service = self.service
        with service.changing:
            channel, _ = self.find(name)
            old = channel.section
            changed = {
                key for key in type(section).model_fields if getattr(section, key) != getattr(old, key)
            }
            if not changed:
                return
            self._check(name, section)
            if changed <= POLICIES:
                self.do(channel.loop, lambda: channel.follow(section))
                self._note(name, section)
        if not changed <= POLICIES:
            source = None if section.source == old.source else service.source(name, section)
            with service.changing:
                try:
                    if self.find(name)[0] is not channel:
                        raise EdgeLstmError(f"stream {name} was changed by someone else meanwhile")
                    self.do(channel.loop, lambda: None)  # one that hangs changes nothing
                except BaseException:
                    if source is not None:
                        source.close()
                    raise
                self.replace(channel, section, source)
        log.info("stream %s: changed: %s", name, ", ".join(sorted(changed)))

    # ---- how ----

    def find(self, name: str) -> tuple[Channel, str | None]:
        """The channel, and the name of its one stream if that was asked for. Raises EdgeLstmError when nothing runs."""
        self._check_running()
        head = name.partition(":")[0]
        for channel in self.service.channels:
            if channel.name == head and (name == head or name in channel.counts):
                return channel, None if name == head else name
        there = ", ".join(c.name for c in self.service.channels) or "(none)"
        raise UnknownStream(f"stream {name!r}", found="no such stream", expected=there)

    def do(self, loop: Loop, job: Callable[[], T]) -> T:
        """``job`` done between two calls of the loop, by its thread."""
        future = loop.ask(job)
        try:
            return future.result(ANSWER)
        except NotInTime:
            future.cancel()
            raise _no_answer(loop) from None

    def _check_free(self, name: str) -> None:
        if any(c.name == name for c in self.service.channels):
            raise _taken(name)

    def _check_running(self) -> None:
        if not self.service.is_running:
            raise EdgeLstmError("the service is not running")

    def _check(self, name: str, section: StreamSection) -> None:
        """What can be said without opening anything."""
        service = self.service
        config = service.config
        if (model := service.model_of(section)) in service.loops:
            loop = service.loops[model]
            if loop.error is not None:
                raise EdgeLstmError(f"model {model} stopped", found=str(loop.error))
            Channel(name, section, loop, None, {})
        wrong = cross_check(config.model_copy(update={"streams": {**config.streams, name: section}}))
        if wrong is not None:
            key, found, expected = wrong
            raise EdgeLstmError(".".join(key), found=found, expected=expected)

    def _note(self, name: str, section: StreamSection) -> None:
        config = self.service.config
        self.service.config = config.model_copy(update={"streams": {**config.streams, name: section}})

    def _start(
        self,
        name: str,
        section: StreamSection,
        source: Source | None,
        part: SectionPart | None = None,
        writers: list[Writer] | None = None,
        paused: tuple[bool, frozenset[str]] = (False, frozenset()),
        clocks: bool = True,
        learnt: Callable[[Channel], None] | None = None,
        began: datetime | None = None,
    ) -> None:
        """A channel more, from ``part`` on and with ``writers`` if it has them, whose times count from ``began``. clocks: frames are stamped as before."""
        service = self.service
        model = service.model_of(section)
        rooms = max(section.places(source), 0 if part is None else len(part.streams))
        loop = service.loops.get(model)
        if loop is None:
            loop = service.open_loop(model, rooms)
        else:
            self._make_room(loop, rooms)
        channel = service.channel(name, section, source)
        channel.paused, channel.paused_alone = paused
        try:
            if part is not None:
                same = part.model == loop.digest and is_made_alike(part, channel)
                channel.remember_alarms(part, goes_on=same and clocks)
                if same:
                    self.do(loop, lambda: channel.resume(part, clocks))
                elif is_of_source(part, channel):  # what was delivered is not delivered again
                    self.do(loop, lambda: channel.resume(part, False, "changed"))
                    words = "stream %s: its state begins anew: another model or preprocessing. Frames that were read are passed over"
                    log.warning(words, name)
                else:
                    log.warning("stream %s: begins anew: another source", name)
            if writers is None:
                service.open_sinks(channel)
            else:
                channel.writers.extend(writers)
                for writer in writers:
                    writer.released = channel.released
                channel.began = began
                if learnt is not None:
                    channel.learnt = learnt
                    learnt(channel)
        except BaseException:
            channel.remove()
            loop.ask(channel.drop)
            if writers is None:
                self._close(channel.writers)
            raise
        service.channels = [*service.channels, channel]
        self._note(name, section)
        service.ready_reader(channel)
        service.start_loop(loop)
        if channel.reader is not None:
            channel.reader.start()
        service.waits = service.config.service.stay

    def _make_room(self, loop: Loop, more: int) -> None:
        """Places for so many streams more; the others go over to a runner with more places, states and all."""
        service = self.service
        taken = sum(c.rooms for c in service.channels if c.loop is loop)
        if taken + more <= loop.rooms:
            return
        rooms = max(taken + more, 2 * loop.rooms)
        try:
            runner = service.open_runner(loop.name, rooms)
        except EdgeLstmError:
            rooms = taken + more  # an engine has places for so many and no more
            runner = service.open_runner(loop.name, rooms)
        try:
            if runner.model != loop.runner.model:
                raise EdgeLstmError(
                    f"model {loop.name}: no place for another stream",
                    found="another file than the one that runs",
                    expected=f"that at {service.models[loop.name].name}, or a swap",
                )
            self.do(loop, lambda: loop.move_to(runner, rooms))
        except BaseException:
            runner.close()
            raise

    def _stop(self, channel: Channel) -> SectionPart:
        """The channel leaves; gives what it leaves behind. Its sinks stay open."""
        service = self.service
        model = channel.loop.digest

        def job() -> SectionPart:
            part = channel.part(model, channel.open_marks())
            channel.drop()
            return part

        channel.remove()
        future = channel.loop.ask(job)
        try:
            if not channel.counts:  # it never had a frame: nothing to wait for
                return SectionPart(model, channel.setup, None, -1, {}, origin=channel.origin)
            return future.result(ANSWER)
        except NotInTime:  # not taken back: it leaves in any case
            raise _no_answer(channel.loop) from None
        finally:
            service.channels = [c for c in service.channels if c is not channel]
            service.first.pop(channel.name, None)

    def _close(self, writers: list[Writer]) -> None:
        close_all(writers, self.service.config.service.drain)

    def replace(self, channel: Channel, section: StreamSection, source: Source | None) -> None:
        """The channel goes, another comes in its place and goes on where it was; if that fails, one with the old section does."""
        old, name, service = channel.section, channel.name, self.service
        keeps = service.loops.get(channel.loop.name) is channel.loop and all(
            getattr(section, key) == getattr(old, key) for key in WRITTEN
        )
        part = self._stop(channel)
        if channel.reader is not None and source is None:
            channel.reader.join(ANSWER)  # a camera can't be opened twice
        writers = channel.writers if keeps else None
        if writers is None:
            for writer in channel.writers:  # the end of an alarm that is no more, or another now
                if (
                    isinstance(writer, AlarmWriter)
                    and section.alarms.get(writer.alarm) != old.alarms[writer.alarm]
                ):
                    writer.removed()
            self._close(channel.writers)

        def start(section: StreamSection, source: Source | None) -> None:
            source = source or service.source(name, section, within=LONGEST)
            try:
                same = section.rate == old.rate
                paused, learnt = (channel.paused, channel.paused_alone), channel.learnt
                self._start(name, section, source, part, writers, paused, same, learnt, channel.counts_from)
            except BaseException:
                if source is not None:
                    source.close()
                raise

        try:
            start(section, source)
        except EdgeLstmError as error:
            try:
                start(old, None)
            except EdgeLstmError as again:
                log.error("stream %s: ended, the old section does not work any more: %s", name, again)
            else:
                log.error("stream %s: goes on as it was: %s", name, error)
            raise
        finally:
            for writer in channel.writers if writers is None else ():
                writer.let_go()
            channel.let_go()


def _taken(name: str) -> TakenName:
    return TakenName(f"stream {name}", found="one of that name", expected="another name")


def _those(channel: Channel, own: str | None) -> list[Member]:
    return [m for m in channel.mine() if own is None or m.name == own]


def _no_answer(loop: Loop) -> EdgeLstmError:
    return EdgeLstmError(
        f"model {loop.name} does not answer", expected=f"the end of its step within {ANSWER:g} s"
    )
