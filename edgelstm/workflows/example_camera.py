"""A camera for examples: the shipped digits as MJPEG over HTTP, on the loopback interface, 25 pictures a second."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from fractions import Fraction
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.pipeline import open_source
from edgelstm.pipeline.optional import require

RATE = 25


@cache
def example_camera(recording: Path) -> str:
    """The address of a server that shows the frames of ``recording``, [H, W] of 8 bits, over and over to whoever asks.

    It is started once, and ends with the process.
    """
    av = require("av", "video", "the example's camera")
    pictures = [_jpeg(av, frame.data) for frame in open_source(str(recording))]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            due = time.monotonic()
            with suppress(OSError):  # the client is gone
                while True:
                    for data in pictures:
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                        self.wfile.write(head.encode() + data + b"\r\n")
                        due += 1 / RATE
                        time.sleep(max(0.0, due - time.monotonic()))

        def log_message(self, *_: Any) -> None:
            """Nothing: it is not the service's log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="example camera", daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/digits.mjpg"


def _jpeg(av: Any, picture: Any) -> bytes:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = picture.shape
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, RATE)
    encoder.options = {"qmin": "2", "qmax": "2"}
    grey = np.ascontiguousarray(np.broadcast_to(picture[..., None], (*picture.shape, 3)))
    frame = av.VideoFrame.from_ndarray(grey, "rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
