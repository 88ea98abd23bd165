"""ONNX files without onnx: the parts of an ONNX graph that whole cells are found in, read from and written to its bytes.

A device that runs step graphs has no onnx installed. What is not looked at is carried over byte for byte.

Source: onnx.proto3 of ONNX, and the encoding of Protocol Buffers (varint, 32-bit and length-delimited fields).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field

import numpy as np

from edgelstm.runtime.protocol import Array

FLOAT, UINT8, INT8, INT64, BFLOAT16 = 1, 2, 3, 7, 16  # of TensorProto
#: TensorProto's numbers of all floating-point types; 17 and above: 8 bits and fewer.
FLOATS = frozenset({1, 10, 11, 16, *range(17, 21), 23, 24})

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_OPSETS, _MODEL_GRAPH = 8, 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 1, 5, 11, 12, 13
_GRAPHS = (6, 11)  # of an attribute: g, graphs

Attribute = int | float | str | list[int] | None


@dataclass(frozen=True)
class Tensor:
    """An initialiser. ``raw``: its bytes as ONNX has them, little-endian; None where they are stored in another way. elsewhere: in
    another file."""

    dims: tuple[int, ...]
    dtype: int
    raw: memoryview | None
    elsewhere: bool = False

    def floats(self) -> Array | None:
        """Its values; None if it is no complete float32 tensor."""
        if self.dtype != FLOAT or self.raw is None or self.raw.nbytes != 4 * math.prod(self.dims):
            return None
        values: Array = np.frombuffer(self.raw, "<f4").reshape(self.dims)
        return values

    def bytes_as(self, dtype: int, kind: str) -> Array | None:
        """Its values as NumPy's ``kind``; None if it is no complete tensor of ``dtype``."""
        size = np.dtype(kind).itemsize * math.prod(self.dims)
        if self.dtype != dtype or self.raw is None or self.raw.nbytes != size:
            return None
        values: Array = np.frombuffer(self.raw, kind).reshape(self.dims)
        return values

    def ints(self) -> list[int] | None:
        """Its values; None if it is no complete int64 tensor."""
        if self.dtype != 7 or self.raw is None or self.raw.nbytes != 8 * math.prod(self.dims):
            return None
        return [int(v) for v in np.frombuffer(self.raw, "<i8")]


@dataclass(eq=False)
class Node:
    """One node. ``data``: its bytes as they stand in the file; None for one that was made here."""

    op: str
    inputs: list[str]
    outputs: list[str]
    domain: str = ""
    attributes: dict[str, Attribute] = field(default_factory=dict)
    data: memoryview | None = None
    nested: bool = False

    def encode(self) -> bytes | memoryview:
        """As a NodeProto."""
        if self.data is not None:
            return self.data
        parts = [_text(1, name) for name in self.inputs] + [_text(2, name) for name in self.outputs]
        parts += [_text(4, self.op), _text(7, self.domain)]
        for name, value in self.attributes.items():
            if isinstance(value, float):
                body = _tag(2, _FIXED32) + struct.pack("<f", value) + _tag(20, _VARINT) + b"\1"
            else:
                assert isinstance(value, int)
                body = _tag(3, _VARINT) + _varint(value) + _tag(20, _VARINT) + b"\2"
            parts.append(_block(5, _text(1, name) + body))
        return b"".join(parts)


