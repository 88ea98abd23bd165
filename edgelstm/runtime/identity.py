"""Which model a state is of: one hash for snapshots, checkpoints and detectors."""

from __future__ import annotations

import hashlib
import mmap
import re
from pathlib import Path

from edgelstm.files import PathLike, check_file

#: ONNX: an entry of a tensor's ``external_data`` that names the file its weights lie in, as protobuf writes it:
#: key "location", then the value and its length.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\xff]{1,2})")


def file_sha256(path: Path) -> str:
    """Of a file that may be larger than memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def model_identity(path: PathLike) -> str:
    """SHA-256 of a model's file, and of the files its weights lie in where it is an ONNX file that keeps them elsewhere.

    Raises EdgeLstmError for a file that can't be read.
    """
    source = check_file(path, 1 << 62)
    own = file_sha256(source)
    others = _external(source) if source.suffix.lower() == ".onnx" else []
    if not others:
        return own
    together = hashlib.sha256(own.encode())
    for name in others:
        together.update(b"\0" + name.encode() + b"\0" + file_sha256(source.parent / name).encode())
    return together.hexdigest()


class ModelStamp:
    """What tells that a model's file, or one that it needs beside it, was replaced or written to: call it now and then. None while one can't be read."""

    def __init__(self, path: PathLike) -> None:
        self._path = Path(path)
        self._own: object = None
        self._beside: list[str] = []

    def __call__(self) -> object:
        path = self._path
        try:
            own = _stamp(path)
            if own != self._own:
                onnx = path.suffix.lower() == ".onnx"
                self._beside = _external(path) if onnx else [f"{path.name}.json"]  # of an engine, its sidecar
                self._own = own
            return own, *(_stamp(path.parent / name) for name in self._beside if _is_file(path.parent, name))
        except OSError:
            return None


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _external(source: Path) -> list[str]:
    """Names of the files beside an ONNX file that hold weights of it, found without the onnx package."""
    if source.stat().st_size == 0:
        return []
    found: set[str] = set()
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for match in _LOCATION.finditer(data):
            first, *more = match[1]
            length, start = first, match.start(1) + 1
            if first & 0x80:  # a second byte of the length
                length, start = (first & 0x7F) | (more[0] << 7 if more else 0), start + 1
            found.add(bytes(data[start : start + length]).decode("utf-8", "replace"))
    return sorted(name for name in found if _is_file(source.parent, name))


def _is_file(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):
        return False
