"""The service's figures for Prometheus, read when they are asked for and not before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgelstm.pipeline.optional import require
from edgelstm.pipeline.service.pulse import BOUNDS, Histogram
from edgelstm.pipeline.web import sysfs
from edgelstm.pipeline.web.site import Site
from edgelstm.pipeline.web.view import alarms_of, is_ready, state_of

#: Counters of a stream without a reason: as they are counted, the metric's name, and what it is.
PLAIN = (
    ("read", "edgelstm_frames_read", "Frames that the source gave"),
    ("stepped", "edgelstm_frames_stepped", "Frames that went through the model"),
    ("gathered", "edgelstm_frames_gathered", "Frames in a window that another frame completes"),
    ("filled", "edgelstm_frames_filled", "Steps with a frame that stood in for a missing one"),
    ("gaps", "edgelstm_gaps", "Gaps between time stamps"),
    ("lost", "edgelstm_source_lost", "Times that the source was lost"),
    ("returned", "edgelstm_source_returned", "Times that the source came back"),
    ("delivered", "edgelstm_outputs_delivered", "Outputs that a sink took"),
)
#: Those with one: how they begin, the metric's name, its label, and what it is.
REASONS = (
    ("dropped", "edgelstm_frames_dropped", "reason", "Frames that did not move the state"),
    ("left_out", "edgelstm_frames_left_out", "reason", "Frames that came and were never read"),
    ("unpaired", "edgelstm_frames_unpaired", "input", "Frames of one of several sources without a partner"),
    ("unfilled", "edgelstm_frames_unfilled", "reason", "Frames that should have stood in for missing ones"),
    ("reset", "edgelstm_state_resets", "cause", "States that began anew"),
    ("guard", "edgelstm_guard_trips", "kind", "States that were bad after a step"),
    ("rolled_back", "edgelstm_state_rollbacks", "cause", "States that were set back"),
    ("undelivered", "edgelstm_outputs_undelivered", "reason", "Outputs that a sink did not take"),
)
STATES = ("running", "silent", "paused", "connecting", "lost", "ended", "failed")


class Metrics:
    """``text()`` is what ``/metrics`` answers. Needs prometheus-client."""

    def __init__(self, site: Site, sys: Path = sysfs.SYS) -> None:
        self._client = require("prometheus_client", "live", "metrics")
        self._core = require("prometheus_client.core", "live", "metrics")
        self._site, self._sys = site, sys
        self._registry = self._client.CollectorRegistry()
        self._registry.register(self)
        self._client.ProcessCollector(registry=self._registry)

    def text(self) -> tuple[bytes, str]:
        """The text and its type."""
        made: bytes = self._client.generate_latest(self._registry)
        return made, self._client.CONTENT_TYPE_LATEST

    def describe(self) -> list[Any]:
        """Nothing is collected to find out which names there are."""
        return []

    def collect(self) -> Iterator[Any]:
        """All metrics now."""
        yield from self._service()
        yield from self._streams()
        yield from self._board()

    def _gauge(self, name: str, what: str, labels: list[str] | None = None) -> Any:
        return self._core.GaugeMetricFamily(name, what, labels=labels or [])

    def _service(self) -> Iterator[Any]:
        site = self._site
        info = self._core.InfoMetricFamily("edgelstm", "What runs")
        info.add_metric([], {"version": site.version})
        yield info
        ready = self._gauge("edgelstm_ready", "1 while frames that come are stepped")
        ready.add_metric([], float(is_ready(site)))
        yield ready
        engine = self._core.InfoMetricFamily("edgelstm_model", "The models", labels=["model"])
        calls = self._core.CounterMetricFamily(
            "edgelstm_model_calls", "Engine calls; one advances many streams", labels=["model"]
        )
        failed = self._gauge("edgelstm_model_failed", "1 when the model stopped for an error", ["model"])
        for name, loop in site.service.loops.items():
            section = site.service.config.models.get(name)
            path = "" if section is None else section.path
            engine.add_metric(
                [name],
                {
                    "file": Path(path).name,
                    "device": (section.device if section else None)
                    or ("cuda" if path.endswith(".plan") else "cpu"),
                    "sha256": loop.digest[:16],
                    "window": str(loop.runner.signature.window or 1),
                },
            )
            calls.add_metric([name], loop.calls)
            failed.add_metric([name], float(loop.error is not None))
        yield from (engine, calls, failed)

    def _streams(self) -> Iterator[Any]:
        core, now = self._core, time.monotonic()
        plain = {key: core.CounterMetricFamily(name, what, labels=["stream"]) for key, name, what in PLAIN}
        reasons = {
            key: core.CounterMetricFamily(name, what, labels=["stream", label])
            for key, name, label, what in REASONS
        }
        overdue = core.CounterMetricFamily(
            "edgelstm_outputs_overdue", "Outputs behind their deadline", labels=["stream"]
        )
        again = core.CounterMetricFamily(
            "edgelstm_source_reconnects", "Times that the source was opened again", labels=["stream"]
        )
        steps = core.HistogramMetricFamily(
            "edgelstm_step_seconds", "Engine call that stepped the frame", labels=["stream"]
        )
        ages = core.HistogramMetricFamily(
            "edgelstm_output_age_seconds", "From a frame's arrival to its output", labels=["stream"]
        )
        queue = self._gauge("edgelstm_queue_frames", "Frames that wait for the model", ["stream"])
        waiting = self._gauge(
            "edgelstm_sink_queue_outputs", "Outputs that wait for a sink", ["stream", "sink"]
        )
        since = self._gauge("edgelstm_last_output_seconds", "Seconds since the last output", ["stream"])
        limit = self._gauge("edgelstm_output_deadline_seconds", "Declared deadline", ["stream"])
        alarms = self._gauge("edgelstm_alarm", "1 while an alarm has fired", ["stream", "alarm"])
        state = core.StateSetMetricFamily("edgelstm_stream", "How the stream is", labels=["stream"])
        for channel in self._site.service.channels:
            again.add_metric([channel.name], channel.reopened)
            for writer in channel.writers:
                sink = self._site.redactor.text(writer.name.partition(" -> ")[2])
                waiting.add_metric([channel.name, sink], writer.waiting)
            members = {m.name: m for m in list(channel.loop.members)}
            for name in dict(channel.pulses) or [channel.name]:
                word, _ = state_of(channel, name)
                state.add_metric([name], {each: each == word for each in STATES})
                for alarm, fired in alarms_of(channel, name).items():
                    alarms.add_metric([name, alarm], float(fired))
                counts = channel.counts[name].to_json() if name in channel.counts else {}
                for key, family in plain.items():
                    family.add_metric([name], counts.get(key, 0))
                for key, number in counts.items():
                    kind, colon, reason = key.partition(":")
                    if colon and kind in reasons:
                        reasons[kind].add_metric([name, reason], number)
                queue.add_metric([name], len(members[name].feed) if name in members else 0)
                pulse = channel.pulses.get(name)
                if pulse is None:
                    continue
                overdue.add_metric([name], pulse.overdue)
                for family, histogram in zip((steps, ages), pulse.histograms, strict=True):
                    family.add_metric([name], *_buckets(histogram))
                if (last := pulse.last) is not None:
                    since.add_metric([name], now - last.at)
                if pulse.deadline is not None:
                    limit.add_metric([name], pulse.deadline)
        yield from (
            *plain.values(),
            *reasons.values(),
            overdue,
            again,
            steps,
            ages,
            queue,
            waiting,
            since,
            limit,
            state,
            alarms,
        )

    def _board(self) -> Iterator[Any]:
        for name, what, label, read in (
            ("edgelstm_board_temperature_celsius", "Temperature by thermal zone", "zone", sysfs.temperatures),
            ("edgelstm_board_power_watts", "Power by rail", "rail", sysfs.powers),
        ):
            found = read(self._sys)
            if found:
                family = self._gauge(name, what, [label])
                for key, value in found.items():
                    family.add_metric([key], value)
                yield family


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    total, made = 0, []
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), list(histogram.counts), strict=True):
        total += count
        made.append((bound, float(total)))
    return made, histogram.sum
