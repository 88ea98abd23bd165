"""Snapshots: the state of one stream, the model it is of, and the file it is kept in."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import MAX_FILE_BYTES, PathLike, read_bytes, write_bytes
from edgelstm.graph.signature import RESERVED
from edgelstm.runtime.protocol import Array

SCHEMA = 1
#: 4.5, as the header of a part in a snapshot has it: it leaves room for large sizes.
ZIP_VERSION = (45).to_bytes(2, "little")
#: In the file, beside the arrays: JSON that says what they are.
KEY = RESERVED


def _as_any_python(held: io.BytesIO) -> bytes:
    """An ``.npz`` file as Python 3.11.4 and later write it; earlier ones leave room for large sizes and do not say so.

    The same state is the same bytes, whoever writes it.
    """
    data = bytearray(held.getvalue())
    with zipfile.ZipFile(held) as parts:
        place = parts.start_dir
        for part in parts.infolist():
            start = part.header_offset
            data[start + 4 : start + 6] = ZIP_VERSION
            data[start + 18 : start + 26] = b"\xff" * 8  # the sizes stand behind the name
            data[place + 4], data[place + 6] = ZIP_VERSION[0], ZIP_VERSION[0]
            place += 46 + sum(int.from_bytes(data[place + k : place + k + 2], "little") for k in (28, 30, 32))
    return bytes(data)


class Snapshot(dict[str, Array]):
    """Arrays by state name. model: which one the state is of (:func:`edgelstm.runtime.identity.model_identity`); empty: unknown.

    A dictionary made of it, and what ``np.savez(path, **snapshot)`` writes, no longer knows its model: use :meth:`save`.
    """

    def __init__(self, states: Mapping[str, Array], model: str = "") -> None:
        super().__init__(states)
        self.model = model

    def __repr__(self) -> str:
        states = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in list(self.items())[:5])
        more = f" and {len(self) - 5} more" if len(self) > 5 else ""
        return f"Snapshot({states}{more}, model {self.model[:12] or 'unknown'})"

    @classmethod
    def of(cls, given: Mapping[str, Array], where: str = "snapshot") -> Snapshot:
        """``given`` as a Snapshot: one already, arrays alone, or what ``np.load`` read of either kind of file."""
        if isinstance(given, Snapshot):
            return given
        states = {str(name): given[name] for name in given}
        described = states.pop(KEY, None)
        return cls(states, "" if described is None else _model(described, where))

    def save(self, path: PathLike) -> None:
        """Write it to an ``.npz`` file, whole or not at all."""
        if not str(path).lower().endswith(".npz"):
            raise EdgeLstmError(f"snapshot {path}", expected="a path ending with .npz")
        held = io.BytesIO()
        said = json.dumps({"schema": SCHEMA, "model": self.model})
        # As np.savez, whose own arguments no state could have the names of ("file").
        with zipfile.ZipFile(held, "w") as parts:
            for name, array in {**self, KEY: np.array(said)}.items():
                with parts.open(f"{name}.npy", "w", force_zip64=True) as part:
                    np.lib.format.write_array(part, np.asanyarray(array), allow_pickle=False)
        write_bytes(path, _as_any_python(held))

    @classmethod
    def load(cls, path: PathLike) -> Snapshot:
        """Read what :meth:`save` wrote, or an ``.npz`` file of plain arrays. Raises EdgeLstmError for anything else."""
        data = io.BytesIO(read_bytes(path))
        try:
            with zipfile.ZipFile(data) as parts:
                size = sum(part.file_size for part in parts.infolist())
                if size > MAX_FILE_BYTES:
                    raise EdgeLstmError(
                        f"snapshot {path} is too large", found=f"{count_of(size, 'byte')} unpacked"
                    )
                return cls.of(_arrays(parts), str(path))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
            raise EdgeLstmError(
                f"{path} is no snapshot", found=str(error).splitlines()[0], expected="an .npz file"
            ) from error


def _arrays(parts: zipfile.ZipFile) -> dict[str, Array]:
    """By name. What np.load gives takes one array for another where a state is called ``h`` and another ``h.npy``."""
    found: dict[str, Array] = {}
    for part in parts.infolist():
        name = part.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"the entry {name!r} twice")
        with parts.open(part) as file:
            array = found[name] = np.lib.format.read_array(file, allow_pickle=False)
        if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
            raise ValueError(f"the entry {name!r} holds what is neither true nor false")
    return found


def _model(described: Any, where: str) -> str:
    """The model that a file's JSON names."""
    try:
        said = json.loads(str(np.asarray(described)))
        schema, model = said["schema"], said["model"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EdgeLstmError(f"{where}: entry {KEY!r}", found=str(error), expected="JSON") from error
    if schema != SCHEMA or not isinstance(model, str):
        raise EdgeLstmError(
            f"{where}: schema", found=schema, expected=SCHEMA, hint="Another version of edgelstm wrote it"
        )
    return model
