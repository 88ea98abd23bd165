"""Pictures over RTSP: GStreamer's server, read by PyAV as a camera is."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from cameras import need_rtsp_server

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.sinks import Sink, Undelivered, delivery, rtsp
from peers import frame, free_port, until

av = pytest.importorskip("av")
IMAGE = Signature(
    (TensorSpec("x", "float32", ("N", 3)),), (TensorSpec("y", "float32", ("N", 1, 65, 97)),), ()
)


def grey(value: float) -> Any:
    return {"y": np.full((1, 65, 97), value, np.float32)}


@contextmanager
def running(sink: Sink, value: float, stream: str) -> Iterator[None]:
    """Frames that keep coming."""
    done = threading.Event()

    def send() -> None:
        index = 0
        while not done.wait(0.05):
            index += 1
            try:
                sink.write(frame(index, stream), grey(value), 0.0)
            except Undelivered:
                continue

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(60)


def level(url: str) -> float:
    """Mean brightness of the first picture, once there is one."""
    found: list[float] = []

    def look() -> bool:
        with (
            suppress(av.error.FFmpegError),
            av.open(
                url, timeout=60, options={"rtsp_transport": "tcp", "analyzeduration": "100000"}
            ) as camera,
        ):
            picture = next(camera.decode(video=0))
            assert (picture.width, picture.height) == (194, 130), "enlarged, and even"
            found.append(float(picture.to_ndarray(format="gray").mean()) / 255)
        return bool(found)

    until(look, url)
    return found[0]


def test_a_camera_program_reads_it_and_a_server_that_dies_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_rtsp_server()
    monkeypatch.setattr(rtsp, "RETRY", (0.1, 0.1))
    port = free_port()
    url = f"rtsp://127.0.0.1:{port}"
    with open_sink(f"{url}/{{stream}}", IMAGE) as sink, open_sink(f"{url}/other", IMAGE) as other:
        other.write(frame(0), grey(0.25), 0.0)  # one picture alone is shown again and again
        with running(sink, 0.75, "north"):
            until(lambda: sink.frames > 0, "the first frame")
            assert level(f"{url}/north") == pytest.approx(0.75, abs=0.03)
            assert level(f"{url}/other") == pytest.approx(0.25, abs=0.03)
            [server] = [e.opened for key, e in delivery._entries.items() if key[0] == "rtsp"]
            before = server._process
            os.kill(before.pid, signal.SIGKILL)
            until(lambda: server._process not in (None, before), "another server")
            assert level(f"{url}/other") == pytest.approx(0.25, abs=0.03)
        process = server._process
    assert process.poll() is not None


def test_a_server_that_hangs_takes_a_picture_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    need_rtsp_server()
    monkeypatch.setattr(rtsp, "PATIENCE", 0.2)
    with open_sink(f"rtsp://127.0.0.1:{free_port()}/x", IMAGE) as sink:
        sink.write(frame(0), grey(0), 0.0)
        [server] = [e.opened for key, e in delivery._entries.items() if key[0] == "rtsp"]
        os.kill(server._process.pid, signal.SIGSTOP)
        lost: list[Undelivered] = []

        def write() -> bool:
            try:
                sink.write(frame(1), grey(0), 0.0)
            except Undelivered as error:
                lost.append(error)
            return bool(lost)

        until(write, "the pipe is full")
        assert lost[0].reason == "unreachable"


def test_without_gstreamer_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtsp, "_python", lambda: "/nonexistent/python3")
    with pytest.raises(EdgeLstmError, match="apt install python3-gi"):
        open_sink("rtsp://127.0.0.1:8554/x", IMAGE)
    with pytest.raises(EdgeLstmError, match="rtsp://HOST:PORT/PATH"):
        open_sink("rtsp://127.0.0.1/x", IMAGE)


def test_a_port_that_is_taken_is_said() -> None:
    need_rtsp_server()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EdgeLstmError, match="in use"):
        open_sink(f"rtsp://127.0.0.1:{taken.getsockname()[1]}/x", IMAGE)
