"""Opening .keras and legacy .h5 files without Keras: the configuration as JSON, the weights by their place.

Nothing in a file is executed or unpickled. Sizes are checked before anything is read.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import MAX_FILE_BYTES, PathLike, check_file
from edgelstm.frontends.keras.hdf5 import MAX_RATIO, MAX_TEXT, SIGNATURE, Float32, Hdf5
from edgelstm.frontends.keras.options import Source

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


class WeightStore(Protocol):
    """Where a file keeps its weights."""

    #: True where weights lie under each layer's own path; False where each top-level layer has one flat list.
    by_path: bool

    def arrays(self, path: str) -> list[Float32]:
        """The arrays of the layer at ``path``, in Keras's order."""

    def has(self, path: str) -> bool:
        """Whether the file holds that layer."""


@dataclass(frozen=True)
class KerasFile:
    """An opened model; ``config`` holds its class_name and config."""

    config: Mapping[str, Any]
    source: Source
    weights: WeightStore


def open_keras(path: PathLike) -> KerasFile:
    """Open a .keras archive or a legacy .h5 file; which of them it is, its first bytes tell.

    Raises EdgeLstmError for a file that is missing, too large, neither of the two, damaged, packed beyond reason,
    without a model (weights alone), or of a kind this package does not read (SavedModel, pickles).
    """
    where = str(path)
    if Path(path).is_dir():
        raise EdgeLstmError(
            f"can't read {path}",
            found="a folder",
            expected="a .keras or .h5 file",
            hint="A SavedModel holds no Keras configuration: save it again with model.save('model.keras')",
        )
    with check_file(path).open("rb") as file:
        head = file.read(len(SIGNATURE))
    if head.startswith(b"PK\x03\x04"):
        return _open_archive(path)
    if head == SIGNATURE:
        return _open_legacy(Path(path), where)
    pickled = head[:1] == b"\x80" or Path(path).suffix.lower() in (".pkl", ".pickle", ".joblib")
    raise EdgeLstmError(
        f"{where} is no Keras model"
        + (": it looks like a pickle, which can run any code" if pickled else ""),
        found=f"first bytes {head!r}" if head else "an empty file",
        expected="a .keras archive or an HDF5 file",
        hint="Save the model with model.save('model.keras')",
    )


class _ByPath:
    """The weights of a .keras archive: ``<path>/vars/0``, ``<path>/vars/1``, ..."""

    by_path = True

    def __init__(self, hdf5: Hdf5) -> None:
        self._hdf5 = hdf5

    def arrays(self, path: str) -> list[Float32]:
        names = self._hdf5.names(f"{path}/vars")
        return [self._hdf5.array(f"{path}/vars/{k}") for k in range(len(names))]

    def has(self, path: str) -> bool:
        return self._hdf5.has(path)


class _ByLayer:
    """The weights of a legacy .h5 file: for each top-level layer a list of names."""

    by_path = False

    def __init__(self, hdf5: Hdf5) -> None:
        self._hdf5 = hdf5

    def arrays(self, path: str) -> list[Float32]:
        group = f"model_weights/{path}"
        names = self._hdf5.texts(group, "weight_names")
        return [self._hdf5.array(f"{group}/{name}") for name in names]

    def has(self, path: str) -> bool:
        return self._hdf5.has(f"model_weights/{path}")


def _open_archive(path: PathLike) -> KerasFile:
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if CONFIG not in names:
                raise EdgeLstmError(
                    f"{where} is a zip archive, but no Keras model",
                    found=", ".join(names[:8]) or "nothing in it",
                    expected=f"{CONFIG}, {METADATA}, {WEIGHTS}",
                )
            if WEIGHTS not in names:
                raise EdgeLstmError(
                    f"{where}: no weights in one HDF5 file",
                    found=", ".join(names[:8]),
                    expected=WEIGHTS,
                    hint="Save the model again with model.save('model.keras')",
                )
            config = _json(_member(archive, CONFIG, MAX_TEXT, where), f"{where}: {CONFIG}")
            metadata = (
                _json(_member(archive, METADATA, MAX_TEXT, where), f"{where}: {METADATA}")
                if METADATA in names
                else {}
            )
            data = _member(archive, WEIGHTS, MAX_FILE_BYTES, where)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, ValueError) as error:
        raise EdgeLstmError(
            f"{where}: the archive is damaged or truncated", found=str(error)[:200]
        ) from error
    hdf5 = Hdf5(data, f"{where}: {WEIGHTS}")
    return KerasFile(config, Source(where, _major(metadata.get("keras_version"))), _ByPath(hdf5))


def _member(archive: zipfile.ZipFile, name: str, limit: int, where: str) -> bytes:
    """One member, never more of it than its size in the archive's table, and that only where it is plausible."""
    infos = [info for info in archive.infolist() if info.filename == name]
    info = infos[0]
    if len(infos) > 1:
        raise EdgeLstmError(f"{where}: {name} is in the archive twice", expected="once")
    if info.flag_bits & 1:
        raise EdgeLstmError(f"{where}: {name} is encrypted", expected="a plain archive")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise EdgeLstmError(
            f"{where}: {name} is packed by method {info.compress_type}", expected="stored or deflated"
        )
    if info.file_size > limit or info.file_size > info.compress_size * MAX_RATIO + 2**16:
        raise EdgeLstmError(
            f"{where}: {name} unpacks to far more than is stored",
            found=f"{count_of(info.file_size, 'byte')} from {info.compress_size}",
            expected=f"at most {count_of(limit, 'byte')}, and at most {MAX_RATIO} times what is stored",
        )
    with archive.open(info) as file:
        return file.read(info.file_size)


def _open_legacy(path: Path, where: str) -> KerasFile:
    hdf5 = Hdf5(path, where)
    text = hdf5.text("", "model_config")
    if text is None:
        alone = hdf5.has("layers") or hdf5.text("", "keras_version") or hdf5.texts("", "layer_names")
        raise EdgeLstmError(
            f"{where} holds no model: there is no configuration in it",
            found="weights alone" if alone else "an HDF5 file of something else",
            expected="the attribute model_config, as model.save writes it",
            hint=f"Build the model in Keras, model.load_weights({where!r}), then model.save('model.keras')",
        )
    version = hdf5.text("", "keras_version") or hdf5.text("model_weights", "keras_version")
    source = Source(where, _major(version, legacy=True))
    return KerasFile(_json(text, f"{where}: model_config"), source, _ByLayer(hdf5))


def _json(data: bytes | str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EdgeLstmError(f"{where} is not JSON", found=str(error)[:200]) from error
    if not isinstance(value, dict):
        raise EdgeLstmError(where, found=type(value).__name__, expected="a JSON object")
    return value


def _major(version: Any, legacy: bool = False) -> int:
    """Keras's major version; files that do not say are as old as their format allows."""
    text = version if isinstance(version, str) else ""
    number = text.split(".")[0]
    if number.isdigit() and len(number) < 4:
        return int(number)
    return 2 if legacy else 3
