"""A program of its own, for a Python that has gi: the element `edgelstm` between two pads, driven by one thread. It imports nothing else.

Reads JSON from standard input, a list of runs, and writes what came of each. A run: ``properties``; ``caps`` of what comes; ``frames``, a
file, and ``size``, bytes of a frame in it; ``after``: caps of what may come out; ``out``: a file for it; ``do``: a list of
``["frame", k, milliseconds or null, discont]``, ``["gap", milliseconds, milliseconds]``, ``["flush"]``, ``["caps", caps, size]``,
``["segment", rate]``, ``["reset"]``, ``["stream", name]``, ``["late", milliseconds]``, ``["turned", orientation]``, ``["eos"]``, ``["restart"]``, ``["set", property, value]``, ``["rss", repeats]``, ``["query", caps]``. Or a pipeline that is seeked in:
``pipeline``, with an appsink ``out``; ``before`` and ``after``: how many buffers are taken before and after a flushing seek to
``seek`` milliseconds; their bytes go to ``out``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402


def resident() -> int:
    """Kilobytes of this process in memory."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[0])


class Run:
    """One run: its element, and what came out of it."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.out = given, bytearray()
        self.told: dict[str, Any] = {"flows": [], "messages": [], "pts": [], "rss": []}
        self.keep, self.count = True, 0
        self.element = Gst.ElementFactory.make("edgelstm")
        assert self.element is not None, "the element is not found"
        self.bus = Gst.Bus.new()
        self.element.set_bus(self.bus)
        for name, value in given["properties"].items():
            Gst.util_set_object_arg(self.element, name, str(value))
        anything = Gst.PadTemplate.new(
            "src", Gst.PadDirection.SRC, Gst.PadPresence.ALWAYS, Gst.Caps.new_any()
        )
        after = Gst.Caps.from_string(given["after"]) if given.get("after") else Gst.Caps.new_any()
        wanted = Gst.PadTemplate.new("sink", Gst.PadDirection.SINK, Gst.PadPresence.ALWAYS, after)
        self.source, self.sink = (
            Gst.Pad.new_from_template(anything, "src"),
            Gst.Pad.new_from_template(wanted, "sink"),
        )
        self.sink.set_chain_function_full(self.chain)
        assert self.source.link(self.element.get_static_pad("sink")) == Gst.PadLinkReturn.OK
        assert self.element.get_static_pad("src").link(self.sink) == Gst.PadLinkReturn.OK
        self.data = Path(given["frames"]).read_bytes() if given.get("frames") else b""
        self.size = given.get("size", 0)

    def chain(self, pad: Any, parent: Any, buffer: Any) -> Any:
        self.count += 1
        if self.keep:
            self.out += buffer.extract_dup(0, buffer.get_size())
            self.told["pts"].append(None if buffer.pts == Gst.CLOCK_TIME_NONE else buffer.pts // Gst.MSECOND)
        return Gst.FlowReturn.OK

    def do(self) -> dict[str, Any]:
        self.sink.set_active(True)
        self.source.set_active(True)
        if self.element.set_state(Gst.State.PAUSED) == Gst.StateChangeReturn.FAILURE:
            self.told["started"] = False
        else:
            self.told["started"] = True
            self.push(Gst.Event.new_stream_start("one"))
            self.caps(self.given["caps"])
            self.segment(1.0)
            for what, *values in self.given["do"]:
                getattr(self, what)(*values)
            caps = self.sink.get_current_caps()
            self.told["caps"] = caps.to_string() if caps else None
        self.told["frames"], self.told["gaps"] = (
            self.element.get_property("frames"),
            self.element.get_property("gaps"),
        )
        self.told["stopped"] = self.element.set_state(Gst.State.NULL) != Gst.StateChangeReturn.FAILURE
        while (message := self.bus.pop()) is not None:
            self.note(message)
        self.told["out"] = self.count
        if self.given.get("out"):
            Path(self.given["out"]).write_bytes(self.out)
        return self.told

    def note(self, message: Any) -> None:
        if message.type == Gst.MessageType.ERROR:
            self.told["messages"].append(["error", message.parse_error()[0].message])
        elif message.type == Gst.MessageType.WARNING:
            self.told["messages"].append(["warning", message.parse_warning()[0].message])
        elif message.type == Gst.MessageType.ELEMENT:
            structure = message.get_structure()
            self.told["messages"].append([structure.get_string("action"), structure.get_string("reason")])

    def push(self, event: Any) -> None:
        self.told["flows"].append(bool(self.source.push_event(event)))

    def frame(self, k: int, at: int | None = None, discont: bool = False) -> None:
        buffer = Gst.Buffer.new_wrapped(self.data[k * self.size : (k + 1) * self.size])
        if at is not None:
            buffer.pts = at * Gst.MSECOND
        if discont:
            buffer.set_flags(Gst.BufferFlags.DISCONT)
        self.told["flows"].append(self.source.push(buffer).value_nick)

    def rss(self, repeats: int) -> None:
        self.keep = False
        for k in range(repeats):
            self.source.push(Gst.Buffer.new_wrapped(self.data[: self.size]))
            if k in (repeats // 4, repeats - 1):
                self.told["rss"].append(resident())

    def gap(self, at: int, long: int) -> None:
        self.push(Gst.Event.new_gap(at * Gst.MSECOND, long * Gst.MSECOND))

    def flush(self) -> None:
        self.push(Gst.Event.new_flush_start())
        self.push(Gst.Event.new_flush_stop(True))
        self.segment(1.0)

    def caps(self, text: str, size: int | None = None) -> None:
        self.size = size or self.size
        self.push(Gst.Event.new_caps(Gst.Caps.from_string(text)))

    def segment(self, rate: float) -> None:
        segment = Gst.Segment()
        segment.init(Gst.Format.TIME)
        segment.rate = rate
        if rate < 0:
            segment.stop = Gst.SECOND
        self.push(Gst.Event.new_segment(segment))

    def stream(self, name: str) -> None:
        self.push(Gst.Event.new_stream_start(name))

    def turned(self, how: str) -> None:
        tags = Gst.TagList.new_empty()
        tags.add_value(Gst.TagMergeMode.REPLACE, Gst.TAG_IMAGE_ORIENTATION, how)
        self.push(Gst.Event.new_tag(tags))

    def late(self, at: int) -> None:
        event = Gst.Event.new_qos(Gst.QOSType.UNDERFLOW, 2.0, 0, at * Gst.MSECOND)
        self.told["flows"].append(bool(self.sink.push_event(event)))

    def reset(self) -> None:
        self.element.emit("reset")

    def query(self, text: str) -> None:
        caps = self.element.get_static_pad("sink").query_caps(Gst.Caps.from_string(text))
        self.told["flows"].append(caps.to_string())

    def restart(self) -> None:
        self.element.set_state(Gst.State.NULL)
        self.source.set_active(False)
        self.source.set_active(True)
        self.element.set_state(Gst.State.PAUSED)
        self.push(Gst.Event.new_stream_start("one"))
        self.caps(self.given["caps"])
        self.segment(1.0)

    def eos(self) -> None:
        self.push(Gst.Event.new_eos())

    def set(self, name: str, value: str) -> None:
        Gst.util_set_object_arg(self.element, name, value)


def seeked(given: dict[str, Any]) -> dict[str, Any]:
    """A whole pipeline with a seek."""
    pipeline = Gst.parse_launch(given["pipeline"])
    sink, out, pts = pipeline.get_by_name("out"), bytearray(), []

    def take(count: int) -> None:
        for _ in range(count):
            buffer = sink.emit("pull-sample").get_buffer()
            out.extend(buffer.extract_dup(0, buffer.get_size()))
            pts.append(buffer.pts // Gst.MSECOND)

    pipeline.set_state(Gst.State.PLAYING)
    take(given["before"])
    pipeline.seek_simple(
        Gst.Format.TIME, Gst.SeekFlags.FLUSH | Gst.SeekFlags.ACCURATE, given["seek"] * Gst.MSECOND
    )
    take(given["after"])
    pipeline.set_state(Gst.State.NULL)
    Path(given["out"]).write_bytes(out)
    return {"out": len(out), "pts": pts}


if __name__ == "__main__":
    Gst.init(None)
    runs = json.load(sys.stdin)
    print(json.dumps([seeked(given) if "pipeline" in given else Run(given).do() for given in runs]))
