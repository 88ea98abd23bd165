"""What stands before every request: its size, whom it was meant for, where it comes from, and who sends it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: No request is larger (bytes), and none takes longer to arrive (seconds).
MAX_BODY, MAX_SECONDS = 64 * 1024, 10.0
SAFE = ("GET", "HEAD")
#: What is answered without the token: nothing of it says anything of the streams.
OPEN = ("/healthz", "/readyz", "/login")
#: Seconds that a wrong token costs.
PENALTY = 0.5
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Token:
    """The secret that callers have to know. The cookie holds what is derived from it, not the token itself."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self.cookie = hmac.new(self._token, b"edgelstm cookie", hashlib.sha256).hexdigest()

    def is_right(self, given: str) -> bool:
        """In a time that says nothing of how much of it was right, nor of its length."""
        mine, theirs = (hashlib.sha256(t).digest() for t in (self._token, given.encode("utf-8", "replace")))
        return hmac.compare_digest(mine, theirs)

    def is_cookie(self, given: str) -> bool:
        """Whether a cookie is ours, in the same way."""
        return hmac.compare_digest(self.cookie.encode(), given.encode("utf-8", "replace"))


class Gate:
    """ASGI middleware. hosts: names by which the service may be called, beside addresses, ``localhost`` and the machine's own
    name. A name that an attacker's DNS points at us is none of them (DNS rebinding)."""

    def __init__(self, app: App, token: Token | None, hosts: Iterable[str], cookie: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie
        own = socket.gethostname().lower()
        self._hosts = {"localhost", own, f"{own}.local", *(h.lower() for h in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, or answer."""
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        problem = self._problem(scope)
        if problem is not None:
            return await _answer(guarded, *problem)
        body = await _body(receive)
        if body is None:
            return await _answer(guarded, 413, f"expected at most {MAX_BODY} bytes within {MAX_SECONDS:g} s")
        if (
            body
            and scope["path"] != "/login"
            and _one(scope, b"content-type").partition(";")[0].strip() != "application/json"
        ):
            return await _answer(guarded, 415, "expected content-type: application/json")
        if self._token is not None and scope["path"] not in OPEN and not scope["path"].startswith("/static/"):
            known = self._knows(scope)
            if known is not True:
                if known is False:
                    await asyncio.sleep(PENALTY)
                if scope["method"] in SAFE and "text/html" in _one(scope, b"accept"):
                    return await _answer(guarded, 303, "log in", [(b"location", b"/login")])
                return await _answer(guarded, 401, "expected the token", [(b"www-authenticate", b"Bearer")])
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, guarded)

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        hosts = _all(scope, b"host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            found = hosts[0] if len(hosts) == 1 else f"{len(hosts)} of them"
            return (
                421,
                f"host: found {found[:100]!r}; expected an address, localhost or one of [service] hosts",
            )
        if scope["method"] in SAFE:
            return None
        origin, site = _one(scope, b"origin"), _one(scope, b"sec-fetch-site")
        if origin and origin.lower() != f"{scope.get('scheme', 'http')}://{hosts[0]}".lower():
            return 403, "a page of another origin may not change anything here"
        if site and site not in ("same-origin", "none"):
            return 403, "a page of another site may not change anything here"
        return None

    def _is_ours(self, host: str) -> bool:
        name = host.lower()
        if name.startswith("["):
            name, closed, _ = name[1:].partition("]")
            if not closed:
                return False
        else:
            name = name.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.rstrip(".") in self._hosts
        return True

    def _knows(self, scope: Scope) -> bool | None:
        """Whether the token came with it; None when nothing did."""
        assert self._token is not None
        kind, _, given = _one(scope, b"authorization").partition(" ")
        if given:
            return kind.lower() == "bearer" and self._token.is_right(given.strip())
        for pair in _one(scope, b"cookie").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == self._cookie:
                return self._token.is_cookie(value)
        return None


def _all(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _one(scope: Scope, name: bytes) -> str:
    return ",".join(_all(scope, name))


async def _body(receive: Receive) -> bytes | None:
    """All of it; None when it is too large, too slow or broken off."""
    parts: list[bytes] = []
    size = 0
    end = asyncio.get_running_loop().time() + MAX_SECONDS
    while True:
        try:
            message = await asyncio.wait_for(receive(), end - asyncio.get_running_loop().time())
        except (TimeoutError, asyncio.TimeoutError):
            return None
        if message["type"] != "http.request":
            return None
        size += len(message.get("body", b""))
        if size > MAX_BODY:
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(send: Send, code: int, why: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = json.dumps({"error": why}).encode()
    given = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": code, "headers": [*given, *(headers or ())]})
    await send({"type": "http.response.body", "body": body})
