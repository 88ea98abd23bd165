"""The socket that the service answers at."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.service.config import ServiceSection


def split(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Listener:
    """The socket and the certificate, so that what is wrong with them is said before models are loaded."""

    def __init__(self, settings: ServiceSection) -> None:
        assert settings.http is not None
        for module in ("fastapi", "uvicorn", "prometheus_client"):
            require(module, "live", "[service] http")
        host, port = split(settings.http)
        try:
            info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.socket = socket.create_server(info[0][4][:2], family=info[0][0], backlog=64)
        except OSError as error:
            raise EdgeLstmError(
                f"[service] http = {settings.http!r}",
                found=error.strerror or str(error),
                expected="an address of this machine and a free port",
            ) from error
        self.host, self.port = host, int(self.socket.getsockname()[1])
        #: Certificate and key as uvicorn takes them; nothing without.
        self.tls: dict[str, Any] = {}
        if settings.tls_cert is not None and settings.tls_key is not None:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
            except (OSError, ssl.SSLError) as error:
                self.close()
                raise EdgeLstmError(
                    "[service] tls_cert and tls_key",
                    found=str(error),
                    expected="a certificate and its key, PEM",
                ) from error
            self.tls = {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}

    @property
    def url(self) -> str:
        """Where it answers."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    def close(self) -> None:
        """Listen no more."""
        self.socket.close()