class OnnxGraph:
    """The main graph of an ONNX file. Raises ValueError for bytes that are none.

    nodes: to be edited in place. inputs: names and element types of the graph's inputs.
    """

    def __init__(self, data: bytes) -> None:
        self._model = list(_fields(memoryview(data)))
        graph = next(
            (value for number, kind, value in self._model if (number, kind) == (_MODEL_GRAPH, _BYTES)), None
        )
        if not isinstance(graph, memoryview):
            raise ValueError("no graph")
        self._graph = list(_fields(graph))
        self.nodes = [_node(value) for value in self._all(_NODE)]
        self.tensors = dict(_tensor(value) for value in self._all(_INITIALIZER))
        self.tensors |= {name: tensor for node in self.nodes for name, tensor in _constant(node)}
        self.inputs = dict(_typed(value) for value in self._all(_INPUT))
        #: -1 for a size that is not fixed.
        self.input_sizes = {_name(value): _dims(value) for value in self._all(_INPUT)}
        #: None where a size is not fixed.
        self.input_shapes = {
            name: None if sizes is None or -1 in sizes else sizes for name, sizes in self.input_sizes.items()
        }
        self.outputs = {_name(value) for value in self._all(_OUTPUT)}
        self._made: list[bytes] = []

    def has_external_weights(self) -> bool:
        """Whether some initialiser lies in another file."""
        return any(tensor.elsewhere for tensor in self.tensors.values())

    def opset(self, domain: str) -> int | None:
        """The version of a domain that the file imports."""
        for value in (v for n, k, v in self._model if (n, k) == (_MODEL_OPSETS, _BYTES)):
            assert isinstance(value, memoryview)
            found = {number: v for number, _, v in _fields(value)}
            if _string(found.get(1, b"")) == domain:
                version = found.get(2, 0)
                return version if isinstance(version, int) else None
        return None

    def add_floats(self, name: str, values: Array) -> None:
        """One more initialiser, float32."""
        self.add(name, np.ascontiguousarray(values, "<f4"))

    def add(self, name: str, values: Array) -> None:
        """One more initialiser: float32, int8, int64, or bfloat16 as uint16."""
        dtype = (
            INT64 if values.dtype == np.int64 else {"f": FLOAT, "i": INT8, "u": BFLOAT16}[values.dtype.kind]
        )
        raw = values.tobytes()
        dims = b"".join(_tag(1, _VARINT) + _varint(d) for d in values.shape)
        body = dims + _tag(2, _VARINT) + _varint(dtype) + _text(8, name) + _block(9, raw)
        self._made.append(_block(_INITIALIZER, body))
        self.tensors[name] = Tensor(values.shape, dtype, memoryview(raw))

    def declare(self, name: str, like: str, dtype: int) -> bool:
        """Say that a value of that type has as many axes, of the same sizes, as an input of the graph; False where that is none, or has no
        shape. ONNX Runtime does not know it of what our operators make, and leaves a convolution of it in a slower layout."""
        info = next((value for value in self._all(_INPUT) if _name(value) == like), None)
        for place in (2, 1, 2):  # type, tensor_type, shape
            if info is not None:
                info = next(
                    (v for n, _, v in _fields(info) if n == place and isinstance(v, memoryview)), None
                )
        if info is None:
            return False
        tensor = _tag(1, _VARINT) + _varint(dtype) + _block(2, bytes(info))
        if name not in self.outputs and all(
            _name(value) != name for value in self._all(_VALUE_INFO)
        ):  # which say it
            self._made.append(_block(_VALUE_INFO, _text(1, name) + _block(2, _block(1, tensor))))
        return True

    def give(self, names: Iterable[str]) -> None:
        """More outputs; their types are left to whoever opens the file."""
        for name in names:
            self._made.append(_block(_OUTPUT, _text(1, name)))
            self.outputs.add(name)

    def part(self, nodes: Sequence[Node], inputs: Mapping[str, int], outputs: Iterable[str]) -> bytes:
        """A file of these nodes and the initialisers that they read: inputs with their element types, outputs by name."""
        part = copy(self)
        part._graph = [f for f in self._graph if f[0] not in (_INPUT, _OUTPUT, _VALUE_INFO)]
        part._made = []
        part.nodes, part.inputs, part.outputs = list(nodes), {}, set()
        for name, dtype in inputs.items():
            tensor = _block(1, _tag(1, _VARINT) + _varint(dtype))
            part._made.append(_block(_INPUT, _text(1, name) + _block(2, tensor)))
        part.give(outputs)
        return part.encode("edgelstm", 1)

    def encode(self, domain: str, version: int) -> bytes:
        """The file with the nodes as they are now, and no initialiser that none of them reads; importing ``domain`` too."""
        used = {name for node in self.nodes for name in node.inputs} | self.outputs
        graph: list[bytes | memoryview] = []
        for node in self.nodes:
            graph += _parts(_NODE, node.encode())
        for number, kind, value in self._graph:
            if (number, kind) == (_NODE, _BYTES):
                continue
            if (number, kind) == (_INITIALIZER, _BYTES) and _tensor(value)[
                0
            ] not in used | self.inputs.keys():
                continue
            graph += _any(number, kind, value)
        graph += self._made
        model: list[bytes | memoryview] = []
        for number, kind, value in self._model:
            if (number, kind) != (_MODEL_GRAPH, _BYTES):
                model += _any(number, kind, value)
        if self.opset(domain) is None:
            model.append(_block(_MODEL_OPSETS, _text(1, domain) + _tag(2, _VARINT) + _varint(version)))
        size = sum(len(part) for part in graph)
        return b"".join([*model, _tag(_MODEL_GRAPH, _BYTES), _varint(size), *graph])

    def _all(self, number: int) -> Iterator[memoryview]:
        return (v for n, k, v in self._graph if (n, k) == (number, _BYTES) and isinstance(v, memoryview))


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(number, kind, value) of a message's fields: ints, or the bytes of all others."""
    at, end = 0, len(data)
    while at < end:
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield key >> 3, kind, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("a field of an unknown kind")
        if size > end - at:
            raise ValueError("cut short")
        yield key >> 3, kind, data[at : at + size]
        at += size


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _node(data: memoryview) -> Node:
    node = Node("", [], [], data=data)
    for number, _, value in _fields(data):
        if number == 1:
            node.inputs.append(_string(value))
        elif number == 2:
            node.outputs.append(_string(value))
        elif number == 4:
            node.op = _string(value)
        elif number == 7:
            domain = _string(value)
            node.domain = "" if domain == "ai.onnx" else domain
        elif number == 5 and isinstance(value, memoryview):
            name, found, nested = _attribute(value)
            node.attributes[name] = found
            node.nested = node.nested or nested
    return node


