"""The other ends of sinks: a broker, and three that are no good."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import Frame

SIGNATURE = Signature((TensorSpec("x", "float32", ("N", 3)),), (TensorSpec("y", "float32", ("N", 2)),), ())


def frame(index: int, stream: str | None = "north", time: float | None = None) -> Frame:
    return Frame(index, time, f"f{index}", np.zeros(3, np.float32), stream=stream)


def until(ready: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait for it; a test fails with words when it does not come."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


def free_port() -> int:
    """One that no client gets by chance before it is used: those have theirs from 32768 on."""
    while True:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


class Broker:
    """mosquitto, in a process of its own."""

    def __init__(self, folder: Path, lines: str = "") -> None:
        found = shutil.which("mosquitto", path=f"{subprocess.os.environ['PATH']}:/usr/sbin")  # type: ignore[attr-defined]
        if found is None:
            pytest.skip("mosquitto is not installed")
        self._program, self._folder, self._lines = found, folder, lines
        self.port = free_port()
        self.start()

    def start(self) -> None:
        config = self._folder / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\n{self._lines or 'allow_anonymous true'}\n")
        with (self._folder / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen([self._program, "-c", str(config)], stdout=log, stderr=log)
        until(self._answers, "mosquitto")

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self._folder / "mosquitto.log").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@contextmanager
def listening(port: int, topic: str) -> Iterator[list[tuple[str, str]]]:
    """What a client of a broker hears, (topic, payload)."""
    paho = pytest.importorskip("paho.mqtt.client")
    heard: list[tuple[str, str]] = []
    there = threading.Event()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.on_connect = lambda c, *_: c.subscribe(topic, 2)
    client.on_subscribe = lambda *_: there.set()
    client.on_message = lambda c, d, m: heard.append((m.topic, m.payload.decode()))
    client.reconnect_delay_set(1, 1)
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert there.wait(60)
    yield heard
    client.disconnect()
    client.loop_stop()


@contextmanager
def refusing() -> Iterator[int]:
    """A port where nobody listens: bound, so that nobody else takes it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


@contextmanager
def black_hole() -> Iterator[int]:
    """A port whose connections come to nothing: no answer, no refusal, as behind a firewall. The kernel drops what comes when a listener's queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield int(listener.getsockname()[1])


@contextmanager
def half_mute() -> Iterator[int]:
    """A broker that welcomes who comes, and never reads again."""
    with mute(b"\x20\x02\x00\x00") as port:  # CONNACK
        yield port


@contextmanager
def mute(said: bytes = b"") -> Iterator[int]:
    """A port that takes connections, and never reads; it says one thing at most."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            with suppress(OSError):
                while True:
                    held.append(listener.accept()[0])
                    held[-1].sendall(said)

        threading.Thread(target=take, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


DEAD = {"refusing": refusing, "black hole": black_hole, "mute": mute, "half mute": half_mute}
