"""Outputs as arrays over ZeroMQ: a PUB socket that others subscribe to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgelstm.dtypes import CODED
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sinks.delivery import shared, stream_name
from edgelstm.pipeline.sinks.panels import as_float
from edgelstm.pipeline.sources.source import Array, Frame
from edgelstm.pipeline.zmq_frames import Message, encode

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Target, Write

log = logging.getLogger("edgelstm.serve")

#: Messages that wait for each subscriber; a slower one misses some. ZeroMQ's own 1000 would be gigabytes of large maps.
WAITING = 32
#: Milliseconds that these have at the end.
LINGER = 500


@contextmanager
def zeromq(to: Target) -> Iterator[Write]:
    """Every output of a step in one message (:mod:`edgelstm.pipeline.zmq_frames`), for whoever is subscribed then.

    At most once: a subscriber that comes later, or is slower, misses messages, which ``index`` tells it. ZeroMQ does not tell us which.
    """
    with shared(("zmq", endpoint(to)), lambda: _publisher(to)) as publisher:

        def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
            arrays = {
                s.name: as_float(outputs[s.name], s.dtype) if s.dtype in CODED else outputs[s.name]
                for s in to.signature.outputs
            }
            publisher.send(Message(stream_name(frame), frame.index, arrays, frame.time, frame.name))

        yield write


def endpoint(to: Target) -> str:
    """``tcp://HOST:PORT``, ``*`` for every interface, or ``ipc://PATH``; EdgeLstmError where neither is given."""
    if to.where.lower().startswith("zmq+ipc://"):
        return f"ipc://{to.where.partition('://')[2]}"
    address = to.address
    if not address.host or address.port is None:
        raise EdgeLstmError(
            f"address {to.name}", expected="zmq://HOST:PORT, the interface that is listened on"
        )
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"tcp://{'127.0.0.1' if host == 'localhost' else host}:{address.port}"


@contextmanager
def _publisher(to: Target) -> Iterator[Publisher]:
    publisher = Publisher(to)
    try:
        yield publisher
    finally:
        publisher.close()


class Publisher:
    """One socket, for any number of streams."""

    def __init__(self, to: Target) -> None:
        self._zmq = zmq = require("zmq", "zmq", f"publishing at {to.name}")
        self.name, where = to.name, endpoint(to)
        self._lock = threading.Lock()
        self._behind = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, WAITING)
        self._socket.setsockopt(zmq.LINGER, LINGER)
        if where.startswith("tcp://["):
            self._socket.setsockopt(zmq.IPV6, 1)
        try:
            self._socket.bind(where)
        except zmq.ZMQError as error:
            self.close()
            raise EdgeLstmError(
                f"can't publish at {to.name}",
                found=error.strerror,
                expected="an interface of this machine, by number, and a port that is free",
            ) from error

    def send(self, message: Message) -> None:
        """Never waits."""
        zmq, parts = self._zmq, encode(message)
        with self._lock:
            try:  # only this says that a subscriber has begun to be too slow
                self._socket.setsockopt(zmq.XPUB_NODROP, 1)
                self._socket.send_multipart(parts, zmq.NOBLOCK)
            except zmq.Again:
                self._socket.setsockopt(zmq.XPUB_NODROP, 0)
                self._socket.send_multipart(parts, zmq.NOBLOCK)
                self._behind += 1
                if self._behind in (1, 10, 100, 1000, 10000):
                    log.warning("%s: a subscriber is too slow and misses messages", self.name)

    def close(self) -> None:
        """Send what waits, as far as that takes no longer than LINGER."""
        self._socket.close()
        self._context.term()
