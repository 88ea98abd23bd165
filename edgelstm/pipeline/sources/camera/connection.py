"""One connection to a camera: packets in, pictures with time stamps out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.sources import h264
from edgelstm.pipeline.sources.camera.device import (
    LIMITED,
    OpenDevice,
    descriptors,
    mappings,
    own_copy,
    release,
)
from edgelstm.pipeline.sources.clock import CaptureClock, utc
from edgelstm.pipeline.sources.pixels import read_picture
from edgelstm.pipeline.sources.source import Frame, check_frame_size
from edgelstm.pipeline.sources.video import choose_video

log = logging.getLogger(__name__)

#: Data without a whole picture in them for so many seconds: no key frame, or nothing but damage.
PATIENCE = 30.0
#: Formats whose time stamps FFmpeg makes up: their frames have the time at which they came.
_NO_TIMES = ("mpjpeg", "mjpeg", "jpeg_pipe")
#: A device's time stamps are of this machine's steady clock if they lie so many seconds back, at most.
_BACK = 60.0


@dataclass(frozen=True)
class Setup:
    """How a camera is opened. av: PyAV; shown: the address without what is secret; timeouts: to open, and from data to data.

    number: which of several videos. strict: leave out what is damaged, and what refers to it. device: ``url`` is the path of a
    V4L2 device.
    """

    av: Any
    url: str
    shown: str
    format: str | None
    options: dict[str, str]
    timeouts: tuple[float, float]
    number: str | None = None
    strict: bool = True
    device: bool = False


@dataclass(frozen=True)
class _Taken:
    """A picture, its time in seconds, and what is missing before it, in words."""

    picture: Any
    time: float
    gap: str | None = None


class Connection:
    """An open camera whose first picture has come; one thread at a time uses it, and closes it. Raises EdgeLstmError."""

    def __init__(self, setup: Setup, stopped: threading.Event) -> None:
        self._setup, self._stopped = setup, stopped
        self._clock = CaptureClock()
        self._damages = 0
        av = setup.av
        self._errors = (av.error.FFmpegError, OSError, ValueError)
        since = time.monotonic()
        before, mapped = (descriptors(setup.url), mappings(setup.url)) if setup.device else (set(), set())
        try:
            self._container = av.open(
                setup.url,
                format=setup.format,
                options=setup.options,
                timeout=setup.timeouts,
                metadata_errors="replace",
            )
        except self._errors as error:
            if setup.device:
                release(mappings(setup.url) - mapped)
            raise self._failed("can't be opened", error, since, setup.timeouts[0]) from None
        self._taken: Generator[_Taken, None, None] | None = None
        self._device = OpenDevice(setup.url, before) if setup.device else None
        try:
            self._video, self.said = choose_video(
                av, setup.shown, self._container, setup.number, f"{setup.shown}#stream=0"
            )
            #: It states its length: no camera.
            self.recorded = setup.url.startswith("http") and self._container.duration is not None
            self._has_times = self._container.format.name not in _NO_TIMES
            rate = self._video.average_rate if self._has_times else None
            self.fps = float(rate) if rate else None
            self._colours: tuple[int, int] | None = None
            if self._device is not None:
                self.said += _as_asked(setup, self._video, self._device)
                if self._video.codec_context.name == "rawvideo":
                    form = av.VideoFormat(self._video.codec_context.pix_fmt)
                    colours = self._device.colours(form.is_rgb)
                    if not form.is_rgb and len(form.components) > 1:
                        self._colours = colours
                    elif colours is not None and colours[1] == LIMITED:
                        self.said.append("the device says limited range: not stretched")
            if setup.strict:  # else the decoder covers damage up
                self._video.codec_context.options = {"err_detect": "explode"}
            self._luma: bool | None = None
            self._taken = self._pictures()
            self._first = next(self._taken, None)
            if self._first is None:
                raise EdgeLstmError(f"camera {setup.shown}: no picture", found="the end of the stream")
            #: Of the first picture: seconds since 1970, of a recording its own.
            self.start = self._first.time
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """By the thread that reads, or while none does."""
        if self._taken is not None:  # a packet that outlives its device crashes FFmpeg
            self._taken.close()
        self._container.close()

    def frames(self, start: float) -> Iterator[Frame]:
        """From the first picture on; ``Frame.time`` counts from ``start``."""
        taken: _Taken | None = self._first
        self._first = None
        size, index = None, 0
        while taken is not None:
            picture, gap = taken.picture, taken.gap
            here = (picture.height, picture.width)
            if here != size:
                check_frame_size(f"camera {self._setup.shown}", (*here, 3), np.dtype(np.uint16))
                if size is not None:
                    gap = f"the picture is {here[1]} x {here[0]} now, and was {size[1]} x {size[0]}"
                size = here
            if self._colours is not None:
                picture.colorspace, picture.color_range = self._colours
            seconds = taken.time - start
            name = f"{seconds:.3f} s" if self.recorded else utc(taken.time)
            data, values, notes = read_picture(
                self._setup.av,
                picture,
                f"camera {self._setup.shown}: frame {index}",
                luma=bool(self._luma),
                look=not index,
            )
            yield Frame(index, seconds, name, data, values, notes, gap=gap)
            index += 1
            assert self._taken is not None
            taken = next(self._taken, None)

    def _packets(self) -> Iterator[Any]:
        """Of a device they come without blocking: no timeout of FFmpeg's ends its waiting for one."""
        if self._device is None:
            yield from self._container.demux(self._video)
            return
        last = time.monotonic()
        seconds = self._setup.timeouts[1]
        while not self._stopped.is_set():
            self._device.wait()
            try:
                for packet in self._container.demux(self._video):
                    copy = own_copy(self._setup.av, packet)
                    del packet
                    yield copy
                    last = time.monotonic()
                return
            except BlockingIOError:
                if time.monotonic() - last > seconds:
                    raise EdgeLstmError(
                        f"camera {self._setup.shown} is lost", found=f"nothing came for {seconds:g} s"
                    ) from None

    def _pictures(self) -> Generator[_Taken, None, None]:
        """Ends where a recording does, and when the source is told to stop; the end of a live stream is an error."""
        av, video, strict = self._setup.av, self._video, self._setup.strict
        context = video.codec_context
        numbers = h264.FrameNumbers(context.extradata or b"") if context.name == "h264" else None
        damaged, broken, noted = 0, False, None
        came = last = time.monotonic()
        read_until = None
        try:
            for packet in self._packets():
                if self._stopped.is_set():
                    return
                if self._luma is None or numbers is not None:
                    data = bytes(packet)
                    if self._luma is None:
                        self._luma = numbers is not None and h264.is_grey(context.extradata or b"", data)
                    if numbers is not None and numbers.missing(data):
                        broken = strict
                came = time.monotonic()
                try:
                    if self._device is not None and not packet.size:  # the driver says that it is damaged
                        pictures, damaged, broken = [], damaged + 1, strict
                    else:
                        pictures = context.decode(packet)
                except av.error.InvalidDataError:
                    pictures, damaged, broken = [], damaged + 1, strict
                for picture in pictures:
                    if picture.is_corrupt and strict:
                        broken = True
                    # What refers to a damaged picture is damaged too, and the decoder does not say so.
                    elif picture.key_frame:
                        broken = False
                    if broken:
                        damaged += 1
                        continue
                    sent = picture.time if self._has_times else None
                    last = came
                    if self.recorded:
                        stamp = read_until = sent or 0.0
                    else:
                        if self._device is not None and sent is not None and 0 <= came - sent < _BACK:
                            sent, came_at = None, sent  # by this machine's steady clock, which needs no guess
                        else:
                            came_at = came
                        stamp, note = self._clock.stamp(sent, came_at)
                        noted = note or noted
                    gap = noted
                    if damaged:
                        gap = f"{count_of(damaged, 'damaged frame')} left out"
                        self._damages += 1
                        if str(self._damages).rstrip("0") == "1":  # the 1st, 10th, 100th time
                            log.warning("camera %s: %s", self._setup.shown, gap)
                    damaged, noted = 0, None
                    yield _Taken(picture, stamp, gap)
                if came - last > PATIENCE:
                    raise EdgeLstmError(
                        f"camera {self._setup.shown}: no whole picture for {PATIENCE:g} s",
                        found=f"data, {count_of(damaged, 'damaged frame')}",
                        expected="key frames, at least one every few seconds",
                        hint="#damaged=show takes what the decoder makes of it",
                    )
        except self._errors as error:
            raise self._failed("is lost", error, came, self._setup.timeouts[1]) from None
        if self._stopped.is_set():
            return
        if not self.recorded:
            raise EdgeLstmError(f"camera {self._setup.shown}: the stream ended", expected="one that goes on")
        end = self._container.duration / 1e6 + (self._container.start_time or 0) / 1e6
        if read_until is not None and read_until + max(1.0, 2.5 / (self.fps or 25)) < end:
            raise EdgeLstmError(
                f"video {self._setup.shown} ends early", found=f"{read_until:.2f} s", expected=f"{end:.2f} s"
            )

    def _failed(self, what: str, error: BaseException, since: float, seconds: float) -> EdgeLstmError:
        """Without the address that FFmpeg writes into its errors, nor caused by one that has it."""
        found = getattr(error, "strerror", None) or type(error).__name__
        if isinstance(error, self._setup.av.error.ExitError) or time.monotonic() - since >= seconds:
            found = f"nothing came for {seconds:g} s"
        hint = None
        if self._setup.device and what == "can't be opened" and isinstance(error, ValueError):
            hint = "What the device has: `v4l2-ctl --list-formats-ext`; names of formats are FFmpeg's (yuyv422, nv12, mjpeg, gray)"
        return EdgeLstmError(f"camera {self._setup.shown} {what}", found=found, hint=hint)


