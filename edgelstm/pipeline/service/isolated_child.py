"""The other side of :mod:`edgelstm.pipeline.service.isolated`: ``python -m edgelstm.pipeline.service.isolated_child MEMORY``.

Reads the job on standard input and gives frames until the source ends, or the one who reads them does.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sources import NothingYet, open_source
from edgelstm.pipeline.sources.source import Frame, Source

SLOTS = 2
#: Whose log lines the reader makes itself.
CHECKS = Source.__module__
ALIGNMENT = 64


def main(memory: int) -> None:
    """Serve one reader."""
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no message
    lock = threading.Lock()

    def say(**message: Any) -> None:
        with lock:
            lines.write(json.dumps(message).encode() + b"\n")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name != CHECKS:  # the one who reads checks the frames too, and says so
                say(log=record.getMessage())

    logging.getLogger("edgelstm").addHandler(Handler(logging.WARNING))
    job = json.loads(sys.stdin.buffer.readline())
    free = threading.Semaphore(SLOTS)

    def listen() -> None:
        while sys.stdin.buffer.readline():
            free.release()
        os._exit(0)  # nobody reads any more

    threading.Thread(target=listen, daemon=True).start()
    try:
        with open_source(job["source"], limit=job["limit"], follow=job["follow"]) as source:
            _check(source)
            place = source.place
            say(
                description=source.description,
                length=source.length,
                fps=source.fps,
                gaps=source.gaps,
                said=source.said,
                streams=source.streams,
                live=source.live,
                start=None if place.start is None else place.start.isoformat(),
                interval=place.interval,
                grid=None if place.grid is None else place.grid.to_json(),
                units=list(place.units.items()),
                scales=source.scales,
                named=source.holds is not None,
            )
            source.gives_bad = True
            source.left_out.tell = lambda reason: say(left_out=reason)
            _give(source, memory, free, say)
        say(end=True)
    except EdgeLstmError as error:
        say(**_error(error), nothing_yet=isinstance(error, NothingYet))
    except Exception as error:
        say(error=f"{type(error).__name__}: {error}")


def _check(source: Source) -> None:
    if source.is_sound:
        raise EdgeLstmError(
            f"{source.description} in a process of its own", found="sound", expected="another source"
        )


def _give(source: Source, memory: int, free: threading.Semaphore, say: Any) -> None:
    slot_bytes = 0
    for number, frame in enumerate(source):
        data = frame.data if isinstance(frame.data, Mapping) else {None: frame.data}
        arrays = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in data.items()}
        need = sum(_padded(a.nbytes) for a in arrays.values())
        free.acquire()
        if need > slot_bytes:
            for _ in range(SLOTS - 1):  # what is still read lies where the slots were
                free.acquire()
            slot_bytes = need
            os.ftruncate(memory, SLOTS * slot_bytes)
            for _ in range(SLOTS - 1):
                free.release()
        place, placed = (number % SLOTS) * slot_bytes, []
        for name, array in arrays.items():
            view = array.reshape(-1).view(np.uint8).data
            done = 0
            while done < len(view):
                done += os.pwrite(memory, view[done:], place + done)
            # A NumPy name of a dtype says its byte order too.
            placed.append({"name": name, "dtype": array.dtype.str, "shape": array.shape, "place": place})
            place += _padded(array.nbytes)
        say(**_words(frame), arrays=placed, interval=source.place.interval)


def _words(frame: Frame) -> dict[str, Any]:
    return {
        "index": frame.index, "time": frame.time, "name": frame.name, "values": frame.values, "notes": frame.notes,
        "gap": frame.gap, "stream": frame.stream, "last": frame.last,
        "bad": frame.bad and _error(frame.bad), "missing": frame.missing, "late": frame.late and _error(frame.late),
        "mark": frame.mark,
    }  # fmt: skip


def _error(error: EdgeLstmError) -> dict[str, str | None]:
    told = {"found": _text(error.found), "expected": _text(error.expected), "hint": error.hint}
    return {"error": error.what, **told}


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(value: object) -> str | None:
    return None if value is None else str(value)


if __name__ == "__main__":
    main(int(sys.argv[1]))
