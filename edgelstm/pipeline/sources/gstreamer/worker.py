"""Runs a GStreamer pipeline and writes its pictures to standard output. A program of its own, for a Python that has gi: it imports nothing else.

    python3 worker.py PIPELINE

A message is the length of its header (4 bytes, big-endian), the header in JSON, and ``size`` bytes. First: ``live``, ``fps`` and the ``stored`` format. Then for each picture ``pts`` in
nanoseconds or null, ``format``, ``width``, ``height``, ``stride`` (bytes from row to row), ``size``. An error is ``error``, the end ``end``.
"""

from __future__ import annotations

import json
import struct
import sys
from contextlib import suppress
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import Gst, GstVideo  # noqa: E402

#: Behind the user's pipeline. Grey stays grey; everything else becomes RGB of 8 bits, if it has no more.
TAIL = (
    " ! videoconvert name=edgelstm_convert ! video/x-raw,format=(string){RGB,GRAY8,GRAY16_LE}"
    " ! appsink name=edgelstm_sink sync=false max-buffers=4"
)


def write(header: dict[str, Any], payload: bytes = b"") -> None:
    """One message."""
    text = json.dumps(header).encode()
    sys.stdout.buffer.write(struct.pack(">I", len(text)) + text)
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()


def stored(pipeline: Any) -> tuple[str, int, float]:
    """(format that comes into our conversion, its bits, frames a second)."""
    caps = pipeline.get_by_name("edgelstm_convert").get_static_pad("sink").get_current_caps()
    info = GstVideo.VideoInfo.new_from_caps(caps)
    return info.finfo.name, max(info.finfo.depth[: info.finfo.n_components]), info.fps_n / (info.fps_d or 1)


def problem(pipeline: Any) -> str | None:
    """What the pipeline's bus says."""
    message = pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)
    if message is None:
        return None
    error, _ = message.parse_error()
    return f"{message.src.get_name() if message.src else 'pipeline'}: {error.message}"


def main() -> None:
    """Until the end, an error, or until nobody reads."""
    Gst.init(None)
    try:
        pipeline = Gst.parse_launch(sys.argv[1] + TAIL)
    except Exception as error:  # GLib.Error: what is wrong with the text
        write({"error": str(getattr(error, "message", error))})
        return
    sink = pipeline.get_by_name("edgelstm_sink")
    live = False
    for state in (Gst.State.PAUSED, Gst.State.PLAYING):
        changed = pipeline.set_state(state)
        if changed == Gst.StateChangeReturn.ASYNC and state == Gst.State.PAUSED:
            changed = pipeline.get_state(Gst.CLOCK_TIME_NONE)[0]
        live = live or changed == Gst.StateChangeReturn.NO_PREROLL  # nothing comes from it while it pauses
        if changed == Gst.StateChangeReturn.FAILURE:
            write({"error": problem(pipeline) or "it can't be started"})
            pipeline.set_state(Gst.State.NULL)
            return
    told = False
    while True:
        sample = sink.emit("try-pull-sample", 200 * Gst.MSECOND)
        if sample is None:
            wrong = problem(pipeline)
            if wrong is not None:
                write({"error": wrong})
                break
            if sink.get_property("eos"):
                write({"end": True})
                break
            continue
        if not told:
            name, bits, fps = stored(pipeline)
            write({"live": live, "stored": name, "bits": bits, "fps": fps})
            told = True
        info = GstVideo.VideoInfo.new_from_caps(sample.get_caps())
        buffer = sample.get_buffer()
        header = {
            "pts": None if buffer.pts == Gst.CLOCK_TIME_NONE else buffer.pts,
            "format": info.finfo.name,
            "width": info.width,
            "height": info.height,
            "stride": info.stride[0],
            "size": buffer.get_size(),
        }
        write(header, buffer.extract_dup(0, buffer.get_size()))
    pipeline.set_state(Gst.State.NULL)


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # nobody reads any more
        main()
