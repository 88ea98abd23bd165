"""The kernels' code compiled by g++ (host_loop.cpp) and called through ctypes; tensors in every type and layout."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from ctypes import POINTER, Structure, c_bool, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import building
from edgelstm.graph.gates import GateVariant

Array = npt.NDArray[Any]

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"

FLOAT, HALF, INT8, BF16 = 0, 1, 2, 7
LINEAR, HWC8, CHW32 = 0, 2, 5
DTYPES: dict[int, npt.DTypeLike] = {
    FLOAT: np.float32,
    HALF: np.float16,
    INT8: np.int8,
    BF16: ml_dtypes.bfloat16,
}
#: Channels are padded to a multiple of these.
MULTIPLE = {LINEAR: 1, HWC8: 8, CHW32: 32}


class TensorForm(Structure):
    _fields_: ClassVar = [("type", c_int32), ("layout", c_int32)]


class Forms(Structure):
    _fields_: ClassVar = [("z", TensorForm), ("c", TensorForm), ("h", TensorForm)]


class Variant(Structure):
    _fields_: ClassVar = [
        ("peephole", c_bool),
        ("hard_sigmoid", c_bool),
        ("alpha", c_float),
        ("beta", c_float),
        ("candidate_relu", c_bool),
        ("output_relu", c_bool),
        ("cell_clip", c_float),
        ("coupled", c_bool),
    ]


class Peephole(Structure):
    _fields_: ClassVar = [("data", c_void_p), ("map", c_bool)]


class Params(Structure):
    """FusedGatesParams."""

    _fields_: ClassVar = [
        ("variant", Variant),
        ("forms", Forms),
        ("h_scale", c_float),
        ("streams", c_int32),
        ("channels", c_int32),
        ("spatial", c_int64),
        ("z", c_void_p),
        ("c", c_void_p),
        ("p_i", Peephole),
        ("p_f", Peephole),
        ("p_o", Peephole),
        ("h_old", c_void_p),
        ("active", c_void_p),
        ("h", c_void_p),
        ("c_out", c_void_p),
        ("non_finite", c_void_p),
    ]


class Access(Structure):
    _fields_: ClassVar = [
        ("address", c_uint64),
        ("bytes", c_uint32),
        ("thread", c_uint32),
        ("write", c_uint32),
        ("order", c_uint32),
    ]


ACCESS = np.dtype([(name, np.uint64 if kind is c_uint64 else np.uint32) for name, kind in Access._fields_])


def compile_host_loop() -> ctypes.CDLL:
    """The host loop as a library; the test is skipped where there is no C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler: g++ is not on the PATH and CXX is not set")
    source = Path(__file__).with_name("host_loop.cpp")
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-fPIC"]
    command = [compiler, *flags, "-shared", f"-I{PLUGINS / 'include'}", str(source)]
    files = [*(PLUGINS / "include").rglob("*.h"), *source.parent.glob("*.cpp"), *source.parent.glob("*.h")]
    host = ctypes.CDLL(str(building.library("libhost_loop.so", command, files)))
    host.fused_gates.restype = ctypes.c_char_p
    host.supported.restype = c_bool
    host.fused_gates_watched.restype = c_uint64
    assert host.size_of_params() == ctypes.sizeof(Params), "host_library.Params differs from FusedGatesParams"
    return host


def variant_struct(v: GateVariant) -> Variant:
    fields = v.plugin_fields()
    return Variant(**{name: fields[name] for name, _ in Variant._fields_})


def table(host: ctypes.CDLL) -> list[tuple[tuple[int, int], ...]]:
    """Every supported ((z type, layout), (c type, layout), (h type, layout)), asked of the C++ table."""
    forms = [(kind, layout) for kind in DTYPES for layout in MULTIPLE]
    found = [
        (z, c, h)
        for z in forms
        for c in forms
        for h in forms
        if host.supported(ctypes.byref(Forms(TensorForm(*z), TensorForm(*c), TensorForm(*h))))
    ]
    assert found
    return found


