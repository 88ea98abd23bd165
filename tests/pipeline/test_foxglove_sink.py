"""Outputs for Foxglove: a recording read back by mcap's own reader, and a live view by a client that speaks its WebSocket protocol."""

from __future__ import annotations

import json
import struct
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.place import Context, Grid
from edgelstm.pipeline.sinks import Options
from peers import SIGNATURE, frame, free_port, until

pytest.importorskip("foxglove")
FORECAST = Signature(
    (TensorSpec("x", "float32", ("N", 1, 2, 3)),),
    (TensorSpec("rain", "float32", ("N", 2, 1, 2, 3)), TensorSpec("score", "float32", ("N", 2))),
    (),
)
CONTEXT = Context(
    start=datetime(2026, 1, 1, tzinfo=timezone.utc),
    grid=Grid("+proj=stere", 1000.0, 500.0, 10.0, -20.0, 2, 3),
)
RAIN = np.arange(12, dtype=np.float32).reshape(2, 1, 2, 3) / 11


def unpacked(schema: Any, data: bytes) -> Any:
    """By the schema that the file carries."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(schema.data).file:
        pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(schema.name))
    return kind.FromString(data)


def test_a_recording_is_read_back(tmp_path: Path) -> None:
    reader = pytest.importorskip("mcap.reader")
    path = tmp_path / "out.mcap"
    with open_sink(path, FORECAST, context=CONTEXT) as sink:
        for index in range(3):
            sink.write(
                frame(index, "north", 300.0 * index),
                {"rain": RAIN, "score": np.full(2, index, np.float32)},
                0.01,
            )
        assert not path.exists()
    with path.open("rb") as file:
        found = list(reader.make_reader(file, validate_crcs=True).iter_messages())
    topics: dict[str, list[Any]] = {}
    for schema, channel, message in found:
        topics.setdefault(channel.topic, []).append((schema, message))
    assert {t: len(m) for t, m in topics.items()} == {
        "/north/step": 3,
        "/north/rain/image": 3,
        "/north/rain/grid": 3,
    }
    start = int(CONTEXT.start.timestamp()) * 10**9  # type: ignore[union-attr]
    assert [m.log_time - start for _, m in topics["/north/step"]] == [0, 300 * 10**9, 600 * 10**9]
    last = json.loads(topics["/north/step"][2][1].data)
    assert (last["index"], last["outputs"]["score"]["values"]) == (2, [2, 2])
    schema, message = topics["/north/rain/image"][0]
    image = unpacked(schema, message.data)
    assert (image.encoding, image.width, image.height) == ("mono8", 6, 2)
    grey = np.rint(RAIN[:, 0] * 255).transpose(1, 0, 2).reshape(2, 6)
    np.testing.assert_array_equal(np.frombuffer(image.data, np.uint8).reshape(2, 6), grey)
    schema, message = topics["/north/rain/grid"][0]
    grid = unpacked(schema, message.data)
    assert [f.name for f in grid.fields] == ["rain[0,0]", "rain[1,0]"]
    assert (grid.pose.position.x, grid.pose.position.y, grid.cell_size.x, grid.cell_size.y) == (
        1000,
        460,
        10,
        20,
    )
    values = np.frombuffer(grid.data, np.float32).reshape(2, grid.column_count, 2)
    np.testing.assert_array_equal(
        values[::-1].transpose(2, 0, 1), RAIN[:, 0], "row 0 of a grid is its lowest"
    )


def test_a_recording_has_the_spacing_of_its_frames_where_nobody_knows_when_they_began(tmp_path: Path) -> None:
    """A film's: it was as short as it took to compute."""
    mcap_reader = pytest.importorskip("mcap.reader")
    path = tmp_path / "out.mcap"
    before = time.time_ns()
    with open_sink(path, SIGNATURE) as sink:
        for k in range(3):
            sink.write(frame(k, None, 10.0 + 0.04 * k), {"y": np.zeros(2, np.float32)}, 0.0)
    with path.open("rb") as file:
        found = mcap_reader.make_reader(file).iter_messages(topics=["/stream/step"])
        times = [message.log_time for _, _, message in found]
    assert [t - times[0] for t in times] == [0, 40_000_000, 80_000_000]
    assert before <= times[0] <= time.time_ns()


