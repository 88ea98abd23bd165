"""A source in a process of its own: whatever its decoder does, a crash included, is an error of that source.

Frames come through memory that both processes have (Linux's memfd), one of two slots at a time; what lies where is said on a pipe, a line of
JSON each, and nothing is believed: types, shapes, sizes and places are checked before anything is read. The child's memory is read by
system calls and never mapped here, so that a child that cuts it short is an error too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.machine import python_command
from edgelstm.pipeline.place import Grid, Place
from edgelstm.pipeline.sources.source import MAX_FRAME_BYTES, Array, Frame, LeftOut, NothingYet, Source

log = logging.getLogger("edgelstm.serve")

CHILD = "edgelstm.pipeline.service.isolated_child"
SLOTS = 2
#: Bytes of a line, at most.
LINE = 1024**2
#: Arrays of a frame, at most.
ARRAYS = 64
KINDS = "biuf"


def open_isolated(spec: str, *, limit: int | None = None, follow: bool = False) -> Source:
    """The source at ``spec``, opened in a process of its own. Raises EdgeLstmError, also for what that process dies of."""
    if not hasattr(os, "memfd_create"):
        raise EdgeLstmError("isolate = process", found=sys.platform, expected="Linux")
    made = _Isolated(_Child({"source": spec, "limit": limit, "follow": follow}))
    if made.is_named:  # by the files of a folder
        made.holds = lambda name: "/" not in name and (Path(spec) / name).is_file()
    return made


class _Isolated(Source):
    """Frames of a child; closed, it is no more."""

    def __init__(self, child: _Child) -> None:
        self._child = child
        hello = child.hello
        start = hello["start"]
        super().__init__(
            f"{hello['description']} (process {child.pid})",
            self._of_child,
            length=hello["length"],
            fps=hello["fps"],
            gaps=tuple(hello["gaps"]),
            said=tuple(hello["said"]),
            place=Place(
                None if start is None else datetime.fromisoformat(start),
                hello["interval"],
                hello["grid"],
                hello["units"],
            ),
            streams=hello["streams"],
            live=hello["live"],
        )
        self.is_named = hello["named"]
        self.scales, self.left_out = hello["scales"], child.left_out

    def __iter__(self) -> Iterator[Frame]:
        if self._child.is_used:
            return super().__iter__()
        self._current = self._checked()  # with the process that is there
        return self._current

    def _of_child(self) -> Iterator[Frame]:
        if self._child.is_used:
            self._child = self._child.again()
        for frame, interval in self._child.frames():
            if interval != self.place.interval:  # it is known with the second frame
                self.place = replace(self.place, interval=interval)
            yield frame

    def stop(self) -> None:
        super().stop()
        self._child.kill()

    def close(self) -> None:
        super().close()
        self._child.kill()


class _Child:
    """The process, from its start to its end."""

    def __init__(self, job: dict[str, Any], left_out: LeftOut | None = None) -> None:
        import fcntl  # not everywhere

        self._job = job
        self.left_out = left_out or LeftOut()
        self.is_used = self._reads = False
        self._lock = threading.Lock()
        self._killed = False

        self._memory = os.memfd_create("edgelstm-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            self._process = subprocess.Popen(
                python_command(CHILD, str(self._memory)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(self._memory,),
            )
        except BaseException:
            os.close(self._memory)
            raise
        try:
            self._say(json.dumps(job).encode() + b"\n")
            self.hello = _hello(self._message())
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def again(self) -> _Child:
        """Another one that does the same."""
        return _Child(self._job, self.left_out)

    def frames(self) -> Iterator[tuple[Frame, float | None]]:
        """One by one, to the end, with the seconds from frame to frame that are known by then. Raises EdgeLstmError when the process dies or lies."""
        self.is_used = self._reads = True
        try:
            while True:
                said = self._message()
                if "end" in said:
                    return
                yield self._frame(said), _interval(said)
                self._say(b"\n")  # the slot is free
        finally:
            self._reads = False
            self.kill()

    def kill(self) -> None:
        """End it, from any thread; calling it again does nothing. Its memory goes with whoever reads it."""
        with self._lock:
            if not self._killed:
                self._killed = True
                self._process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(5)
            if not self._reads and self._memory >= 0:
                os.close(self._memory)
                self._memory = -1
                assert self._process.stdin is not None
                assert self._process.stdout is not None
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
                self._process.stdout.close()

    def _say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise self._died() from error

    def _message(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while True:
            try:
                line = self._process.stdout.readline(LINE)
            except ValueError:  # closed by another thread
                raise self._died() from None
            if not line.endswith(b"\n"):
                raise self._died() if len(line) < LINE else _lie(f"a line of {count_of(len(line), 'byte')}")
            try:
                said = json.loads(line)
            except (ValueError, RecursionError):
                raise _lie(repr(line[:80])) from None
            if not isinstance(said, dict):
                raise _lie(repr(line[:80]))
            if "log" in said:
                log.warning("%s", said["log"])
                continue
            if "left_out" in said:
                self.left_out.tell("late" if said["left_out"] == "late" else "no_time")
                continue
            if "error" in said:
                error = _error(said) or _lie("no error")
                if said.get("nothing_yet") is True:
                    raise NothingYet(error.what, found=error.found, expected=error.expected, hint=error.hint)
                raise error
            return said

    def _died(self) -> EdgeLstmError:
        killed = self._killed
        try:
            code: int | None = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = None
        if killed:
            return EdgeLstmError("the source was stopped")
        found = "closed its pipe" if code is None else f"ended with code {code}"
        if code is not None and code < 0:
            found = f"killed by {signal.Signals(-code).name}"
        return EdgeLstmError("the source's process ended", found=found, expected="frames")

    def _frame(self, said: dict[str, Any]) -> Frame:
        try:
            arrays = said["arrays"]
            if not 0 < len(arrays) <= ARRAYS:
                raise ValueError(f"{count_of(len(arrays), 'array')}")
            read: Any = {None if a["name"] is None else str(a["name"]): self._array(a) for a in arrays}
            data = read.get(None, read)
            values = said["values"]
            return Frame(
                int(said["index"]),
                None if said["time"] is None else float(said["time"]),
                str(said["name"]),
                data,
                None if values is None else (float(values[0]), float(values[1])),
                tuple(map(str, said["notes"])),
                None if said["gap"] is None else str(said["gap"]),
                None if said["stream"] is None else str(said["stream"]),
                bool(said["last"]),
                _error(said["bad"]),
                None if said["missing"] is None else str(said["missing"]),
                _error(said["late"]),
                None if said["mark"] is None else str(said["mark"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
            raise _lie(f"{type(error).__name__}: {error}") from None

    def _array(self, said: dict[str, Any]) -> Array:
        dtype, shape = np.dtype(str(said["dtype"])), tuple(int(n) for n in said["shape"])
        if dtype.kind not in KINDS or len(shape) > 16 or any(n < 0 for n in shape):
            raise ValueError(f"an array {dtype}{list(shape)}")
        size, place = math.prod(shape) * dtype.itemsize, int(said["place"])
        if size > MAX_FRAME_BYTES or not 0 <= place <= SLOTS * MAX_FRAME_BYTES:
            raise ValueError(f"{count_of(size, 'byte')} at {place}")
        if os.fstat(self._memory).st_size < place + size:
            raise ValueError(f"{count_of(size, 'byte')} at {place} of {os.fstat(self._memory).st_size}")
        array = np.empty(shape, dtype)
        if size and os.preadv(self._memory, [array.reshape(-1).view(np.uint8).data], place) != size:
            raise ValueError("fewer bytes than said")
        return array


def _hello(said: dict[str, Any]) -> dict[str, Any]:
    try:
        start = said["start"]
        if start is not None:
            datetime.fromisoformat(start)
        return {
            "description": str(said["description"]),
            "length": None if said["length"] is None else int(said["length"]),
            "fps": None if said["fps"] is None else float(said["fps"]),
            "interval": None if said["interval"] is None else float(said["interval"]),
            "gaps": [str(g) for g in said["gaps"]],
            "said": [str(s) for s in said["said"]],
            "streams": max(1, min(int(said["streams"]), 4096)),
            "live": bool(said["live"]),
            "start": start,
            "grid": _grid(said["grid"]),
            "units": _units(said["units"]),
            "named": bool(said["named"]),
            "scales": str(said["scales"])[:64],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _lie(f"{type(error).__name__}: {error}") from None


def _error(said: Any) -> EdgeLstmError | None:
    if said is None:
        return None
    told = [None if said.get(k) is None else str(said[k]) for k in ("found", "expected", "hint")]
    return EdgeLstmError(str(said["error"]), found=told[0], expected=told[1], hint=told[2])


def _interval(said: dict[str, Any]) -> float | None:
    try:
        return None if said["interval"] is None else _number(said["interval"])
    except (KeyError, TypeError, ValueError) as error:
        raise _lie(f"{type(error).__name__}: {error}") from None


def _grid(said: Any) -> Grid | None:
    if said is None:
        return None
    proj4, rows, columns = str(said["proj4"]), int(said["rows"]), int(said["columns"])
    if len(proj4) > 10_000 or min(rows, columns) < 1:
        raise ValueError(f"a grid of {rows} x {columns}")
    left, top, dx, dy = (_number(said[k]) for k in ("left", "top", "dx", "dy"))
    return Grid(proj4, left, top, dx, dy, rows, columns)


def _units(said: Any) -> dict[float, str]:
    if len(said) > 64:
        raise ValueError(f"{len(said)} units")
    return {_number(factor): str(unit)[:64] for factor, unit in said}


def _number(said: Any) -> float:
    number = float(said)
    if not math.isfinite(number):
        raise ValueError(f"{number} for a number")
    return number


def _lie(found: str) -> EdgeLstmError:
    return EdgeLstmError("the source's process said what makes no sense", found=found)
