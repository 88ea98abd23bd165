"""Sources are opened as a section says, side by side: of sixteen cameras that don't answer, none waits for another."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.isolated import open_isolated
from edgelstm.pipeline.service.outlets import placed
from edgelstm.pipeline.service.pair import Count, open_pair
from edgelstm.pipeline.sources import Source, is_live, open_source
from edgelstm.pipeline.sources.given import PREFIX, Frames, open_given

if TYPE_CHECKING:
    from edgelstm.pipeline.service.config import StreamSection


def open_section(
    section: StreamSection,
    base: Path,
    given: Mapping[str, Frames],
    unpaired: Count = lambda name, index: None,
) -> Source:
    """The source of a stream's section, bad frames too: its policy decides on them. base: the folder that relative paths start at; given: sources from Python, by name. unpaired: told
    of frames of several sources that have no partner."""
    source = _open_section(section, base, given, unpaired)
    source.gives_bad = True
    return source


def _open_section(
    section: StreamSection,
    base: Path,
    given: Mapping[str, Frames],
    unpaired: Count,
) -> Source:
    if isinstance(section.source, str):
        return _open_one(section.source, section, base, given, section.limit)

    def one(spec: str) -> Source:
        return _open_one(spec, section, base, given, None)

    source = open_pair(section.source, one, section.pair_within, unpaired)
    return source if section.limit is None else source.limit(section.limit)


def _open_one(
    spec: str, section: StreamSection, base: Path, given: Mapping[str, Frames], limit: int | None
) -> Source:
    if not spec.startswith(PREFIX):
        opened = open_isolated if section.isolate == "process" else open_source
        return opened(_placed(base, spec), limit=limit, follow=section.follow)
    if section.isolate == "process":
        raise EdgeLstmError(f"isolate of source {spec}", expected="none: its frames are this process's")
    source = open_given(spec.removeprefix(PREFIX), given)
    return source if limit is None else source.limit(limit)


def _placed(base: Path, spec: str) -> str:
    """A source with its paths starting at ``base``: its own, and those of its options."""
    spec = placed(base, spec)
    if is_live(spec):
        address, mark, options = spec.partition("#")
        return address + mark + _OPTION.sub(lambda m: _there(base, m), options)
    return spec if Path(spec).exists() else _OPTION.sub(lambda m: _there(base, m), spec)


#: Options of sources that name files: of tables, and of cameras.
_OPTION = re.compile(r"((?:^|[:&])(?:scale|ca)=)([^:&]+)")


def _there(base: Path, match: re.Match[str]) -> str:
    name, path = match.groups()
    return match[0] if path == "own" else f"{name}{base / path}"  # an absolute one stays


class Opening:
    """A source that is being opened in a thread of its own. It may take as long as its timeout says, and nothing can end that before."""

    def __init__(self, name: str, open_source: Callable[[], Source]) -> None:
        self._open = open_source
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._abandoned = False
        self._source: Source | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name=f"opening {name}", daemon=True).start()

    def _run(self) -> None:
        try:
            source = self._open()
            with self._lock:
                wanted = not self._abandoned
                self._source = source if wanted else None
            if not wanted:
                source.close()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def result(
        self, stop: threading.Event, seconds: float | None = None, gone: threading.Event | None = None
    ) -> Source:
        """The source, once; or what opening it raised. EdgeLstmError as soon as ``stop`` or ``gone`` is set, or after ``seconds``: it is then left
        behind."""
        end = None if seconds is None else time.monotonic() + seconds
        while not self._done.wait(0.05):
            if stop.is_set():
                self.abandon()
                raise EdgeLstmError("stopped while it was being opened")
            if gone is not None and gone.is_set():
                self.abandon()
                raise EdgeLstmError("it was removed before its source was there")
            if end is not None and time.monotonic() > end:
                self.abandon()
                raise EdgeLstmError("it hangs", found=f"not open after {seconds:g} s")
        if self._error is not None:
            raise self._error
        with self._lock:
            source, self._source = self._source, None
        assert source is not None
        return source

    def abandon(self) -> None:
        """Whatever comes, or came and was not taken, is closed."""
        with self._lock:
            self._abandoned = True
            source, self._source = self._source, None
        if source is not None:
            source.close()