def test_a_recording_of_numbers_alone_and_none_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    with pytest.raises(ZeroDivisionError), open_sink(path, SIGNATURE) as sink:
        sink.write(frame(1 // 0), {}, 0.0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(EdgeLstmError, match="no output to make pictures of"):
        open_sink(path, SIGNATURE, options=Options(output="y"))
    assert not list(tmp_path.iterdir())


def test_a_client_sees_what_comes() -> None:
    client = pytest.importorskip("websockets.sync.client")
    port = free_port()
    url = f"foxglove://127.0.0.1:{port}"
    with open_sink(url, FORECAST) as one, open_sink(url, SIGNATURE) as two:

        def send(index: int) -> None:
            one.write(frame(index, "north"), {"rain": RAIN, "score": np.ones(2, np.float32)}, 0.0)
            two.write(frame(index, "pump"), {"y": np.full(2, index, np.float32)}, 0.0)

        send(0)
        with client.connect(f"ws://127.0.0.1:{port}", subprotocols=["foxglove.sdk.v1"]) as socket:
            topics: dict[str, int] = {}
            while len(topics) < 4:
                said = json.loads(socket.recv(60))
                topics |= {c["topic"]: c["id"] for c in said.get("channels", ())}
            assert set(topics) == {"/north/step", "/north/rain/image", "/north/rain/grid", "/pump/step"}
            subscriptions = [
                {"id": 7, "channelId": topics["/pump/step"]},
                {"id": 8, "channelId": topics["/north/rain/grid"]},
            ]
            socket.send(json.dumps({"op": "subscribe", "subscriptions": subscriptions}))
            heard: dict[int, bytes] = {}

            def both() -> bool:
                send(5)  # a subscription counts when it has arrived
                try:
                    message = socket.recv(0.1)
                except TimeoutError:
                    return False
                if isinstance(message, bytes):
                    op, subscription, _ = struct.unpack_from("<BIQ", message)
                    assert op == 1
                    heard[subscription] = message[13:]
                return set(heard) == {7, 8}

            until(both, "both topics")
            assert json.loads(heard[7])["outputs"]["y"]["values"] == [5, 5]


def test_a_client_that_does_not_read_holds_up_nobody() -> None:
    client = pytest.importorskip("websockets.sync.client")
    port = free_port()
    large = Signature(
        (TensorSpec("x", "float32", ("N", 3)),), (TensorSpec("y", "float32", ("N", 500, 500)),), ()
    )
    with open_sink(f"foxglove://127.0.0.1:{port}", large) as sink:
        sink.write(frame(0, "north"), {"y": RAIN[0, 0, 0, 0] + np.zeros((500, 500), np.float32)}, 0.0)
        with client.connect(
            f"ws://127.0.0.1:{port}", subprotocols=["foxglove.sdk.v1"], max_queue=1, close_timeout=0.1
        ) as socket:
            ids: list[int] = []
            while not ids:
                ids = [
                    c["id"]
                    for c in json.loads(socket.recv(60)).get("channels", ())
                    if c["topic"].endswith("grid")
                ]
            socket.send(json.dumps({"op": "subscribe", "subscriptions": [{"id": 1, "channelId": ids[0]}]}))
            begin = time.monotonic()
            for index in range(200):  # 200 MB, which no buffer takes
                sink.write(frame(index, "north"), {"y": np.zeros((500, 500), np.float32)}, 0.0)
            assert time.monotonic() - begin < 60


def test_what_is_wrong_is_said_at_once() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for url, said in (
            ("foxglove://127.0.0.1", "foxglove://HOST:PORT"),
            (f"foxglove://127.0.0.1:{port}", "can't serve"),
        ):
            with pytest.raises(EdgeLstmError, match=said):
                open_sink(url, SIGNATURE)
