"""The sidecar of an engine: what a TensorRT plan was made from and for, in JSON beside it.

A plan says nothing of states, and opening one made for another TensorRT or GPU fails in ways that depend on the
version; some crash. So the loader reads ``model.plan.json`` first. The engine's own name, which TensorRT keeps in the
plan as text, is ``edgelstm-`` and the sidecar's digest: a plan and a sidecar of two builds are told apart without a GPU.

Standard library and NumPy only: a small device reads it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import PathLike, check_file, read_bytes
from edgelstm.graph.signature import Signature
from edgelstm.runtime.identity import file_sha256

SCHEMA = 1
SUFFIX = ".json"
#: A sidecar holds a Signature, whose initial states may be arrays; a plan may be larger than an ONNX file.
MAX_SIDECAR_BYTES = 64 * 1024**2
MAX_PLAN_BYTES = 16 * 1024**3
NAME_PREFIX = "edgelstm-"
#: Among the hashes: of the plan itself, where its name can't be read in it.
PLAN = "plan"

RuntimeName = Literal["tensorrt", "tensorrt-rtx"]
Gates = Literal["native", "plugin"]


@dataclass(frozen=True, repr=False)
class Sidecar:
    """What is known of a plan.

    runtime, version: which library built it, and its version, such as "10.3.0.26".
    targets: compute capabilities it runs on, such as ("8.7",); empty: those its library builds for by default.
    gpu: name of the GPU it was built on; None when it was built without one.
    gates: whether FusedGates are standard operators (native) or the plugin.
    streams: (fewest, usual, most) rows of a call.
    precision: the types the graph's products read, such as ("int8", "float16").
    options: what else was asked of the builder, JSON values by name.
    hashes: SHA-256 of what it was made from: ``onnx`` (the step graph's file), and where there was one ``calibration``
    and ``plugin`` (the plugin library); of the ``plan`` itself, if its engine's name does not stand in it as text.
    plan_bytes: size of the plan; 0 while it is not built yet.
    """

    signature: Signature
    runtime: RuntimeName
    version: str
    streams: tuple[int, int, int] = (1, 1, 1)
    targets: tuple[str, ...] = ()
    gpu: str | None = None
    gates: Gates = "native"
    precision: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    plan_bytes: int = 0

    def __repr__(self) -> str:
        streams = ":".join(map(str, self.streams))
        return f"Sidecar({self.runtime} {self.version}, {', '.join(self.precision)}, gates {self.gates}, streams {streams})"

    @property
    def engine_name(self) -> str:
        """The name to give the network before it is built: it ties the plan to this sidecar."""
        content = self.to_json()
        del content["plan_bytes"]
        content["hashes"] = {name: value for name, value in self.hashes.items() if name != PLAN}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return NAME_PREFIX + digest[:32]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data |= {name: list(data[name]) for name in ("streams", "targets", "precision")}
        return {"schema": SCHEMA, **data, "signature": self.signature.to_json()}

    def dumps(self) -> str:
        """Text of the sidecar's file."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    @classmethod
    def loads(cls, text: str, where: str = "sidecar") -> Sidecar:
        """Read what :meth:`dumps` wrote. Raises EdgeLstmError, naming ``where``, for anything else."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EdgeLstmError(f"{where} is no JSON", found=str(error)) from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise EdgeLstmError(
                f"{where} is no sidecar this version reads",
                found=f"schema {found}",
                expected=f"schema {SCHEMA}",
                hint="Build the engine again with this version of edgelstm",
            )
        wrong = [name for name, check in _CHECKS.items() if not check(data.get(name))]
        if wrong:
            raise EdgeLstmError(
                f"{where}: key {wrong[0]!r}",
                found=json.dumps(data.get(wrong[0]))[:80],
                expected="what `edgelstm build-engine` writes",
                hint="Build the engine again",
            )
        values: dict[str, Any] = {f.name: data.get(f.name) for f in fields(cls)}
        values |= {name: tuple(values[name]) for name in ("streams", "targets", "precision")}
        return cls(**{**values, "signature": Signature.loads(json.dumps(data["signature"]), where)})


def sidecar_path(plan: PathLike) -> Path:
    """Where the sidecar of ``plan`` lies: ``model.plan`` has ``model.plan.json``."""
    return Path(f"{plan}{SUFFIX}")


def load_sidecar(plan: PathLike) -> Sidecar:
    """The sidecar of ``plan``, checked against the plan's bytes without opening it in TensorRT.

    Raises EdgeLstmError when either file is missing, the sidecar can't be read, or the plan is not the one it tells of.
    """
    source = check_file(plan, MAX_PLAN_BYTES)
    path = sidecar_path(plan)
    if not path.is_file():
        raise EdgeLstmError(
            f"{plan} has no sidecar: nothing tells its states, or which TensorRT and GPU it was built for",
            expected=str(path),
            hint="Copy both files of an engine, or build it with edgelstm build-engine",
        )
    try:
        text = read_bytes(path, MAX_SIDECAR_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise EdgeLstmError(f"{path} is no JSON", found="bytes that are no UTF-8") from error
    sidecar = Sidecar.loads(text, str(path))
    size = source.stat().st_size
    if size != sidecar.plan_bytes:
        raise EdgeLstmError(
            f"{plan} is not the plan that {path.name} tells of",
            found=f"{count_of(size, 'byte')}",
            expected=f"{count_of(sidecar.plan_bytes, 'byte')}",
            hint="One of the files was cut short or replaced: copy both again, or build the engine again",
        )
    found = engine_name_in(source)
    if found is None and PLAN in sidecar.hashes:
        # Seen as text in plans of TensorRT for RTX; another version may keep it otherwise, and said so when it built this one.
        found = sidecar.engine_name if file_sha256(source) == sidecar.hashes[PLAN] else "of other bytes"
    if found != sidecar.engine_name:
        raise EdgeLstmError(
            f"{plan} is not the plan that {path.name} tells of",
            found=f"engine {found or 'without our name'}",
            expected=f"engine {sidecar.engine_name}",
            hint="One of the files was edited or replaced: copy both again, or build the engine again",
        )
    return sidecar


def engine_name_in(plan: Path) -> str | None:
    """The name TensorRT wrote into the plan, if it is one of ours."""
    if plan.stat().st_size == 0:
        return None
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.search(NAME_PREFIX.encode() + rb"[0-9a-f]{32}", data)
        return found[0].decode() if found else None


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _streams(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(v) is int for v in value)
        and 1 <= value[0] <= value[1] <= value[2]
    )


def _profiles(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) > 0 and all(_streams(p) for p in value))


_CHECKS: dict[str, Any] = {
    "signature": lambda v: isinstance(v, dict),
    "runtime": lambda v: v in ("tensorrt", "tensorrt-rtx"),
    "version": lambda v: isinstance(v, str),
    "streams": _streams,
    "targets": _texts,
    "gpu": lambda v: v is None or isinstance(v, str),
    "gates": lambda v: v in ("native", "plugin"),
    "precision": _texts,
    "options": lambda v: isinstance(v, dict) and _profiles(v.get("profiles")),
    "hashes": lambda v: isinstance(v, dict) and all(isinstance(x, str) for x in v.values()),
    "plan_bytes": lambda v: type(v) is int and v > 0,
}
