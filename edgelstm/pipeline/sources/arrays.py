"""NumPy files, read frame by frame: axis 0 is time.

A frame is read when it is wanted, so the file may be larger than memory, compressed or not. The header says how much
to expect before anything is allocated; pickled objects are never loaded.
"""

from __future__ import annotations

import json
import math
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import MAX_FILE_BYTES
from edgelstm.pipeline.sources.folder import Follow, files_as_frames, natural
from edgelstm.pipeline.sources.source import Array, Frame, Source, check_frame_size

#: One header at a time, see :func:`_read_header`.
_PARSING = threading.Lock()
#: Bytes of what the service says of frames that it kept, at most.
MAX_SAID = 16 * 1024**2
#: What zipfile and NumPy raise for bytes that are not what they claim to be (an encrypted member: RuntimeError).
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Stored:
    """An array in a file: where, for messages; how to open it, positioned at its header; its header."""

    where: str
    open: Callable[[], IO[bytes]]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    def frames(self) -> Iterator[Array]:
        """shape[1:] arrays, one for each entry of axis 0."""
        done = 0
        try:
            with self.open() as stream:
                if self.fortran:
                    yield from npy.read_array(stream, allow_pickle=False)
                    return
                _read_header(stream)
                size = math.prod(self.shape[1:]) * self.dtype.itemsize
                while done < self.shape[0]:
                    data = stream.read(size)
                    if len(data) < size:
                        raise EOFError(f"{len(data)} of {count_of(size, 'byte')}")
                    frame = np.frombuffer(data, self.dtype).reshape(self.shape[1:])
                    yield frame.astype(self.dtype.newbyteorder("="), copy=False)
                    done += 1
        except _DAMAGED as error:
            raise EdgeLstmError(
                f"{self.where} ends early or is damaged at frame {done}", found=error
            ) from error


def open_npy(path: Path) -> Source:
    """Frames shape[1:] of one array."""
    array = _stored(str(path), lambda: path.open("rb"), path.stat().st_size)
    return _source(f"array {path}", array.shape[0], path.stem, array.frames)


def open_npy_folder(folder: Path, files: Sequence[Path], follow: Follow | None = None) -> Source:
    """One array a file, such as the range-Doppler cube of a radar; in natural order."""
    follow = follow or Follow()
    ordered = sorted(files, key=natural)

    def read(path: Path, index: int) -> Frame:
        where = f"{path} (frame {index})"
        try:
            with path.open("rb") as stream:
                shape, _, dtype = _read_header(stream)
                check_frame_size(where, shape, dtype)
                _check_numbers(where, dtype)
                stream.seek(0)
                data: Array = npy.read_array(stream, allow_pickle=False)
        except _DAMAGED as error:
            raise EdgeLstmError(f"{where}: not a NumPy array, or a damaged one", found=error) from error
        return Frame(index, None, path.name, data.astype(data.dtype.newbyteorder("="), copy=False))

    def frames() -> Iterator[Frame]:
        return files_as_frames(
            folder,
            ordered,
            read,
            suffixes=(".npy",),
            order=natural,
            follow=follow,
            skip_last=False,
            settle=True,
        )

    length = None if follow.on else len(ordered)
    return Source(
        f"arrays in {folder}",
        frames,
        length=length,
        look=True,
        stopped=follow.stopped,
        leaves_out=follow.on,
        holds={path.name for path in ordered}.__contains__,
    )


