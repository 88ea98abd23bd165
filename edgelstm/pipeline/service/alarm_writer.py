"""An alarm at work: looks at every output of a section's streams, and hands events to a sink."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import numpy as np

from edgelstm.graph.signature import Signature
from edgelstm.pipeline.service.alarm import Alarms, Event, Rule
from edgelstm.pipeline.service.anomaly import Scores
from edgelstm.pipeline.service.counters import Counts
from edgelstm.pipeline.service.writer import Writer
from edgelstm.pipeline.sinks import Sink
from edgelstm.pipeline.sources.source import Frame

log = logging.getLogger("edgelstm.serve")

_NOTHING = np.empty(0)


class AlarmWriter(Writer):
    """Judges before the queue, so a slow sink costs events, never the look at an output. The loop's thread alone calls :meth:`put`."""

    def __init__(
        self,
        alarm: str,
        rule: Rule,
        signature: Signature,
        open_sink: Callable[..., Sink],
        scores: Scores | None = None,
        counts: bool = True,
        begin: Callable[[], float] = lambda: 0.0,
        **given: Any,
    ) -> None:
        rule.check(signature)
        self.alarm = alarm
        #: An alarm with several sinks is counted, and told to the log, by the first.
        self._counts = counts
        #: Seconds since 1970 that frames' times count from: of a live source, they count from another moment after a restart.
        self._begin = begin
        self.alarms = Alarms(rule)
        #: The frame at which an alarm was first seen to have fired, by stream.
        self._fired: dict[str, tuple[Frame, Counts]] = {}
        self._dtype = signature.output(rule.output).dtype
        self._scores = scores
        self._score: float | None = None
        super().__init__(open_sink=open_sink, **{"overload": "drop_oldest", **given})

    def judge(self, frame: Frame, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Of a detector's alarm, the score of the step that :meth:`put` comes with."""
        if self._scores is not None:
            self._score = self._scores.of(str(frame.stream), frame, inputs, outputs)

    def interrupted(self, stream: str, anew: bool) -> None:
        """What was foretold is held against nothing."""
        if self._scores is not None:
            self._scores.interrupted(stream, anew)

    def put(self, frame: Frame, outputs: Mapping[str, Any], seconds: float, counts: Counts) -> None:
        """See what the outputs of one step mean, and queue an event if they mean one."""
        rule, stream = self.alarms.rule, str(frame.stream)
        written = bool(self._behind) and self._was_written(frame)
        number = self._score if self._scores else rule.number(outputs[rule.output], self._dtype)
        events: list[Event] = []
        alarm = self.alarms.of(stream)
        if number is None:
            if self._scores is None and self._counts:
                counts.add(f"alarm:{self.alarm}:not_a_number")
        else:
            self.alarms.timed = frame.time is not None
            now = time.monotonic() if frame.time is None else self._begin() + frame.time
            happened = alarm.step(number, now)
            events += [] if happened is None else [happened]
        if frame.last:
            del self.alarms.streams[stream]
            events += ["cleared"] if alarm.fired else []  # nobody else would tell its end
        if not alarm.fired or frame.last:
            self._fired.pop(stream, None)
        elif stream not in self._fired:
            self._fired[stream] = replace(frame, data=_NOTHING), counts
        for event in events:
            if written:
                counts.add("written_before")
            else:
                self._tell(event, frame, number, seconds, counts)

    def had_fired(self, stream: str, index: int, counts: Counts) -> None:
        """Of a stream that goes on behind frame ``index``: where its alarm had fired, that has its end too."""
        if self.alarms.of(stream).fired:
            self._fired[stream] = Frame(index, None, "", _NOTHING, stream=stream), counts

    def removed(self) -> None:
        """Its streams are gone, and nobody else would tell the end of an alarm."""
        for frame, counts in self._fired.values():
            self._tell("cleared", frame, None, 0.0, counts)
        self._fired.clear()

    def let_go(self) -> None:
        super().let_go()
        self._begin = lambda: 0.0

    def _tell(
        self, happened: Event, frame: Frame, number: float | None, seconds: float, counts: Counts
    ) -> None:
        rule, stream = self.alarms.rule, str(frame.stream)
        if self._counts:
            counts.add(f"alarm:{self.alarm}:{happened}")
            told = "no number" if number is None else f"{number:g}"
            words = "stream %s: alarm %s %s at frame %d: %s"
            log.warning(words, stream, self.alarm, happened, frame.index, told)
        event = {
            "alarm": self.alarm,
            "event": happened,
            "stream": stream,
            "index": frame.index,
            "name": frame.name,
            "time": frame.time,
            "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "output": rule.output,
            "of": rule.of if isinstance(rule.of, str) else list(rule.of),
            "value": number if number is not None and math.isfinite(number) else None,
            "above" if rule.above else "below": rule.limit,
            "clear": rule.clear,
        }
        super().put(frame, event, seconds, counts)
