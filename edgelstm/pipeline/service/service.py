"""The service: everything a pipeline file declares, opened, run in its threads, stopped and closed."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as NotInTime
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.service.channel import Channel
from edgelstm.pipeline.service.checkpoint import Folder
from edgelstm.pipeline.service.guard import Ranges
from edgelstm.pipeline.service.kept import KeepRules
from edgelstm.pipeline.service.lock import FolderLock
from edgelstm.pipeline.service.loop import Loop
from edgelstm.pipeline.service.member import Member
from edgelstm.pipeline.service.notify import Notifier
from edgelstm.pipeline.service.opening import Opening, open_section
from edgelstm.pipeline.service.outlets import check, open_sinks, placed
from edgelstm.pipeline.service.reader import Reader
from edgelstm.pipeline.service.report import ServeReport
from edgelstm.pipeline.service.resume import resume
from edgelstm.pipeline.service.saving import ANSWER, Saver
from edgelstm.pipeline.service.series import Caller, Series, numbered
from edgelstm.pipeline.service.settled import settled
from edgelstm.pipeline.service.share import share
from edgelstm.pipeline.service.swap import take_over
from edgelstm.pipeline.service.watchdog import look
from edgelstm.pipeline.service.writer import close_all
from edgelstm.pipeline.sources import NothingYet, Source, is_live
from edgelstm.pipeline.sources.given import Frames
from edgelstm.runtime.runner import Runner

if TYPE_CHECKING:
    from edgelstm.pipeline.service.config import Config, StreamSection

log = logging.getLogger("edgelstm.serve")


#: Begins the name of the folder in which described models are exported, a folder each.
EXPORTS = "edgelstm-serve-"


class Service:
    """Opened by the constructor, which raises EdgeLstmError with nothing left open; then :meth:`run`, once, or :meth:`close`.

    models: where each model's step graph or engine lies, by name. base: the folder that relative paths in ``config`` start at.
    stop: set from outside while it opens or runs. given: sources from Python, by name. ranges: of states, by model. hashes: of the models' files, which tell whether a checkpoint fits. writes: False
    opens no sinks and no checkpoints.
    """

    def __init__(
        self,
        config: Config,
        models: Mapping[str, Path],
        base: Path,
        *,
        ranges: Mapping[str, Ranges] | None = None,
        hashes: Mapping[str, str] | None = None,
        writes: bool = True,
        stop: threading.Event | None = None,
        given: Mapping[str, Frames] | None = None,
    ) -> None:
        self.config, self._base = config, base
        self.models, self.ranges, self.hashes = dict(models), dict(ranges or {}), dict(hashes or {})
        self._writes = writes
        self._saver: Saver | None = None
        #: Both are replaced, never changed: other threads walk through them.
        self.channels: list[Channel] = []
        self.loops: dict[str, Loop] = {}
        #: Held by whoever adds or removes streams, and to find out that there is nothing left to do.
        self.changing = threading.RLock()
        #: The service waits for further streams, though none is left.
        self.waits = config.service.stay
        self.is_running = False
        #: Sources that were opened at the start, by stream, as long as it is there.
        self.first: dict[str, Source] = {}
        self._threads: list[threading.Thread] = []
        self._notifier = Notifier()
        self._stop = stop or threading.Event()
        self._given = given or {}
        self._stack = ExitStack()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        config = self.config
        opening = {
            name: Opening(name, partial(self._opened, name, stream))
            for name, stream in config.streams.items()
            if any(map(is_live, stream.sources.values())) or stream.hang_after or stream.isolate == "process"
        }
        for each in opening.values():
            self._stack.callback(each.abandon)
        sources: dict[str, Source | None] = {}
        for name, stream in config.streams.items():
            sources[name] = source = self.source(name, stream, opening.get(name))
            if source is not None:
                self.first[name] = source
                self._stack.callback(partial(self._close_first, name))
        only = config.heads[0]
        for name in config.heads:
            rooms = sum(
                s.places(sources[stream]) for stream, s in config.streams.items() if (s.model or only) == name
            )
            if not rooms:
                log.warning("model %s: no stream uses it", name)
                continue
            self.open_loop(name, rooms)
        self.channels = [self.channel(name, stream, sources[name]) for name, stream in config.streams.items()]
        for channel in self.channels:
            check(channel, self._base)
        if not self._writes or self._stop.is_set():
            return
        if config.service.checkpoint is not None:
            states = Path(placed(self._base, config.service.checkpoint))
            self._stack.callback(FolderLock(states).close)
            folder = Folder(states)
            self._saver = Saver(folder, lambda: self.channels, lambda: self.loops)
            resume(folder, self.channels, self._mean_the_same)
        for channel in self.channels:
            self.open_sinks(channel)

    def _close_first(self, name: str) -> None:
        source = self.first.pop(name, None)
        if source is not None:
            source.close()

    def open_runner(self, name: str, rooms: int) -> Caller:
        """A runner of model ``name``, and those behind it, with places for ``rooms`` streams."""
        threads = share(self.config, self.models)
        with ExitStack() as stack:
            runners = []
            for each in self.config.chain(name):
                device = self.config.models[each].device
                runner = Runner.open(
                    self.models[each], device, streams=rooms, threads=threads[each], on_bad_frame="pass"
                )
                stack.callback(runner.close)
                runners.append(runner)
            made = runners[0] if len(runners) == 1 else Series(runners)
            stack.pop_all()
            return made

    def _files(self, name: str) -> str:
        return " then ".join(self.models[each].name for each in self.config.chain(name))

    def digest(self, name: str) -> str:
        """Of a model's file and of those behind it: it tells whether a state is of them."""
        return " ".join(self.hashes.get(each, "") for each in self.config.chain(name)).strip()

    def ranges_of(self, name: str) -> Ranges:
        """Of the states of a model and of those behind it."""
        return numbered([self.ranges.get(each, {}) for each in self.config.chain(name)])

    def open_loop(self, name: str, rooms: int) -> Loop:
        """The loop of a model, in the place of one that there was."""
        runner, wait = self.open_runner(name, rooms), self.config.models[name].max_wait
        loop = Loop(name, runner, rooms, wait, self.ranges_of(name))
        # One that hangs in a step can't be closed: it goes with the process.
        self._stack.callback(lambda: None if loop.stepping_since is not None else loop.runner.close())
        opened = runner.runners if isinstance(runner, Series) else (runner,)
        for each, one in zip(self.config.chain(name), opened, strict=True):
            # It may be another file than when it was hashed. Of a described model another one is opened.
            if self.hashes.get(each) and not self.models[each].parent.parent.name.startswith(EXPORTS):
                self.hashes[each] = one.model
        loop.digest, loop.file = self.digest(name), self._files(name)
        loop.left = self._left
        loop.between = partial(self._between, loop)
        self.loops = {**self.loops, name: loop}
        return loop

    def swap(
        self,
        name: str,
        path: Path,
        digest: str,
        *,
        compatible: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> float | None:
        """Let the file ``path`` take over from model ``name``, between two frames, states carried; see
        :func:`edgelstm.pipeline.service.swap.take_over`. check: called once it is open. Any thread may call it.

        Raises EdgeLstmError, and the old one goes on, where it doesn't fit.
        """
        with self.changing:
            loop = self.loops.get(self.config.head(name))
            if loop is None:
                there = ", ".join(each for head in self.loops for each in self.config.chain(head)) or "(none)"
                raise EdgeLstmError(f"model {name!r}", found="no stream uses it", expected=there)
            before = self.models[name], self.hashes.get(name, "")
            self.models[name], self.hashes[name] = path, digest
            runner: Caller | None = None
            try:
                runner = self.open_runner(loop.name, loop.rooms)
                check()
                channels = [c for c in self.channels if c.loop is loop]
                whole = self.digest(loop.name)
                future = loop.ask(partial(take_over, loop, channels, runner, whole, compatible))
                try:
                    apart = future.result(ANSWER)
                except NotInTime:
                    if future.cancel():
                        raise EdgeLstmError(f"no answer of its loop within {ANSWER:g} s") from None
                    apart = future.result()  # it began meanwhile
                loop.file = self._files(loop.name)
            except BaseException as error:
                self.models[name], self.hashes[name] = before
                if runner is not None:
                    runner.close()
                if not isinstance(error, EdgeLstmError):
                    raise
                raise EdgeLstmError(
                    f"model {name} is not swapped: {error.what}",
                    found=error.found,
                    expected=error.expected,
                    hint=error.hint,
                ) from error
        said = (
            "" if apart is None else f": a first step differs by {apart:.2g} of the states' root mean square"
        )
        log.info("model %s: swapped%s", name, said)
        return apart

    def model_of(self, section: StreamSection) -> str:
        """Name of the model whose stream it is."""
        return section.model or self.config.heads[0]

    def channel(self, name: str, section: StreamSection, source: Source | None) -> Channel:
        """A channel that nothing runs yet; its loop is there."""
        loop = self.loops[self.model_of(section)]
        made = Channel(name, section, loop, source, self.ranges_of(loop.name))
        made.shows = self.config.service.http is not None
        if section.keep_frames is not None and self._writes:
            folder = Path(placed(self._base, section.keep_frames))
            made.keep = KeepRules(folder, section.keep_seconds, section.keep_files, section.keep_mib * 2**20)
        return made

    def source(
        self,
        name: str,
        section: StreamSection,
        opening: Opening | None = None,
        *,
        gone: threading.Event | None = None,
        within: float | None = None,
    ) -> Source | None:
        """The source of a stream, or None for one that is to be tried again. gone: set when nobody wants it any more. within: seconds
        that it may take where the section says nothing."""
        # Later than at the start, a share that hangs holds up neither the stop nor, with `hang_after`, others.
        if opening is None and self.loops:
            opening = Opening(name, partial(self._opened, name, section))
        try:
            if opening is None:
                source = self._opened(name, section)
            else:
                source = opening.result(self._stop, section.hang_after or within, gone)
        except NothingYet as error:
            log.info("stream %s: waits for the first file: %s", name, error.what)
            return None
        except EdgeLstmError as error:
            if (not section.retries and not self._stop.is_set()) or (gone is not None and gone.is_set()):
                raise EdgeLstmError(f"stream {name}: {error}") from error
            log.warning("stream %s: its source can't be opened yet: %s", name, error)
            return None
        for line in source.said:
            log.info("stream %s: %s", name, line)
        return source

    def _opened(self, name: str, section: StreamSection) -> Source:
        def unpaired(input: str, index: int) -> None:
            for channel in self.channels:
                if channel.name == name:
                    channel.unpaired(input, index)

        def left_out(reason: str) -> None:
            for channel in self.channels:
                if channel.name == name:
                    channel.left_out(reason)

        source = open_section(section, self._base, self._given, unpaired)
        source.left_out.tell = left_out
        return source

    def _again(self, channel: Channel) -> Source:
        source = self._opened(channel.name, channel.section)
        try:
            made = channel.read(source)
        except BaseException:
            source.close()
            raise
        channel.reopened += 1
        return made

    def _mean_the_same(self, name: str, digest: str) -> bool:
        """Whether it was said of every model that is another than in ``digest`` that states mean the same to it."""
        was, chain = digest.split(), self.config.chain(name)
        return len(was) == len(chain) and all(
            old == self.hashes.get(each) or self.config.models[each].compatible
            for old, each in zip(was, chain, strict=True)
        )

    def open_sinks(self, channel: Channel) -> None:
        """Its sinks, each with a thread of its own."""
        open_sinks(channel, self._base, self.models[channel.loop.name])

    def run(self) -> ServeReport:
        """Until every source ended, or :meth:`stop`. Raises nothing for what happens to a stream: see the report."""
        self._ready_all()
        if self._saver is not None:
            self._saver.save()  # so that a crash right away is one of this run
        self._stack.enter_context(settled())
        try:
            self._start_all()
            log.info("streams: %s", ", ".join(channel.name for channel in self.channels))
            self._notifier.ready(
                f"{count_of(len(self.channels), 'stream')}, {count_of(len(self.loops), 'model')}"
            )
            self._watch()
        finally:
            self.is_running = False
            if self.changing.acquire(timeout=ANSWER):  # a change that began is done, or its source hangs
                self.changing.release()
            self._halt()
            report = self.report()
            self.close()
        report.failed |= self._sink_failures()
        log.info("ended: %s", json.dumps(self.report().streams))
        report.streams = self.report().streams
        for name, counts in report.streams.items():
            refused = counts.get("dropped:refused", 0)
            if refused and not counts.get("stepped"):
                why = f"none of its {count_of(refused, 'frame')} is what the model takes"
                log.error("stream %s: %s", name, why)
                report.failed.setdefault(f"stream {name}", why)
        return report

    def _ready_all(self) -> None:
        for channel in self.channels:
            self.ready_reader(channel)

    def _start_all(self) -> None:
        with self.changing:
            for loop in self.loops.values():
                self.start_loop(loop)
            for channel in self.channels:
                if channel.reader is not None and not self._stop.is_set():
                    channel.reader.start()
            self.is_running = True

    def ready_reader(self, channel: Channel) -> None:
        """The thread that reads its source, to be started once its loop runs."""
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
            rooms=section.places(channel.source),
            lost=channel.lost,
            ended=channel.ended,
            elsewhere=channel.begin_anew,
            moved=channel.moved,
            left_out=channel.left_out,
            hang_after=section.hang_after,
            limit=section.limit,
            epoch=None if channel.began is None else channel.began.timestamp(),
            **channel.start(),
        )

    def start_loop(self, loop: Loop) -> None:
        """Its thread, unless it runs."""
        with loop.wake:
            if loop.is_idle:
                loop.is_idle = False
                thread = threading.Thread(target=loop.run, name=f"model {loop.name}", daemon=True)
                self._threads = [*(t for t in self._threads if t.is_alive()), thread]
                thread.start()

    def _is_busy(self) -> bool:
        if self._is_stepping():
            return True
        if self.loops and all(loop.hangs for loop in self.loops.values()):
            return False  # nothing here can end that: whoever watches the process starts another
        with self.changing:
            if self.waits or self._is_stepping():
                return True
            self.is_running = False
            return False

    def _is_stepping(self) -> bool:
        """Whether a loop goes on; one that hangs does not."""
        hangs = {f"model {name}" for name, loop in self.loops.items() if loop.hangs}
        return any(thread.is_alive() and thread.name not in hangs for thread in self._threads)

    def _watch(self) -> None:
        every = self.config.service.report
        due = time.monotonic() + every
        save = time.monotonic() + self.config.service.checkpoint_every
        while self._is_busy():
            if self._stop.wait(0.05):
                return
            models = self.config.models
            now = time.monotonic()
            # One that was given up for hanging does not advance; one without streams need not.
            self._notifier.advances(min((o.beat for o in self.loops.values() if not o.is_idle), default=now))
            look(self.channels, self.loops, {n: models[n].hang_after for n in self.loops if n in models})
            if self._saver is not None and time.monotonic() >= save:
                self._saver.save()
                save = time.monotonic() + self.config.service.checkpoint_every
            every = self.config.service.report
            if every and time.monotonic() >= due:
                due += every
                log.info("counters: %s", json.dumps(self.report().streams))

    def _halt(self) -> None:
        """Sources read no more, queued frames are stepped."""
        self._notifier.stopping()
        for channel in self.channels:
            if channel.reader is not None:
                channel.reader.stop()
        threads = self._threads
        if any(thread.is_alive() for thread in threads):
            for loop in self.loops.values():
                loop.stop()
        deadline = time.monotonic() + self.config.service.drain
        hangs = {f"model {name}" for name, loop in self.loops.items() if loop.hangs}
        for thread in threads:
            thread.join(0.0 if thread.name in hangs else max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.error("%s: not done within %g s, left behind", thread.name, self.config.service.drain)
        for loop in self.loops.values():
            if loop.stepping_since is not None and loop.error is None:
                found = f"a step of {time.perf_counter() - loop.stepping_since:.1f} s"
                loop.error = EdgeLstmError(f"model {loop.name}: left behind at the end", found=found)
                loop.hangs = True
        if self._saver is not None:
            self._saver.save()

    def _between(self, loop: Loop) -> None:
        if self._saver is not None:
            self._saver.offer(loop)

    def _left(self, member: Member) -> None:
        channel = next((c for c in self.channels if member.name in c.counts), None)
        if channel is not None:
            channel.left(member)

    def stop(self) -> None:
        """End :meth:`run` soon; a signal handler may call it."""
        self._stop.set()

    def close(self) -> None:
        """Put what was written in its place and free the devices; calling it again does nothing."""
        close_all([w for c in self.channels for w in c.writers], self.config.service.drain)
        for keeper in [k for c in self.channels for k in c.keepers]:
            keeper.close()
        deadline = time.monotonic() + 1.0  # for all of them: a camera that hangs is left behind
        for channel in self.channels:
            if channel.reader is not None:
                channel.reader.join(max(0.0, deadline - time.monotonic()))
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
        writers = [(w.name, w.error or w.trouble) for c in self.channels for w in c.writers]
        return {f"sink {name}": str(why) for name, why in writers if why is not None}
