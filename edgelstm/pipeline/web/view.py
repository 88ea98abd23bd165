"""The service as those who look see it: one JSON-ready mapping."""

from __future__ import annotations

import time
from concurrent.futures import TimeoutError as NotInTime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.alarm_writer import AlarmWriter
from edgelstm.pipeline.service.channel import Channel
from edgelstm.pipeline.service.loop import Loop
from edgelstm.pipeline.service.member import Member
from edgelstm.pipeline.service.pulse import Pulse
from edgelstm.pipeline.sources.source import Array
from edgelstm.pipeline.web.preview import kind_of, numbers, pictured
from edgelstm.pipeline.web.site import Site
from edgelstm.pipeline.web.sysfs import powers, temperatures
from edgelstm.pipeline.web.words import age, count

#: Seconds that a loop has to say what its states are worth; a step that takes longer is not waited for.
PATIENCE = 1.0
#: Bytes of states that are copied for a look; of the streams behind, none are shown.
MOST = 64 * 1024**2
#: Seconds without a frame or an output, and how many times the usual ones from frame to frame, after which a stream is silent.
PATIENT, USUAL = 3.0, 5.0
#: Frames that are dropped before one was ever stepped, beyond which it is silent too.
FEW = 8
#: Seconds without an output after which the last one is no rate any more.
RATE_OVER = 5


def status(site: Site, *, states: bool = False, history: bool = False) -> dict[str, Any]:
    """Everything at a glance. states: what each state is worth, which copies them once. history: the last minutes by second."""
    service, now = site.service, time.monotonic()
    values = _values(service.loops) if states else {}
    streams = [
        _stream(site, channel, name, pulse, values.get(name), now, history)
        for channel in service.channels
        for name, pulse in (sorted(dict(channel.pulses).items()) or [(channel.name, Pulse())])
    ]
    return {
        "version": site.version,
        "time": time.time(),
        "uptime": now - site.started,
        "ready": is_ready(site),
        "change": site.may_change,
        "swap": site.may_swap,
        "reload": site.reload is not None,
        "board": {"power": powers(), "temperature": temperatures()},
        "models": [_model(site, loop) for loop in service.loops.values()],
        "streams": streams,
    }


def is_ready(site: Site) -> bool:
    """Whether frames that come are stepped: the service runs and none of its models failed."""
    return site.service.is_running and all(loop.error is None for loop in site.service.loops.values())


def _files(site: Site, loop: Loop) -> str:
    """Those that run: of a model that was swapped, the one that took over."""
    config = site.service.config
    if loop.kin or loop.name not in config.models:
        return loop.file
    return " then ".join(Path(config.models[each].path).name for each in config.chain(loop.name))


def _model(site: Site, loop: Loop) -> dict[str, Any]:
    section = site.service.config.models.get(loop.name)
    return {
        "name": loop.name,
        "file": _files(site, loop),
        "device": (section.device if section else None)
        or ("cuda" if section and section.path.endswith(".plan") else "cpu"),
        "calls": loop.calls,
        "rooms": loop.rooms,
        "streams": len(loop.members),
        "error": None if loop.error is None else site.redactor.text(loop.error),
    }


def _stream(
    site: Site,
    channel: Channel,
    name: str,
    pulse: Pulse,
    values: dict[str, Array] | None,
    now: float,
    history: bool,
) -> dict[str, Any]:
    section, redact = channel.section, site.redactor.text
    member = next((m for m in list(channel.loop.members) if m.name == name), None)
    counts = channel.counts[name].to_json() if name in channel.counts else {}
    shown, recent, last = pulse.shown, pulse.recent(), pulse.last
    word, why = state_of(channel, name)
    seconds = [count for second, count, _, _ in recent if int(now) - RATE_OVER <= second < int(now)]
    made: dict[str, Any] = {
        "name": name,
        "section": channel.name,
        "model": channel.loop.name,
        "source": redact("(not there yet)" if channel.source is None else channel.source.description),
        "status": word,
        "why": None if why is None else redact(why),
        "counts": counts,
        "reconnects": channel.reopened,
        "queue": len(member.feed) if member is not None else 0,
        "room": member.feed.room if member is not None else 0,
        "step": 0.0 if last is None else last.step,
        "age": 0.0 if last is None else last.age,
        "idle": None if last is None else max(0.0, now - last.at),
        "rate": sum(seconds) / RATE_OVER,
        "deadline": section.deadline,
        "overdue": pulse.overdue,
        "frame": None if shown is None else {"index": shown.frame.index, "name": redact(shown.frame.name)},
        "shows": None if shown is None else kind_of(channel.signature, shown.outputs),
        "output": None if shown is None else pictured(channel.signature, shown.outputs),
        "alarms": alarms_of(channel, name),
        "sinks": [
            {
                "name": redact(w.name.partition(" -> ")[2]),
                "queue": w.waiting,
                "error": None if w.error is None else redact(w.error),
            }
            for w in channel.writers
        ],
        "latest": recent[-1] if recent else None,
        "clock": now,
    }
    if shown is not None and made["shows"] == "numbers":
        made["numbers"] = numbers(shown)
    if values is not None:
        made["states"] = [_state(n, v, channel.ranges.get(n)) for n, v in values.items()]
    if history:
        made["history"] = recent
    return made


