"""Pictures inside a page: grey PNGs as data URIs, with nothing but zlib."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np

from edgelstm.runtime.protocol import Array

#: Tiles in a row of a sprite; browsers refuse pictures wider than 16,384 pixels.
COLUMNS = 16


def sprite(frames: Array, levels: int = 255) -> dict[str, Any]:
    """All frames [T, H, W] of 0..1 in one picture, ``COLUMNS`` in a row: ``src`` (data URI) and ``columns``.

    Its bytes are 0..``levels``, and 255 for NaN.
    """
    count, height, width = frames.shape
    rows = -(-count // COLUMNS)
    grey = np.zeros((rows * COLUMNS, height, width), np.uint8)
    grey[:count] = np.where(np.isnan(frames), 255, np.rint(np.clip(np.nan_to_num(frames), 0, 1) * levels))
    sheet = grey.reshape(rows, COLUMNS, height, width).swapaxes(1, 2).reshape(rows * height, COLUMNS * width)
    return {
        "src": "data:image/png;base64," + base64.b64encode(png(sheet)).decode("ascii"),
        "columns": COLUMNS,
    }


def png(pixels: Array) -> bytes:
    """An 8-bit PNG of uint8 [H, W] grey or [H, W, 3] RGB (PNG specification, section 11.2)."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    # Each row begins with its filter, 2: the difference from the row above, which packs pictures well.
    lines = np.empty((height, rows.shape[1] + 1), np.uint8)
    lines[:, 0] = 2
    lines[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros((1, rows.shape[1]), np.uint8))
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def colour_sprite(frames: Array) -> dict[str, Any]:
    """RGB frames uint8 [T, H, W, 3] in one picture, as :func:`sprite`."""
    count, height, width = frames.shape[:3]
    rows = -(-count // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, height, width, 3), np.uint8)
    sheet[:count] = frames
    whole = sheet.reshape(rows, COLUMNS, height, width, 3).swapaxes(1, 2)
    whole = whole.reshape(rows * height, COLUMNS * width, 3)
    return {
        "src": "data:image/png;base64," + base64.b64encode(png(whole)).decode("ascii"),
        "columns": COLUMNS,
    }
