"""One stream of the service: its frames judged and made ready, its state looked after, its outputs handed on."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.inputs import Inputs
from edgelstm.pipeline.outputs import Outputs
from edgelstm.pipeline.service.checkpoint import StreamPart
from edgelstm.pipeline.service.copies import Copies
from edgelstm.pipeline.service.counters import Counts, is_worth_a_line
from edgelstm.pipeline.service.due import Due
from edgelstm.pipeline.service.feed import Arrived, Feed
from edgelstm.pipeline.service.guard import Guard
from edgelstm.pipeline.service.kept import Keeper
from edgelstm.pipeline.service.policies import IN_TIME, Clock, Rules
from edgelstm.pipeline.service.pulse import Pulse
from edgelstm.pipeline.service.scene import Scene
from edgelstm.pipeline.service.series import Caller, Link, Passage, Place
from edgelstm.pipeline.service.writer import Writer
from edgelstm.pipeline.sinks.panels import INPUT
from edgelstm.pipeline.sources.source import Array, Frame
from edgelstm.runtime.finite import all_finite, can_be_infinite

log = logging.getLogger("edgelstm.serve")


class Member:
    """A stream. Only the loop's thread calls it, once it was added; ``feed`` and ``counts`` belong to all."""

    def __init__(
        self,
        name: str,
        rules: Rules,
        feed: Feed,
        clock: Clock,
        inputs: Inputs,
        outputs: Outputs,
        guard: Guard,
        counts: Counts,
        writers: Sequence[Writer],
    ) -> None:
        self.name = name
        self.rules = rules
        self.feed = feed
        self.clock = clock
        self.guard = guard
        self.counts = counts
        self.stream: Place | None = None
        #: Its frames wait, as those of a full queue do.
        self.paused = False
        self.pulse = Pulse()
        self._copies = Copies()
        #: Keeps the last frames, for a file when the state goes bad.
        self.keeper: Keeper | None = None
        #: Looks for scene cuts.
        self.scene: Scene | None = None
        #: Index in its source, None before the first, and time stamp of the last frame that the state has seen or that was dropped.
        self.index: int | None = None
        self.stamp = 0.0
        self._inputs, self._outputs = inputs, outputs
        self._may_be_infinite = [(s.name, s.dtype) for s in inputs.specs if can_be_infinite(s.dtype)]
        #: Of maps and pictures with captions, where their units are others.
        self.readable: Outputs | None = None
        #: Of models in series: what lies between them, and what makes that.
        self.links: list[Link] = []
        self.new_links: Callable[[], list[Link]] = list
        self._writers = writers
        self._pending: deque[tuple[Arrived, bool]] = deque()
        self._before: Frame | None = None
        #: The state began anew, and no step was made since.
        self._is_anew = False
        self._ending = False
        self._loss_seen = False
        self._resumed: StreamPart | None = None
        self._left: StreamPart | None = None
        #: While frames stand in for missing ones: what was before the first of them.
        self._held: StreamPart | None = None
        #: Of a window: index of the oldest frame since its last step.
        self._gathered_from: int | None = None
        #: How many frames that is, and the clock at that step: they are read again after a restart.
        self._gathered_open = 0
        self._dealt_with: float | None = None

    def take(self) -> Arrived | None:
        """What :meth:`next` begins with, under the loop's lock, which is taken once for all members of a call; None: what waits here."""
        return self.feed.pop() if self.feed.queue and not self._pending else None

    @property
    def has_frame(self) -> bool:
        """Whether :meth:`next` has something to look at."""
        return bool(self.feed.queue or self._pending)

    @property
    def is_ready(self) -> bool:
        """Whether it may take part in the next call."""
        return self.has_frame and not self.paused and not (self._writers and self.is_held)

    @property
    def is_held(self) -> bool:
        """Whether a sink has no room for what a step would give."""
        return bool(self._writers) and any(writer.holds for writer in self._writers)

    @property
    def is_done(self) -> bool:
        """Nothing more comes."""
        return (self._ending or self.feed.ended) and not self.has_frame

    def join(self, runner: Caller) -> None:
        """Take a place, once."""
        if self.stream is None:
            self.stream = runner.stream(self.name)
            if self._resumed is not None:
                self.stream.restore(self._resumed.states)
                self.guard.resume(dict(self._resumed.states))
                self._resumed = None

    def stream_of(self, runner: Caller) -> Place | None:
        """A place of another runner of the same model, with the state; None for one that has no place yet."""
        if self.stream is None:
            return None
        made = runner.stream(self.name)
        made.restore(self.stream.snapshot())
        made.frames = self.stream.frames
        return made

    @property
    def is_resumed(self) -> bool:
        """It has a state, and no place yet."""
        return self._resumed is not None

    def trial(self, frame: Frame) -> Callable[[], Any] | None:
        """What makes what a step with ``frame`` would take; None where a step takes several frames."""
        if self._inputs.window is not None:
            return None
        arrays = self._inputs(frame)
        return lambda: Passage(arrays, frame.data, self.new_links()) if self.links else arrays

    def passage(self, due: Due) -> Passage:
        """What a step of models in series takes."""
        return Passage(due.arrays, due.frame.data, self.links)

    def moved(
        self,
        stream: Place | None,
        signature: Signature,
        carry: Callable[[Mapping[str, Array]], dict[str, Array]],
        part: Callable[[StreamPart], StreamPart],
    ) -> Callable[[], None]:
        """What makes it go on with ``stream``, of a model that stores states otherwise: made ready here, where it may fail."""
        parts = [None if p is None else part(p) for p in (self._resumed, self._left, self._held)]
        guard = self.guard.moved(signature, carry)

        def move() -> None:
            self.stream = stream
            self._resumed, self._left, self._held = parts
            guard()
            if self.keeper is not None:
                self.keeper.forget()

        return move

    def drop_waiting(self) -> None:
        """What waits is not stepped any more."""
        waiting = [a for a, filled in self._pending if not filled]
        self._pending.clear()
        while (arrived := self.feed.take()) is not None:
            waiting.append(arrived)
        if waiting:
            self.counts.add("dropped:removed", len(waiting))

    def resume(self, part: StreamPart) -> None:
        """Begin where a checkpoint left off; before the first frame."""
        self._resumed = part
        self.index, self.stamp = part.index, part.stamp
        self.clock.begin_anew(part.stamp if part.timed else None)
        self.counts.load(part.counts)

    def moved_to(self, index: int) -> None:
        """The frame that it saw last has another index now; before the first frame."""
        if self.index is not None:
            self.index = index
        if self._resumed is not None:
            self._resumed = replace(self._resumed, index=index)

    def part(self) -> StreamPart | None:
        """What a checkpoint keeps: nothing before the first frame."""
        return self._held if self._pending else self._part()

    def _part(self, stamp: float | None = None) -> StreamPart | None:
        """``stamp``: of the last frame, where the clock is ahead."""
        if self._resumed is not None:
            return self._resumed
        if self.index is None or self.stream is None:
            return None if self._left is None else self._left.with_delivered(self.counts.to_json())
        state = self.guard.last or self.stream.snapshot()
        counts = self.counts.to_json()
        if self._gathered_from is not None:
            counts["gathered"] = counts.get("gathered", 0) - self._gathered_open
        # What is read but not dealt with is read again.
        seen = counts.get("stepped", 0) + counts.get("gathered", 0)
        counts["read"] = seen + sum(n for name, n in counts.items() if name.startswith("dropped:"))
        last = self.clock.last if self._gathered_from is None else self._dealt_with
        last = last if stamp is None else stamp
        when = self.stamp if last is None else last
        return StreamPart(self.index, when, counts, state, timed=last is not None)

    def open_index(self) -> int | None:
        """Index of the oldest frame that is not dealt with; None when all are."""
        waiting = [a.frame.index for a, filled in self._pending if not filled]
        queued = self.feed.oldest_index()
        found = min((*waiting, *(() if queued is None else (queued,))), default=None)
        if self._gathered_from is not None:
            return self._gathered_from if found is None else min(found, self._gathered_from)
        return found

    @property
    def has_ended(self) -> bool:
        """Its source said that it gave its last frame."""
        return self._ending

    def leave(self) -> None:
        """Free the place."""
        self._left = self.part()
        if self.stream is not None:
            self.stream.close()
            self.stream = None
        self._inputs.forget(self.name)
        self._forget_outputs()

    def check_loss(self, now: float) -> None:
        """Notice that no frame comes, and do what the policy says of a source that is lost."""
        feed, after = self.feed, self.rules.lost_after
        if self.is_held:
            feed.wait_anew()
        if self.paused:
            return
        if after is not None and feed.last_at is not None and now - feed.last_at > after and feed.lose():
            log.warning("stream %s: lost, no frame for %g s", self.name, after)
        if feed.lost and not self._loss_seen and not self.has_frame:  # seen until the first frame is back
            self._loss_seen = True
            if self.rules.loss == "reset_on_loss":
                self.reset("loss")

    def reset(self, cause: str) -> None:
        """Go to the initial state; windows begin anew. Frames that stand in for missing ones are of what was before: none is stepped any more."""
        if self.stream is not None:
            self.stream.reset()
        elif self._resumed is not None:  # it has no place yet, and would begin with what the checkpoint had
            self._resumed = replace(self._resumed, states=self.guard.initial())
        self.guard.forget()
        self._is_anew = True
        self._interrupt(anew=True)
        if self._pending:
            waits = [(arrived, filled) for arrived, filled in self._pending if not filled]
            if gone := len(self._pending) - len(waits):
                self.counts.add("unfilled:reset", gone)
            self._pending = deque(waits)
            if self._held is not None:
                self._held = replace(self._held, states=self.guard.initial())
        if self.keeper is not None:
            self.keeper.forget()
        self._open_window_anew()
        self._forget_outputs()
        if is_worth_a_line(self.counts.add(f"reset:{cause}")):
            log.warning("stream %s: state reset (%s)", self.name, cause)

    def _forget_outputs(self) -> None:
        for outputs in (self._outputs, self.readable, *self.links):
            if outputs is not None:
                outputs.forget(self.name)

    def next(self, taken: Arrived | None) -> Due | None:
        """The next frame that is to be stepped, from what :meth:`take` gave on; those that are not are counted. None when there is none now."""
        while True:
            if self._pending:
                due = self._ready(*self._pending.popleft())
                if due is not None:
                    return due
                continue
            arrived = taken or self.feed.take()
            if arrived is None:
                return None
            taken = None
            if self._judge(arrived):
                due = self._ready(arrived, False)
                if due is not None:
                    return due

    def _judge(self, arrived: Arrived) -> bool:
        """Whether the frame is to be stepped now: not when it is dropped, or waits behind those that stand in for missing ones."""
        frame = arrived.frame
        self._ending = self._ending or frame.last
        if arrived.returned:
            if self.rules.loss == "reset_on_return":
                self.reset("return")
            elif self.rules.loss == "reset_on_loss" and not self._loss_seen:
                self.reset("loss")  # it was back before the loop looked
            self._loss_seen = False
        if arrived.anew:
            self.clock.begin_anew()
            self.reset("source")
        if frame.bad is not None and (frame.time is None or frame.is_empty):
            # It has no time that is to be believed. One that has counts as a frame with NaN does: what comes behind it has no gap before it.
            self._bad(replace(arrived, stamp=self._stamp(arrived)), _told(frame.bad))
            return False
        before = self.clock.last
        verdict = self.clock.arrived(arrived.stamp, frame.gap is not None)
        if verdict is IN_TIME:
            return True
        if verdict.drop == "no_time":
            self._drop("no_time", replace(arrived, stamp=before or 0.0), f"time stamp {arrived.stamp}")
            return False
        if verdict.gap:
            self.counts.add("gaps")
            self._interrupt()
        if verdict.drop is not None:
            self._drop(verdict.drop, arrived, f"time stamp {arrived.stamp:.15g} after {self.clock.last}")
            return False
        if verdict.late:
            self.counts.add("stepped_late")
        if verdict.reset is not None:
            self.reset(verdict.reset)
        if verdict.fill and self._is_anew:  # what is missing is of what was before
            self.counts.add("unfilled:reset", verdict.fill)
        elif verdict.fill:
            self._held = self._part(before)
            filler = self._before if self.rules.gap.word == "repeat" else _blank(frame)
            if filler is not None:
                stand_in = replace(arrived, frame=replace(filler, last=False, gap=None))
                self._pending.extend([(stand_in, True)] * verdict.fill)
        self._pending.append((arrived, False))
        return False

    def _ready(self, arrived: Arrived, filled: bool) -> Due | None:
        frame = arrived.frame
        if frame.bad is not None:
            self._bad(arrived, _told(frame.bad), filled)
            return None
        try:
            arrays: dict[str, Array] | None = self._inputs(frame)
        except EdgeLstmError as error:
            self._open_window_anew()
            self._drop("refused", arrived, str(error), filled)
            return None
        assert arrays is not None
        for name, dtype in self._may_be_infinite:
            if not all_finite(arrays[name], dtype):
                self._bad(arrived, frame.missing or "NaN or infinity in the frame", filled)
                return None
        if self.scene is not None and not filled and self.scene.is_cut(frame):
            self.reset("cut")
        if self.keeper is not None and self.stream is not None:
            whole = self._gathered_from is None
            self.keeper.take(frame, arrived.stamp, self.stream.snapshot if whole else None)
        if not filled:
            self._before = frame if self.rules.gap.word == "repeat" else None
        if self._inputs.window is not None:
            arrays = self._inputs.push(frame, self.name, arrays)
            if arrays is None:
                self.counts.add("filled" if filled else "gathered")
                if not filled:
                    self._gathered_open += 1
                    self._gathered_from = frame.index if self._gathered_from is None else self._gathered_from
                return None
            self._gathered_from, self._gathered_open, self._dealt_with = None, 0, self.clock.last
        return Due(frame, arrived.stamp, arrays, filled, arrived.at)

    def _bad(self, arrived: Arrived, why: str, filled: bool = False) -> None:
        """A frame that is not stepped, and what the policy says of the state then."""
        self._open_window_anew()
        reason = "unreadable" if arrived.frame.is_empty else "not_finite"
        self._drop(reason, arrived, why, filled)
        if self.rules.bad == "reset":
            self.reset("frame")
        elif self.rules.bad == "rollback" and self.stream is not None:
            self.counts.add(f"rolled_back:frame:{self.guard.set_back(self.stream)}")
            if self.keeper is not None:
                self.keeper.forget()

    def _stamp(self, arrived: Arrived) -> float:
        """Of a frame that may have no time: that of the last one."""
        return arrived.stamp if self.clock.last is None else self.clock.last

    def _open_window_anew(self) -> None:
        """No window closes over a frame that can't be in it."""
        self._inputs.forget(self.name)
        self._gathered_from, self._gathered_open = None, 0

    def _interrupt(self, anew: bool = False) -> None:
        for writer in self._writers:
            writer.interrupted(self.name, anew)

    def _drop(self, reason: str, arrived: Arrived, why: str, filled: bool = False) -> None:
        self._interrupt()
        if filled:
            self.counts.add(f"unfilled:{reason}")
            return
        self._seen(arrived, False)
        if is_worth_a_line(self.counts.add(f"dropped:{reason}")):
            name = f"frame {arrived.frame.index} ({arrived.frame.name})"
            log.warning("stream %s: %s dropped (%s): %s", self.name, name, reason, why)

    def _seen(self, arrived: Arrived | Due, filled: bool) -> None:
        if not filled and self._gathered_from is None:  # what is gathered lies before it, and is still open
            self.index, self.stamp = arrived.frame.index, arrived.stamp

    def stepped(self, due: Due, outputs: Mapping[str, Array], seconds: float, now: float, good: bool) -> None:
        """The step is done, ``now``; outputs are views that last until the next one. good: the state was found to be so already."""
        assert self.stream is not None
        self._is_anew = False
        if not due.filled:
            self.index, self.stamp = due.frame.index, due.stamp
        if good:
            self.guard.passed(self.stream)
        elif (problem := self.guard.look(self.stream)) is not None:
            self._was_set_back(due, *problem)
            return
        watched = bool(self._writers) or self.pulse.keeps
        if watched:
            outputs = self._copies.of(outputs)
        if due.filled:
            self.counts.add("filled")
        else:
            self.counts.stepped += 1
            self.pulse.stepped(seconds, due.at, now)
            self.pulse.frame = due.frame
        if watched:
            self._deliver(due, outputs, seconds)

    def _was_set_back(self, due: Due, kind: str, words: str) -> None:
        """Nothing comes of the step."""
        self._interrupt()
        for link in self.links:
            link.forget(self.name)
        self.counts.add(("unfilled:" if due.filled else "dropped:") + kind)
        if is_worth_a_line(self.counts.add(f"guard:{kind}")):
            log.warning("stream %s: frame %d: %s; set back", self.name, due.frame.index, words)
        if self.keeper is not None:
            self.keeper.write(words)

    def _deliver(self, due: Due, outputs: Mapping[str, Array], seconds: float) -> None:
        shown = replace(due.frame, stream=self.name)
        for writer in self._writers:
            writer.judge(shown, due.arrays, outputs)
        if due.filled:
            self._interrupt()
        try:  # of frames that stand in too: it remembers
            made = self._handed_on(due, outputs)
        except Exception as error:  # this stream's affair alone
            if is_worth_a_line(self.counts.add("undelivered:postprocess")):
                log.warning("stream %s: frame %d: %s", self.name, due.frame.index, error)
            return
        if due.filled:
            return
        self.pulse.show(due.frame, due.arrays, made[False, False])
        for writer in self._writers:
            writer.put(shown, made[writer.readable, writer.beside], seconds, self.counts)

    def _handed_on(self, due: Due, outputs: Mapping[str, Array]) -> dict[tuple[bool, bool], dict[str, Array]]:
        """What sinks get, by whether theirs are the units for people, and whether the input belongs to it."""
        raw = due.frame.data if due.raw is None else due.raw
        made = {(False, False): self._outputs(outputs, raw, self.name)}
        for wanted in {(w.readable, w.beside) for w in self._writers} - {(False, False)}:
            how = self._outputs if self.readable is None or not wanted[0] else self.readable
            if (wanted[0], False) not in made:
                own = made[False, False] if how is self._outputs else how(outputs, raw, self.name)
                made[wanted[0], False] = own
            if wanted[1]:
                spec = self._inputs.specs[0]
                frame = how.frame(due.arrays[spec.name], spec.dtype)
                made[wanted] = {**made[wanted[0], False], INPUT: frame}
        return made

    def failed(self, due: Due, error: BaseException) -> None:
        """The step raised; the state is what it was."""
        self._interrupt()
        self._seen(due, due.filled)
        self.counts.add(("unfilled:" if due.filled else "dropped:") + "engine")
        if is_worth_a_line(self.counts.add("engine_errors")):
            log.error("stream %s: frame %d: the step failed: %s", self.name, due.frame.index, error)


def _told(error: EdgeLstmError) -> str:
    """Without the hint, which is for who can answer."""
    return str(EdgeLstmError(error.what, found=error.found, expected=error.expected))


def _blank(frame: Frame) -> Frame:
    """The same with all values 0."""
    data = frame.data
    made = (
        {n: np.zeros_like(a) for n, a in data.items()} if isinstance(data, Mapping) else np.zeros_like(data)
    )
    return replace(frame, data=made, bad=None, missing=None)
