"""HDF5 as an untrusted format: only plain numbers that lie inside the file, their sizes checked before they are read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edgelstm.errors import EdgeLstmError
from edgelstm.files import MAX_FILE_BYTES

Float32 = npt.NDArray[np.float32]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: A configuration is text; the largest seen are a few hundred kB.
MAX_TEXT = 64 * 1024**2
MAX_NAMES = 100_000
#: Deflate packs at most 1032 to 1. Weights pack badly, so what claims much more than it stores is no set of weights.
MAX_RATIO = 200
_SLACK = 2**20
#: Filters that come with the library; any other would load code.
_FILTERS = {1, 2, 3}  # deflate, shuffle, checksum


class Hdf5:
    """One HDF5 file in memory. Every problem, the library's own included, is an EdgeLstmError naming ``where``."""

    def __init__(self, data: bytes, where: str) -> None:
        self.where, self._size = where, len(data)
        self._h5py = _import_h5py()
        try:
            self._file = self._h5py.File(self._h5py.h5f.open_file_image(data))
        except (OSError, ValueError, RuntimeError) as error:
            raise self._broken(error) from error

    def names(self, path: str) -> list[str]:
        """Names inside a group; none where there is no such group."""
        node = self._find(path)
        if node is None or not isinstance(node, self._h5py.Group):
            return []
        try:
            if len(node) > MAX_NAMES:
                raise EdgeLstmError(
                    f"{self.where}: {path}", found=f"{len(node)} members", expected=f"at most {MAX_NAMES}"
                )
            return [str(name) for name in node]
        except (OSError, ValueError, RuntimeError, KeyError, UnicodeError) as error:
            raise self._broken(error) from error

    def array(self, path: str) -> Float32:
        """A data set of floating-point numbers, as float32."""
        node = self._find(path)
        what = f"{self.where}: {path}"
        if node is None or not isinstance(node, self._h5py.Dataset):
            raise EdgeLstmError(f"{what} is missing", expected="a data set of numbers")
        try:
            shape, dtype, stored = node.shape, node.dtype, node.id.get_storage_size()
            outside = node.external or node.is_virtual
            filters = node.id.get_create_plist()
            unknown = {filters.get_filter(k)[0] for k in range(filters.get_nfilters())} - _FILTERS
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            raise self._broken(error) from error
        if outside:
            raise EdgeLstmError(
                f"{what} keeps its numbers in another file", expected="numbers inside the file"
            )
        if unknown:
            raise EdgeLstmError(
                f"{what} is packed by a filter", found=sorted(unknown), expected="gzip or none"
            )
        if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8) or shape is None or len(shape) > 8:
            raise EdgeLstmError(what, found=f"{dtype} {shape}", expected="an array of floating-point numbers")
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_FILE_BYTES or size > stored * MAX_RATIO + _SLACK or stored > self._size:
            raise EdgeLstmError(
                f"{what} claims more numbers than the file holds",
                found=f"shape {list(shape)}, {size} bytes, {stored} stored",
                expected=f"at most {MAX_RATIO} times what is stored",
            )
        if not size:
            raise EdgeLstmError(what, found=f"shape {list(shape)}", expected="an array with elements")
        try:
            value: Any = node[()]
        except (OSError, ValueError, RuntimeError, KeyError, MemoryError) as error:
            raise self._broken(error) from error
        return np.asarray(value, np.float32)

    def text(self, path: str, attribute: str) -> str | None:
        """An attribute that holds text; None where there is none."""
        value = self._attribute(path, attribute)
        if value is None:
            return None
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise self._broken(error) from error
        return value if isinstance(value, str) else None

    def texts(self, path: str, attribute: str) -> list[str] | None:
        """An attribute that holds a list of names, which long ones keep in pieces ``name0``, ``name1``, ..."""
        whole = self._attribute(path, attribute)
        if whole is not None:
            return self._listed(whole)
        found: list[str] = []
        for k in range(MAX_NAMES):
            piece = self._attribute(path, f"{attribute}{k}")
            if piece is None:
                return found if k else None
            found += self._listed(piece)
        return found

    def has(self, path: str) -> bool:
        """Whether there is something at ``path``."""
        return self._find(path) is not None

    def close(self) -> None:
        """Free the file's memory."""
        self._file.close()

    def _find(self, path: str) -> Any:
        """What lies at ``path``, reached through plain links only; None where there is nothing."""
        node: Any = self._file
        try:
            for part in filter(None, path.split("/")):
                if not isinstance(node, self._h5py.Group) or part in (".", ".."):
                    return None
                link = node.get(part, getlink=True)
                if link is None:
                    return None
                if not isinstance(link, self._h5py.HardLink):
                    raise EdgeLstmError(
                        f"{self.where}: {path} is a link to elsewhere",
                        found=type(link).__name__,
                        expected="weights inside the file",
                    )
                node = node[part]
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, UnicodeError) as error:
            raise self._broken(error) from error
        return node

    def _attribute(self, path: str, name: str) -> Any:
        node = self._find(path)
        if node is None:
            return None
        try:
            if name not in node.attrs:
                return None
            held = node.attrs.get_id(name)
            if held.get_storage_size() > MAX_TEXT or math.prod(held.shape) > MAX_NAMES:
                raise EdgeLstmError(
                    f"{self.where}: attribute {name}",
                    found=f"{held.get_storage_size()} bytes",
                    expected=f"at most {MAX_TEXT}",
                )
            return node.attrs[name]
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, MemoryError) as error:
            raise self._broken(error) from error

    def _listed(self, value: Any) -> list[str]:
        try:
            return [v.decode() if isinstance(v, bytes) else str(v) for v in np.atleast_1d(value).tolist()]
        except (UnicodeDecodeError, ValueError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> EdgeLstmError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return EdgeLstmError(f"{self.where}: its HDF5 part is damaged or truncated", found=lines[0][:200])


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise EdgeLstmError(
            "Keras files hold their weights in HDF5, and h5py is not installed",
            hint="pip install 'edgelstm[keras]'",
        ) from error
    return h5py