def open_npz(path: Path, key: str | None) -> Source:
    """Frames of array ``key``; without it, of ``frames`` or of the only array; else mappings of all arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename[:-4]: i for i in archive.infolist() if i.filename.endswith(".npy")}
            renamed: dict[str, str] = {}
            if key is None and "attrs" in members:
                # Outputs of a run: what is said beside the values is no frame.
                members = {n: m for n, m in members.items() if n not in ("attrs", "name", "stream", "time")}
            elif key is None and "kept" in members:
                # Frames that the service kept: beside them lie times and states.
                renamed = _renamed(archive, members["kept"])
                members = {
                    n: m
                    for n, m in members.items()
                    if n not in ("kept", "times") and not n.startswith("state.")
                }
    except _DAMAGED as error:
        raise EdgeLstmError(f"{path}: not an .npz file, or a damaged one", found=error) from error
    if not members or (key is not None and key not in members):
        raise EdgeLstmError(
            f"{path}: no array{'' if key is None else f' {key!r}'}",
            found=", ".join(members) or "an empty archive",
            expected=f"{path.name}:NAME with one of these names" if members else None,
        )
    if key is None and "frames" in members:
        key = "frames"
    arrays = {
        renamed.get(name, name): _stored(
            f"{path}:{name}", partial(_Member, path, f"{name}.npy"), members[name].file_size
        )
        for name in ([key] if key is not None else sorted(members))
    }
    lengths = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise EdgeLstmError(
            f"{path}: arrays of different length",
            found=", ".join(f"{name} {length}" for name, length in lengths.items()),
            expected="one length, or one array chosen",
            hint=f"Choose with {path.name}:NAME",
        )
    length = next(iter(lengths.values()))
    if len(arrays) == 1:
        name, array = next(iter(arrays.items()))
        return _source(f"array {path}:{name}", length, path.stem, array.frames)

    def frames() -> Iterator[dict[str, Array]]:
        for together in zip(*(array.frames() for array in arrays.values()), strict=True):
            yield dict(zip(arrays, together, strict=True))

    return _source(f"arrays {', '.join(arrays)} in {path}", length, path.stem, frames)


def _renamed(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> dict[str, str]:
    """What the service that kept frames says of names: those in the file, and the inputs that they are."""
    if member.file_size > MAX_SAID:
        raise ValueError(f"{member.filename} of {count_of(member.file_size, 'byte')}")
    with archive.open(member) as stream:
        _read_header(stream)
        told = json.loads(stream.read())
    return {str(stored): str(name) for name, stored in told.get("inputs", {}).items()}


def _source(description: str, length: int, stem: str, frames: Callable[[], Iterator[Any]]) -> Source:
    def numbered() -> Iterator[Frame]:
        for index, data in enumerate(frames()):
            yield Frame(index, None, f"{stem}[{index}]", data)

    return Source(description, numbered, length=length)


class _Member:
    """A member of a zip archive as a stream that closes its archive with itself."""

    def __init__(self, path: Path, name: str) -> None:
        with ExitStack() as stack:
            self._stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(path)).open(name))
            self._open = stack.pop_all()

    def __enter__(self) -> IO[bytes]:
        return self._stream

    def __exit__(self, *error: Any) -> None:
        self._open.close()


def _stored(where: str, open_stream: Callable[[], Any], size: int) -> Stored:
    """Read and check the header; ``size`` is that of the whole .npy file."""
    try:
        with open_stream() as stream:
            shape, fortran, dtype = _read_header(stream)
            header = stream.tell()
    except _DAMAGED as error:
        raise EdgeLstmError(f"{where}: not a NumPy array, or a damaged one", found=error) from error
    _check_numbers(where, dtype)
    if not shape or shape[0] < 1:
        raise EdgeLstmError(
            f"{where}: no frames", found=list(shape), expected="time on axis 0, at least one frame"
        )
    check_frame_size(where, shape[1:], dtype)
    frame = math.prod(shape[1:]) * dtype.itemsize
    if size - header < shape[0] * frame:
        raise EdgeLstmError(
            f"{where} ends early at frame {(size - header) // frame}",
            found=f"{count_of(size - header, 'byte')}",
            expected=f"{shape[0] * frame} for {dtype}{list(shape)}",
            hint="The file is truncated",
        )
    if fortran and shape[0] * frame > MAX_FILE_BYTES:
        raise EdgeLstmError(
            f"{where}: stored in Fortran order, so it can't be read frame by frame",
            found=f"{count_of(shape[0] * frame, 'byte')}",
            expected=f"at most {MAX_FILE_BYTES}",
            hint="Save it with numpy.ascontiguousarray",
        )
    return Stored(where, open_stream, shape, dtype, fortran)


def _check_numbers(where: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        hint = "Write magnitude and phase, or real and imaginary parts" if dtype.kind == "c" else None
        raise EdgeLstmError(
            f"{where}: dtype",
            found=dtype,
            expected="numbers",
            hint=hint or "Objects and text are not frames",
        )


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    # NumPy parses a header with `ast`, and CPython 3.11.7 was seen to take another thread's parsing in between for a fault of its own
    # ("AST constructor recursion depth mismatch"): a file in order must not look broken for that.
    begin = stream.tell()
    with _PARSING:
        for _ in range(9):
            with suppress(SystemError):
                return _header_of(stream)
            stream.seek(begin)
        return _header_of(stream)


def _header_of(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"format {version[0]}.{version[1]}, which is for structured arrays")
