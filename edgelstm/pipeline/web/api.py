"""The routes: health, metrics, the API, what happens as it happens, and the page."""

from __future__ import annotations

import asyncio
import io
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any
from urllib.parse import parse_qs

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.params import Body, Path, Query
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.service.control import TakenName, UnknownStream
from edgelstm.pipeline.sinks.delivery import as_level
from edgelstm.pipeline.web import page
from edgelstm.pipeline.web.gate import PENALTY, Gate, Token
from edgelstm.pipeline.web.metrics import Metrics
from edgelstm.pipeline.web.preview import Pictures, picture_of
from edgelstm.pipeline.web.site import Site
from edgelstm.pipeline.web.view import is_ready, status

#: Pages that may stay open at a time, and seconds from one look at the service to the next while one is.
LISTENERS, TICK = 16, 1.0
Name = Annotated[str, Path(description="A stream's name", max_length=400)]
Section = Annotated[dict[str, Any], Body(description="The keys of a [streams.NAME]")]


def build(
    site: Site, cookie: str, *, secure: bool = False, leaving: Callable[[], bool] = lambda: False
) -> Any:
    """The ASGI application. cookie: its name. secure: it comes by TLS. leaving: whether the server is about to end."""
    app = FastAPI(
        title="edgelstm", version=site.version, docs_url=None, redoc_url=None, openapi_url="/openapi.json"
    )
    token = None if site.settings.token is None else Token(site.settings.token)
    _errors(app, site)
    _health(app, site)
    _streams(app, site)
    _changes(app, site)
    _looking(app, site, leaving)
    _pages(app, site, token, cookie, secure)
    return Gate(app, token, site.settings.hosts, cookie)


def _errors(app: FastAPI, site: Site) -> None:
    @app.exception_handler(EdgeLstmError)
    async def wrong(_: Request, error: EdgeLstmError) -> JSONResponse:
        code = 404 if isinstance(error, UnknownStream) else 409 if isinstance(error, TakenName) else 400
        code = code if site.service.is_running else 503
        return JSONResponse({"error": site.redactor.text(error)}, code)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)


def _health(app: FastAPI, site: Site) -> None:
    metrics = Metrics(site)

    @app.get(
        "/healthz", tags=["health"], summary="Whether the process lives and no model stopped for an error"
    )
    def healthz() -> JSONResponse:
        failed = [n for n, loop in site.service.loops.items() if loop.error is not None]
        return JSONResponse({"ok": not failed, "failed": failed}, 503 if failed else 200)

    @app.get("/readyz", tags=["health"], summary="Whether frames that come are stepped")
    def readyz() -> JSONResponse:
        ready = is_ready(site)
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    @app.get("/metrics", tags=["health"], summary="For Prometheus")
    def read() -> Response:
        text, kind = metrics.text()
        return Response(text, media_type=kind)


def _done(name: str, code: int = 200) -> JSONResponse:
    return JSONResponse({"ok": True, "stream": name}, code)


def _streams(app: FastAPI, site: Site) -> None:
    """Those that are there: seen, and told when to step."""

    @app.get(
        "/api/status",
        tags=["streams"],
        summary="Everything at a glance; states: what they are worth; history: by second",
    )
    def everything(states: bool = False, history: bool = False) -> JSONResponse:
        return JSONResponse(status(site, states=states, history=history))

    @app.post("/api/streams/{name:path}/pause", tags=["streams"], summary="Let its frames wait")
    def pause(name: Name) -> JSONResponse:
        site.control.pause(name)
        return _done(name)

    @app.post("/api/streams/{name:path}/resume", tags=["streams"], summary="Go on")
    def resume(name: Name) -> JSONResponse:
        site.control.resume(name)
        return _done(name)

    @app.post("/api/streams/{name:path}/reset", tags=["streams"], summary="Begin anew with the next frame")
    def reset(name: Name) -> JSONResponse:
        site.control.reset(name)
        return _done(name)

    @app.get(
        "/api/streams/{name:path}/snapshot",
        tags=["streams"],
        summary="What its states are worth: an .npz of STREAM/STATE, the stream percent-encoded (a / in it is %2F)",
    )
    def snapshot(name: Name) -> Response:
        states = site.control.snapshot(name)
        if not states:
            raise EdgeLstmError(f"stream {name}", found="no state yet", expected="a frame first")
        made = io.BytesIO()
        found: Any = {
            f"{as_level(stream)}/{state}": a for stream, by in states.items() for state, a in by.items()
        }
        np.savez(made, **found)
        headers = {"content-disposition": f'attachment; filename="{_plain(name)}.npz"'}
        return Response(made.getvalue(), media_type="application/octet-stream", headers=headers)


