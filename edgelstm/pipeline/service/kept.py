"""The last seconds before a state went bad, in a file: what came, when, and the state before the first of it.

``edgelstm run MODEL --source FILE --begin FILE`` steps the same frames from the same state.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, atomic_path, file_name
from edgelstm.pipeline.service.counters import Counts, is_worth_a_line
from edgelstm.pipeline.service.feed import nbytes
from edgelstm.pipeline.sources.source import Array, Frame
from edgelstm.runtime.snapshot import Snapshot

log = logging.getLogger("edgelstm.serve")

SCHEMA = 1
#: Begins the names of the states in a file; the other names that no input has there.
STATE, RESERVED = "state.", ("times", "kept", "attrs")
#: Seconds that a member waits for its file when it leaves.
LAST = 10.0


@dataclass(frozen=True)
class KeepRules:
    """folder: where files go. seconds: of frames, at least, as long as they have at most ``bytes``, in memory and in a file. files: of a
    stream; the oldest gives way."""

    folder: Path
    seconds: float = 5.0
    files: int = 8
    bytes: int = 64 * 1024**2


@dataclass
class _Part:
    """Frames in a row, and the state before the first."""

    state: Mapping[str, Array]
    began: float
    frames: list[tuple[Frame, float]] = field(default_factory=list)
    bytes: int = 0


class Keeper:
    """The last frames of one stream; the loop's thread calls it.

    They are kept in parts of half the time, each with the state before it, so that a state is read twice in that time and not
    with every frame.
    """

    def __init__(self, name: str, model: str, rules: KeepRules, counts: Counts) -> None:
        self._name, self._model, self._rules, self._counts = name, model, rules, counts
        self._parts: deque[_Part] = deque()
        self._writing: threading.Thread | None = None
        self._last: float | None = None
        #: Names of its own files, in the order in which they were made.
        self._made: list[str] = []
        #: Files that could not be written since the last one that was.
        self._failed = 0

    def take(self, frame: Frame, stamp: float, snapshot: Callable[[], Mapping[str, Array]] | None) -> None:
        """A frame that is stepped next; ``snapshot`` gives the state before it, None where a window is half full."""
        now, parts, rules = time.monotonic(), self._parts, self._rules
        size = nbytes(frame)
        if snapshot is not None:
            part = parts[-1] if parts else None
            if part is None or now - part.began >= rules.seconds / 2 or part.bytes >= rules.bytes // 4:
                parts.append(_Part(snapshot(), now))
                while len(parts) > 1 and (
                    now - parts[1].began >= rules.seconds or sum(p.bytes for p in parts) > rules.bytes
                ):
                    parts.popleft()
        if not parts:
            return
        while len(parts) > 1 and sum(p.bytes for p in parts) + size > rules.bytes:
            parts.popleft()
        if parts[-1].bytes + size > rules.bytes:  # a window longer than what may be kept
            parts.clear()
            return
        parts[-1].frames.append((frame, stamp))
        parts[-1].bytes += size

    def forget(self) -> None:
        """The state was set: what came before leads there no more."""
        self._parts.clear()

    def write(self, why: str) -> None:
        """A state went bad with the last frame: put what led there in a file. At most one in ``seconds``, behind the loop's back."""
        parts, now = list(self._parts), time.monotonic()
        self._parts.clear()
        busy = self._writing is not None and self._writing.is_alive()
        if not parts or busy or (self._last is not None and now - self._last < self._rules.seconds):
            self._counts.add("unkept")
            return
        self._last = now
        self._writing = threading.Thread(target=self._write, args=(parts, why), name=f"kept {self._name}")
        self._writing.start()

    def close(self) -> None:
        """Wait for a file that is being written."""
        if self._writing is not None:
            self._writing.join(LAST)

    def _write(self, parts: list[_Part], why: str) -> None:
        frames = [f for part in parts for f in part.frames]
        safe = file_name(self._name)
        moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
        path = self._rules.folder / f"{safe}-{moment}.npz"
        said = {
            "schema": SCHEMA, "model": self._model, "identity": getattr(parts[0].state, "model", ""), "stream": self._name, "why": why,
            "index": [f.index for f, _ in frames], "name": [f.name for f, _ in frames],
        }  # fmt: skip
        try:
            arrays = _stacked([f for f, _ in frames])
            said["inputs"] = names = kept_names(arrays)
            arrays = {names.get(name, name): array for name, array in arrays.items()}
            arrays["times"] = np.array([stamp for _, stamp in frames], np.float64)
            arrays["kept"] = np.frombuffer(json.dumps(said).encode(), np.uint8)
            arrays |= {STATE + name: np.asarray(value) for name, value in parts[0].state.items()}
            self._rules.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                np.savez(temporary, allow_pickle=False, **arrays)
            # Not by a pattern for names of files: "north" must not clear away what "north-1" kept, and a key may hold a bracket.
            mine = re.compile(rf"{re.escape(safe)}-\d{{8}}T\d{{6}}\.\d{{6}}Z\.npz")
            self._made = [*self._made, path.name][-self._rules.files :]
            kept = sorted(each for each in self._rules.folder.iterdir() if mine.fullmatch(each.name))
            # The newest has the oldest name where the clock was set back.
            kept.sort(key=lambda p: self._made.index(p.name) if p.name in self._made else -1)
            for old in kept[: -self._rules.files]:
                old.unlink(missing_ok=True)
        except (OSError, ValueError, EdgeLstmError) as error:
            self._counts.add("unkept")
            self._failed += 1
            if is_worth_a_line(self._failed):
                log.error("stream %s: the frames before it could not be kept: %s", self._name, error)
            return
        if self._failed:
            log.info(
                "stream %s: frames are kept again; %d files could not be written", self._name, self._failed
            )
            self._failed = 0
        self._counts.add("kept")
        log.warning("stream %s: the last %d frames are kept in %s", self._name, len(frames), os.fspath(path))


