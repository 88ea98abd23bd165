"""Pictures of an output over HTTP as they come: MJPEG, which every browser shows and every camera program reads."""

from __future__ import annotations

import io
import ipaddress
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.ready import readable
from edgelstm.pipeline.sinks.delivery import LOOK, in_path, shared
from edgelstm.pipeline.sinks.panels import Panels, image_outputs
from edgelstm.pipeline.sinks.pictures import enlarged
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Target, Write

log = logging.getLogger("edgelstm.serve")

#: Clients at a time, and seconds that one may take for a picture before it is left.
CLIENTS, PATIENCE = 32, 10.0
#: Seconds from one look to the next whether a client whose stream stands still is there.
ASK = 1.0
BOUNDARY = "frame"
QUALITY = 85


@contextmanager
def mjpeg(to: Target) -> Iterator[Write]:
    """``http://HOST:PORT/PATH`` is the stream, ``PATH.jpg`` the newest picture, ``/`` a page of all; ``{stream}`` in the path is the stream's name.

    A client that is slow gets the newest picture when it is ready for it, and holds up nobody. Nothing is encoded while nobody looks.
    """
    require("PIL.Image", "images", f"pictures at {to.name}")
    address, path = to.address, to.address.path or "{stream}"
    if not address.host or address.port is None:
        raise EdgeLstmError(
            f"address {to.name}", expected="mjpeg://HOST:PORT/PATH, the interface that is listened on"
        )
    spec = image_outputs(to.signature, to.view)[0]
    panels = Panels(spec, to.view, to.context.units.get(spec.name))
    with shared(("mjpeg", address.host, address.port), lambda: _server(to)) as server:

        def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
            server.views.show(
                _known(in_path(path, frame)), enlarged(panels.picture(outputs[spec.name])), frame.last
            )

        yield write


@contextmanager
def _server(to: Target) -> Iterator[_Server]:
    address = to.address
    assert address.port is not None
    try:
        server = _Server(address.host, address.port)
    except OSError as error:
        raise EdgeLstmError(
            f"can't serve {to.name}",
            found=error.strerror or str(error),
            expected="an interface of this machine, and a port that is free",
        ) from error
    thread = threading.Thread(target=server.serve_forever, args=(LOOK,), name=to.name, daemon=True)
    thread.start()
    log.info("%s: look at http://%s:%d/", to.name, address.host, server.server_address[1])
    try:
        yield server
    finally:
        server.views.end()
        server.shutdown()
        server.server_close()


class Views:
    """The newest picture of each path."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.ended = False
        self._newest: dict[str, tuple[int, Array]] = {}
        self._encoded: dict[str, tuple[int, bytes]] = {}

    def show(self, path: str, picture: Array, last: bool = False) -> None:
        """A newer one; behind the ``last`` the path is gone."""
        with self.changed:
            number = self._newest.get(path, (0, picture))[0] + 1
            self._newest[path] = number, picture
            if last:
                del self._newest[path]
                self._encoded.pop(path, None)
            self.changed.notify_all()

    def paths(self) -> list[str]:
        """Those that have a picture."""
        with self.changed:
            return sorted(self._newest)

    def after(
        self, path: str, number: int, is_gone: Callable[[], bool] = lambda: False
    ) -> tuple[int, bytes] | None:
        """Wait for a picture later than ``number``; its number and JPEG. None at the end, and when nobody waits any more, which is asked now and then."""
        with self.changed:
            while not self.ended and path in self._newest and self._newest[path][0] <= number:
                if not self.changed.wait(ASK) and is_gone():
                    return None
            if self.ended or path not in self._newest:
                return None
            newest, picture = self._newest[path]
            made = self._encoded.get(path)
        if made is None or made[0] < newest:  # two may do so at once, and both are right
            made = newest, _jpeg(picture)
            with self.changed:
                self._encoded[path] = made
        return made

    def end(self) -> None:
        """Nothing more comes."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()


def _jpeg(picture: Array) -> bytes:
    image = require("PIL.Image", "images", "pictures")
    file = io.BytesIO()
    image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _known(path: str) -> str:
    """A path in one of the ways that it may be percent-encoded."""
    return "/".join(quote(unquote(level), safe=":") for level in path.split("/"))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int) -> None:
        self.views = Views()
        self.places = threading.Semaphore(CLIENTS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        #: Whom a request may be meant for: where we listen to this machine alone, a page from elsewhere must not look through a name of its own.
        self.is_local = ipaddress.ip_address(str(self.server_address[0])).is_loopback

    def server_bind(self) -> None:
        """Without asking the network for our name, as HTTPServer does: there may be none."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.0"
    timeout = PATIENCE

    def do_GET(self) -> None:
        """A stream, a picture, or the page."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if self.server.is_local and host not in (
            "localhost",
            "127.0.0.1",
            "::1",
            self.server.server_address[0],
        ):
            return self.send_error(403)
        path = _known(urlsplit(self.path).path.removeprefix("/"))
        known = self.server.views.paths()
        if not self.server.places.acquire(blocking=False):
            return self.send_error(503, "too many clients")
        try:
            if not path:
                return self._page(known)
            if path in known:
                return self._stream(path)
            if path.endswith(".jpg") and path.removesuffix(".jpg") in known:
                return self._picture(path.removesuffix(".jpg"))
        finally:
            self.server.places.release()
        return self.send_error(404)

    def _begin(self, kind: str, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _page(self, known: list[str]) -> None:
        views = "".join(f'<p>{escape(unquote(p))}<br><img src="/{escape(p)}"></p>' for p in known)
        body = f"<!DOCTYPE html><title>edgelstm</title>{views or 'nothing yet'}".encode()
        self._begin("text/html; charset=utf-8", len(body))
        self.wfile.write(body)

    def _picture(self, path: str) -> None:
        made = self.server.views.after(path, 0)
        if made is not None:
            self._begin("image/jpeg", len(made[1]))
            self.wfile.write(made[1])

    def _stream(self, path: str) -> None:
        self._begin(f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        number = 0
        while (made := self.server.views.after(path, number, self._is_gone)) is not None:
            number, picture = made
            head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\nX-Timestamp: {time.time():.3f}\r\n\r\n"
            self.wfile.write(head.encode() + picture + b"\r\n")

    def _is_gone(self) -> bool:
        """Whether the client hung up: of a stream that stands still, no write tells."""
        try:
            return readable(self.connection, 0) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def log_message(self, *_: Any) -> None:
        """Nothing: a log line for each look would fill the disk."""