def _changes(app: FastAPI, site: Site) -> None:
    """Other streams and models. Behind :func:`_streams`, whose addresses are longer: a name may have slashes."""

    def check() -> None:
        if not site.may_change:
            raise EdgeLstmError(
                "streams are added and changed over HTTP",
                expected="a token in [service]: whoever names files has to know it",
            )

    @app.post(
        "/api/streams/{name:path}",
        tags=["streams"],
        status_code=201,
        summary="A stream more. Needs a token in [service]",
    )
    def add(name: Name, section: Section) -> JSONResponse:
        check()
        page.check_name(name)
        site.control.add(name, site.section(section))
        return _done(name, 201)

    @app.put(
        "/api/streams/{name:path}",
        tags=["streams"],
        summary="Another section for a stream. Needs a token in [service]",
    )
    def configure(name: Name, section: Section) -> JSONResponse:
        check()
        site.control.configure(name, site.section(section))
        return _done(name)

    @app.delete("/api/streams/{name:path}", tags=["streams"], summary="Remove it; its sinks are closed")
    def remove(name: Name) -> JSONResponse:
        site.control.remove(name)
        return _done(name)

    @app.post(
        "/api/reload", tags=["service"], summary="Read the pipeline file again; gives what could not be done"
    )
    def reload() -> JSONResponse:
        if site.reload is None:
            raise EdgeLstmError("reload", expected="a service that was started from a file")
        failed = site.reload()
        return JSONResponse({"ok": not failed, "failed": failed})

    if (swap := site.swap) is not None:

        @app.post(
            "/api/models/{name}/swap",
            tags=["service"],
            summary='Another file for a model, states carried: {"path": ...}, and "compatible": true where they mean the same though a '
            "step differs. Needs a token in [service]",
        )
        def swapped(name: str, given: Annotated[dict[str, Any], Body()]) -> JSONResponse:
            check()
            path, compatible = given.get("path"), given.get("compatible")
            if not isinstance(path, str) or not path or compatible not in (None, True, False):
                raise EdgeLstmError("swap", found=json.dumps(given)[:100], expected='{"path": "FILE"}')
            apart = swap(name, path, compatible=compatible)
            if apart is not None and not math.isfinite(apart):
                apart = None  # JSON has no infinity; the log says it
            return JSONResponse({"ok": True, "model": name, "differs": apart})


def _looking(app: FastAPI, site: Site, leaving: Callable[[], bool]) -> None:
    pictures, ticker = Pictures(), _Ticker(site)

    def shown(name: str) -> Any:
        channel, own = site.control.find(name)
        pulse = channel.pulses.get(own or name)
        return channel, None if pulse is None else pulse.shown

    def picture(made: bytes | None) -> Response:
        return Response(status_code=404) if made is None else Response(made, media_type="image/png")

    @app.get("/api/streams/{name:path}/frame.png", tags=["looking"], summary="Its last frame")
    def frame(name: Name) -> Response:
        _, found = shown(name)
        return picture(None if found is None else pictures.frame(name, found))

    @app.get(
        "/api/streams/{name:path}/output.png",
        tags=["looking"],
        summary="What the model made of it: its first picture, or `output`",
    )
    def output(name: Name, output: str | None = None) -> Response:
        channel, found = shown(name)
        wanted = None if found is None else output or picture_of(channel.signature, found.outputs)
        if found is None or wanted is None or wanted not in found.outputs:
            return picture(None)
        return picture(pictures.output(name, wanted, found))

    @app.get("/api/log", tags=["looking"], summary="The last log lines, behind number `after`")
    def log(after: Annotated[int, Query(ge=0)] = 0) -> JSONResponse:
        return JSONResponse(site.recent.lines(after))

    @app.get("/api/events", tags=["looking"], summary="As it happens, every second: server-sent events")
    async def events() -> Response:
        if ticker.listeners >= LISTENERS:
            return JSONResponse({"error": f"{LISTENERS} pages are open"}, 503)

        async def stream() -> AsyncIterator[bytes]:
            ticker.listeners += 1
            number, log = 0, 0
            try:
                while not leaving():
                    number, made = await ticker.next(number)
                    lines = site.recent.lines(log)
                    log = lines[-1]["number"] if lines else log
                    yield f"data: {json.dumps({**made, 'log': lines})}\n\n".encode()
            finally:
                ticker.listeners -= 1

        return StreamingResponse(stream(), media_type="text/event-stream")


class _Ticker:
    """One look at the service every second, for all who listen; none while nobody does."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.listeners = 0
        self._number, self._made = 0, dict[str, Any]()
        self._at = -TICK
        self._lock: asyncio.Lock | None = None

    async def next(self, seen: int) -> tuple[int, dict[str, Any]]:
        """The look behind number ``seen``."""
        self._lock = self._lock or asyncio.Lock()
        async with self._lock:
            if self._number <= seen or time.monotonic() - self._at >= TICK:
                await asyncio.sleep(max(0.0, self._at + TICK - time.monotonic()))
                self._made = await run_in_threadpool(status, self._site, states=True)
                self._at, self._number = time.monotonic(), self._number + 1
            return self._number, self._made


def _pages(app: FastAPI, site: Site, token: Token | None, cookie: str, secure: bool) -> None:
    @app.get("/", include_in_schema=False)
    def index() -> Response:
        return _html(page.index(site, status(site, states=True, history=True)))

    @app.get("/card", include_in_schema=False)
    def card(name: str) -> Response:
        found = [s for s in status(site, states=True)["streams"] if s["name"] == name]
        return _html(page.card(found[0], swap=site.may_swap)) if found else Response(status_code=404)

    @app.get("/api", include_in_schema=False)
    def routes() -> Response:
        return _html(page.routes(app.openapi()))

    @app.get("/static/{name:path}", include_in_schema=False)
    def static(name: str) -> Response:
        found = page.static(name)
        return Response(status_code=404) if found is None else Response(found[0], media_type=found[1])

    @app.get("/login", include_in_schema=False)
    def login() -> Response:
        return _html(page.login())

    @app.post("/login", include_in_schema=False)
    async def enter(request: Request) -> Response:
        form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=4)
        given = form.get("token", [""])[0]
        if token is None or not token.is_right(given):
            await asyncio.sleep(PENALTY)
            return _html(page.login("This is not the token."), 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            cookie, token.cookie, max_age=30 * 86400, httponly=True, samesite="strict", secure=secure
        )
        return answer


def _html(text: str, code: int = 200) -> Response:
    return Response(text, code, media_type="text/html; charset=utf-8")


def _plain(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