def _constant(node: Node) -> Iterator[tuple[str, Tensor]]:
    """The name and tensor of a Constant of int64: axes, sizes, places."""
    if node.domain or node.op != "Constant" or node.data is None:
        return
    for attribute in (v for n, _, v in _fields(node.data) if n == 5 and isinstance(v, memoryview)):
        for value in (v for n, _, v in _fields(attribute) if n == 5 and isinstance(v, memoryview)):
            _, tensor = _tensor(value)
            if tensor.dtype == INT64:
                yield node.outputs[0], tensor


def _attribute(data: memoryview) -> tuple[str, Attribute, bool]:
    """Name, value (None for kinds that are not looked at), and whether a graph lies in it."""
    name, found, nested = "", None, False
    numbers: list[int] = []
    value: Attribute = None
    for number, _, found in _fields(data):
        if number == 1:
            name = _string(found)
        elif number == 2 and isinstance(found, memoryview):
            (value,) = struct.unpack("<f", found)
        elif number == 3 and isinstance(found, int):
            value = _signed(found)
        elif number == 4:
            value = _string(found)
        elif number == 8:
            numbers += [_signed(n) for n in _ints(found)]
            value = numbers
        elif number in _GRAPHS:
            nested = True
    return name, value, nested


def _tensor(data: int | memoryview) -> tuple[str, Tensor]:
    assert isinstance(data, memoryview)
    dims: list[int] = []
    name, dtype, raw, elsewhere = "", 0, None, False
    small: list[int] = []  # int32_data, where types of fewer bits are if they are not raw
    for number, _, value in _fields(data):
        if number == 1:
            dims += [_signed(n) for n in _ints(value)]
        elif number == 2 and isinstance(value, int):
            dtype = value
        elif number == 8:
            name = _string(value)
        elif number in (4, 9) and isinstance(value, memoryview) and raw is None:
            raw = value  # float_data is packed: the same bytes
        elif number == 7 and isinstance(value, memoryview):
            raw = memoryview(np.array([_signed(n) for n in _ints(value)], "<i8").tobytes())
        elif number == 5:
            small += [_signed(n) for n in _ints(value)]
        elif number in (13, 14):
            elsewhere = elsewhere or value != 0
    if small and raw is None and dtype == INT8 and all(-128 <= n <= 127 for n in small):
        raw = memoryview(np.array(small, np.int8).tobytes())
    whole = not elsewhere and min(dims, default=0) >= 0
    return name, Tensor(tuple(dims), dtype, raw if whole else None, elsewhere)


def _typed(data: memoryview) -> tuple[str, int]:
    """Name and element type (0: no tensor) of a ValueInfoProto."""
    elem = 0
    for number, _, kind in _fields(data):
        if number == 2 and isinstance(kind, memoryview):
            for which, _, tensor in _fields(kind):
                if which == 1 and isinstance(tensor, memoryview):
                    elem = next((v for n, _, v in _fields(tensor) if n == 1 and isinstance(v, int)), 0)
    return _name(data), elem


def _dims(data: memoryview) -> tuple[int, ...] | None:
    """The shape in a ValueInfoProto of a tensor, -1 for a size that is not fixed; None where it has none."""
    for place in (2, 1, 2):  # type, tensor_type, shape
        inner = next((v for n, _, v in _fields(data) if n == place and isinstance(v, memoryview)), None)
        if inner is None:
            return None
        data = inner
    dims: list[int] = []
    for _, _, dim in _fields(data):
        if not isinstance(dim, memoryview):
            return None
        size = next((v for n, _, v in _fields(dim) if n == 1 and isinstance(v, int)), -1)
        dims.append(size if 0 <= size < 1 << 40 else -1)
    return tuple(dims)


def _name(data: memoryview) -> str:
    return next((_string(value) for number, _, value in _fields(data) if number == 1), "")


def _ints(value: int | memoryview) -> Sequence[int]:
    """A repeated number, packed or one at a time."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        number, at = _read_varint(value, at)
        found.append(number)
    return found


def _string(value: int | bytes | memoryview) -> str:
    if isinstance(value, int):
        raise ValueError("a number where a name is expected")
    return bytes(value).decode()  # UnicodeDecodeError is a ValueError


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _parts(number: int, data: bytes | memoryview) -> list[bytes | memoryview]:
    return [_tag(number, _BYTES), _varint(len(data)), data]


def _block(number: int, data: bytes) -> bytes:
    return b"".join(_parts(number, data))


def _text(number: int, value: str) -> bytes:
    return _block(number, value.encode())


def _any(number: int, kind: int, value: int | memoryview) -> list[bytes | memoryview]:
    if isinstance(value, int):
        return [_tag(number, kind), _varint(value)]
    return _parts(number, value) if kind == _BYTES else [_tag(number, kind), value]
