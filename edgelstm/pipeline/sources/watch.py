"""Waiting for something to happen in a folder: the system's word for it, or looks from time to time where it gives none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: Seconds from look to look without the system's word, and with it: a share of another machine tells nothing.
POLL, POLL_WATCHED = 0.25, 2.0


class Watch:
    """Changes of a folder, by watchfiles (inotify and its like) where it is installed and the system lets it."""

    def __init__(self, folder: Path, stopped: threading.Event) -> None:
        self._folder, self._stopped = folder, stopped
        self._changes: Generator[Any, None, None] | None = None
        try:
            import watchfiles
        except ImportError:
            return
        self._changes = watchfiles.watch(
            folder,
            watch_filter=None,
            debounce=200,
            step=100,  # also how often it looks whether it is to stop
            stop_event=stopped,
            rust_timeout=int(1000 * POLL_WATCHED),
            yield_on_timeout=True,
            recursive=False,
            ignore_permission_denied=True,
        )

    def wait(self, soon: bool) -> bool:
        """Until there may be something new; False once it is stopped. soon: for a moment only, a file is waited for."""
        if self._changes is None or soon:
            return not self._stopped.wait(POLL)
        try:
            next(self._changes)
        except StopIteration:
            return False
        except (OSError, RuntimeError) as error:  # no more watches on this machine, or the folder is away
            log.warning(
                "%s: looked at every %g s, the system tells no changes: %s", self._folder, POLL, error
            )
            self._changes = None
        return not self._stopped.is_set()

    def close(self) -> None:
        """End the watch."""
        if self._changes is not None:
            self._changes.close()
