"""The sinks of a section, opened: each with a thread of its own, and those of its alarms behind them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from edgelstm.errors import EdgeLstmError
from edgelstm.files import refuse_overwrite
from edgelstm.pipeline.outputs import frame_outputs
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.service.alarm import Rule
from edgelstm.pipeline.service.alarm_writer import AlarmWriter
from edgelstm.pipeline.service.anomaly import Scores
from edgelstm.pipeline.service.channel import Channel
from edgelstm.pipeline.service.config_sinks import AlarmSection
from edgelstm.pipeline.service.resume import behind
from edgelstm.pipeline.service.writer import Writer
from edgelstm.pipeline.sinks import Options, Sink, check_package, is_address, open_sink, shown
from edgelstm.pipeline.sources import is_live
from edgelstm.verify.anomaly import Detector

log = logging.getLogger("edgelstm.serve")

#: Files that say of their values what only the source knows: grid, start, sampling rate.
PLACED = (".nc", ".tif", ".tiff", ".h5", ".hdf5", ".wav")


def open_sinks(channel: Channel, base: Path, context: Context) -> None:
    """Add the writers to ``channel``, one by one: those there are when an EdgeLstmError is raised are to be closed."""
    section = channel.section
    signature = channel.outputs().signature
    fps = section.rate or (channel.source.fps if channel.source else None)

    def opener(path: str, options: Options, events: bool = False) -> Callable[[threading.Event], Sink]:
        options = options.beside(base)

        def opened(stop: threading.Event) -> Sink:
            return open_sink(
                path,
                signature,
                fps=fps,
                context=context,
                append=True,
                options=options,
                events=events,
                stop=stop,
            )

        return opened

    try:
        for sink, options in section.targets:
            _check_place(channel, sink)
            path, mark = _path(channel, base, sink), channel.mark(sink)
            channel.writers.append(
                Writer(
                    _name(channel, f"{channel.name} -> {shown(sink)}"),
                    opener(path, options),
                    section.sink_queue,
                    section.sink_overload,
                    None if mark is None else behind(Path(path), mark),
                    path=path,
                    mark=sink,
                )
            )
        for name, alarm in section.alarms.items():
            rule, scores = _rule(channel, alarm, base)
            for sink, options in alarm.targets:
                path = _path(channel, base, sink.replace("{alarm}", name))
                mark_as = f"{name}: {sink}"
                mark = channel.mark(mark_as)
                writer = AlarmWriter(
                    name,
                    rule,
                    signature,
                    opener(path, options, events=True),
                    scores(),
                    name=_name(channel, f"{channel.name} -> {shown(sink)} (alarm {name})"),
                    size=section.sink_queue,
                    behind=None if mark is None else behind(Path(path), mark, name),
                    path=path,
                    mark=mark_as,
                )
                channel.writers.append(writer)
                channel.resume_alarm(name, writer.alarms)
    except EdgeLstmError as error:
        raise EdgeLstmError(f"stream {channel.name}: {error}") from error


def _name(channel: Channel, name: str) -> str:
    """Of one sink alone: two web addresses look alike without their paths."""
    taken, number, found = {writer.name for writer in channel.writers}, 1, name
    while found in taken:
        number += 1
        found = f"{name} ({number})"
    return found


def _rule(channel: Channel, alarm: AlarmSection, base: Path) -> tuple[Rule, Callable[[], Scores | None]]:
    """The rule of an alarm, and what makes the scores that it judges."""
    if alarm.detector is None:
        return alarm.rule(channel.outputs().signature), lambda: None
    path = placed(base, alarm.detector)
    detector = Detector.load(path)
    signature, inputs = channel.signature, channel.inputs()
    fresh = inputs.hop if inputs.sliding else None
    rule = alarm.of_detector(detector, signature, fresh)
    if detector.model and channel.loop.digest and detector.model != channel.loop.digest:
        log.warning(
            "stream %s: the detector %s was fitted with another model: its threshold is for the other's errors",
            channel.name,
            path,
        )
    return rule, lambda: Scores(detector, signature, fresh)


def check(channel: Channel, base: Path) -> None:
    """What can be known of sinks and alarms without opening them. Raises EdgeLstmError when a package is missing, or an alarm does not fit the outputs."""
    for where in channel.section.sinks:
        try:
            check_package(where)
            _check_place(channel, where)
        except EdgeLstmError as error:
            raise EdgeLstmError(f"stream {channel.name}: {error}") from error
    for name, alarm in channel.section.alarms.items():
        try:
            _rule(channel, alarm, base)
        except EdgeLstmError as error:
            raise EdgeLstmError(f"stream {channel.name}: alarm {name}: {error}") from error


def _check_place(channel: Channel, sink: str) -> None:
    if channel.source is None and Path(sink).suffix.lower() in PLACED and not is_address(sink):
        raise EdgeLstmError(
            f"sink {sink} says where and when, and the source is not there yet",
            expected=f"a source that can be opened at the start, or a sink that is none of {', '.join(PLACED)}",
        )


def _path(channel: Channel, base: Path, sink: str) -> str:
    if is_address(sink):  # each message names its stream
        return sink
    path = placed(base, sink.replace("{stream}", channel.name))
    refuse_overwrite(path, tuple(placed(base, spec) for spec in channel.section.sources.values()))
    return free(path)


def placed(base: Path, spec: str) -> str:
    """``spec`` with its path starting at ``base``; what is no path stays."""
    if spec == "-" or is_address(spec) or is_live(spec) or Path(spec).is_absolute():
        return spec
    return os.path.join(base, spec)  # noqa: PTH118 (keeps the slash at the end of a folder)


def free(path: str) -> str:
    """``path``, or ``NAME-2``, ``NAME-3``, ... where something is there that the sink would replace, from before a restart.

    Lines are appended, and maps are the newest step or a file a step: these keep their name.
    """
    if path == "-" or "{" in path or Path(path).suffix.lower() in (".jsonl", ".tif", ".tiff", ".h5", ".hdf5"):
        return path
    folder = path.endswith(("/", os.sep)) or Path(path).is_dir()
    target, number = Path(path), 1
    while target.is_file() or (target.is_dir() and any(target.iterdir())):
        number += 1
        target = Path(path).with_name(f"{Path(path).stem}-{number}{Path(path).suffix}")
    if number > 1:
        log.info("%s is there: writing to %s", Path(path).name, target.name)
    return f"{target}/" if folder else str(target)


def context_of(channel: Channel, model: Path) -> Context:
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
