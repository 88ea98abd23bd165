"""A pipeline file that changed: what it touches is changed in the running service, and nothing else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.channel import Channel
from edgelstm.pipeline.service.config import Config, ModelSection
from edgelstm.pipeline.service.control import LONGEST, Control, UnknownStream
from edgelstm.pipeline.service.guard import Ranges

log = logging.getLogger("edgelstm.serve")

T = TypeVar("T")

#: What becomes of a model's section: its file, the ranges of its states, and the hash that tells whether a state is of it.
Prepare = Callable[[str, ModelSection], tuple[Path, Ranges, str]]
#: Keys of the service that change while it runs, and of a model.
LIVE = ("report", "drain", "checkpoint_every")
#: Seconds from look to look at the file.
LOOK = 0.25
JUDGED = ("max_wait", "ranges", "calibration", "margin", "hang_after", "watch", "compatible")


class Follower:
    """Compares each version of the file with the one before. Streams that were added by other ways are none of its business."""

    def __init__(self, control: Control, prepare: Prepare) -> None:
        self._control, self._service, self._prepare = control, control.service, prepare
        self._seen = control.service.config
        #: Hash of the file that each model's section names, as it was last taken over from there: a swapped model runs another.
        self._files = dict(control.service.hashes)
        self._loading = threading.Lock()

    def load(self, config: Config) -> dict[str, str]:
        """Do what changed. Gives what could not be done, by stream or model: there the old goes on, and the next version is
        tried again."""
        with self._loading:
            seen, failed = self._seen, dict[str, str]()
            self._service_keys(seen, config)
            streams, models = dict(config.streams), dict(config.models)
            for name in [n for n in seen.streams if n not in streams]:
                self._try(failed, f"stream {name}", partial(self._control.remove, name))
            # Those behind others first: the others are opened with them.
            for name, model in sorted(config.models.items(), key=lambda item: item[0] in config.heads):
                before = seen.models.get(name)
                if model != before and not self._try(
                    failed, f"model {name}", partial(self._model, name, model, config)
                ):
                    _put(models, name, before)
            for name, section in config.streams.items():
                was = seen.streams.get(name)
                if section == was:
                    continue
                change = self._control.add if was is None else self._control.configure
                if not self._try(failed, f"stream {name}", partial(change, name, section)):
                    _put(streams, name, was)
            self._seen = config.model_copy(update={"streams": streams, "models": models})
            self._drop_models(config)
            return failed

    def _try(self, failed: dict[str, str], what: str, change: Callable[[], None]) -> bool:
        try:
            change()
        except UnknownStream:  # removed by hand meanwhile
            return True
        except EdgeLstmError as error:
            failed[what] = str(error)
            log.error("%s: not changed: %s", what, error)
            return False
        return True

    def _service_keys(self, seen: Config, config: Config) -> None:
        old, new = seen.service, config.service
        keys = [k for k in type(new).model_fields if getattr(new, k) != getattr(old, k)]
        service = self._service
        with service.changing:
            own = service.config.service.model_copy(update={k: getattr(new, k) for k in keys if k in LIVE})
            service.config = service.config.model_copy(update={"service": own})
        later = [k for k in keys if k not in LIVE]
        if later:
            log.warning("service: %s changed: that is for the next start", ", ".join(later))

    def _model(self, name: str, section: ModelSection, config: Config) -> None:
        """Another section for a model, or a new one: its streams go over to it, with their states if it is the same file."""
        service = self._service
        path, ranges, digest = self._prepare(name, section)
        with service.changing:
            head = config.head(name)
            before, loop = service.config.models.get(name), service.loops.get(head)
            was = (
                before,
                service.models.get(name),
                service.ranges.get(name, {}),
                service.hashes.get(name, ""),
            )
            kept = {} if before is None else {k: getattr(before, k) for k in JUDGED}
            judged = section.model_copy(update=kept)
            goes_on = judged == before and digest in (was[3], self._files.get(name))
            if goes_on and digest != was[3] and was[1] is not None:  # it was swapped, and stays
                path, digest = was[1], was[3]
            self._note(name, section, path, ranges, digest)
            if loop is None or before is None:
                self._files[name] = digest
                return
            ranges = service.ranges_of(head)
            channels = [c for c in service.channels if c.loop is loop]
            if goes_on:
                loop.max_wait = service.config.models[head].max_wait
                for channel in channels:
                    channel.ranges = ranges
                    self._control.do(loop, partial(channel.follow, channel.section))
                return
            self._control.do(loop, lambda: None)  # one that hangs is not replaced
            try:
                made = service.open_loop(head, loop.rooms)
                for channel in channels:  # what doesn't fit is said before anything changes
                    wanted = config.streams.get(channel.name, channel.section)
                    inputs = Channel(channel.name, wanted, made, None, ranges).inputs()
                    for pulse in channel.pulses.values():
                        if pulse.frame is not None and wanted.source == channel.section.source:
                            inputs(pulse.frame)
            except EdgeLstmError:
                self._note(name, *was)
                service.loops = {**service.loops, head: loop}
                raise
            for channel in channels:
                wanted = config.streams.get(channel.name, channel.section)
                same = wanted.source == channel.section.source
                self._control.replace(
                    channel, wanted, None if same else service.source(channel.name, wanted, within=LONGEST)
                )
            self._files[name] = digest
            loop.ask(loop.runner.close)
        log.info("model %s: changed", name)

    def _note(
        self, name: str, section: ModelSection | None, path: Path | None, ranges: Ranges, digest: str
    ) -> None:
        service = self._service
        models = dict(service.config.models)
        _put(models, name, section)
        _put(service.models, name, path)
        service.ranges[name], service.hashes[name] = ranges, digest
        service.config = service.config.model_copy(update={"models": models})

    def _drop_models(self, config: Config) -> None:
        """Models that the file has no more and no stream uses."""
        service = self._service
        with service.changing:
            for name, loop in service.loops.items():
                if name not in config.models and not any(c.loop is loop for c in service.channels):
                    service.loops = {n: o for n, o in service.loops.items() if n != name}
                    loop.ask(loop.runner.close)
                    self._note(name, None, None, {}, "")


class FileWatch:
    """A thread that calls ``load`` when ``path`` changed, where ``watched``, and when :meth:`ask` asks for it. what: ``path`` in words. look: what
    tells one version from another, where that is more than the file."""

    def __init__(
        self,
        path: Path,
        load: Callable[[], object],
        watched: bool,
        what: str = "the pipeline file",
        look: Callable[[], object] | None = None,
    ) -> None:
        self._path, self._load, self._watched, self._what = path, load, watched, what
        self._look = look or self._look_at_file
        self._seen = self._look()
        # A number, not an event: a signal handler may ask while its own thread holds the event's lock.
        self._asked = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pipeline file", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Read the file soon; a signal handler may call it."""
        self._asked += 1

    def close(self) -> None:
        """Watch no more."""
        self._stop.set()
        self._thread.join(1.0)

    def _look_at_file(self) -> object:
        """What tells one version of the file from another; None while there is none, as when an editor replaces it."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _run(self) -> None:
        done = 0
        while not self._stop.wait(LOOK):
            asked, found = self._asked, self._look()
            changed = self._watched and found is not None and found != self._seen
            if changed and self._stop.wait(LOOK):
                return
            if changed and self._look() != found:
                continue  # it is being written
            if changed or asked != done:
                done, self._seen = asked, found
                try:
                    self._load()
                except Exception as error:
                    log.error("%s is not taken over, the old one goes on: %s", self._what, error)


def _put(table: dict[str, T], name: str, value: T | None) -> None:
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value