def _as_asked(setup: Setup, video: Any, device: OpenDevice) -> list[str]:
    """Drivers, and FFmpeg, take what they have for what was asked for. What that changes the pictures in is an EdgeLstmError, the rest is said."""
    context, asked = video.codec_context, setup.options
    form = asked.get("input_format")
    with suppress(ValueError):
        form = setup.av.VideoFormat(form).name if form else None
    if form not in (None, context.name, context.codec.canonical_name, context.pix_fmt):
        raise EdgeLstmError(
            f"camera {setup.shown}: format",
            found=context.pix_fmt if context.name == "rawvideo" else context.name,
            expected=form,
            hint="`v4l2-ctl --list-formats` says what it has",
        )
    # FFmpeg goes on with the size that was asked for.
    size = device.size() or f"{video.width}x{video.height}"
    if asked.get("video_size", size) != size:
        raise EdgeLstmError(
            f"camera {setup.shown}: size",
            found=size,
            expected=asked["video_size"],
            hint="`v4l2-ctl --list-framesizes=FORMAT` says what it has",
        )
    rows = device.row_bytes()
    if context.name == "rawvideo" and rows:
        layout = setup.av.VideoFormat(context.pix_fmt)
        bits = -(-layout.components[0].bits // 8) * 8 if layout.is_planar else layout.padded_bits_per_pixel
        if rows != video.width * bits // 8:
            raise EdgeLstmError(
                f"camera {setup.shown}: the device pads its rows, which FFmpeg reads askew",
                found=f"{rows} bytes a row of {context.pix_fmt}, {size}",
                expected=video.width * bits // 8,
                hint="#size=WIDTHxHEIGHT with a width that 64 divides, or by GStreamer: gst:v4l2src ! videoconvert",
            )
    rate, given = asked.get("framerate"), video.average_rate
    if rate and given and abs(float(given) / float(Fraction(rate)) - 1) > 0.01:
        return [f"{float(given):.4g} frames a second, for the device does not give {rate}"]
    return []
