"""Requests to a service that runs in the test, byte for byte as a stranger may send them."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from running import MODEL, Running, until


def service(**keys: Any) -> str:
    """The head of a pipeline file: it answers at a free port, and stays."""
    given = {"http": "127.0.0.1:0", "stay": True, "report": 0, **keys}
    return "[service]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in given.items()) + MODEL


class Answer:
    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.code, self.headers, self.body = answer.status, answer.headers, answer.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    running: Running,
    method: str,
    path: str,
    body: bytes | str | Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    at = urlsplit(until(lambda: running.pipeline.url))
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)
    given = {"host": at.netloc, **(headers or {})}
    if isinstance(body, Mapping):
        body = json.dumps(body)
        given.setdefault("content-type", "application/json")
    data = body.encode() if isinstance(body, str) else body
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in given.items():
            connection.putheader(name, value)
        if data is not None:
            connection.putheader("content-length", str(len(data)))
        connection.endheaders(data)
        return Answer(connection.getresponse())
    finally:
        connection.close()