def state_of(path: PathLike) -> Snapshot:
    """The state in a file of :class:`Keeper`, by name. Raises EdgeLstmError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "kept" not in file.files:
                raise EdgeLstmError(
                    f"{path} holds no state",
                    found=", ".join(file.files[:5]),
                    expected="a file that keep_frames wrote",
                )
            said = json.loads(file["kept"].tobytes())
            if said.get("schema") != SCHEMA:
                raise EdgeLstmError(f"{path}: schema", found=said.get("schema"), expected=SCHEMA)
            states = {n.removeprefix(STATE): file[n] for n in file.files if n.startswith(STATE)}
            return Snapshot(states, str(said.get("identity", "")))
    except (OSError, ValueError, KeyError, EOFError, AttributeError) as error:
        raise EdgeLstmError(f"can't read {path}", found=f"{type(error).__name__}: {error}") from error
    except Exception as error:
        if isinstance(error, EdgeLstmError):
            raise
        raise EdgeLstmError(f"{path} is damaged", found=f"{type(error).__name__}: {error}") from error


def kept_names(inputs: Collection[str]) -> dict[str, str]:
    """Of inputs that are called as something else in the file is, the names that their frames have there."""
    names: dict[str, str] = {}
    for name in inputs:
        stored = name
        while (
            stored in RESERVED
            or stored.startswith(STATE)
            or (stored == "frames" and len(inputs) > 1)
            or (stored != name and stored in inputs)
        ):
            stored = f"input_{stored}"
        if stored != name:
            names[name] = stored
    return names


def _stacked(frames: list[Frame]) -> dict[str, Array]:
    """[frames, ...] by name."""
    columns: dict[str, list[Array]] = {}
    for frame in frames:
        data = frame.data if isinstance(frame.data, Mapping) else {"frames": frame.data}
        for name, array in data.items():
            columns.setdefault(name, []).append(array)
    return {name: np.stack(arrays) for name, arrays in columns.items()}
