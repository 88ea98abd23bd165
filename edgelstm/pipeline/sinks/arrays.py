"""Outputs as an .npz file, an array for each output."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from edgelstm.dtypes import np_dtype
from edgelstm.files import atomic_path
from edgelstm.graph.signature import Signature
from edgelstm.pipeline.place import Context
from edgelstm.pipeline.sinks.room import check_room
from edgelstm.pipeline.sources.source import Array, Frame

if TYPE_CHECKING:
    from edgelstm.pipeline.sinks import Write


#: Of an archive with few members, and of buffers.
HEADERS = 8192
#: Names under which an archive says what its steps are.
SAID = ("time", "name", "stream", "attrs")


@contextmanager
def npz(path: Path, signature: Signature, context: Context) -> Iterator[Write]:
    """Stack outputs over time, as long as the disk lasts: memory holds one frame.

    A zip archive takes one member at a time and an .npy header tells the length, known at the end; so each output
    is spooled to a file beside the target first.
    """
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(path))
        spools = {
            spec.name: stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            for spec in signature.outputs
        }
        members: dict[str, str] = {}
        for name in spools:  # ``output_time`` for one that is called as what is said of the steps
            stored = name
            while stored in SAID or (stored != name and stored in spools):
                stored = f"output_{stored}"
            members[name] = stored
        count = spooled = 0
        times = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
        texts = {
            name: _Texts(stack.enter_context(tempfile.TemporaryFile(dir=path.parent)))
            for name in ("name", "stream")
        }

        def write(frame: Frame, outputs: Mapping[str, Array], seconds: float) -> None:
            nonlocal count, spooled
            arrays = {
                s.name: np.ascontiguousarray(outputs[s.name], np_dtype(s.dtype)) for s in signature.outputs
            }
            size = sum(array.nbytes for array in arrays.values())
            # What is spooled is there twice before the end.
            check_room(path.parent, 2 * size + spooled + sum(text.size for text in texts.values()) + HEADERS)
            for name, array in arrays.items():
                spools[name].write(array.data)
            spooled += size + 8
            count += 1
            times.write(np.float64(np.nan if frame.time is None else frame.time).tobytes())
            texts["name"].add(frame.name)
            if frame.stream is not None:
                texts["stream"].add(frame.stream)

        yield write

        with zipfile.ZipFile(temporary, "w") as archive:
            for spec in signature.outputs:
                header = {
                    "descr": npy.dtype_to_descr(np_dtype(spec.dtype)),
                    "fortran_order": False,
                    "shape": (count, *spec.frame_shape),
                }
                spool = spools[spec.name]
                spool.seek(0)
                with archive.open(f"{members[spec.name]}.npy", "w", force_zip64=True) as member:
                    npy.write_array_header_2_0(member, header)
                    shutil.copyfileobj(spool, member, 1024 * 1024)
            times.seek(0)
            said: dict[str, tuple[np.dtype[Any], tuple[int, ...], Iterable[bytes]]] = {
                "time": (np.dtype(np.float64), (count,), iter(lambda: times.read(1024 * 1024), b"")),
                **{
                    name: (text.dtype, (count,), text.cells())
                    for name, text in texts.items()
                    if name == "name" or (count and text.count == count)
                },
            }
            told = np.array(json.dumps(context.to_json()))
            said["attrs"] = (told.dtype, (), [told.tobytes()])
            for name, (dtype, shape, parts) in said.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
                    npy.write_array_header_2_0(member, header)
                    for part in parts:
                        member.write(part)


class _Texts:
    """Texts spooled to a file, and back as cells of one width, as NumPy has them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._longest = 1
        self.count = 0

    def add(self, text: str) -> None:
        self._file.write(json.dumps(text).encode() + b"\n")
        self._longest = max(self._longest, len(text))
        self.count += 1

    @property
    def size(self) -> int:
        """Bytes as an array."""
        return 4 * self._longest * self.count

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"<U{self._longest}")

    def cells(self) -> Iterator[bytes]:
        self._file.seek(0)
        for line in self._file:
            yield np.array(json.loads(line), self.dtype).tobytes()
