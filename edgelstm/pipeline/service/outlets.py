"""The sinks of a section, opened: each with a thread of its own, and those of its alarms behind them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from edgelstm.errors import EdgeLstmError
from edgelstm.files import refuse_overwrite
from edgelstm.pipeline.service.alarm import Rule
from edgelstm.pipeline.service.alarm_writer import AlarmWriter
from edgelstm.pipeline.service.anomaly import Scores
from edgelstm.pipeline.service.channel import Channel
from edgelstm.pipeline.service.config import StreamSection
from edgelstm.pipeline.service.config_sinks import AlarmSection
from edgelstm.pipeline.service.resume import behind
from edgelstm.pipeline.service.writer import SinkOverload, Writer
from edgelstm.pipeline.sinks import (
    Options,
    Sink,
    check_package,
    in_physical_units,
    is_address,
    kind_of,
    open_sink,
    shown,
)
from edgelstm.pipeline.sinks.geotiff import check_folder
from edgelstm.pipeline.sources import is_live
from edgelstm.verify.anomaly import Detector

log = logging.getLogger("edgelstm.serve")


def open_sinks(channel: Channel, base: Path, model: Path) -> None:
    """Add the writers to ``channel``, one by one: those there are when an EdgeLstmError is raised are to be closed. A sink that says what
    only the source knows is opened once that is there."""
    section = channel.section
    outputs, readable = channel.outputs(), channel.readable()
    signature = outputs.signature
    placed_sinks: list[tuple[Writer, str, Options]] = []
    current = [channel]

    def learnt(now: Channel) -> None:
        current[0] = now
        for writer, sink, options in placed_sinks:
            if not writer.is_open:
                if _is_known(now, sink, options):
                    writer.learnt()
            elif kind_of(sink).steps and kind_of(sink).maps:
                writer.learnt()

    def begin() -> float:
        start = current[0].counts_from
        return 0.0 if start is None else start.timestamp()

    def opener(path: str, options: Options, events: bool = False) -> Callable[[threading.Event], Sink]:
        options = options.from_folder(base)
        made = readable if in_physical_units(path, options.view()) else outputs

        def opened(stop: threading.Event) -> Sink:
            return open_sink(
                path,
                made.signature,
                fps=section.rate or (current[0].source.fps if current[0].source else None),
                context=current[0].context(model.name, made),
                append=True,
                options=options,
                events=events,
                stop=stop,
            )

        return opened

    try:
        for sink, options in section.targets:
            path, mark = _path(channel, base, sink), channel.mark(sink)
            later = not _is_known(channel, sink, options)
            if later:
                _check_folder(path)
            writer = Writer(
                _name(channel, f"{channel.name} -> {shown(sink)}"),
                opener(path, options),
                section.sink_queue,
                _overload(section, path),
                None if mark is None else behind(Path(path), mark),
                path=path,
                mark=sink,
                later=later,
                readable=section.units is None and in_physical_units(path, options.view()),
                beside=options.view().input,
            )
            channel.writers.append(writer)
            if kind_of(sink, options).placed or later:
                placed_sinks.append((writer, sink, options))
        channel.learnt = learnt
        for name, alarm in section.alarms.items():
            rule, scores = _rule(channel, alarm, base)
            for number, (sink, options) in enumerate(alarm.targets):
                path = _path(channel, base, sink.replace("{alarm}", name))
                mark_as = f"{name}: {sink}"
                mark = channel.mark(mark_as)
                alarm_writer = AlarmWriter(
                    name,
                    rule,
                    signature,
                    opener(path, options, events=True),
                    scores(),
                    number == 0,
                    begin,
                    name=_name(channel, f"{channel.name} -> {shown(sink)} (alarm {name})"),
                    size=section.sink_queue,
                    overload=_overload(section, path),
                    behind=None if mark is None else behind(Path(path), mark, name),
                    path=path,
                    mark=mark_as,
                )
                channel.writers.append(alarm_writer)
                channel.resume_alarm(alarm_writer)
        for each in channel.writers:
            each.released = channel.released
    except EdgeLstmError as error:
        raise EdgeLstmError(f"stream {channel.name}: {error}") from error


def _overload(section: StreamSection, path: str) -> SinkOverload:
    """What is said, else ``block`` where nothing is lost by it: a file here, of a source that can wait."""
    if section.sink_overload is not None:
        return section.sink_overload
    waits = not is_address(path) and not any(is_live(source) for source in section.sources.values())
    return "block" if waits else "drop_oldest"


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
        except EdgeLstmError as error:
            raise EdgeLstmError(f"stream {channel.name}: {error}") from error
    for name, alarm in channel.section.alarms.items():
        try:
            _rule(channel, alarm, base)
        except EdgeLstmError as error:
            raise EdgeLstmError(f"stream {channel.name}: alarm {name}: {error}") from error


def _is_known(channel: Channel, sink: str, options: Options) -> bool:
    """Whether the source is there and said all that the sink says of it: lead times need the time from frame to frame."""
    kind = kind_of(sink, options)
    if channel.source is None:
        return not kind.placed and options.colours != "rain"
    said_once = kind.maps and not Path(sink).suffix.lower().startswith(".tif")
    waits_for_interval = said_once or bool(options.caption or options.truth)
    place = channel.source.place
    return not (
        waits_for_interval and channel.section.follow and place.grid is not None and place.interval is None
    )


def _check_folder(path: str) -> None:
    """What can be known of a file before it is opened: whether there may be one."""
    if not is_address(path):
        check_folder(Path(path))


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
