"""Pictures of an output over RTSP, by GStreamer's server in a process of its own: what it does there takes nothing down here."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.ready import readable, writable
from edgelstm.pipeline.sinks import rtsp_server
from edgelstm.pipeline.sinks.colours import rgb
from edgelstm.pipeline.sinks.delivery import LOOK, Undelivered, in_path, shared
from edgelstm.pipeline.sinks.panels import Panels, image_outputs
from edgelstm.pipeline.sinks.pictures import DEFAULT_FPS, enlarged, even
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Target, Write

log = logging.getLogger("edgelstm.serve")

#: PyGObject belongs to the system's Python, as a rule.
SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGES = (
    "apt install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-ugly"
)
#: Seconds that the process has to begin, and to take a picture; seconds from one start to the next, at first and at most.
START, PATIENCE, RETRY = 30.0, 10.0, (1.0, 60.0)


@contextmanager
def rtsp(to: Target) -> Iterator[Write]:
    """``rtsp://HOST:PORT/PATH``, H.264; ``{stream}`` in the path is the stream's name. Clients share an encoder, which runs while there are any."""
    address, path = to.address, to.address.path or "{stream}"
    if not address.host or address.port is None:
        raise EdgeLstmError(
            f"address {to.name}", expected="rtsp://HOST:PORT/PATH, the interface that is listened on"
        )
    spec = image_outputs(to.signature, to.view)[0]
    panels = Panels(spec, to.view, to.context.units.get(spec.name))
    fps = max(1, round(to.fps or DEFAULT_FPS))
    with shared(("rtsp", address.host, address.port), lambda: _server(to)) as server:

        def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
            picture = rgb(even(enlarged(panels.picture(outputs[spec.name]))))
            server.show(in_path(path, frame), picture, fps, to.stop)

        yield write


@contextmanager
def _server(to: Target) -> Iterator[Server]:
    server = Server(to)
    try:
        yield server
    finally:
        server.close()


class Server:
    """The process, started again when it ends."""

    def __init__(self, to: Target) -> None:
        self.name = to.name
        host = "127.0.0.1" if to.address.host == "localhost" else to.address.host
        self._command = [_python(), "-I", str(Path(rtsp_server.__file__)), host, str(to.address.port)]
        self._lock = threading.Lock()
        self._said = ""
        #: By path, for a process that is started again.
        self._newest: dict[str, bytes] = {}
        self._wait, self._due = RETRY[0], 0.0
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except OSError as error:
            raise EdgeLstmError(f"can't serve {to.name}", found=str(error), hint=PACKAGES) from error

    def show(self, path: str, picture: Array, fps: int, stop: threading.Event) -> None:
        """A newer picture. Raises :class:`Undelivered` while there is no process to take it."""
        height, width = picture.shape[:2]
        rows = np.pad(
            picture.reshape(height, -1), [(0, 0), (0, -3 * width % 4)]
        )  # GStreamer's rows begin at multiples of 4
        head = {"path": path, "width": width, "height": height, "fps": fps, "bytes": rows.size}
        data = json.dumps(head).encode() + b"\n" + rows.tobytes()
        with self._lock:
            self._newest[path] = data
            waiting = [data]
            if self._process is None:
                self._again()
                waiting = list(self._newest.values())
            try:
                for each in waiting:
                    self._send(each, stop)
            except OSError as error:
                said = self._said or str(error)
                self._end()
                raise Undelivered(f"{self.name}: the server ended", "unreachable", found=said) from error
            self._wait = RETRY[0]

    def _again(self) -> None:
        now = time.monotonic()
        if now < self._due:
            raise Undelivered(f"{self.name}: the server is started again later", "unreachable")
        self._due, self._wait = now + self._wait, min(RETRY[1], self._wait * 2)
        try:
            self._start()
        except OSError as error:
            raise Undelivered(
                f"{self.name}: the server does not start", "unreachable", found=error
            ) from error

    def _start(self) -> None:
        self._said = ""
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for us: what is queued is still to be shown
        )
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        os.set_blocking(process.stdin.fileno(), False)
        if not readable(process.stdout, START) or not process.stdout.readline().strip():
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            said = self._said
            self._end()
            raise OSError(said or "no answer")

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Keep the last line that it says; of the process before nothing counts."""
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                if process is self._process and line.strip():
                    self._said = line.decode("utf-8", "replace").strip()[:200]

    def _send(self, data: bytes, stop: threading.Event) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        pipe, rest = self._process.stdin.fileno(), memoryview(data)
        deadline = time.monotonic() + PATIENCE
        while rest:
            if writable(pipe, LOOK):
                rest = rest[os.write(pipe, rest[: 1 << 16]) :]
            elif stop.is_set() or time.monotonic() > deadline:
                raise TimeoutError("it takes nothing more")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()


def _python() -> str:
    """One that has PyGObject."""
    return sys.executable if importlib.util.find_spec("gi") else SYSTEM_PYTHON
