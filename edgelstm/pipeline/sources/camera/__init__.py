"""Cameras: RTSP, HTTP and MJPEG streams and V4L2 devices, read by PyAV (FFmpeg)."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.place import Place
from edgelstm.pipeline.sources.address import TIMES, Address, parse_url, split_fragment
from edgelstm.pipeline.sources.camera.connection import Connection, Setup
from edgelstm.pipeline.sources.camera.device import check
from edgelstm.pipeline.sources.source import Frame, Source

#: Beginnings of what is read here.
PREFIXES = ("rtsp://", "rtsps://", "http://", "https://", "v4l2:", "/dev/video")
#: What an address may lead to, so that a playlist or an answer of the server can't open files of this machine.
_PROTOCOLS = {"rtsp": "rtsp,rtp,srtp,rtcp,udp,tcp,tls", "http": "http,https,tcp,tls,httpproxy,crypto"}

#: Formats that a server may send: FFmpeg knows some 300, most of them of files that nobody streams, and read by code that few look at.
_FORMATS = "rtsp,sdp,rtp,mpjpeg,mjpeg,jpeg_pipe,mpegts,hls,mov,mp4,matroska,webm,flv,h264,hevc,avi,ogg,asf"


def open_camera(spec: str) -> Source:
    """Frames of a live camera as those of a video file: grey [H, W] or RGB [H, W, 3], upright, each with its time.

    ``rtsp://``, ``rtsps://``, ``http://``, ``https://`` (MJPEG, HLS, or any video), ``/dev/video0`` or ``v4l2:/dev/video0``, with options
    as ``#read_timeout=5&transport=udp`` behind it. A video over HTTP that states its length is a recording, and ends. EdgeLstmErrors
    hold no user, password or query.
    """
    setup = _v4l2(spec) if spec.startswith(("v4l2:", "/dev/")) else _network(spec)
    stopped = threading.Event()
    first = Connection(setup, stopped)
    waiting = [first]

    def frames() -> Iterator[Frame]:
        # FFmpeg crashes when one thread closes what another one reads: who iterates opens, reads and closes.
        connection = waiting.pop() if waiting else Connection(setup, stopped)
        try:
            yield from connection.frames(first.start)
        finally:
            connection.close()

    try:
        return Source(
            f"{'video' if first.recorded else 'camera'} {setup.shown}",
            frames,
            fps=first.fps,
            said=tuple(first.said),
            look=True,
            live=not first.recorded,
            place=Place() if first.recorded else Place(datetime.fromtimestamp(first.start, timezone.utc)),
            stopped=stopped,
        )
    except BaseException:
        first.close()
        raise


def _network(spec: str) -> Setup:
    scheme = spec.partition("://")[0].lower()
    kind = "rtsp" if scheme.startswith("rtsp") else "http"
    known = ["stream", "damaged", *TIMES, *(("transport",) if kind == "rtsp" else ())]
    if scheme.endswith("s"):
        known += ["verify", "ca"]
    address = parse_url(spec, known)
    av = require("av", "video", f"reading {address.shown}")
    options = {"protocol_whitelist": _PROTOCOLS[kind], "format_whitelist": _FORMATS}
    if kind == "rtsp":
        options["rtsp_transport"] = _word(address, "transport", ("tcp", "udp"))
        # Sound and metadata are not asked for. With one stream, times are not moved when the server tells its clock.
        options["allowed_media_types"] = "video"
        # It throws away what was read to find the format: of a recording over HTTP, that would be its first frames.
        options["fflags"] = "nobuffer"
        options["fpsprobesize"] = "3"  # 20 pictures to guess a rate from are most of a second
    if scheme.endswith("s"):
        options |= _tls(address)
    number = address.options.get("stream")
    strict = _word(address, "damaged", ("leave_out", "show")) == "leave_out"
    return Setup(av, address.url, address.shown, None, options, address.timeouts, number, strict)


def _tls(address: Address) -> dict[str, str]:
    """FFmpeg looks at no certificate unless it is told to."""
    if _word(address, "verify", ("1", "0")) == "0":
        return {"tls_verify": "0"}
    ca = address.options.get("ca") or ssl.get_default_verify_paths().cafile
    if ca is None or not Path(ca).is_file():
        raise EdgeLstmError(
            f"source {address.shown}: certificates to check the server with",
            found=ca or "none on this machine",
            expected="#ca=FILE.pem with the one that signed the camera's, or #verify=0",
        )
    return {"tls_verify": "1", "ca_file": ca}


def _v4l2(spec: str) -> Setup:
    known = ("size", "rate", "format", "damaged", *TIMES)
    path, options = split_fragment(spec.removeprefix("v4l2:"), known, spec.partition("#")[0])
    address = Address(path, path, options)
    if not Path(path).exists():
        there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "no /dev/video*"
        raise EdgeLstmError(
            f"camera {path} is not there", found=there, hint="Check the cable, ls /dev/video*"
        )
    av = require("av", "video", f"reading {path}")
    names = {"size": "video_size", "rate": "framerate", "format": "input_format"}
    patterns = {"size": r"\d+x\d+", "rate": r"(?!0+$)\d+(\.\d+|/[1-9]\d*)?", "format": r"\w+"}
    given = {"fflags": "+4"}  # AVFMT_FLAG_NONBLOCK, which has no name there
    for name, value in options.items():
        if name not in names:
            continue
        if not re.fullmatch(patterns[name], value):
            raise EdgeLstmError(
                f"camera {path}: {name}", found=value, expected={"size": "640x480", "rate": "30"}.get(name)
            )
        given[names[name]] = value
    strict = _word(address, "damaged", ("leave_out", "show")) == "leave_out"
    check(path)
    return Setup(av, path, path, "video4linux2,v4l2", given, address.timeouts, None, strict, True)


def _word(address: Address, name: str, allowed: tuple[str, ...]) -> str:
    value = address.options.get(name, allowed[0])
    if value not in allowed:
        raise EdgeLstmError(f"source {address.shown}: {name}", found=value, expected=" or ".join(allowed))
    return value
