"""top: what a running service says of itself, asked by HTTP."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from edgelstm.errors import EdgeLstmError
from edgelstm.files import PathLike, check_file

#: Where a service answers, if nothing else is said, and the variable with its token.
URL, TOKEN = "http://127.0.0.1:8080", "EDGELSTM_TOKEN"
#: No answer is larger (bytes), and none is waited for longer (seconds).
MAX_BYTES, PATIENCE = 16 * 1024**2, 10.0


class _Stay(urllib.request.HTTPRedirectHandler):
    """The token goes where it was meant to go, and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        """None: it is an error."""


class Top:
    """A service at ``url``. ``look()`` is its status: streams with counters, step time, age, states; models; the last log lines.

    token: what it asks for; default: the variable ``EDGELSTM_TOKEN``. ca: a certificate (PEM) to trust, for https with one of its own.
    """

    def __init__(self, url: str = URL, token: str | None = None, ca: PathLike | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EdgeLstmError("address of the service", found=url, expected="http://HOST:PORT")
        if parts.username or parts.password:
            raise EdgeLstmError(
                "address of the service", found="a password in it", hint=f"Set {TOKEN} instead"
            )
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._token = os.environ.get(TOKEN) if token is None else token
        context = None
        if parts.scheme == "https":
            try:
                context = ssl.create_default_context(cafile=None if ca is None else str(check_file(ca)))
            except ssl.SSLError as error:
                raise EdgeLstmError(f"certificate {ca}", found=str(error), expected="PEM") from error
        handlers: list[urllib.request.BaseHandler] = [_Stay(), urllib.request.ProxyHandler({})]
        if context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)
        self._seen = 0
        self._log: list[Mapping[str, Any]] = []

    def look(self) -> dict[str, Any]:
        """Its status now. Raises EdgeLstmError when it does not answer, or answers something else."""
        status = self._ask("/api/status?states=1")
        lines = self._ask(f"/api/log?after={self._seen}")
        try:
            self._log = [*self._log, *lines][-50:]
            self._seen = max((int(line["number"]) for line in self._log), default=0)
            if not isinstance(status["streams"], list):
                raise TypeError("streams")
        except (KeyError, TypeError, ValueError) as error:
            raise self._other(str(error)) from None
        return {**status, "log": list(self._log)}

    def _ask(self, path: str) -> Any:
        request = urllib.request.Request(self.url + path)
        if self._token:
            request.add_header("authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=PATIENCE) as answer:
                data = answer.read(MAX_BYTES + 1)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise EdgeLstmError(
                    f"{self.url} asks for its token",
                    found="another one" if self._token else "none",
                    hint=f"Set {TOKEN}",
                ) from None
            raise self._other(f"{error.code} {error.reason}") from None
        except (urllib.error.URLError, OSError, http.client.HTTPException, UnicodeError) as error:
            why = getattr(error, "reason", None) or error
            raise EdgeLstmError(
                f"{self.url} does not answer",
                found=getattr(why, "strerror", None) or str(why),
                hint='Does its file say `http = "127.0.0.1:8080"` in [service]?',
            ) from None
        if len(data) > MAX_BYTES:
            raise self._other(f"more than {MAX_BYTES} bytes")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise self._other("no JSON") from None

    def _other(self, found: str) -> EdgeLstmError:
        return EdgeLstmError(f"{self.url} is no service of `edgelstm serve`", found=found)
