"""Arrays over ZeroMQ: published by the sink, read by a subscriber of pyzmq."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.zmq_frames import decode, topic
from peers import SIGNATURE, frame, free_port, until

zmq = pytest.importorskip("zmq")
TWO = Signature(
    (TensorSpec("x", "float32", ("N", 3)),),
    (TensorSpec("y", "float32", ("N", 2)), TensorSpec("map", "bfloat16", ("N", 1, 2, 3))),
    (),
)


@pytest.fixture
def subscribe() -> Any:
    with zmq.Context() as context:
        sockets = []

        def made(address: str, *topics: bytes, **options: int) -> Any:
            sockets.append(context.socket(zmq.SUB))
            for name, value in options.items():
                sockets[-1].setsockopt(getattr(zmq, name), value)
            sockets[-1].connect(address)
            for each in topics or (b"",):
                sockets[-1].subscribe(each)
            return sockets[-1]

        yield made
        for each in sockets:
            each.close(0)


def greet(sink: Any, subscriber: Any) -> None:
    """A subscriber hears what is sent after its subscription has arrived: send until it hears something."""

    def heard() -> bool:
        sink.write(frame(0), {"y": np.zeros(2, np.float32)}, 0.0)
        return bool(subscriber.poll(10))

    until(heard, "the first message")


@pytest.mark.parametrize("how", ["tcp", "ipc"])
def test_every_output_of_a_step(subscribe: Any, tmp_path: Path, how: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    port = free_port()
    url, there = {
        "tcp": (f"zmq://localhost:{port}", f"tcp://127.0.0.1:{port}"),
        "ipc": ("zmq+ipc://out.sock", "ipc://out.sock"),
    }[how]
    with open_sink(url, TWO) as one, open_sink(url, SIGNATURE) as two:
        subscriber = subscribe(there, topic("north"), topic("pump:a"))
        greet(two, subscriber)
        two.write(frame(7, "pump:b"), {"y": np.zeros(2, np.float32)}, 0.0)
        two.write(frame(8, "pump:a", 1.5), {"y": np.array([1, np.nan], np.float32)}, 0.0)
        half = np.full((1, 2, 3), 0x3FC0, np.uint16)
        one.write(frame(9, "north"), {"y": np.ones(2, np.float32), "map": half}, 0.0)
        messages = []
        while not messages or messages[-1].index != 9:
            messages.append(decode(subscriber.recv_multipart()))
    *_, pump, north = [m for m in messages if m.index]
    assert [m.index for m in messages if m.index] == [8, 9], "topics select streams"
    assert (pump.stream, pump.time, pump.name) == ("pump:a", 1.5, "f8")
    np.testing.assert_array_equal(pump.arrays["y"], np.array([1, np.nan], np.float32))
    np.testing.assert_array_equal(north.arrays["map"], np.full((1, 2, 3), 1.5, np.float32))


def test_a_slow_subscriber_misses_messages_and_sees_it_and_nobody_waits(subscribe: Any, caplog: Any) -> None:
    port = free_port()
    large = Signature((TensorSpec("x", "float32", ("N", 3)),), (TensorSpec("y", "uint8", ("N", 10**6)),), ())
    with open_sink(f"zmq://127.0.0.1:{port}", large) as sink:
        y = {"y": np.zeros(10**6, np.uint8)}
        fast = subscribe(f"tcp://127.0.0.1:{port}")
        slow = subscribe(f"tcp://127.0.0.1:{port}", RCVHWM=1, RCVBUF=4096)
        for each in (fast, slow):

            def heard(each: Any = each) -> bool:
                sink.write(frame(0), y, 0.0)
                return bool(each.poll(10))

            until(heard, "the first message")
        for index in range(1, 101):
            sink.write(frame(index), y, 0.0)
            while decode(fast.recv_multipart()).index != index:
                pass
        assert "too slow" in caplog.text
        seen = []
        while slow.poll(100):
            seen.append(decode(slow.recv_multipart()).index)
        assert len(seen) < 100


def test_a_peer_that_is_none_changes_nothing(subscribe: Any) -> None:
    """It connects, says nothing, never reads."""
    port = free_port()
    with (
        open_sink(f"zmq://127.0.0.1:{port}", SIGNATURE) as sink,
        closing(socket.create_connection(("127.0.0.1", port))),
    ):
        greet(sink, subscribe(f"tcp://127.0.0.1:{port}"))


@pytest.mark.parametrize(
    ("url", "said"),
    [("zmq://127.0.0.1", "zmq://HOST:PORT"), ("zmq://192.0.2.1:5000", "an interface of this machine")],
)
def test_what_is_wrong_is_said_at_once(url: str, said: str) -> None:
    with pytest.raises(EdgeLstmError, match=said):
        open_sink(url, SIGNATURE)
    with pytest.raises(EdgeLstmError, match=said):  # and nothing is kept of it
        open_sink(url, SIGNATURE)


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EdgeLstmError, match="in use"):
        open_sink(f"zmq://127.0.0.1:{taken.getsockname()[1]}", SIGNATURE)
