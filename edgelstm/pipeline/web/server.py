"""The server: bound before anything is opened, run by a thread of its own, ended with the service."""

from __future__ import annotations

import asyncio
import logging
import threading
from types import TracebackType

from edgelstm.pipeline.web.listener import Listener
from edgelstm.pipeline.web.site import Site

log = logging.getLogger("edgelstm.serve")

#: Connections at a time, bytes of a request's head, and seconds that open pages have at the end.
CONNECTIONS, HEAD, GRACE = 64, 16 * 1024, 1


class Server:
    """Answers from ``with`` to its end."""

    def __init__(self, site: Site, listener: Listener) -> None:
        import uvicorn

        from edgelstm.pipeline.web.api import build
        from edgelstm.pipeline.web.protocol import Impatient

        self._listener = listener
        app = build(
            site,
            f"edgelstm-{listener.port}",
            secure=bool(listener.tls),
            leaving=lambda: self._server.should_exit,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=Impatient,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=GRACE,
                h11_max_incomplete_event_size=HEAD,
                **listener.tls,
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve([self._listener.socket]))
        except BaseException as error:  # the streams go on without it
            log.error("http: ended: %s", error)

    def __enter__(self) -> Server:
        self._thread.start()
        log.info("http: %s", self._listener.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(GRACE + 2)
        self._listener.close()
