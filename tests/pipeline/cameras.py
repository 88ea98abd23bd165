"""Real servers of video for the tests: RTSP by GStreamer (the system's), multipart JPEG over HTTP by http.server."""

from __future__ import annotations

import io
import os
import signal
import ssl
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av")

SYSTEM_PYTHON = "/usr/bin/python3"
_SERVER = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
if any(Gst.ElementFactory.find(n) is None for n in ("x264enc", "rtph264pay", "videotestsrc")): sys.exit("no x264enc")
if len(sys.argv) < 2: sys.exit()
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(sys.argv[2]); factory.set_shared(True)
server.get_mount_points().add_factory("/cam", factory)
if len(sys.argv) > 3:
    user, password = sys.argv[3].split(":", 1)
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    allowed = GstRtspServer.RTSPPermissions()
    for what in ("access", "construct"): allowed.add_permission_for_role("user", "media.factory." + what, True)
    factory.set_permissions(allowed)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@lru_cache
def why_no_rtsp_server() -> str | None:
    """What is missing; None when nothing is."""
    if not Path(SYSTEM_PYTHON).is_file():
        return "no system Python"
    done = subprocess.run(
        [SYSTEM_PYTHON, "-c", _SERVER], capture_output=True, text=True, timeout=60, check=False
    )
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def need_rtsp_server() -> None:
    why = why_no_rtsp_server()
    if why is not None:
        pytest.skip(
            f"no RTSP server of GStreamer on this machine ({why}): apt install gir1.2-gst-rtsp-server-1.0 python3-gi "
            "gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
        )


class RtspServer:
    """``rtsp://127.0.0.1:PORT/cam`` of a test picture, H.264 in real time; may be killed and started again at its port."""

    def __init__(self, *, size: tuple[int, int] = (64, 48), login: str | None = None) -> None:
        need_rtsp_server()
        self.size, self.login, self.port = size, login, 0
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        width, height = self.size
        launch = (
            f"( videotestsrc is-live=true pattern=ball ! video/x-raw,width={width},height={height},framerate=25/1 "
            "! x264enc tune=zerolatency key-int-max=10 ! rtph264pay name=pay0 config-interval=-1 )"
        )
        words = [SYSTEM_PYTHON, "-c", _SERVER, str(self.port), launch, *([self.login] if self.login else [])]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    @property
    def url(self) -> str:
        return f"rtsp://127.0.0.1:{self.port}/cam"

    def freeze(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()


def jpeg(picture: np.ndarray[Any, Any]) -> bytes:
    """An RGB picture [H, W, 3] as JPEG, by FFmpeg."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
    encoder.options = {"qmin": "2", "qmax": "2"}
    frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def h264(pictures: Iterable[np.ndarray[Any, Any]], **options: str) -> list[Any]:
    """RGB pictures as packets, in the order in which they are sent."""
    encoder = av.CodecContext.create("libx264", "w")
    first, *_ = pictures = list(pictures)
    encoder.height, encoder.width = first.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 25)
    encoder.options = {"tune": "zerolatency", "preset": "ultrafast", "g": "10", **options}
    packets = []
    for k, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
        frame.pts = k
        packets += encoder.encode(frame)
    return [*packets, *encoder.encode(None)]


def transport_stream(packets: Iterable[Any], size: tuple[int, int]) -> bytes:
    """Packets of :func:`h264` as MPEG-TS, as cameras send it."""
    out = io.BytesIO()
    with av.open(out, "w", "mpegts") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for packet in packets:
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            container.mux(packet)
    return out.getvalue()


Parts = Callable[[Callable[[bytes], None]], None]


@contextmanager
def http_server(
    parts: Parts,
    port: int = 0,
    login: str | None = None,
    whole: bytes | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """Multipart JPEG: ``parts`` is called for each client with what sends one JPEG. Or ``whole``, whose length nobody is told. Gives the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = None if login is None else "Basic " + b64encode(login.encode()).decode()
            if wanted is not None and self.headers.get("Authorization") != wanted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
                return
            if whole is not None:
                self.send_response(200)
                self.end_headers()
                with suppress(OSError):
                    self.wfile.write(whole)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()

            def send(data: bytes) -> None:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                self.wfile.flush()

            with suppress(OSError):  # the client is gone
                parts(send)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)
