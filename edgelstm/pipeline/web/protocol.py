"""HTTP as uvicorn speaks it, with an end to patience: a client that connects and says nothing holds one of few places, and the health of the
service could not be asked for while it does."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds that the head of a request may take to arrive, from the connection or its first byte on.
HEAD_SECONDS = 10.0


class Impatient(H11Protocol):
    """Closes connections whose next request does not come."""

    _hurry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Part of a request, or all of it."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        super().connection_lost(exc)
        self._calm()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # a request is there
            self._calm()
        elif self._hurry is None:
            self._hurry = self.loop.call_later(HEAD_SECONDS, self._leave)

    def _calm(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None

    def _leave(self) -> None:
        self._hurry = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()
