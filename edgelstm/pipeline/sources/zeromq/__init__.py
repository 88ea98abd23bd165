"""Arrays over ZeroMQ: a SUB socket that reads the messages of :mod:`edgelstm.pipeline.zmq_frames`."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Place
from edgelstm.pipeline.sources.address import Address, parse_url, split_fragment
from edgelstm.pipeline.sources.clock import CaptureClock, utc
from edgelstm.pipeline.sources.source import NOTHING, Array, Frame, Source
from edgelstm.pipeline.zmq_frames import MAX_ARRAYS, MAX_BYTES, Message, decode, topic

PREFIXES = ("zmq://", "zmq+ipc://")
OPTIONS = ("stream", "array", "bind", "open_timeout", "read_timeout")
#: Messages that may wait here; the sender drops those beyond.
WAITING = 8
#: Milliseconds from look to look whether it is to stop.
POLL = 100


@dataclass(frozen=True)
class _Setup:
    """What is subscribed to. silent: seconds without a message after which it failed, None for never."""

    zmq: Any
    endpoint: str
    shown: str
    stream: str | None
    array: str | None
    bind: bool
    silent: float | None


def open_zeromq(spec: str) -> Source:
    """``zmq://HOST:PORT`` or ``zmq+ipc://PATH`` of a PUB socket, with ``#stream=NAME&array=NAME``: frames of one stream.

    A message's only array is a frame; several are a mapping by name, unless ``array`` chooses. ``bind=1`` listens there and the sender connects.
    A number that is not the one after the last is a gap. Times are this machine's clock, with the sender's spacing where it says times.
    The first message must come within ``open_timeout`` (10 s); ZeroMQ connects again by itself, so a silent sender is no error unless
    ``read_timeout`` says after how many seconds.
    """
    setup, within = _setup(spec)
    stopped = threading.Event()
    first = _Subscriber(setup, stopped, within)
    waiting = [first]

    def frames() -> Iterator[Frame]:
        subscriber = waiting.pop() if waiting else _Subscriber(setup, stopped, within)
        try:
            yield from subscriber.frames(first.start)
        finally:
            subscriber.close()

    try:
        return Source(
            setup.shown,
            frames,
            said=(f"stream {first.stream}: {first.words}",),
            look=True,
            live=True,
            place=Place(datetime.fromtimestamp(first.start, timezone.utc)),
            stopped=stopped,
        )
    except BaseException:
        first.close()
        raise


def _setup(spec: str) -> tuple[_Setup, float]:
    if spec.lower().startswith("zmq+ipc://"):
        path, options = split_fragment(spec.partition("://")[2], OPTIONS, spec.partition("#")[0])
        address, endpoint = Address(path, spec.partition("#")[0], options), f"ipc://{path}"
    else:
        address = parse_url(spec, OPTIONS)
        endpoint = address.url.replace("zmq://", "tcp://", 1)
        if not re.fullmatch(r"tcp://[^/@]+:[0-9]+", endpoint):
            raise EdgeLstmError(
                f"source {address.shown}", expected="zmq://HOST:PORT, without user and path", found=None
            )
    bind = address.options.get("bind", "0")
    if bind not in ("0", "1"):
        raise EdgeLstmError(f"source {address.shown}: bind", found=bind, expected="0 or 1")
    zmq = require("zmq", "zmq", f"reading {address.shown}")
    within, silent = address.timeouts
    setup = _Setup(
        zmq,
        endpoint,
        address.shown,
        address.options.get("stream"),
        address.options.get("array"),
        bind == "1",
        silent if "read_timeout" in address.options else None,
    )
    return setup, within


class _Subscriber:
    """An open socket whose first message has come; one thread at a time uses it."""

    def __init__(self, setup: _Setup, stopped: threading.Event, within: float) -> None:
        self._setup, self._stopped = setup, stopped
        self._clock = CaptureClock()
        zmq = setup.zmq
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        try:
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.RCVHWM, WAITING)
            self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)  # a larger part is not even received
            self._socket.setsockopt(zmq.SUBSCRIBE, b"" if setup.stream is None else topic(setup.stream))
            if "[" in setup.endpoint:
                self._socket.setsockopt(zmq.IPV6, 1)
            try:
                (self._socket.bind if setup.bind else self._socket.connect)(setup.endpoint)
            except zmq.ZMQError as error:
                raise EdgeLstmError(f"source {setup.shown} can't be opened", found=error.strerror) from None
            found = self._next(within)
            if found is None:
                raise EdgeLstmError(f"source {setup.shown}: stopped before its first message")
            message, came = found
            if isinstance(message, EdgeLstmError):
                raise message
            self._first: tuple[Message | EdgeLstmError, float] | None = found
            self.start, self._note = self._stamp(message, came)
            self.stream = message.stream
            self.words = ", ".join(f"{n} {a.dtype}{list(a.shape)}" for n, a in message.arrays.items())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """By the thread that reads, or while none does."""
        self._socket.close()
        self._context.term()

    def frames(self, start: float) -> Iterator[Frame]:
        """From the first message on; ``Frame.time`` counts from ``start``."""
        found, self._first = self._first, None
        before: int | None = None
        stamp, note = self.start, self._note
        index = 0
        while found is not None:
            message, came = found
            if isinstance(message, EdgeLstmError):
                stamp, note = self._clock.stamp(None, came)
                yield Frame(index, stamp - start, utc(stamp), NOTHING, bad=message)
                index += 1
                found = self._next(self._setup.silent)
                continue
            if index:
                stamp, note = self._stamp(message, came)
            if message.stream != self.stream:
                raise EdgeLstmError(
                    f"source {self._setup.shown}: messages of several streams",
                    found=f"{self.stream}, {message.stream}",
                    expected="one",
                    hint=f"Choose: #stream={self.stream}",
                )
            gap = note
            if before is not None and message.index != before + 1:
                missing = message.index - before - 1
                gap = f"{missing} messages missing" if missing > 0 else "the sender began anew"
            before = message.index
            name = message.name or utc(stamp)
            data: Array | Mapping[str, Array] = NOTHING
            bad = None
            try:
                data = self._data(message)
            except EdgeLstmError as error:
                bad = error
            yield Frame(index, stamp - start, name, data, gap=gap, bad=bad)
            index += 1
            found = self._next(self._setup.silent)

    def _stamp(self, message: Message, came: float) -> tuple[float, str | None]:
        return self._clock.stamp(message.time, came)

    def _data(self, message: Message) -> Array | Mapping[str, Array]:
        arrays = {name: a.astype(a.dtype.newbyteorder("="), copy=False) for name, a in message.arrays.items()}
        wanted = self._setup.array
        if wanted is not None and wanted in arrays:
            return arrays[wanted]
        if wanted is not None or not arrays:
            raise EdgeLstmError(
                f"source {self._setup.shown}: array {wanted or ''}".rstrip(),
                found=", ".join(arrays) or "none",
                expected="one of the message's",
            )
        return next(iter(arrays.values())) if len(arrays) == 1 else arrays

    def _next(self, within: float | None) -> tuple[Message | EdgeLstmError, float] | None:
        """The next message, or what is wrong with it, and when it came; None when it is to stop."""
        began = time.monotonic()
        while not self._stopped.is_set():
            if self._socket.poll(POLL):
                parts: list[bytes] = [self._socket.recv()]
                while self._socket.getsockopt(self._setup.zmq.RCVMORE):
                    part = self._socket.recv()
                    if len(parts) <= MAX_ARRAYS + 1:
                        parts.append(part)
                try:
                    return decode(parts), time.monotonic()
                except EdgeLstmError as error:  # of one message; the next may be one
                    what = f"source {self._setup.shown}: {error.what}"
                    return EdgeLstmError(what, found=error.found, expected=error.expected), time.monotonic()
            if within is not None and time.monotonic() - began > within:
                raise EdgeLstmError(f"source {self._setup.shown}", found=f"nothing came for {within:g} s")
        return None
