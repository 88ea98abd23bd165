"""serve as a process: it ends well by signals, and at all when nothing in it comes round any more."""

from __future__ import annotations

import _thread
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgelstm.workflows.serve import Pipeline

#: Seconds without a sign of life, beyond ``hang_after``, after which :func:`ended_if_stuck` ends the process.
GRACE = 20.0


@contextmanager
def ended_if_stuck(pipeline: Pipeline) -> Iterator[None]:
    """End the process with code 1 when no thread of it comes round any more, as when an engine's step neither ends nor lets Python go
    on. Where a model has ``hang_after``: so many seconds and ``GRACE`` after the last sign of life. Checkpoints are those written before."""
    limits = [m.hang_after for m in pipeline.config.models.values() if m.hang_after is not None]
    where = sys.__stderr__
    if not limits or where is None:
        yield
        return
    seconds, told, done = max(limits) + GRACE, where.fileno(), threading.Event()

    def live() -> None:
        while not done.is_set():
            faulthandler.dump_traceback_later(seconds, exit=True, file=told)
            done.wait(1.0)
        faulthandler.cancel_dump_traceback_later()

    thread = threading.Thread(target=live, name="sign of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def stopped_by_signals(pipeline: Pipeline) -> Iterator[None]:
    """SIGTERM and SIGINT end the service well, a second one at once; SIGHUP reads the file again, but where there is a terminal, it says
    that this is gone. For the main thread."""
    hangup = None if os.isatty(0) else getattr(signal, "SIGHUP", None)
    asked = None if hangup is None else signal.signal(hangup, lambda *_: pipeline.ask_reload())
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _: Any) -> None:
        for each, old in before.items():
            signal.signal(each, old)
        # By another thread: this one may hold the lock of the very event that is to be set.
        _thread.start_new_thread(pipeline.stop, ())

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        if hangup is not None:
            signal.signal(hangup, asked)
