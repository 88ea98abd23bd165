"""JSON lines to an MQTT broker (3.1.1), by paho-mqtt in a thread of its own: it connects again by itself, for ever."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sinks.delivery import LOOK, Undelivered, in_path, shared, wait_for
from edgelstm.pipeline.sinks.lines import Lines
from edgelstm.pipeline.sinks.tls import tls
from edgelstm.pipeline.sources.source import Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Target, Write

log = logging.getLogger("edgelstm.serve")

#: Messages of QoS 1 and 2 that may wait for the broker's acknowledgement: a long way to it doesn't slow the stream down to a message a round trip.
WINDOW = 16
#: Seconds without a sign of the broker after which the connection counts as lost, to be made anew.
KEEPALIVE = 30
#: Seconds from one try to connect to the next, at first and at most.
RETRY = (1, 60)
#: Seconds that a run that is no service, and has nothing else to do, waits for a broker.
PATIENCE = 30.0
#: Which of the failures to connect are told.
TOLD = (1, 10, 100, 1000, 10000)
ONLINE, OFFLINE = "online", "offline"


@contextmanager
def mqtt(to: Target) -> Iterator[Write]:
    """A message a line, to the topic that is the address's path; ``{stream}`` in it is the stream's name.

    QoS 0: at most once; a message counts as delivered when it was handed to the network. QoS 1: at least once, QoS 2: once, while this process lives: a
    message is kept until the broker has acknowledged it, over any number of connections. While there is no connection nothing is
    taken from the queue before the sink, so the newest ``sink_queue`` outputs come when it is back.
    """
    address, options = to.address, to.options
    topic, qos = address.path, options.qos or 0
    if not topic or any(mark in topic for mark in "+#\0"):
        raise EdgeLstmError(
            f"topic of {to.name}",
            found=topic or "none",
            expected="mqtt://HOST/TOPIC, without + and #; {stream} is the stream's name",
        )
    if options.will is not None and any(mark in options.will for mark in "+#{\0"):
        raise EdgeLstmError(
            f"will of {to.name}",
            found=options.will,
            expected="a topic, one for all streams of the connection",
        )
    patience = None if to.append else PATIENCE
    broker = (address.scheme, address.host, address.port, address.user, address.password)
    with shared(("mqtt", broker, repr(options)), lambda: _connection(to)) as connection:

        def post(lines: Sequence[tuple[Frame, str]]) -> None:
            for frame, text in lines:
                connection.publish(in_path(topic, frame), text, qos, bool(options.retain), to.stop, patience)

        yield Lines(to, post)
        connection.flush(to.stop, patience)


@contextmanager
def _connection(to: Target) -> Iterator[Connection]:
    connection = Connection(to)
    try:
        yield connection
    finally:
        connection.close()


class Connection:
    """To one broker, for any number of streams. It may be away: nothing is raised for that."""

    def __init__(self, to: Target) -> None:
        paho = require("paho.mqtt.client", "mqtt", f"sending to {to.name}")
        address, options = to.address, to.options
        self.name = f"{address.scheme}://{address.host}"
        self._changed = threading.Condition()
        self._connected = False
        #: Increases with each connection that is lost: what was handed to that one is not known to have been sent.
        self._lost = 0
        #: Numbers of messages: those that the broker is to acknowledge, with whose they are, and those that it did before we had written that down.
        self._waiting: dict[int, threading.Event] = {}
        self._early: set[int] = set()
        self._publishing = 0
        self._refused = 0
        self._will = options.will
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=options.client or f"edgelstm-{secrets.token_hex(4)}"
        )
        self._client.reconnect_delay_set(*RETRY)
        self._client.max_inflight_messages_set(WINDOW)
        self._client.connect_timeout = options.timeout or 5.0
        user, password = options.user or address.user, options.password or address.password
        if user is not None:
            self._client.username_pw_set(user, password)
        secure = address.scheme == "mqtts"
        if secure:
            self._client.tls_set_context(tls(options, to.name))
        if self._will is not None:
            self._client.will_set(self._will, OFFLINE, qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        if not address.host:
            raise EdgeLstmError(f"address {to.name}", found="no host", expected="mqtt://HOST/TOPIC")
        self._client.connect_async(address.host, address.port or (8883 if secure else 1883), KEEPALIVE)
        self._client.loop_start()

    def publish(
        self,
        topic: str,
        text: str,
        qos: int,
        retain: bool,
        stop: threading.Event,
        seconds: float | None = None,
    ) -> None:
        """Wait for the connection, and for room, then send. Raises :class:`Undelivered` when ``stop`` is set before, or after ``seconds``."""
        # When the connection goes before the whole of a message of QoS 0 was sent, nobody has it: it is sent again.
        while not self._published(topic, text, qos, retain, stop, seconds):
            pass

    def _published(
        self, topic: str, text: str, qos: int, retain: bool, stop: threading.Event, seconds: float | None
    ) -> bool:
        reason = "closed" if seconds is None else "unreachable"
        with self._changed:
            if not wait_for(
                self._changed, lambda: self._connected and len(self._waiting) < WINDOW, stop, seconds
            ):
                raise Undelivered(f"{self.name}: not connected in time", reason)
            lost = self._lost
            self._publishing += 1
        message = self._client.publish(topic, text, qos, retain)
        with self._changed:
            self._publishing -= 1
            if qos and message.mid not in self._early:
                self._waiting[message.mid] = stop
            if not self._publishing:
                self._early.clear()
            if qos:
                return True  # paho keeps it, and sends it again over the next connection
            if message.rc:  # the connection went just now, and we are not told yet
                self._changed.wait(LOOK)
                return False
            if not wait_for(
                self._changed, lambda: message.is_published() or self._lost != lost, stop, seconds
            ):
                raise Undelivered(f"{self.name}: not sent in time", reason)
            return bool(message.is_published())

    def flush(self, stop: threading.Event, seconds: float | None = None) -> None:
        """Wait for what is not acknowledged, of the sink whose ``stop`` this is."""

        def mine() -> int:
            return sum(whose is stop for whose in self._waiting.values())

        with self._changed:
            if not wait_for(self._changed, lambda: not mine(), stop, seconds):
                raise Undelivered(
                    f"{self.name}: {mine()} messages were not acknowledged", "unconfirmed", count=mine()
                )

    def close(self) -> None:
        """End the connection; its thread ends by itself, also where it waits for a network that is not there."""
        with suppress(Exception):
            if self._connected and self._will is not None:
                self._client.publish(self._will, OFFLINE, 1, True).wait_for_publish(1.0)
            self._client.disconnect()
        deadline = time.monotonic() + 1.0
        with self._changed:
            while self._connected and time.monotonic() < deadline:
                self._changed.wait(LOOK)
        # The client and we name each other: its sockets would stay open until the collector comes.
        for name in ("on_connect", "on_connect_fail", "on_disconnect", "on_publish"):
            setattr(self._client, name, None)

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refused += 1
            if self._refused in TOLD:
                log.warning("%s: the broker refuses the connection: %s", self.name, reason)
            return
        log.info("%s: connected", self.name)
        self._refused = 0
        if self._will is not None:
            client.publish(self._will, ONLINE, 1, True)
        with self._changed:
            self._connected = True
            self._changed.notify_all()

    def _on_connect_fail(self, client: Any, data: Any) -> None:
        self._refused += 1
        if self._refused in TOLD:
            log.warning("%s: can't connect, tried again at least every %d s", self.name, RETRY[1])

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        with self._changed:
            was, self._connected = self._connected, False
            self._lost += 1
            self._changed.notify_all()
        if was and reason.is_failure:
            log.warning("%s: connection lost: %s", self.name, reason)

    def _on_publish(self, client: Any, data: Any, mid: int, reason: Any, properties: Any) -> None:
        with self._changed:
            if mid in self._waiting:
                del self._waiting[mid]
            elif self._publishing:
                self._early.add(mid)
            self._changed.notify_all()