def _state(name: str, values: Array, limits: tuple[float, float] | None) -> dict[str, Any]:
    """rms: root mean square of the values. share: of a range that it may take, how much it does, 1 at its ends; None without one."""
    x = values.astype(np.float64).ravel()
    finite = x[np.isfinite(x)] if x.size else x
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    made = {
        "name": name,
        "rms": float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0,
        "least": least,
        "most": most,
        "bad": int(x.size - finite.size),
        "range": None if limits is None else list(limits),
        "share": None,
    }
    if limits is not None:
        low, high = limits
        middle, half = (low + high) / 2, (high - low) / 2
        made["share"] = max(abs(least - middle), abs(most - middle)) / half
    return made


def state_of(channel: Channel, name: str) -> tuple[str, str | None]:
    """A word for how a stream is, and why. ``silent``: it should give outputs and gives none."""
    if channel.loop.error is not None:
        return "failed", str(channel.loop.error)
    if channel.reader is not None and channel.reader.error is not None:
        return "failed", str(channel.reader.error)
    member = next((m for m in list(channel.loop.members) if m.name == name), None)
    trouble = None if channel.reader is None else channel.reader.trouble
    if channel.paused or name in channel.paused_alone:
        return "paused", None
    if member is None:
        if channel.is_over or name in channel.counts:
            return "ended", None
        return "connecting", None if trouble is None else str(trouble)
    if member.feed.lost:
        return "lost", "its source is silent" if trouble is None else str(trouble)
    if channel.is_over:
        return ("running", None) if member.has_frame else ("ended", None)
    return _running(member, channel.pulses[name])


def _running(member: Member, pulse: Pulse) -> tuple[str, str | None]:
    now, came, usual = time.monotonic(), member.feed.last_at, member.feed.interval
    if came is None or usual is None:
        return "running", None
    try:
        stamped = member.clock.usual or 0.0  # files that lay there come faster than those that are made
    except RuntimeError:  # the loop's thread changes it now
        stamped = 0.0
    patience = max(PATIENT, USUAL * max(usual, stamped))
    if now - came > patience:
        return "silent", f"no frame for {age(now - came)}"
    # Of a window, most frames give no output; those that are gathered are dealt with.
    gathers = member.counts["gathered"] > 0
    if (last := pulse.last) is None:
        dropped = member.counts.total("dropped")
        return (
            ("silent", f"no output yet, {count(dropped)} frames dropped")
            if dropped > FEW
            else ("running", None)
        )
    if now - last.at > patience and not gathers:
        return "silent", f"no output for {age(now - last.at)}, though frames come"
    return "running", None


def alarms_of(channel: Channel, name: str) -> dict[str, bool]:
    """Whether each of its alarms has fired."""
    found = {}
    for writer in channel.writers:
        if isinstance(writer, AlarmWriter):
            alarm = writer.alarms.streams.get(name)
            found[writer.alarm] = alarm is not None and alarm.fired
    return found


def _values(loops: dict[str, Loop]) -> dict[str, dict[str, Array]]:
    """What the states are worth, by stream: asked of all loops at once, between two of their steps."""

    def look(loop: Loop) -> dict[str, dict[str, Array]]:
        found, left = {}, MOST
        for member in loop.members:
            if member.stream is not None and left > 0:
                found[member.name] = member.stream.values()
                left -= sum(a.nbytes for a in found[member.name].values())
        return found

    asked = [loop.ask(partial(look, loop)) for loop in loops.values()]
    found: dict[str, dict[str, Array]] = {}
    end = time.monotonic() + PATIENCE
    for future in asked:
        try:
            found.update(future.result(max(0.0, end - time.monotonic())))
        except (NotInTime, EdgeLstmError):
            future.cancel()
    return found
