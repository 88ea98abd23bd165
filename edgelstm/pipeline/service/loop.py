"""The engine loop of one model: every stream that is due advances in one call."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.due import Due
from edgelstm.pipeline.service.feed import Arrived, Wake
from edgelstm.pipeline.service.guard import Ranges, glance
from edgelstm.pipeline.service.member import Member
from edgelstm.pipeline.service.series import Caller, Series
from edgelstm.runtime.protocol import Array
from edgelstm.runtime.runner import Stream

log = logging.getLogger("edgelstm.serve")

T = TypeVar("T")

#: Seconds from look to look at streams whose source may be lost, and at what else is done between steps.
TICK = 0.2
#: So many rounds in a row in which every step failed, and the engine is broken.
BROKEN = 10
#: So many models that one took over from are remembered.
KIN = 16


class Loop:
    """Members of one model. A call is made when every due stream has a frame, or ``max_wait`` seconds after the first came.

    A stream is due if its next frame is expected within that time, judged by how its frames came so far.
    rooms: streams that the runner has places for; the frames of others wait until one leaves. ranges: of states, see
    :class:`edgelstm.pipeline.service.guard.Guard`.
    between: called between calls, and now and then while none is made.
    """

    def __init__(
        self, name: str, runner: Caller, rooms: int, max_wait: float, ranges: Ranges | None = None
    ) -> None:
        self.name = name
        self.runner = runner
        self.wake = Wake()
        self._ranges = ranges
        self._are_good = glance(runner, ranges)
        self._look_at = 0.0
        inputs = runner.signature.inputs
        self._only = inputs[0].name if len(inputs) == 1 else None
        self.members: list[Member] = []
        self.between: Callable[[], None] | None = None
        #: Called with a member that left.
        self.left: Callable[[Member], None] | None = None
        self.calls = 0
        #: Hash of the model's file: it tells whether a state is of this model.
        self.digest = ""
        #: Name of that file; hashes of those it took over from, whose states mean the same.
        self.file = ""
        self.kin: tuple[str, ...] = ()
        #: What ended the loop before its streams did.
        self.error: BaseException | None = None
        self.rooms, self.max_wait = rooms, max_wait
        #: Whether no thread is in :meth:`run`.
        self.is_idle = True
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._readers = 0
        #: Since when a step has been going on (``time.perf_counter``), and whether it was given up for hanging.
        self.stepping_since: float | None = None
        self.hangs = False
        #: When it last came round (``time.monotonic``).
        self.beat = time.monotonic()
        self._stopping = False
        self._failed_in_a_row = 0
        self._noted = 0

    def expect(self) -> None:
        """One more source will add members."""
        with self.wake:
            self._readers += 1

    def reader_ended(self) -> None:
        """A source will not."""
        with self.wake:
            self._readers -= 1
            self.wake.tell()

    def add(self, member: Member) -> None:
        """A stream begins."""
        with self.wake:
            if self._stopping:
                member.feed.end()
            self.members.append(member)
            self.wake.tell()

    def ask(self, job: Callable[[], T]) -> Future[T]:
        """Let ``job`` run between two calls, by the thread that makes them; at once when there is none."""
        future: Future[T] = Future()
        with self.wake:
            self._jobs.append((job, future))
            if self.is_idle:
                self._do_jobs()
            else:
                self.wake.notify_all()
        return future

    def _do_jobs(self) -> None:
        while self._jobs:
            job, future = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # who asked is told
                future.set_exception(error)

    def guard_by(self, ranges: Ranges) -> None:
        """Look at states by other ranges from here on; for :meth:`ask`."""
        self._ranges = ranges
        self._are_good = glance(self.runner, ranges)

    def move_to(self, runner: Caller, rooms: int) -> None:
        """Go on with another runner of the same model, states and all; for :meth:`ask`."""
        old = self.runner
        moved = [(member, member.stream_of(runner)) for member in self.members]
        for member, stream in moved:
            member.stream = stream
        self.runner, self.rooms, self._noted = runner, rooms, len(runner.notes)
        self._are_good = glance(runner, self._ranges)
        old.close()

    def go_on_with(self, runner: Caller, digest: str) -> None:
        """Call another runner from here on, in which the members' streams are; for :meth:`ask`."""
        if digest != self.digest:
            self.kin = (*(k for k in self.kin if k != digest), self.digest)[-KIN:]
        old, self.runner, self.digest, self._noted = self.runner, runner, digest, len(runner.notes)
        self._are_good = glance(runner, self._ranges)
        old.close()

    def drop(self, members: list[Member]) -> None:
        """Members leave at once, whatever waits; for :meth:`ask`."""
        with self.wake:
            for member in members:
                member.feed.end()
                member.drop_waiting()
                member.leave()
                if member in self.members:
                    self.members.remove(member)

    def stop(self) -> None:
        """Take no more frames; those queued are stepped."""
        with self.wake:
            self._stopping = True
            for member in self.members:
                member.feed.end()
            self.wake.tell()

    def run(self) -> None:
        """Until all sources ended and all frames are stepped."""
        with self.wake:
            self.is_idle = False
        try:
            # Numbers that overflow are what the guard looks for; NumPy need not say so too.
            with np.errstate(over="ignore", invalid="ignore"):
                while (ready := self._wait()) is not None:
                    self._round(ready)
                    self._do_jobs()
                    if self.between is not None:
                        self.between()
        except BaseException as error:
            self.error = error
            log.error("model %s: stopped: %s", self.name, error)
            self.stop()
            with self.wake:
                self.is_idle = True
                self._do_jobs()

    def _wait(self) -> list[tuple[Member, Arrived | None]] | None:
        """Members to be stepped together, each with a frame of its feed; none at a tick; None at the end."""
        with self.wake.lock:
            ready = self._await()
            return None if ready is None else [(member, member.take()) for member in ready]

    def _await(self) -> list[Member] | None:
        """The members alone; under the lock."""
        wake = self.wake
        while True:
            if self._jobs:
                return []
            self.beat = now = time.monotonic()
            if wake.look or now >= self._look_at:
                wake.look, self._look_at = False, now + TICK
                for member in self.members:
                    member.check_loss(now)
            ready = self._ready()
            if ready:
                if len(ready) == len(self.members):
                    return ready
                deadline = min(m.feed.oldest_at if len(m.feed) else now for m in ready) + self.max_wait
                if now >= deadline:
                    return ready
                awaited = [m.feed for m in self.members if _is_awaited(m, deadline)]
                if not awaited:
                    return ready
                for feed in awaited:
                    feed.awaited = True
                wake.missing = len(awaited)
                wake.wait(min(deadline - now, TICK))
                for feed in awaited:
                    feed.awaited = False
            elif any(m.is_done for m in self.members):
                return []
            elif (self._readers <= 0 or self._stopping) and not any(self._is_due(m) for m in self.members):
                self.is_idle = True
                return None
            else:
                wake.idle = True
                told = wake.wait(TICK)
                wake.idle = False
                if not told:
                    return []

    def _ready(self) -> list[Member]:
        ready = [m for m in self.members if m.is_ready]
        joining = [m for m in ready if m.stream is None]
        for member in joining[self.rooms - len(self.runner.streams) :] if joining else ():
            ready.remove(member)
        return ready

    def _is_due(self, member: Member) -> bool:
        """Whether the loop has to go on for it: one that is paused waits to be resumed, but not at the end."""
        return member.has_frame and not (member.paused and self._stopping)

    def _round(self, ready: list[tuple[Member, Arrived | None]]) -> None:
        due: dict[str, tuple[Member, Due]] = {}
        for member, taken in ready:
            if member.stream is None:
                member.join(self.runner)
            found = member.next(taken)
            if found is not None:
                due[member.name] = (member, found)
        if due:
            self._step(due)
        done = [m for m in self.members if m.is_done]
        if done:
            with self.wake:
                for member in done:
                    member.leave()
                    if self.left is not None:
                        self.left(member)
                    self.members.remove(member)

    def _step(self, due: dict[str, tuple[Member, Due]]) -> None:
        self.calls += 1
        self.stepping_since = started = time.perf_counter()
        try:
            only = self._only
            made: Mapping[str, Mapping[str, Array]]
            if isinstance(self.runner, Series):
                made = self._through(self.runner, due)
            elif len(due) == 1:  # the shortest way to the engine
                ((name, (member, found)),) = due.items()
                assert isinstance(member.stream, Stream)
                frame = found.arrays if only is None else found.arrays[only]
                made = {name: member.stream.step(frame, copy=False)}
            else:
                frames = {n: d.arrays if only is None else d.arrays[only] for n, (_, d) in due.items()}
                made = self.runner.step(frames, copy=False)
        except Exception as error:  # whoever is to blame, the others go on
            self._one_by_one(due, error)
            return
        seconds = time.perf_counter() - started
        self._step_is_done()
        self._failed_in_a_row = 0
        if len(self.runner.notes) > self._noted:
            for note in self.runner.notes[self._noted :]:
                log.warning("model %s: %s", self.name, note)
            self._noted = len(self.runner.notes)
        good, now = self._are_good(), time.monotonic()
        for name, (member, found) in due.items():
            member.stepped(found, made[name], seconds, now, good)

    def _through(
        self, series: Series, due: dict[str, tuple[Member, Due]]
    ) -> Mapping[str, Mapping[str, Array]]:
        passages = {name: member.passage(found) for name, (member, found) in due.items()}
        made = series.step(passages, copy=False)
        for name, (_, found) in due.items():
            found.raw = passages[name].raw
        return made

    def _step_is_done(self) -> None:
        self.stepping_since = None
        if self.hangs:
            self.hangs, self.error = False, None
            log.warning("model %s: the step that hung is done, it goes on", self.name)

    def _one_by_one(self, due: dict[str, tuple[Member, Due]], error: Exception) -> None:
        """No state moved: each stream alone, so that only those that are to blame stay."""
        done = 0
        made: Mapping[str, Mapping[str, Array]]
        for name, (member, found) in due.items():
            self.stepping_since = started = time.perf_counter()
            try:
                if len(due) == 1:
                    raise error
                if isinstance(self.runner, Series):
                    made = self._through(self.runner, {name: (member, found)})
                else:
                    made = self.runner.step({name: found.arrays}, copy=False)
            except Exception as own:
                member.failed(found, own)
                continue
            done += 1
            seconds = time.perf_counter() - started
            member.stepped(found, made[name], seconds, time.monotonic(), self._are_good())
        self._step_is_done()
        self._failed_in_a_row = 0 if done else self._failed_in_a_row + 1
        if self._failed_in_a_row >= BROKEN:
            raise EdgeLstmError(
                f"model {self.name}: {BROKEN} steps in a row failed", found=str(error)
            ) from error


def _is_awaited(member: Member, deadline: float) -> bool:
    """Whether a frame is expected by then."""
    feed = member.feed
    if member.paused or member.is_done or feed.ended or feed.lost or member.has_frame:
        return False
    return feed.last_at is None or feed.interval is None or feed.last_at + feed.interval <= deadline
