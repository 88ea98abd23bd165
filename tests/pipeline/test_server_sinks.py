"""What the sinks that listen have in common: a port that is free again at once, and one server for several streams."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from cameras import need_rtsp_server

from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.sinks import ADDRESSES, delivery
from peers import frame, free_port

IMAGE = Signature((TensorSpec("x", "float32", ("N", 3)),), (TensorSpec("y", "float32", ("N", 8, 8)),), ())
SERVERS = {"zmq": "zmq", "mjpeg": "PIL", "foxglove": "foxglove", "rtsp": None}


def test_all_of_them_are_here() -> None:
    others = {"mqtt", "mqtts", "http", "https", "zmq+ipc"}
    assert {scheme for kind in ADDRESSES for scheme in kind.schemes} == set(SERVERS) | others


@pytest.mark.parametrize("scheme", SERVERS)
def test_a_port_is_shared_by_streams_and_free_again_at_once(scheme: str) -> None:
    """With a client there when it ends: its section was changed, and the sinks open anew."""
    package = SERVERS[scheme]
    pytest.importorskip(package) if package else need_rtsp_server()
    url = f"{scheme}://127.0.0.1:{free_port()}"
    for _ in range(3):
        with open_sink(f"{url}/a", IMAGE) as a, open_sink(f"{url}/b", IMAGE) as b:
            assert len([key for key in delivery._entries if key[0] == scheme]) == 1  # type: ignore[index]
            for sink in (a, b):
                sink.write(frame(0), {"y": np.zeros((8, 8), np.float32)}, 0.0)
            client = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 60)
            client.sendall(b"GET /a HTTP/1.0\r\nHost: localhost\r\n\r\n")
        client.close()
    assert not delivery._entries
