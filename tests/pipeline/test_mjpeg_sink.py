"""Pictures over HTTP: read by PyAV, which reads cameras that way, and by clients that are no good."""

from __future__ import annotations

import http.client
import io
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.ready import readable, writable
from edgelstm.pipeline.sinks import Options, mjpeg
from peers import SIGNATURE, frame, free_port, until

image = pytest.importorskip("PIL.Image")
IMAGE = Signature(
    (TensorSpec("x", "float32", ("N", 3)),), (TensorSpec("y", "float32", ("N", 1, 64, 96)),), ()
)


def grey(value: float) -> Any:
    return {"y": np.full((1, 64, 96), value, np.float32)}


def level(jpeg: bytes) -> float:
    picture = np.asarray(image.open(io.BytesIO(jpeg)))
    assert picture.shape[:2] == (128, 192), "small pictures are enlarged"
    return float(picture.mean()) / 255


def test_the_newest_picture_and_the_page() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        open_sink(f"mjpeg://127.0.0.1:{port}/{{stream}}", IMAGE) as one,
        open_sink(f"mjpeg://127.0.0.1:{port}/map/{{stream}}", IMAGE, options=Options(range=(0, 2))) as two,
    ):
        one.write(frame(0, "north"), grey(0.5), 0.0)
        two.write(frame(0, "pump:a/b"), grey(0.5), 0.0)
        assert level(urllib.request.urlopen(f"{url}/north.jpg").read()) == pytest.approx(0.5, abs=0.01)
        assert level(urllib.request.urlopen(f"{url}/map/pump%3Aa%2Fb.jpg").read()) == pytest.approx(
            0.25, abs=0.01
        )
        one.write(frame(1, "north"), grey(1), 0.0)
        assert level(urllib.request.urlopen(f"{url}/north.jpg").read()) == pytest.approx(1, abs=0.01)
        page = urllib.request.urlopen(url).read().decode()
        assert '<img src="/north">' in page
        assert '<img src="/map/pump:a%2Fb">' in page
        for path in ("/south", "/../etc/passwd", "/north/", "/south.jpg"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(url + path)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 10)


def test_a_camera_program_reads_it() -> None:
    av = pytest.importorskip("av")
    port = free_port()
    with open_sink(f"mjpeg://127.0.0.1:{port}/{{stream}}", IMAGE) as sink:
        sink.write(frame(0, "north"), grey(0), 0.0)
        done = threading.Event()

        def send() -> None:
            index = 0
            while not done.wait(0.02):
                index += 1
                sink.write(frame(index, "north"), grey(index % 2), 0.0)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            levels = []
            with av.open(f"http://127.0.0.1:{port}/north", format="mpjpeg", timeout=60) as camera:
                for picture in camera.decode(video=0):
                    assert (picture.width, picture.height) == (192, 128)
                    levels.append(round(float(picture.to_ndarray(format="gray").mean()) / 255))
                    if len(levels) == 10:
                        break
        finally:
            done.set()
            sender.join(60)
    assert {0, 1} <= set(levels)


def test_a_client_that_does_not_read_holds_up_nobody_and_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mjpeg._Handler, "timeout", 0.3)
    monkeypatch.setattr(mjpeg, "CLIENTS", 2)
    noise = np.random.default_rng(0).random((1, 400, 600), np.float32)
    large = Signature(
        (TensorSpec("x", "float32", ("N", 3)),), (TensorSpec("y", "float32", ("N", 1, 400, 600)),), ()
    )
    port = free_port()
    with open_sink(f"mjpeg://127.0.0.1:{port}/{{stream}}", large) as sink:
        sink.write(frame(0, "north"), {"y": noise}, 0.0)
        held = []
        for _ in range(2):
            held.append(socket.socket())
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            held[-1].connect(("127.0.0.1", port))
            held[-1].sendall(b"GET /north HTTP/1.0\r\nHost: localhost\r\n\r\n")

        def answer() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request("GET", "/north.jpg")
                return connection.getresponse().status
            except (OSError, http.client.HTTPException):  # a loaded machine, and the short time above
                return 0
            finally:
                connection.close()

        until(lambda: answer() == 503, "both places are taken")
        longest = 0.0

        def free() -> bool:
            nonlocal longest
            begin = time.monotonic()
            sink.write(frame(1, "north"), {"y": noise}, 0.0)
            longest = max(longest, time.monotonic() - begin)
            return answer() == 200

        until(free, "they are left")
        assert longest < 30
        for each in held:
            each.close()


def test_clients_that_left_a_stream_which_stands_still_hold_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a camera that is away: nothing was written to them, so nobody saw that they had gone, and after 32 looks there were no places."""
    monkeypatch.setattr(mjpeg, "ASK", 0.05)
    port = free_port()
    with open_sink(f"mjpeg://127.0.0.1:{port}/{{stream}}", IMAGE) as sink:
        sink.write(frame(0, "north"), grey(0.5), 0.0)
        for _ in range(mjpeg.CLIENTS):
            with socket.create_connection(("127.0.0.1", port), 60) as client:
                client.sendall(b"GET /north HTTP/1.0\r\nHost: localhost\r\n\r\n")
                assert client.recv(1)

        def answers() -> bool:
            try:
                return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/north.jpg").read())
            except urllib.error.HTTPError:
                return False

        until(answers, "a place")


def test_files_above_1023_are_waited_for_too() -> None:
    """``select`` refuses them: an ``rtsp://`` sink failed for good, and a ``gst:`` source too, in a service of many streams."""
    resource = pytest.importorskip("resource")
    low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
    if high != resource.RLIM_INFINITY and high < 2000:
        pytest.skip(f"this machine lets a process have {high} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(low, 2000), high))
    ours, theirs = socket.socketpair()
    try:
        number = os.dup2(ours.fileno(), 1500)
        assert not readable(number, 0)
        assert writable(number, 60)
        theirs.sendall(b"x")
        assert readable(number, 60)
        os.close(number)
    finally:
        ours.close(), theirs.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, high))


def test_a_stream_that_ended_leaves_nothing() -> None:
    port = free_port()
    with open_sink(f"mjpeg://127.0.0.1:{port}/{{stream}}", IMAGE) as sink:
        sink.write(frame(0, "a"), grey(0.5), 0.0)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/a") as camera:
            assert camera.readline()
            sink.write(replace(frame(1, "a"), last=True), grey(0.5), 0.0)
            camera.read()  # to its end
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/a.jpg")


def test_a_page_from_elsewhere_can_not_look() -> None:
    """A browser that is told that evil.example is this machine sends that name along."""
    port = free_port()
    with open_sink(f"mjpeg://127.0.0.1:{port}/{{stream}}", IMAGE) as sink:
        sink.write(frame(0, "north"), grey(0.5), 0.0)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/north.jpg", headers={"Host": "evil.example"}
        )
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)


def test_what_is_wrong_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for url, signature, said in (
            ("mjpeg://127.0.0.1/x", IMAGE, "mjpeg://HOST:PORT/PATH"),
            (f"mjpeg://127.0.0.1:{port}/x", IMAGE, "in use"),
            (f"mjpeg://127.0.0.1:{free_port()}/x", SIGNATURE, "no output to make pictures of"),
        ):
            with pytest.raises(EdgeLstmError, match=said):
                open_sink(url, signature)
