"""HDF5 as an untrusted format: a process of its own reads the file, within limits of size, memory and time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError
from edgelstm.files import MAX_FILE_BYTES

Float32 = npt.NDArray[np.float32]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: A configuration is text; the largest seen are a few hundred kB.
MAX_TEXT = 64 * 1024**2
MAX_OBJECTS = 200_000
#: Deflate packs at most 1032 to 1. Weights pack badly, so what claims much more than it stores is no set of weights.
MAX_RATIO = 200
_SLACK = 2**20
#: Python, NumPy and h5py map about 1 GB; each array is held twice.
_MEMORY = 6 * 1024**3
_READER = Path(__file__).with_name("hdf5_reader.py")
#: Starting takes about 0.2 s; a slow disk reads 10 MB/s.
_SECONDS, _BYTES_A_SECOND = 20.0, 10e6


class Hdf5:
    """What Keras keeps in one HDF5 file, read whole: groups, names in attributes, arrays as float32.

    source: the file's path, or its bytes. ``where`` names it in messages. Every problem is an EdgeLstmError: a file that is
    damaged, on which the library crashes or does not end, or that claims more than it holds; links and data sets that
    lead out of the file; and a missing h5py.
    """

    def __init__(self, source: Path | bytes, where: str, seconds: float | None = None) -> None:
        self.where = where
        header, data, start = self._run(source, seconds)
        self._groups: dict[str, list[str]] = header["groups"]
        self._attributes: dict[str, dict[str, Any]] = header["attributes"]
        self._links: dict[str, str] = header["links"]
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._data = data
        for path, shape in header["arrays"]:
            self._places[path] = start, tuple(shape)
            start += 4 * math.prod(shape)
        if start != len(data):
            raise self._broken("the reader was cut off")

    def names(self, path: str) -> list[str]:
        """Names inside a group; none where there is no such group."""
        self._refuse_links(path)
        return self._groups.get(path, [])

    def array(self, path: str) -> Float32:
        """A data set of numbers, as float32."""
        self._refuse_links(path)
        if path not in self._places:
            raise EdgeLstmError(f"{self.where}: {path} is missing", expected="a data set of numbers")
        offset, shape = self._places[path]
        if not math.prod(shape):
            raise EdgeLstmError(
                f"{self.where}: {path}", found=f"shape {list(shape)}", expected="an array with elements"
            )
        flat = np.frombuffer(self._data, "<f4", math.prod(shape), offset)
        return np.array(flat, np.float32).reshape(shape)

    def text(self, path: str, attribute: str) -> str | None:
        """An attribute that holds text; None where there is none."""
        return self._attributes.get(path, {}).get(attribute)

    def texts(self, path: str, attribute: str) -> list[str]:
        """An attribute that holds names, which long lists keep in pieces ``name0``, ``name1``, ..."""
        self._refuse_links(path)
        held = self._attributes.get(path, {})
        if attribute in held:
            return list(held[attribute])
        pieces = [held[f"{attribute}{k}"] for k in range(len(held)) if f"{attribute}{k}" in held]
        return [name for piece in pieces for name in piece]

    def has(self, path: str) -> bool:
        """Whether there is something at ``path``."""
        return path in self._groups or path in self._places or path in self._links

    def _refuse_links(self, path: str) -> None:
        for link, kind in self._links.items():
            if path == link or path.startswith(f"{link}/"):
                raise EdgeLstmError(
                    f"{self.where}: {link} is a link to elsewhere",
                    found=kind,
                    expected="weights inside the file",
                )

    def _run(self, source: Path | bytes, seconds: float | None) -> tuple[dict[str, Any], bytes, int]:
        """The reader's header, everything it wrote, and where the arrays begin."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        limits = {
            "path": None if isinstance(source, bytes) else str(source.absolute()),
            "size": size,
            "bytes": MAX_FILE_BYTES,
            "text": MAX_TEXT,
            "objects": MAX_OBJECTS,
            "ratio": MAX_RATIO,
            "slack": _SLACK,
            "memory": _MEMORY + 6 * size,
        }
        allowed = _SECONDS + size / _BYTES_A_SECOND if seconds is None else seconds
        try:
            done = subprocess.run(
                [sys.executable, str(_READER), json.dumps(limits)],
                input=source if isinstance(source, bytes) else b"",
                capture_output=True,
                timeout=allowed,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise self._broken(f"no end after {allowed:.0f} s") from error
        except OSError as error:
            raise EdgeLstmError(
                "can't start the process that reads HDF5", found=error.strerror or str(error)
            ) from error
        end = done.stdout.find(b"\n")
        if done.returncode or end < 0:
            raise self._broken(f"the HDF5 library stopped with code {done.returncode}")
        header = json.loads(done.stdout[:end])
        if refused := header.get("error"):
            if "missing" in refused:
                raise EdgeLstmError(
                    "Keras files hold their weights in HDF5, and h5py is not installed",
                    hint="pip install 'edgelstm[keras]'",
                )
            if "broken" in refused:
                raise self._broken(refused["broken"])
            raise EdgeLstmError(
                f"{self.where}: {refused['what']}", found=refused["found"], expected=refused["expected"]
            )
        return header, done.stdout, end + 1

    def _broken(self, found: str) -> EdgeLstmError:
        return EdgeLstmError(f"{self.where}: its HDF5 part is damaged or truncated", found=found)
