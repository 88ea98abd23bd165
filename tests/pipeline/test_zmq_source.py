"""Arrays over ZeroMQ as a source: real sockets, whatever is sent, and what the sink of the same name sends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zoo
from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_source
from edgelstm.pipeline.zmq_frames import Message, encode

zmq = pytest.importorskip("zmq")


@contextmanager
def publishing(messages: Any, where: str = "tcp://127.0.0.1:0") -> Iterator[str]:
    """A PUB socket at its address, that sends ``messages`` over and over, a pause between two rounds, until somebody heard enough."""
    context = zmq.Context()
    socket = context.socket(zmq.PUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(where)
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            for parts in messages():
                socket.send_multipart(parts)
            done.wait(0.005)

    thread = threading.Thread(target=run, daemon=True)
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT).decode().strip("\0")
    thread.start()
    try:
        yield endpoint.replace("tcp://", "zmq://").replace("ipc://", "zmq+ipc://")
    finally:
        done.set()
        thread.join(60)
        socket.close()
        context.term()


def counting(stream: str = "north", skip: int = 0, **arrays: Any) -> Any:
    """Endless messages of one stream, the number in them."""
    state = {"index": 0}

    def messages() -> Iterator[list[Any]]:
        index = state["index"]
        state["index"] += 1
        if index and skip and index % skip == 0:
            return
        made = arrays or {"cube": np.full((2, 3), index, np.uint16)}
        yield encode(Message(stream, index, made, index * 0.05, f"f{index}"))

    return messages


def test_frames_come_with_what_is_missing(tmp_path: Path) -> None:
    for where in ("tcp://127.0.0.1:0", f"ipc://{tmp_path}/s"):
        with (
            publishing(counting(skip=5), where) as address,
            open_source(f"{address}#stream=north", limit=12) as source,
        ):
            frames = list(source)
        numbers = [int(f.data[0, 0]) for f in frames]
        assert all(f.data.shape == (2, 3) and f.data.dtype == np.uint16 for f in frames)
        for before, now, frame in zip(numbers, numbers[1:], frames[1:], strict=False):
            assert frame.gap == (None if now == before + 1 else "1 messages missing")
        assert any(f.gap for f in frames)
        assert [f.name for f in frames] == [f"f{n}" for n in numbers]
        assert source.live
        assert source.place.start is not None
        assert abs(source.place.start.timestamp() - time.time()) < 60


def test_several_arrays_and_one_of_them() -> None:
    made = {"a": np.arange(3, dtype=np.float32), "b": np.zeros((2, 2), np.int16)}
    with publishing(counting(**made)) as address:
        with open_source(address, limit=1) as source:
            [frame] = source
        assert {n: a.tolist() for n, a in frame.data.items()} == {n: a.tolist() for n, a in made.items()}
        with open_source(f"{address}#array=b", limit=1) as source:
            [frame] = source
        assert frame.data.shape == (2, 2)
        with pytest.raises(EdgeLstmError, match="array c: found a, b"):
            open_source(f"{address}#array=c")


def test_two_streams_are_never_one() -> None:
    left, right = counting("left"), counting("right")

    def both() -> Iterator[list[Any]]:
        yield from left()
        yield from right()

    with publishing(both) as address:
        with (
            pytest.raises(EdgeLstmError, match="messages of several streams"),
            open_source(address) as source,
        ):
            list(source)
        with open_source(f"{address}#stream=right", limit=4) as source:
            assert len(list(source)) == 4


def test_a_message_that_is_none_is_one_bad_frame(tmp_path: Path) -> None:
    from edgelstm import Pipeline

    zoo.lstm(head=3).save(tmp_path / "m.onnx")
    state, good = {"index": 0}, counting(x=np.ones(3, np.float32))

    def messages() -> Iterator[list[Any]]:
        for parts in good():
            state["index"] += 1
            yield parts if state["index"] % 3 else [b"no json"]

    with publishing(messages) as address:
        text = f'[models.m]\npath = "m.onnx"\n[streams.s]\nsource = "{address}"\nlimit = 9\nretries = 1000\nretry = 0.01\nlate = "step"\n'
        report = Pipeline.from_text(text, tmp_path).run()
    assert not report.failed
    counts = report.streams["s"]
    assert counts["dropped:unreadable"] >= 2
    assert counts["stepped"] + counts["dropped:unreadable"] == 9


HEADER = {"version": 1, "stream": "s", "index": 0, "arrays": {"x": {"dtype": "uint8", "shape": [2, 2]}}}


@pytest.mark.parametrize(
    "parts",
    [
        [b"no json"],
        [json.dumps({**HEADER, "version": 2}).encode(), bytes(4)],
        [json.dumps(HEADER).encode(), bytes(5)],
        [json.dumps(HEADER).encode()],
        [
            json.dumps({**HEADER, "arrays": {"x": {"dtype": "uint8", "shape": [10**9, 10**9]}}}).encode(),
            bytes(4),
        ],
        [json.dumps({**HEADER, "arrays": {"x": {"dtype": "object", "shape": [1]}}}).encode(), bytes(8)],
        [json.dumps(HEADER).encode(), *[bytes(4)] * 200],
        [],
    ],
)
def test_whatever_else_is_sent_is_one_error(parts: list[bytes]) -> None:
    with (
        publishing(lambda: [parts or [b""]]) as address,
        pytest.raises(EdgeLstmError, match="a ZeroMQ message"),
    ):
        open_source(address)


def test_nobody_there_and_addresses_that_are_wrong() -> None:
    with pytest.raises(EdgeLstmError, match=r"nothing came for 0\.3 s"):
        open_source("zmq://127.0.0.1:9#open_timeout=0.3")
    for spec, message in (
        ("zmq://127.0.0.1", "zmq://HOST:PORT"),
        ("zmq://u:s3cr@127.0.0.1:1", "zmq://HOST:PORT"),
        ("zmq://127.0.0.1:1#bind=2", "0 or 1"),
        ("zmq://127.0.0.1:1#topic=a", "names: stream"),
    ):
        with pytest.raises(EdgeLstmError, match=message) as caught:
            open_source(spec)
        assert "s3cr" not in str(caught.value)


def test_one_service_feeds_the_next(tmp_path: Path) -> None:
    """What the sink sends, the source reads: a stream's outputs go through a second model."""
    pytest.importorskip("pydantic")
    from edgelstm import Pipeline

    zoo.lstm().save(tmp_path / "one.onnx")
    zoo.lstm(2, seed=1).save(tmp_path / "two.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32))
    context = zmq.Context()
    probe = context.socket(zmq.PUB)
    probe.bind("tcp://127.0.0.1:0")
    where = probe.getsockopt(zmq.LAST_ENDPOINT).decode().strip("\0").replace("tcp", "zmq")
    probe.close()
    context.term()
    first = f'[models.m]\npath = "one.onnx"\n[streams.a]\nsource = "x.npy"\nrate = 200\nsink = "{where}"\n'
    second = (
        f'[models.m]\npath = "two.onnx"\n[streams.b]\nsource = "{where}#stream=a"\nlimit = 20\nsink = "b.jsonl"\n'
        "retries = 100\nretry = 0.1\n"
    )
    sender = Pipeline.from_text(first, tmp_path)
    thread = threading.Thread(target=sender.run, daemon=True)
    thread.start()
    report = Pipeline.from_text(second, tmp_path).run()
    sender.stop()
    thread.join(60)
    assert not report.failed
    assert report.streams["b"]["stepped"] == 20
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 20
