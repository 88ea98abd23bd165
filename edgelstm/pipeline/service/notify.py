"""What systemd wants to know of a service: that it is ready, that it advances, that it stops.

One datagram each to the socket that ``$NOTIFY_SOCKET`` names, as sd_notify(3) says; without that variable nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger("edgelstm.serve")


class Notifier:
    """Tells the service manager. Errors are logged once and cost nothing else."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        given = os.environ if environment is None else environment
        self._address = given.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # abstract
            self._address = "\0" + self._address[1:]
        #: Seconds within which the manager wants to hear that it advances; None when it doesn't.
        self.watchdog: float | None = None
        usec, pid = given.get("WATCHDOG_USEC", ""), given.get("WATCHDOG_PID", "")
        if self._address and usec.isdigit() and int(usec) > 0 and pid in ("", str(os.getpid())):
            self.watchdog = int(usec) / 1e6
        self._said = False
        self._due = 0.0

    def ready(self, status: str) -> None:
        """Everything is open and runs."""
        self._tell(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """It was told to stop, or all is done."""
        self._tell("STOPPING=1")

    def advances(self, since: float) -> None:
        """Called often: ``since`` is when the slowest loop last came round (``time.monotonic``). One that is later than half
        of the time keeps the manager from hearing anything, until it restarts the service."""
        now = time.monotonic()
        if self.watchdog is None or now < self._due or now - since > self.watchdog / 2:
            return
        self._due = now + self.watchdog / 4
        self._tell("WATCHDOG=1")

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(1.0)
                sender.sendto(text.encode(), self._address)
        except OSError as error:
            if not self._said:
                self._said = True
                log.warning("the service manager does not hear: %s", error)
