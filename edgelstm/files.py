"""Files: atomic writes, hashes, size limits."""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from edgelstm.errors import EdgeLstmError, count_of

PathLike = str | os.PathLike[str]

#: Nothing this package reads whole into memory may be larger (bytes); ONNX files end at 2 GiB anyway.
MAX_FILE_BYTES = 2 * 1024**3


#: What a folder of frames may hold and outputs are written as.
PICTURES = (".png", ".tif", ".tiff", ".h5")

#: Temporary files that are being written, with the process that writes them: a fork is not to take its parent's away.
_unfinished: dict[Path, int] = {}


@atexit.register
def _leave_nothing() -> None:
    """A signal can end a process between any two lines, also where no ``finally`` is entered yet."""
    for path, process in list(_unfinished.items()):
        if process == os.getpid():
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    """A new, empty file beside ``target`` that nobody else can read, registered before it exists."""
    while True:
        path = target.parent / f".{target.stem}.{secrets.token_hex(4)}{target.suffix}"
        _unfinished[path] = os.getpid()
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            del _unfinished[path]
            if isinstance(error, FileExistsError):
                continue
            raise
        return path


@contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, delete it on failure.

    The temporary name keeps the suffix, so writers that look at it behave. Raises EdgeLstmError when the
    folder does not exist or can't be written.
    """
    target = Path(path)
    if target.is_dir():
        raise EdgeLstmError(f"can't write {target}", found="a folder", expected="a file path")
    try:
        temporary = _temporary(target)
    except OSError as error:
        raise EdgeLstmError(
            f"can't write {target}",
            found=error.strerror or str(error),
            expected="a writable folder",
            hint=f"Create {target.parent} or choose another path",
        ) from error
    try:
        yield temporary
        # The file was private to the user; what we hand over follows the umask like any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except OSError as error:
        raise EdgeLstmError(f"can't write {target}", found=error.strerror or str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.pop(temporary, None)


def file_name(name: str) -> str:
    """A stream's name as part of a file's, and no other stream's: ``north``, ``pumps=a`` of ``pumps:a``, the rest percent-encoded."""
    return quote(name, safe="").replace("%3A", "=", 1)


def one_file(path: PathLike) -> str:
    """The same for paths that are one file on any disk: many tell no case apart, some no way to write an accent."""
    return unicodedata.normalize("NFC", os.path.normpath(path)).casefold()


def without_drive(spec: str) -> str:
    """``spec`` behind a drive of Windows, ``C:\\``, whose colon separates nothing."""
    return spec[2:] if re.match(r"[A-Za-z]:[\\/]", spec) else spec


def refuse_overwrite(output: PathLike | None, inputs: Iterable[object]) -> None:
    """Raise EdgeLstmError where what is to be written is among what is read, under whatever name: a link, a relative path.

    inputs: files and folders, sources as ``run`` takes them (``FILE.npz:NAME``), None for what was not given. A folder of frames is
    read as a whole: no file of a kind that lies in it is written there.
    """
    if output is None or str(output) == "-":
        return
    target = Path(output)
    for given in inputs:
        if not isinstance(given, str | os.PathLike):
            continue
        text = os.fspath(given)
        ends = [k for k, letter in enumerate(text) if letter in ":#"]
        for read in (text, *(text[:k] for k in reversed(ends))):
            if read and _is_read(Path(read), target):
                raise EdgeLstmError(
                    f"can't write {output}",
                    found=f"that it is read: {text}" if _same(Path(read), target) else f"frames in {read}",
                    expected="another name",
                    hint="What is read is never written over",
                )


def _is_read(read: Path, target: Path) -> bool:
    if _same(read, target):
        return True
    try:
        if not read.is_dir() or not _same(read, target.parent):
            return False
        kind = target.suffix.lower()
        return kind in PICTURES and any(p.suffix.lower() == kind and p.is_file() for p in read.iterdir())
    except (OSError, ValueError):
        return False


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except (OSError, ValueError):  # one of them is not there
        return False


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: PathLike, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def check_file(path: PathLike, limit: int = MAX_FILE_BYTES) -> Path:
    """``path``, if it is a file that can be read and is no larger than ``limit`` bytes; else EdgeLstmError."""
    source = Path(path)
    try:
        size = source.stat().st_size
        if source.is_dir():
            raise EdgeLstmError(f"can't read {source}", found="a folder", expected="a file")
        if not source.is_file():  # reading a device or a pipe may never end
            raise EdgeLstmError(f"can't read {source}", found="a device or a pipe", expected="a file")
        if size > limit:
            raise EdgeLstmError(
                f"{source} is too large",
                found=f"{count_of(size, 'byte')}",
                expected=f"at most {limit}",
            )
        with source.open("rb"):
            return source
    except FileNotFoundError as error:
        raise EdgeLstmError(f"{source} does not exist", hint="Check the path") from error
    except OSError as error:
        raise EdgeLstmError(f"can't read {source}", found=error.strerror or str(error)) from error


def read_bytes(path: PathLike, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a whole file after checking that it exists and is no larger than ``limit`` bytes."""
    source = check_file(path, limit)
    try:
        return source.read_bytes()
    except OSError as error:
        raise EdgeLstmError(f"can't read {source}", found=error.strerror or str(error)) from error


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()
