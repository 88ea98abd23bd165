"""Room on the disk for what a file still needs before it can be closed: a step that would take it is refused before any of it is written."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from edgelstm.errors import EdgeLstmError

#: Bytes that are left free beside what is needed, or an eighth of a small disk: others write too.
MARGIN = 4 << 20
#: Bytes of a :class:`Reserve`, or a sixteenth of a small disk.
RESERVE = 1 << 20

#: Where so much was free beside what is needed, that is so for as many seconds.
PLENTY, FRESH = 64 << 20, 0.05
#: By folder, when it was looked at, and what was free then.
_seen: dict[Path, tuple[float, int]] = {}


class NoRoom(OSError):
    """The disk is full, and nothing of the step is in the file: it can go on with a later one."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Full(EdgeLstmError):
    """The file holds as much as its format can, and nothing of the step is in it: the next belongs to another."""


def check_room(folder: Path, needed: int) -> None:
    """Raise :class:`NoRoom` unless ``needed`` bytes can be written there."""
    now = time.monotonic()
    looked, free = _seen.get(folder, (-math.inf, 0))
    if now - looked < FRESH and free > needed + PLENTY:  # to ask a share is a way over the network
        return
    disk = shutil.disk_usage(folder)
    _seen[folder] = now, disk.free
    if disk.free < needed + min(MARGIN, disk.total // 8):
        raise NoRoom


class Reserve:
    """Room that a file has for its end, whatever others have written meanwhile: given back by :meth:`close`, and with the process."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] | None = None
        with suppress(OSError, AttributeError):  # a full disk, or a system without it: then it goes without
            size = min(RESERVE, shutil.disk_usage(folder).total // 16)
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it stays open until the end)
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except BaseException:
                file.close()
                raise
            self._file = file

    def close(self) -> None:
        """Give it back."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
