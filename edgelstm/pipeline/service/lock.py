"""One service to a folder: two that write checkpoints there would each go on from the other's states."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from edgelstm.errors import EdgeLstmError

NAME = ".lock"


class FolderLock:
    """Held from here to :meth:`close`, or to the end of the process, however that comes: then the next takes it over.

    Raises EdgeLstmError while another process, or another service of this one, holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._file: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgeLstmError(f"can't make the folder {folder}", found=error.strerror) from error
        if sys.platform == "win32":  # no flock: nothing tells
            return
        import fcntl

        path = folder / NAME
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise EdgeLstmError(f"can't write {path}", found=error.strerror) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            who = ""
            with suppress(OSError):
                who = os.pread(file, 20, 0).decode("ascii", "replace").strip()
            os.close(file)
            if not isinstance(error, BlockingIOError):
                raise EdgeLstmError(f"can't lock {path}", found=error.strerror) from error
            raise EdgeLstmError(
                f"another service keeps its checkpoints in {folder}",
                found=f"process {who}" if who.isdigit() else "a process",
                expected="a folder for each service",
                hint="Stop it, or say another folder under [service] checkpoint",
            ) from None
        self._file = file

    def close(self) -> None:
        """Let others have it; calling it again does nothing. The file stays: one that is deleted could be locked twice."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
