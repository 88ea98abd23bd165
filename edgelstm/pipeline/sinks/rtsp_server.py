"""A process of its own: pictures from standard input, out over RTSP by GStreamer's server. Needs PyGObject and nothing of edgelstm.

``rtsp_server.py HOST PORT``. It writes its port in a line, then takes pictures until its input ends: a line of JSON, {"path", "width", "height", "fps", "bytes"}, and
so many bytes: RGB, each row filled up to a multiple of four, as GStreamer has it.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

#: H.264 where there is an encoder, else JPEG.
ENCODERS = (
    (
        "x264enc",
        "x264enc tune=zerolatency speed-preset=veryfast key-int-max=30 ! rtph264pay name=pay0 pt=96 config-interval=1",
    ),
    ("openh264enc", "openh264enc gop-size=30 ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=1"),
    ("jpegenc", "jpegenc ! rtpjpegpay name=pay0 pt=26"),
)
#: Milliseconds after which the newest picture is sent once more: clients look at several before they show one.
AGAIN = 200


class Mount:
    """One path. Clients share an encoder, which runs while there are any."""

    def __init__(self, gst: Any, server_kind: Any, launch: str, head: dict[str, Any]) -> None:
        self._gst, self._lock = gst, threading.Lock()
        self._sources: list[Any] = []
        self._newest, self._shown = b"", False
        self._caps = gst.Caps.from_string(
            f"video/x-raw,format=RGB,width={head['width']},height={head['height']},framerate={head['fps']}/1"
        )
        self.factory = server_kind.RTSPMediaFactory()
        self.factory.set_launch(launch)
        self.factory.set_shared(True)
        self.factory.connect("media-configure", self._configure)

    def _configure(self, _: Any, media: Any) -> None:
        source = media.get_element().get_by_name("src")
        source.set_property("caps", self._caps)
        with self._lock:
            self._sources.append(source)
            if self._newest:
                self._push(source)
        media.connect("unprepared", lambda *_: self._left(source))

    def _left(self, source: Any) -> None:
        with self._lock:
            self._sources = [s for s in self._sources if s is not source]

    def show(self, picture: bytes) -> None:
        """A newer one."""
        with self._lock:
            self._newest, self._shown = picture, True
            for source in self._sources:
                self._push(source)

    def again(self) -> bool:
        """The newest once more, unless one came."""
        with self._lock:
            if not self._shown and self._newest:
                for source in self._sources:
                    self._push(source)
            self._shown = False
        return True

    def _push(self, source: Any) -> None:
        source.emit("push-buffer", self._gst.Buffer.new_wrapped(self._newest))


def main(host: str, port: str) -> None:
    """Until standard input ends."""
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    encoder = next((text for name, text in ENCODERS if Gst.ElementFactory.find(name)), None)
    if encoder is None:
        sys.exit(f"none of the encoders {', '.join(name for name, _ in ENCODERS)} is there")
    leaky = " leaky-type=downstream" if Gst.ElementFactory.make("appsrc").find_property("leaky-type") else ""
    launch = (
        f"( appsrc name=src is-live=true format=time do-timestamp=true max-buffers=2{leaky} ! videoconvert "
        f"! video/x-raw,format=I420 ! {encoder} )"
    )
    server = GstRtspServer.RTSPServer()
    server.set_address(host)
    server.set_service(port)
    if not server.attach(None):
        sys.exit("the port is in use, or no interface of this machine")
    loop, mounts = GLib.MainLoop(), {}
    print(server.get_bound_port(), flush=True)

    def read() -> None:
        pictures = sys.stdin.buffer
        while line := pictures.readline():
            head = json.loads(line)
            picture = pictures.read(head["bytes"])
            if len(picture) < head["bytes"]:
                break
            path = head["path"]
            if path not in mounts:
                mount = mounts[path] = Mount(Gst, GstRtspServer, launch, head)
                mount.show(picture)
                server.get_mount_points().add_factory(f"/{path}", mount.factory)
                GLib.timeout_add(AGAIN, mount.again)
            else:
                mounts[path].show(picture)
        loop.quit()

    threading.Thread(target=read, daemon=True).start()
    loop.run()


if __name__ == "__main__":
    main(*sys.argv[1:3])
