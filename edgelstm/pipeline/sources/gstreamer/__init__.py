"""A GStreamer pipeline as a source, such as a Jetson's camera: in a process of its own, by the system's Python, which has ``gi``."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.place import Place
from edgelstm.pipeline.ready import readable
from edgelstm.pipeline.sources.address import TIMES, Address, split_fragment
from edgelstm.pipeline.sources.clock import CaptureClock, utc
from edgelstm.pipeline.sources.source import Array, Frame, Source, check_frame_size

PREFIXES = ("gst:",)
#: Where gi is installed by the system's packages.
SYSTEM_PYTHON = "/usr/bin/python3"
WORKER = Path(__file__).with_name("worker.py")
#: Bytes of a header, at most.
MAX_HEADER = 65536
_FORMATS = {"RGB": ("u1", 3), "GRAY8": ("u1", 1), "GRAY16_LE": ("<u2", 1)}
#: What stands in a pipeline's text or an error of it and is nobody's business.
_SECRETS = re.compile(
    r"(://)[^\s\"'@]*@|(\b[\w-]*(?:pw|password|passphrase|token|secret|key)\s*=\s*)(\"[^\"]*\"|\S+)"
)


def open_gstreamer(spec: str) -> Source:
    """``gst:nvarguscamerasrc ! nvvidconv ! video/x-raw,format=BGRx``: pictures of whatever gst-launch-1.0 would run.

    RGB [H, W, 3] and grey [H, W], uint8 or (grey of 16 bits) uint16. ``#open_timeout=10&read_timeout=10`` may stand behind it. A pipeline that is not live (a file) ends.
    """
    text, fragment = spec.partition(":")[2], ""
    found = re.search(rf"#(({'|'.join(TIMES)})=[^#]*)$", text)
    if found is not None:
        text, fragment = text[: found.start()], found[0]
    what = f"GStreamer pipeline {shown(text.strip())}"
    if not text.strip() or "appsink" in text:
        raise EdgeLstmError(
            f"source {what}",
            expected="elements as for gst-launch-1.0, without a sink: appsink is put behind them",
        )
    _, options = split_fragment(fragment, TIMES, what)
    stopped = threading.Event()
    first = _Running(text, what, Address("", what, options).timeouts, stopped)
    waiting = [first]

    def frames() -> Iterator[Frame]:
        running = waiting.pop() if waiting else _Running(text, what, first.timeouts, stopped)
        try:
            yield from running.frames(first.start)
        finally:
            running.close()

    try:
        return Source(
            what,
            frames,
            fps=first.fps,
            said=(first.words,),
            look=True,
            live=first.live,
            place=Place(datetime.fromtimestamp(first.start, timezone.utc)) if first.live else Place(),
            stopped=stopped,
        )
    except BaseException:
        first.close()
        raise


def shown(text: str) -> str:
    """``text`` without users, passwords and keys."""
    return _SECRETS.sub(lambda m: f"{m[1]}***@" if m[1] else f"{m[2]}***", text)


@dataclass(frozen=True)
class _Picture:
    data: Array
    stamp: float
    note: str | None


class _Running:
    """A pipeline's process, whose first picture has come."""

    def __init__(self, text: str, what: str, timeouts: tuple[float, float], stopped: threading.Event) -> None:
        self.what, self.timeouts = what, timeouts
        self._stopped = stopped
        self._clock = CaptureClock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            [_python(what), str(WORKER), text],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
        )
        try:
            header = self._header(timeouts[0])
            if header is None:
                raise EdgeLstmError(f"{what}: no picture", found="the end of the stream")
            self.live = bool(header["live"])
            self.fps = float(header["fps"]) or None
            self._stored, self._bits = str(header["stored"]), int(header["bits"])
            first = self._picture(timeouts[0])
            if first is None:
                raise EdgeLstmError(f"{what}: no picture", found="the end of the stream")
            self._first: _Picture | None = first
            self.start = first.stamp
            self.words = (
                f"{self._stored}: {'RGB' if first.data.ndim == 3 else 'grey'}, {first.data.itemsize * 8} bits"
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Any thread may: it ends the process, and whoever reads sees its end."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def frames(self, start: float) -> Iterator[Frame]:
        """From the first picture on; ``Frame.time`` counts from ``start``."""
        picture, self._first = self._first, None
        index, form = 0, None
        while picture is not None:
            gap, here = picture.note, picture.data.shape[:2]
            if form not in (None, here):
                gap = f"the picture is {here[1]} x {here[0]} now"
            form = here
            seconds = picture.stamp - start
            name = utc(picture.stamp) if self.live else f"{seconds:.3f} s"
            white = 255.0 if picture.data.dtype == np.uint8 else 65535.0
            yield Frame(index, seconds, name, picture.data, (0.0, white), (self.words,), gap=gap)
            index += 1
            picture = self._picture(self.timeouts[1])

    def _header(self, within: float) -> dict[str, Any] | None:
        """The next one; None at the end of a recording, and when it is to stop."""
        until = time.monotonic() + within
        size = self._read(4, until, within)
        if size is None:
            return None
        (length,) = struct.unpack(">I", size)
        if length > MAX_HEADER:
            raise EdgeLstmError(
                f"{self.what}: a header of {count_of(length, 'byte')}", expected=f"at most {MAX_HEADER}"
            )
        text = self._read(length, until, within)
        if text is None:
            return None
        header: dict[str, Any] = json.loads(text)
        if "error" in header:
            raise EdgeLstmError(self.what, found=shown(str(header["error"]))[:500])
        if "end" in header:
            if self.live:
                raise EdgeLstmError(f"{self.what}: the stream ended", expected="one that goes on")
            return None
        return header

    def _picture(self, within: float) -> _Picture | None:
        header = self._header(within)
        came = time.monotonic()
        if header is None:
            return None
        code, channels = _FORMATS[header["format"]]
        dtype, height, width, stride = np.dtype(code), header["height"], header["width"], header["stride"]
        check_frame_size(self.what, (height, width, channels), dtype)
        row = width * channels * dtype.itemsize
        if self._bits > 8 * dtype.itemsize:
            raise EdgeLstmError(
                f"{self.what}: {self._stored} has {self._bits} bits",
                expected="8 bits, or grey of 16",
                hint="Say which: ! videoconvert ! video/x-raw,format=RGB at the pipeline's end rounds to 8",
            )
        if (
            stride < row
            or header["size"] < stride * (height - 1) + row
            or header["size"] > 2 * stride * height
        ):
            raise EdgeLstmError(
                f"{self.what}: bytes of a picture",
                found=header["size"],
                expected=f"{count_of(height, 'row')} of {stride}",
            )
        data = self._read(header["size"], time.monotonic() + within, within)
        if data is None:
            return None
        padded = np.frombuffer(data.ljust(stride * height, b"\0")[: stride * height], np.uint8)
        rows = np.ascontiguousarray(padded.reshape(height, stride)[:, :row])
        array = rows.view(dtype).reshape(height, width, channels)
        array = array.astype(dtype.newbyteorder("="), copy=False)
        sent = None if header["pts"] is None else header["pts"] / 1e9
        stamp, note = self._clock.stamp(sent, came) if self.live else (sent or 0.0, None)
        return _Picture(array[..., 0] if channels == 1 else array, stamp, note)

    def _read(self, size: int, until: float, within: float) -> bytes | None:
        """``size`` bytes; None when it is to stop."""
        assert self._process.stdout is not None
        out, place = memoryview(bytearray(size)), 0
        pipe = self._process.stdout.fileno()
        while place < size:
            if self._stopped.is_set():
                return None
            if not readable(pipe, 0.1):
                if time.monotonic() > until:
                    raise EdgeLstmError(self.what, found=f"nothing came for {within:g} s")
                continue
            got = os.readv(pipe, [out[place:]])
            if not got:
                self._errors.seek(0)
                said = self._errors.read(100_000).decode("utf-8", "replace").strip().splitlines()
                raise EdgeLstmError(
                    f"{self.what}: its process ended", found=shown(said[-1]) if said else None
                )
            place += got
        return bytes(out)


def _python(what: str) -> str:
    """A Python that has gi: this one, else the system's."""
    if importlib.util.find_spec("gi") is not None:
        return sys.executable
    if Path(SYSTEM_PYTHON).is_file():
        probe = "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstVideo', '1.0')"
        done = subprocess.run(
            [SYSTEM_PYTHON, "-c", probe], capture_output=True, timeout=60, check=False, cwd="/"
        )
        if done.returncode == 0:
            return SYSTEM_PYTHON
    raise EdgeLstmError(
        f"{what} needs GStreamer's Python bindings",
        found=f"no gi in this Python, nor Gst and GstVideo in {SYSTEM_PYTHON}",
        hint="apt install python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good",
    )
