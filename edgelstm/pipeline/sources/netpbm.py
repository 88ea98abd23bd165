"""PBM, PGM and PPM, plain and raw, of any maximum value. Source: the format's man pages pbm(5), pgm(5), ppm(5).

Pillow and FFmpeg stretch values to 8 or 16 bits; a camera of 10 bits writes 0 to 1023 and a model wants those.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sources.source import Array, check_frame_size

_SPACE = rb"(?:\s|#[^\n\r]*[\n\r])+"
_BITS = re.compile(rb"P([14])" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})")
_VALUES = re.compile(rb"P([2356])" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})")


def is_netpbm(magic: bytes) -> bool:
    """Whether a file begins as P1 to P6 do."""
    return len(magic) > 2 and magic[:1] == b"P" and magic[1:2] in b"123456" and magic[2:3] in b" \t\n\r\v\f#"


def read_netpbm(path: Path, where: str) -> tuple[Array, tuple[float, float], tuple[str, ...]]:
    """(array, values of black and white, what is to be said): stored values, uint8 or uint16, [H, W] or [H, W, 3]."""
    data = path.read_bytes()
    head = _BITS.match(data) or _VALUES.match(data)
    if head is None:
        raise EdgeLstmError(
            f"{where}: not an image, or a damaged one", found="a header that is not of P1 to P6"
        )
    kind, width, height = (int(part) for part in head.groups()[:3])
    top = 1 if kind in (1, 4) else int(head[4])
    if not 1 <= top <= 65535:
        raise EdgeLstmError(f"{where}: maximum value", found=top, expected="1 to 65535")
    shape = (height, width, 3) if kind in (3, 6) else (height, width)
    dtype = np.dtype(np.uint8 if top < 256 else np.uint16)
    check_frame_size(where, shape, dtype)
    read = _plain if kind < 4 else _raw
    values, rest = read(data[head.end() :], kind, shape, top)
    if values is None:
        raise EdgeLstmError(f"{where}: not an image, or a damaged one", found="too few values, or wrong ones")
    if is_netpbm(rest.lstrip()[:4]):
        raise EdgeLstmError(
            f"{where}: several images in one file", expected="one", hint="Split it into files"
        )
    if values.max() > top:
        raise EdgeLstmError(
            f"{where}: value", found=int(values.max()), expected=f"at most {top}, as its header says"
        )
    if kind in (1, 4):
        return (1 - values) * np.uint8(255), (0.0, 255.0), ("PBM: 1 bit, black 0 and white 255",)
    name = "PPM: RGB" if len(shape) == 3 else "PGM: grey"
    return values.astype(dtype), (0.0, float(top)), (f"{name}, values 0 to {top} as stored",)


def _plain(raster: bytes, kind: int, shape: tuple[int, ...], top: int) -> tuple[Array | None, bytes]:
    raster = re.sub(rb"#[^\n\r]*", b"", raster)
    tokens = re.findall(rb"[01]", raster) if kind == 1 else raster.split()
    count = int(np.prod(shape))
    if len(tokens) != count or not all(len(t) < 8 and t.isdigit() for t in tokens):
        return None, b""
    numbers = np.array([int(t) for t in tokens], np.int64).reshape(shape)
    return numbers.astype(np.uint8) if kind == 1 else numbers, b""


def _raw(raster: bytes, kind: int, shape: tuple[int, ...], top: int) -> tuple[Array | None, bytes]:
    raster = raster[1:]  # one white space ends the header
    height, width = shape[:2]
    if kind == 4:
        stride = -(-width // 8)
        if len(raster) < height * stride:
            return None, b""
        rows = np.frombuffer(raster, np.uint8, height * stride).reshape(height, stride)
        return np.unpackbits(rows, axis=1)[:, :width], raster[height * stride :]
    dtype = np.dtype(np.uint8 if top < 256 else ">u2")
    size = int(np.prod(shape)) * dtype.itemsize
    if len(raster) < size:
        return None, b""
    return np.frombuffer(raster[:size], dtype).reshape(shape), raster[size:]