@dataclass(frozen=True)
class Tensor:
    """Memory of a tensor [N, K, S] in one type and layout, with guard bytes around it.

    form: (type, layout). shift: bytes between a multiple of 64 and the first element.
    """

    raw: npt.NDArray[np.uint8] = field(repr=False)
    start: int
    size: int
    form: tuple[int, int]
    shape: tuple[int, int, int]

    GUARD: ClassVar[int] = 256
    FILL: ClassVar[int] = 0xA5

    @classmethod
    def of(
        cls, values: Array | None, form: tuple[int, int], shape: tuple[int, int, int], shift: int = 0
    ) -> Tensor:
        """A tensor that holds ``values`` [N, K, S], or FILL bytes."""
        streams, channels, spatial = shape
        padded = -(-channels // MULTIPLE[form[1]]) * MULTIPLE[form[1]]
        size = streams * padded * spatial * np.dtype(DTYPES[form[0]]).itemsize
        raw = np.full(size + 2 * cls.GUARD + 128, cls.FILL, np.uint8)
        start = -raw.ctypes.data % 64 + cls.GUARD + shift
        tensor = cls(raw, start, size, form, shape)
        if values is not None:
            body = np.full((streams, padded, spatial), cls.FILL, np.uint8).astype(DTYPES[form[0]])
            if form[0] != INT8:
                body[:] = np.nan  # padding that leaks shows
            with np.errstate(over="ignore"):
                body[:, :channels] = values
            raw[start : start + size] = _arranged(body, form[1]).reshape(-1).view(np.uint8)
        return tensor

    @property
    def address(self) -> int:
        return self.raw.ctypes.data + self.start

    def padded(self) -> Array:
        """The values [N, padded K, S]."""
        streams, _, spatial = self.shape
        flat = self.raw[self.start : self.start + self.size].copy().view(DTYPES[self.form[0]])
        if self.form[1] == HWC8:
            return flat.reshape(streams, spatial, -1).transpose(0, 2, 1)
        if self.form[1] == CHW32:
            blocks = flat.reshape(streams, -1, spatial, 32).transpose(0, 1, 3, 2)
            return blocks.reshape(streams, -1, spatial)
        return flat.reshape(streams, -1, spatial)

    def values(self) -> Array:
        """The values [N, K, S]."""
        return self.padded()[:, : self.shape[1]]

    def guards_intact(self) -> bool:
        outside = np.delete(self.raw, slice(self.start, self.start + self.size))
        return bool((outside == self.FILL).all())


def _arranged(body: Array, layout: int) -> Array:
    """[N, padded K, S] in the order of ``layout``."""
    streams, _, spatial = body.shape
    if layout == HWC8:
        return np.ascontiguousarray(body.transpose(0, 2, 1))
    if layout == CHW32:
        return np.ascontiguousarray(body.reshape(streams, -1, 32, spatial).transpose(0, 1, 3, 2))
    return np.ascontiguousarray(body)


def pointers(p: Params) -> Iterator[tuple[Any, str, int]]:
    """Where each pointer is kept, and how many bytes lie behind it."""

    def size(form: Any, channels: int) -> int:
        padded = -(-channels // MULTIPLE[form.layout]) * MULTIPLE[form.layout]
        return p.streams * padded * p.spatial * np.dtype(DTYPES[form.type]).itemsize

    width = np.dtype(DTYPES[p.forms.c.type]).itemsize
    gates = 3 if p.variant.coupled else 4
    yield p, "z", size(p.forms.z, gates * p.channels)
    for name in ("c", "c_out"):
        yield p, name, size(p.forms.c, p.channels)
    for name in ("h", "h_old"):
        yield p, name, size(p.forms.h, p.channels)
    for peephole in (p.p_i, p.p_f, p.p_o):
        yield peephole, "data", p.channels * (p.spatial if peephole.map else 1) * width
    for name in ("active", "non_finite"):
        yield p, name, 4 * p.streams


def watched(host: ctypes.CDLL, params: Params) -> Array:
    """Every access of the loop as a record array: address, bytes, thread, write, order."""
    first = POINTER(Access)()
    count = host.fused_gates_watched(ctypes.byref(params), ctypes.byref(first))
    if not count:
        return np.empty(0, ACCESS)
    buffer = ctypes.string_at(first, count * ctypes.sizeof(Access))
    return np.frombuffer(buffer, ACCESS)


def markdown_table(host: ctypes.CDLL) -> list[str]:
    """The supported forms as plugins/README.md shows them: a line for each set of layouts and types."""
    names = {FLOAT: "fp32", HALF: "fp16", BF16: "bf16", INT8: "int8"}
    layouts = {LINEAR: "linear", HWC8: "HWC8", CHW32: "CHW32"}
    rows: dict[tuple[int, ...], list[set[int]]] = {}
    for forms in table(host):
        types = rows.setdefault(tuple(layout for _, layout in forms), [set(), set(), set()])
        for seen, (kind, _) in zip(types, forms, strict=True):
            seen.add(kind)
    lines = ["| z | c | h |", "| --- | --- | --- |"]
    for key, types in sorted(rows.items()):
        cells = [
            f"{layouts[layout]}: {', '.join(names[k] for k in names if k in seen)}"
            for layout, seen in zip(key, types, strict=True)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
