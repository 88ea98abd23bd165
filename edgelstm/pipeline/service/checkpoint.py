"""Checkpoints: the states of all streams in one file, written whole or not at all, and found again after a crash.

A file is ``MAGIC``, the length of the header (8 bytes, little-endian), the header (JSON: schema, when it was written, and for each
section of the pipeline file what its streams had seen), the states' bytes, and the SHA-256 of all that. So a file that
was cut short, by a full disk or a lost supply, is known for what it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.files import MAX_FILE_BYTES, atomic_path, read_bytes
from edgelstm.graph.signature import Quantization, Signature
from edgelstm.runtime.protocol import Array

log = logging.getLogger("edgelstm.serve")

SCHEMA = 1
MAGIC = b"EDGELSTM-CHECKPOINT\n"
#: Files that stay: the newest, and one to fall back to.
KEPT = 2
_NAME = re.compile(r"^checkpoint-(\d{1,12})\.state$")
_DIGEST = 32
#: Counters that sinks write.
DELIVERED = ("delivered", "undelivered", "written_before")


@dataclass(frozen=True)
class StreamPart:
    """One stream: index and time stamp of the last frame that its state has seen, its counters, and the state. timed: the stamp is by the clock that
    the next frame's is by; not where the section's ``rate`` changed and no frame came since."""

    index: int
    stamp: float
    counts: dict[str, int] = field(default_factory=dict)
    states: dict[str, Array] = field(default_factory=dict)
    timed: bool = True

    def with_delivered(self, counts: dict[str, int]) -> StreamPart:
        """The same with what sinks have done since: outputs that waited are delivered when its frames are all stepped."""
        since = {n: c for n, c in counts.items() if n.partition(":")[0] in DELIVERED}
        return replace(self, counts={**self.counts, **since})


@dataclass(frozen=True)
class Whose:
    """The model whose states a checkpoint has, where that may matter later. file: its name. kin: hashes of the models that it took
    over from while the service ran, whose states mean the same. stored: of each state, what its numbers are stored as: dtype, and scale and zero
    point where they are quantised."""

    file: str = ""
    kin: tuple[str, ...] = ()
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, file: str, kin: tuple[str, ...], signature: Signature) -> Whose:
        """That of a model that runs."""
        stored: dict[str, dict[str, Any]] = {}
        for spec in signature.states:
            stored[spec.name] = {"dtype": spec.dtype}
            if spec.quantization is not None:
                stored[spec.name] |= {
                    "scale": list(spec.quantization.scale),
                    "zero_point": spec.quantization.zero_point,
                }
        return cls(file, kin, stored)

    def specs(self, signature: Signature) -> Signature:
        """``signature`` with its states stored as they were. Raises EdgeLstmError when it has other states."""
        if {s.name for s in signature.states} != set(self.stored):
            raise EdgeLstmError("its states are others", found=sorted(self.stored))
        states = []
        for spec in signature.states:
            was = self.stored[spec.name]
            coded = None if "scale" not in was else Quantization(tuple(was["scale"]), was["zero_point"])
            states.append(replace(spec, dtype=was["dtype"], initial=None, quantization=coded))
        return replace(signature, states=tuple(states))


@dataclass(frozen=True)
class SectionPart:
    """One section of the pipeline file.

    model: hash of its file. setup: hash of what the section says of source and preprocessing. first: name of the first frame of the source, which tells whether a source still begins where it
    did. marks: length in bytes of each file of lines, by sink, before the states were read: what lies behind that is of frames
    since, or was written already. floor: all frames up to this index are dealt with. streams: by name; gone: those that ended behind ``floor``, and
    the last ones before it, with the index of their last frame.
    """

    model: str
    setup: str
    first: str | None
    floor: int
    streams: dict[str, StreamPart]
    gone: dict[str, int] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    #: What the alarms know, by name.
    alarms: dict[str, Any] = field(default_factory=dict)
    #: What frames without a time were stamped by; empty where it is not known.
    clock: str = ""
    #: Hash of what the section says of the source alone; empty where it is not known.
    origin: str = ""
    whose: Whose = field(default_factory=lambda: Whose())
    #: Name of the frame at ``floor``; empty where it is not known.
    last: str = ""
    #: Hash of all that is done to a frame before the model takes it, what the models declare too; empty where it is not known. Hash of the scales that
    #: the source brought it to: None where that is not known.
    made: str = ""
    scales: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """written: seconds since 1970. sections: by name."""

    written: float
    sections: dict[str, SectionPart]

    def to_bytes(self) -> bytes:
        """The file."""
        payload: list[bytes] = []
        end = 0

        def placed(state: Array) -> dict[str, Any]:
            nonlocal end
            data = np.ascontiguousarray(state).tobytes()
            payload.append(data)
            begin, end = end, end + len(data)
            return {"dtype": state.dtype.str, "shape": list(state.shape), "begin": begin, "end": end}

        sections = {
            name: {
                "model": s.model,
                "setup": s.setup,
                "first": s.first,
                "floor": s.floor,
                "gone": s.gone,
                "marks": s.marks,
                "alarms": s.alarms,
                "clock": s.clock,
                "origin": s.origin,
                "last": s.last,
                "made": s.made,
                "scales": s.scales,
                "whose": {
                    "file": s.whose.file,
                    "kin": list(s.whose.kin),
                    "stored": s.whose.stored,
                },
                "streams": {
                    stream: {
                        "index": p.index,
                        "stamp": p.stamp,
                        "timed": p.timed,
                        "counts": p.counts,
                        "states": {state: placed(a) for state, a in p.states.items()},
                    }
                    for stream, p in s.streams.items()
                },
            }
            for name, s in self.sections.items()
        }
        try:
            header = json.dumps(
                {"schema": SCHEMA, "written": self.written, "sections": sections}, allow_nan=False
            ).encode()
        except ValueError as error:
            raise EdgeLstmError("a checkpoint", found=str(error)) from error
        body = MAGIC + len(header).to_bytes(8, "little") + header + b"".join(payload)
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "checkpoint") -> Checkpoint:
        """The inverse. Raises EdgeLstmError for anything else."""
        begin = len(MAGIC) + 8
        if not data.startswith(MAGIC[: len(data)]):
            raise EdgeLstmError(f"{where} is no checkpoint", found=repr(data[:20]), expected=repr(MAGIC))
        if len(data) < begin + _DIGEST or hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
            raise EdgeLstmError(f"{where} was cut short or changed", found=f"{count_of(len(data), 'byte')}")
        length = int.from_bytes(data[len(MAGIC) : begin], "little")
        payload = memoryview(data)[begin + length : -_DIGEST]
        try:
            header = json.loads(data[begin : begin + length])
            if header["schema"] != SCHEMA:
                raise EdgeLstmError(
                    f"{where}: schema",
                    found=header["schema"],
                    expected=SCHEMA,
                    hint="Another version wrote it",
                )
            sections = {str(n): _section(s, payload) for n, s in header["sections"].items()}
            return cls(_number(header["written"]), sections)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise EdgeLstmError(f"{where} is damaged", found=f"{type(error).__name__}: {error}") from None


def _section(raw: Any, payload: memoryview) -> SectionPart:
    streams = {
        str(name): StreamPart(
            int(s["index"]),
            _number(s["stamp"]),
            {str(n): int(c) for n, c in s["counts"].items()},
            {str(n): _state(a, payload) for n, a in s["states"].items()},
            bool(s.get("timed", True)),
        )
        for name, s in raw["streams"].items()
    }
    first = None if raw["first"] is None else str(raw["first"])
    gone = {str(n): int(i) for n, i in raw["gone"].items()}
    marks = {str(n): int(i) for n, i in raw["marks"].items()}
    alarms = {str(n): a for n, a in raw.get("alarms", {}).items()}  # there were none at first
    clock, origin = str(raw.get("clock", "")), str(raw.get("origin", ""))
    return SectionPart(
        str(raw["model"]),
        str(raw["setup"]),
        first,
        int(raw["floor"]),
        streams,
        gone,
        marks,
        alarms,
        clock,
        origin,
        _whose(raw.get("whose")),
        str(raw.get("last", "")),
        str(raw.get("made", "")),
        None if raw.get("scales") is None else str(raw["scales"]),
    )


def _whose(raw: Any) -> Whose:
    if raw is None:  # it was not written at first
        return Whose()
    stored: dict[str, dict[str, Any]] = {}
    for name, was in raw["stored"].items():
        stored[str(name)] = {"dtype": str(was["dtype"])}
        if "scale" in was:
            stored[str(name)] |= {
                "scale": [_number(v) for v in was["scale"]],
                "zero_point": int(was["zero_point"]),
            }
    return Whose(str(raw["file"]), tuple(map(str, raw["kin"])), stored)


def _state(raw: Any, payload: memoryview) -> Array:
    dtype, shape = np.dtype(str(raw["dtype"])), tuple(int(n) for n in raw["shape"])
    begin, end = int(raw["begin"]), int(raw["end"])
    if dtype.hasobject or dtype.itemsize == 0 or any(n < 0 for n in shape):
        raise ValueError(f"a state of {dtype}{list(shape)}")
    if not 0 <= begin <= end <= len(payload) or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a state at bytes {begin} to {end} of {len(payload)}")
    return np.frombuffer(payload[begin:end], dtype).reshape(shape)


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} for a number")
    return number


class Folder:
    """The checkpoints of one service: the newest two stay."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            for rest in path.glob(".checkpoint-*.state"):  # of one that was killed while it wrote
                rest.unlink(missing_ok=True)
        except OSError as error:
            raise EdgeLstmError(f"can't make the folder {path}", found=error.strerror) from error
        self._number = max((n for n, _ in self._files()), default=0)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write one more. Raises EdgeLstmError, and the others stay, when that fails."""
        target = self.path / f"checkpoint-{self._number + 1:06d}.state"
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            file.write(checkpoint.to_bytes())
            file.flush()
            os.fsync(file.fileno())  # the name must not outlive the bytes
        self._number += 1
        for _, old in self._files()[KEPT:]:
            old.unlink(missing_ok=True)
        return target

    def load(self) -> tuple[Checkpoint, Path] | None:
        """The newest that is whole; the log says what is wrong with others. None without one."""
        for _, path in self._files():
            try:
                return Checkpoint.from_bytes(read_bytes(path, MAX_FILE_BYTES), str(path)), path
            except EdgeLstmError as error:
                log.warning("checkpoint left out: %s", error)
        return None

    def _files(self) -> list[tuple[int, Path]]:
        """Newest first."""
        try:
            found = [(int(m.group(1)), p) for p in self.path.iterdir() if (m := _NAME.match(p.name))]
        except OSError as error:
            raise EdgeLstmError(f"can't read the folder {self.path}", found=error.strerror) from error
        return sorted(found, reverse=True)
