"""Arrays as a ZeroMQ message, for sources and sinks: a JSON header, then the bytes of each array.

Part 0 is the header, UTF-8, at most :data:`MAX_HEADER` bytes, ``version`` and ``stream`` first and without spaces before it, so that :func:`topic` is what a subscriber filters by::

    {"version":1,"stream":"north","index":7,"time":1.25,"name":"f7","arrays":{"y":{"dtype":"float32","shape":[2,3]}}}

``time`` is in seconds (from the stream's first frame, or null); ``index`` counts a stream's frames from 0, so a subscriber sees what it missed. Each further
part holds an array in the header's order: C order, little-endian, one of :data:`DTYPES`. Further keys are passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.runtime.protocol import Array

VERSION = 1
#: Bytes of a header and of an array, and arrays in a message, at most.
MAX_HEADER = 64 * 1024
MAX_BYTES = 512 * 1024**2
MAX_ARRAYS = 64
DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32"),
    *("uint64", "int64", "float16", "float32", "float64"),
)


@dataclass(frozen=True)
class Message:
    """One step of one stream. arrays: by name. time: seconds from the stream's first frame."""

    stream: str
    index: int
    arrays: Mapping[str, Array] = field(default_factory=dict)
    time: float | None = None
    name: str = ""


def topic(stream: str) -> bytes:
    """How a message of ``stream`` begins, of that stream alone: what a SUB socket subscribes to."""
    return (_begin(stream) + ",").encode()


def _begin(stream: str) -> str:
    return f'{{"version":{VERSION},"stream":{json.dumps(stream)}'


def encode(message: Message) -> list[bytes | memoryview]:
    """The parts. Arrays are not copied where they lie as they are sent: they must not change before that."""
    arrays = {name: _plain(name, array) for name, array in message.arrays.items()}
    rest = {
        "index": message.index,
        "time": None if message.time is None or not math.isfinite(message.time) else message.time,
        "name": message.name,
        "arrays": {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in arrays.items()},
    }
    header = _begin(message.stream) + "," + json.dumps(rest, separators=(",", ":"), allow_nan=False)[1:]
    return [header.encode(), *(a.reshape(-1).view(np.uint8).data for a in arrays.values())]


def decode(parts: Sequence[bytes | memoryview]) -> Message:
    """The inverse. Arrays share the memory of ``parts``. Raises EdgeLstmError for anything else, without allocating for it."""
    try:
        if not parts or len(parts[0]) > MAX_HEADER:
            raise ValueError(f"a header of {count_of(len(parts[0]) if parts else 0, 'byte')}")
        header = json.loads(bytes(parts[0]))
        if header["version"] != VERSION:
            raise ValueError(f"version {header['version']!r}, this is {VERSION}")
        said = header["arrays"].items()
        if len(said) != len(parts) - 1 or len(said) > MAX_ARRAYS:
            raise ValueError(
                f"{count_of(len(said), 'array')} in the header and {len(parts) - 1} parts behind it"
            )
        time, index, stream = header.get("time"), header["index"], header["stream"]
        if time is not None and not math.isfinite(time):
            raise ValueError(f"the time {time}")
        if not isinstance(index, int) or isinstance(index, bool) or index < 0 or not isinstance(stream, str):
            raise ValueError(f"index {index!r} of stream {stream!r}")
        arrays = {
            str(name): _array(name, spec, part) for (name, spec), part in zip(said, parts[1:], strict=True)
        }
        return Message(
            stream, index, arrays, None if time is None else float(time), str(header.get("name", ""))
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise EdgeLstmError(
            "a ZeroMQ message",
            found=f"{type(error).__name__}: {error}"[:200],
            expected="a JSON header and an array in each further part, see docs/serve.md",
        ) from None


def _plain(name: str, array: Array) -> Array:
    if array.dtype.name not in DTYPES:
        raise EdgeLstmError(f"array {name!r} in a ZeroMQ message", found=array.dtype, expected=DTYPES)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _array(name: str, spec: Any, part: bytes | memoryview) -> Array:
    if spec["dtype"] not in DTYPES:
        raise ValueError(f"array {name!r} of {spec['dtype']!r}")
    dtype, shape = np.dtype(spec["dtype"]).newbyteorder("<"), spec["shape"]
    if not isinstance(shape, list) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"array {name!r} of shape {shape!r}")
    size = math.prod(shape) * dtype.itemsize
    if size != len(part) or size > MAX_BYTES:
        raise ValueError(f"array {name!r}: {count_of(len(part), 'byte')} for {spec['dtype']}{shape}")
    return np.frombuffer(part, dtype).reshape(shape)
