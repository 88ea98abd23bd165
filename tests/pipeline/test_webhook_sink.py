"""Outputs posted to a web address: a server that answers well, late, wrongly, and not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline import open_sink
from edgelstm.pipeline.sinks import Options, Undelivered, webhook
from peers import SIGNATURE, frame

ONE = {"y": np.array([1, np.nan], np.float32)}


class Server(ThreadingHTTPServer):
    """answers: what it says to the next requests, 200 behind the last; None closes the connection without a word."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)
        self.got: list[tuple[str, Any, str]] = []
        self.clients: set[Any] = set()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, as other servers send them
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        answer = self.server.answers.pop(0) if self.server.answers else 200
        self.server.got.append((self.path, self.headers, body))
        self.server.clients.add(self.client_address)
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer)
        self.send_header("Content-Length", "2")
        if answer == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "FIRST", 0.01)


@pytest.fixture
def serve() -> Iterator[Any]:
    made: list[Server] = []

    def start(*answers: int | None) -> Server:
        made.append(Server(*answers))
        return made[-1]

    yield start
    for server in made:
        server.shutdown()
        server.server_close()


def test_a_line_a_request_over_one_connection(serve: Any, tmp_path: Path) -> None:
    server = serve()
    options = Options(headers={"Authorization": "Bearer abc"})
    with (
        open_sink(server.url + "/hook/{stream}?a=b", SIGNATURE, options=options) as sink,
        open_sink(tmp_path / "same.jsonl", SIGNATURE) as file,
    ):
        for index in range(5):
            for each in (sink, file):
                each.write(frame(index), ONE, 0.001)
    assert [body for _, _, body in server.got] == (tmp_path / "same.jsonl").read_text().splitlines()
    assert {path for path, _, _ in server.got} == {"/hook/north?a=b"}
    headers = server.got[0][1]
    assert (headers["Authorization"], headers["Content-Type"]) == ("Bearer abc", "application/json")
    assert len(server.clients) == 1, "the connection is kept"
    assert len({h["Idempotency-Key"] for _, h, _ in server.got}) == 5


def test_lines_together(serve: Any) -> None:
    server = serve()
    with open_sink(
        server.url, SIGNATURE, options=Options(batch=10, every=2, user="me", password="pw")
    ) as sink:
        assert (sink.batch, sink.every) == (10, 2)
        sink.write_all([(frame(i), ONE, 0.0) for i in range(3)])
        sink.write(frame(3), ONE, 0.0)
    assert [[json.loads(line)["index"] for line in body.splitlines()] for *_, body in server.got] == [
        [0, 1, 2],
        [3],
    ]
    assert server.got[0][1]["Content-Type"] == "application/x-ndjson"
    assert server.got[0][1]["Authorization"] == "Basic bWU6cHc="


@pytest.mark.usefixtures("fast")
def test_what_may_be_better_later_is_tried_again_with_the_same_key(serve: Any) -> None:
    server = serve(503, 429, None, 200)
    with open_sink(server.url, SIGNATURE) as sink:
        sink.write(frame(0), ONE, 0.0)
        sink.write(frame(1), ONE, 0.0)
    assert [json.loads(body)["index"] for *_, body in server.got] == [0, 0, 0, 0, 1]
    keys = [headers["Idempotency-Key"] for _, headers, _ in server.got]
    assert len(set(keys[:4])) == 1
    assert keys[4] != keys[0]


@pytest.mark.usefixtures("fast")
def test_what_is_refused_costs_itself_alone(serve: Any) -> None:
    server = serve(400, 301, 500, 500, 500, 200)
    with open_sink(server.url + "/secret", SIGNATURE, options=Options(retries=2)) as sink:
        for index, reason in enumerate(("refused", "refused", "unreachable")):
            with pytest.raises(Undelivered) as caught:
                sink.write(frame(index), ONE, 0.0)
            assert caught.value.reason == reason
            assert "secret" not in str(caught.value)
        sink.write(frame(3), ONE, 0.0)
    assert len(server.got) == 6


def test_an_idle_connection_that_was_closed_costs_no_time(serve: Any) -> None:
    server = serve(200, None)
    with open_sink(server.url, SIGNATURE, options=Options(retries=0)) as sink:
        for index in range(2):
            sink.write(frame(index), ONE, 0.0)
    assert [json.loads(body)["index"] for *_, body in server.got] == [0, 1, 1]


def test_the_end_interrupts_the_wait_for_the_next_try(serve: Any) -> None:
    server, stop = serve(*[503] * 100), threading.Event()
    with open_sink(server.url, SIGNATURE, options=Options(retries=100), stop=stop) as sink:
        threading.Timer(0.2, stop.set).start()
        with pytest.raises(Undelivered) as caught:
            sink.write(frame(0), ONE, 0.0)
    assert caught.value.reason == "closed"


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("http:///hook", {}, "no host"),
        ("http://h:x/hook", {}, "no port"),
        ("https://h/{stream}", {"batch": 2}, "one of them"),
        ("https://h/", {"headers": {"A": "b\r\nC: secret"}}, "a value of one line"),
        ("https://h/secret", {"key": "k.pem"}, "key without cert"),
        ("https://h/", {"qos": 1}, "options of https://h/?: found the option qos; expected user"),
        ("ftp://h/", {}, "found ftp://; expected FILE.npz"),
    ],
)
def test_what_is_wrong_is_said_at_once(url: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(EdgeLstmError, match=said) as caught:
        open_sink(url, SIGNATURE, options=Options(**options))
    assert "secret" not in str(caught.value)
