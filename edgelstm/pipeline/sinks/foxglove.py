"""Outputs for Foxglove: recorded in an MCAP file, or looked at while they come. Both by foxglove-sdk, with the same topics.

``/STREAM/step``: the line that a .jsonl has, as JSON. For every output that is an image, ``/STREAM/OUTPUT/image``, the picture (``foxglove.RawImage``), and
``/STREAM/OUTPUT/grid``, its values (``foxglove.Grid``): float32, a field for each lead time and channel, on the map where the source says where it is.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.files import atomic_path
from edgelstm.graph.signature import TensorSpec
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sinks.delivery import as_level, shared, stream_name
from edgelstm.pipeline.sinks.lines import line
from edgelstm.pipeline.sinks.panels import Panels, as_float, image_outputs
from edgelstm.pipeline.sinks.room import check_room
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Target, Write

log = logging.getLogger("edgelstm.serve")

#: Messages that wait for each client; of one that is slower the oldest are dropped.
WAITING = 32
#: What a recording keeps beside the disk until a chunk is full, in bytes, with a margin.
ROOM = 4 << 20
#: Seconds that a server's port may take to be free.
FREE = 2.0
STEP = {
    "type": "object",
    "title": "edgelstm.Step",
    "properties": {
        "index": {"type": "integer"},
        "name": {"type": "string"},
        "time": {"type": ["number", "null"]},
        "milliseconds": {"type": "number"},
        "outputs": {"type": "object"},
    },
}


@contextmanager
def mcap(to: Target) -> Iterator[Write]:
    """A recording, there when the sink closes."""
    sdk = require("foxglove", "foxglove", f"writing {to.name}")
    with atomic_path(to.path) as temporary:
        context = sdk.Context()
        writer = sdk.open_mcap(temporary, allow_overwrite=True, context=context)
        topics = Topics(to, sdk, context, recorded=True)

        def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
            # The SDK tells a full disk to standard error, once for each message, until the file is closed.
            check_room(temporary.parent, ROOM)
            topics(frame, outputs, seconds)

        try:
            yield write
        finally:
            writer.close()


@contextmanager
def foxglove(to: Target) -> Iterator[Write]:
    """A WebSocket server at the address, for any number of clients and streams. A slow client misses messages, and holds up nobody."""
    sdk = require("foxglove", "foxglove", f"serving {to.name}")
    if not to.address.host or to.address.port is None:
        raise EdgeLstmError(
            f"address {to.name}", expected="foxglove://HOST:PORT, the interface that is listened on"
        )
    with shared(("foxglove", to.address.host, to.address.port), lambda: _server(to, sdk)) as context:
        yield Topics(to, sdk, context)


@contextmanager
def _server(to: Target, sdk: Any) -> Iterator[Any]:
    address, context = to.address, sdk.Context()
    host = "127.0.0.1" if address.host == "localhost" else address.host
    try:
        server = sdk.start_server(
            name="edgelstm", host=host, port=address.port, context=context, message_backlog_size=WAITING
        )
    except Exception as error:  # the SDK's own kind, which is none of OSError
        raise EdgeLstmError(
            f"can't serve {to.name}",
            found=str(error),
            expected="an interface of this machine, by number, and a port that is free",
        ) from error
    log.info("%s: open it in Foxglove with ws://%s:%d", to.name, host, server.port)
    try:
        yield context
    finally:
        port = server.port  # afterwards it has none
        server.stop()
        _wait_for_port(host, port)


def _wait_for_port(host: str, port: int) -> None:
    """``stop`` comes back before the server has left its port, and sinks that open anew want it at once."""
    deadline = time.monotonic() + FREE
    while time.monotonic() < deadline:
        try:
            socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            ).close()
        except OSError:
            time.sleep(0.01)
        else:
            return


class Topics:
    """The ``write`` of both. recorded: nobody looks while it is written."""

    def __init__(self, to: Target, sdk: Any, context: Any, recorded: bool = False) -> None:
        self._to, self._sdk, self._context = to, sdk, context
        self._recorded = recorded
        #: Of a source that knows times, but not since when: the nanoseconds since 1970 that we count them from.
        self._began: int | None = None
        self._channels = require("foxglove.channels", "foxglove", to.name)
        self._messages = require("foxglove.messages", "foxglove", to.name)
        try:
            specs = image_outputs(to.signature, to.view)
        except EdgeLstmError:
            if to.view.output is not None:
                raise
            specs = []  # numbers alone
        self._panels = {spec.name: Panels(spec, to.view, to.context.units.get(spec.name)) for spec in specs}
        self._specs = specs
        self._made: dict[str, Any] = {}

    def __call__(self, frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
        stream, now = as_level(stream_name(frame)), self._stamp(frame)
        step = self._channel(f"/{stream}/step", None)
        step.log(line(self._to, frame, outputs, seconds).encode(), log_time=now)
        stamp = self._messages.Timestamp(*divmod(now, 1_000_000_000))
        for spec in self._specs:
            image = self._channel(f"/{stream}/{spec.name}/image", self._channels.RawImageChannel)
            image.log(
                self._image(self._panels[spec.name].picture(outputs[spec.name]), stream, stamp), log_time=now
            )
            grid = self._channel(f"/{stream}/{spec.name}/grid", self._channels.GridChannel)
            grid.log(self._grid(spec, outputs[spec.name], stream, stamp), log_time=now)

        if frame.last:
            for topic in [t for t in self._made if t.startswith(f"/{stream}/")]:
                self._made.pop(topic).close()

    def _channel(self, topic: str, kind: Any) -> Any:
        """Made when the first message of a topic comes: a stream may have a name that nobody knew."""
        if topic not in self._made:
            self._made[topic] = (
                self._sdk.Channel(topic, schema=STEP, context=self._context)
                if kind is None
                else kind(topic, context=self._context)
            )
        return self._made[topic]

    def _stamp(self, frame: Frame) -> int:
        """Nanoseconds since 1970: when the frame was taken, where the source knows that, else now; in a recording, in the frames' own spacing."""
        start = self._to.context.start
        if start is None or frame.time is None:
            now = time.time_ns()
            if frame.time is None or not self._recorded:
                return now
            # A film is computed in less time than it lasts.
            time_ns = round(frame.time * 1e9)
            self._began = now - time_ns if self._began is None else self._began
            return self._began + time_ns
        return max(0, round((start + timedelta(seconds=frame.time)).timestamp() * 1e9))

    def _image(self, picture: Array, stream: str, stamp: Any) -> Any:
        height, width = picture.shape[:2]
        channels = picture.size // (height * width)
        return self._messages.RawImage(
            timestamp=stamp,
            frame_id=stream,
            width=width,
            height=height,
            encoding="mono8" if channels == 1 else "rgb8",
            step=width * channels,
            data=np.ascontiguousarray(picture).tobytes(),
        )

    def _grid(self, spec: TensorSpec, array: Array, stream: str, stamp: Any) -> Any:
        m, values = self._messages, as_float(array, spec.dtype).astype("<f4")
        if (
            values.ndim == 3 and values.shape[2] in (1, 3) and values.shape[0] > 4
        ):  # [H, W, C], as Keras has it
            values = values.transpose(2, 0, 1)
        height, width = values.shape[-2:]
        names = [",".join(map(str, place)) for place in np.ndindex(*values.shape[:-2])]
        bands = np.moveaxis(values.reshape(-1, height, width), 0, -1)  # [H, W, bands]: the fields of a cell
        place = self._to.context.grid
        if place is None or (place.rows, place.columns) != (height, width):
            left, bottom, dx, dy = 0.0, 0.0, 1.0, 1.0
            bands = bands[::-1]  # row 0 is above
        else:
            left, dx, dy = place.left, abs(place.dx), abs(place.dy)
            bottom = min(place.top, place.top + place.dy * place.rows)
            bands = bands[::-1] if place.dy < 0 else bands
            if place.dx < 0:
                bands, left = bands[:, ::-1], place.left + place.dx * place.columns
        size = 4 * bands.shape[2]
        return m.Grid(
            timestamp=stamp,
            frame_id=stream,
            pose=m.Pose(
                position=m.Vector3(x=left, y=bottom, z=0.0),
                orientation=m.Quaternion(x=0.0, y=0.0, z=0.0, w=1.0),
            ),
            column_count=width,
            cell_size=m.Vector2(x=dx, y=dy),
            row_stride=size * width,
            cell_stride=size,
            fields=[
                m.PackedElementField(
                    name=f"{spec.name}[{name}]" if name else spec.name,
                    offset=4 * i,
                    type=m.PackedElementFieldNumericType.Float32,
                )
                for i, name in enumerate(names)
            ],
            data=np.ascontiguousarray(bands).tobytes(),
        )
