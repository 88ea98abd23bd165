"""JSON lines to a web address, by POST; tried again with back-off."""

from __future__ import annotations

import base64
import http.client
import random
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sinks.delivery import Undelivered, in_path, in_url
from edgelstm.pipeline.sinks.lines import Lines
from edgelstm.pipeline.sinks.tls import tls
from edgelstm.pipeline.sources.source import Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Target, Write

#: Seconds for each step of a request, and tries after the first.
TIMEOUT, RETRIES = 10.0, 5
#: Of events, which are few and none of which is as good as the next: tries for half a day.
EVENT_RETRIES = 750
#: Seconds to the second try; each further wait is twice as long, up to the longest.
FIRST, LONGEST = 0.5, 60.0
#: Of an answer nothing behind this is read (bytes).
ANSWER = 64 * 1024
#: Answers that may be others later: too many requests, too early, a server's own troubles.
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\x20-\x7e\xa0-\xff\t]*")
LATER = {408, 425, 429, 500, 502, 503, 504}


@contextmanager
def webhook(to: Target) -> Iterator[Write]:
    """A line in a request (``application/json``), or with ``batch`` as many as wait, up to that (``application/x-ndjson``).

    At least once: a request whose answer is lost is sent again, with the same ``Idempotency-Key``. Redirects are not followed. What was not taken after
    ``retries`` more tries, or is refused (4xx), is counted as undelivered, and the next is sent.
    """
    hook = Hook(to)
    try:
        yield Lines(to, hook.post, to.options.batch or 1, to.options.every or 0.0)
    finally:
        hook.close()


class Hook:
    """One address. The connection is kept from request to request."""

    def __init__(self, to: Target) -> None:
        address, options = to.address, to.options
        if not address.host:
            raise EdgeLstmError(f"address {to.name}", found="no host", expected="https://HOST/PATH")
        self._batch, self._stop = (options.batch or 1) > 1, to.stop
        if self._batch and "{stream}" in address.path + address.query:
            raise EdgeLstmError(
                f"address {to.name}",
                found="{stream} in it, and batch",
                expected="one of them: lines of several streams go in one request, and each says whose it is",
            )
        self.name = to.name
        self._host, self._port = address.host, address.port
        self._path = f"/{address.path}" + (f"?{address.query}" if address.query else "")
        self._tls = tls(options, to.name) if address.scheme == "https" else None
        self._timeout = TIMEOUT if options.timeout is None else options.timeout
        usual = EVENT_RETRIES if to.events else RETRIES
        self._retries = usual if options.retries is None else options.retries
        self._headers = _headers(to)
        #: No two processes give the same keys.
        self._run, self._number = secrets.token_hex(8), 0
        self._connection: http.client.HTTPConnection | None = None

    def post(self, lines: Sequence[tuple[Frame, str]]) -> None:
        """Until it is taken. Raises :class:`Undelivered`."""
        body = "".join(f"{text}\n" for _, text in lines) if self._batch else lines[0][1]
        path = in_url(in_path(self._path, lines[0][0]))
        self._number += 1
        headers = self._headers | {"Idempotency-Key": f"{self._run}-{self._number}"}
        problem, after = "no try", 0.0
        for attempt in range(self._retries + 1):
            if attempt and self._stop.wait(max(after, _pause(attempt))):
                raise Undelivered(f"{self.name}: not taken at the end", "closed", found=problem)
            try:
                status, problem, after = self._request(path, body.encode(), headers)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                problem, after = str(error) or type(error).__name__, 0.0
                continue
            if 200 <= status < 300:
                return
            if status not in LATER:
                raise Undelivered(f"{self.name}: refused", "refused", found=problem)
        tries = f"{self._retries + 1} tries" if self._retries else "a try"
        raise Undelivered(f"{self.name}: not taken after {tries}", "unreachable", found=problem)

    def _request(self, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str, float]:
        """Status, the answer in words, and the seconds that it asks to wait."""
        while True:
            kept = self._connection is not None
            connection = self._connection = self._connection or self._connect()
            try:
                connection.request("POST", path, body, dict(headers))
                answer = connection.getresponse()
                rest = answer.read(ANSWER)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self.close()
                if not kept:
                    raise
                continue  # the other side closed what was idle; that says nothing of the address
            if len(rest) == ANSWER or answer.will_close:
                self.close()
            asked = answer.headers.get("Retry-After", "")
            words = f"{answer.status} {answer.reason}".strip()
            return answer.status, words, min(float(asked), LONGEST) if asked.isdecimal() else 0.0

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout, context=self._tls
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)

    def close(self) -> None:
        """The connection; the next request makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _pause(attempt: int) -> float:
    """Not all the devices of a site at once, when its network is back."""
    return min(LONGEST, FIRST * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def _headers(to: Target) -> dict[str, str]:
    """Errors do not repeat values: they may be secrets."""
    address, options = to.address, to.options
    batch = (options.batch or 1) > 1
    headers = {
        "Content-Type": "application/x-ndjson" if batch else "application/json",
        "User-Agent": "edgelstm",
    }
    user, password = options.user or address.user, options.password or address.password
    if user is not None:
        pair = f"{user}:{password or ''}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    for name, value in (options.headers or {}).items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise EdgeLstmError(
                f"headers of {to.name}",
                found=f"{name!r} or its value",
                expected="a name of letters, digits and -, and a value of one line of Latin-1",
            )
        headers = {n: v for n, v in headers.items() if n.lower() != name.lower()} | {name: value}
    return headers
