"""A decoded video picture as an array, in the depth of its file: FFmpeg's pixel formats, colour matrices and ranges."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.sources.source import Array
from edgelstm.pipeline.sources.upright import Turn, matrix_turn

#: Matrices that FFmpeg's scaler knows, by number (ITU-T H.273). For others it takes BT.601 without a word.
_MATRICES = {
    1: "BT.709",
    4: "FCC",
    5: "BT.601",
    6: "BT.601",
    7: "SMPTE 240M",
    9: "BT.2020",
}
_UNSPECIFIED = 2
_OTHER_MATRICES = {0: "RGB in a YUV format", 8: "YCgCo", 10: "BT.2020 constant luminance", 14: "ICtCp"}
_LIMITED, _FULL = 1, 2
_TRANSFER = {16: "PQ (SMPTE 2084)", 18: "HLG (ARIB STD-B67)"}


def read_picture(
    av: Any, picture: Any, where: str, *, luma: bool = False, look: bool = False
) -> tuple[Array, tuple[float, float] | None, tuple[str, ...]]:
    """(array, values of black and white, what was done) of a picture: grey [H, W], else RGB [H, W, 3], upright.

    uint8 to 8 bits, uint16 above (10 bits: 0 to 1023), float32 as stored. Grey keeps its stored values. ``luma``: the
    file is grey, though it was decoded to YUV. ``look``: see whether the stated range can be true. Raises EdgeLstmError, naming the format, for what can't be read without a loss or a guess.
    """
    form = picture.format
    name = form.name
    if name.startswith("bayer") or name.startswith("xyz"):
        raise EdgeLstmError(
            f"{where}: pixel format",
            found=f"{name}, {'a raw colour pattern' if name.startswith('bayer') else 'CIE XYZ'}",
            expected="grey, RGB or YUV",
            hint="Convert it first, e.g. with ffmpeg",
        )
    parts = [part for part in form.components if not part.is_alpha]
    bits = 8 if form.has_palette else max(part.bits for part in parts)
    grey = len(parts) == 1 and not form.has_palette
    if grey or luma:
        array = _luma(picture, bits) if luma and not grey else _grey(picture, bits, where)
        notes = [f"{name}: grey, {_depth(bits)}, values as stored"]
        if picture.color_range == _LIMITED and 8 <= bits <= 16:
            notes.append(
                f"the file says limited range: black is {16 << bits - 8}, white {235 << bits - 8}, not stretched"
            )
    else:
        array, colours = _colour(av, picture, bits, where)
        notes = [f"{name}: RGB, {_depth(max(bits, 8))}", *colours]
        if look and name.startswith("yuv") and picture.color_range != _FULL:
            notes += _outside(picture, bits)
    if len(parts) != len(form.components):
        notes.append("alpha channel left out")
    if picture.color_trc in _TRANSFER:
        notes.append(f"HDR values as coded by {_TRANSFER[picture.color_trc]}, no tone mapping")
    if picture.interlaced_frame:
        notes.append("interlaced: both fields in one frame, as stored")
    turn = _turn(av, picture, where)
    values = None if bits == 32 else (0.0, 255.0 if bits <= 8 else float(2**bits - 1))
    return turn(array) if turn != Turn() else array, values, (*notes, *turn.notes())


def _depth(bits: int) -> str:
    return "float32" if bits == 32 else f"{bits} bits"


def _grey(picture: Any, bits: int, where: str) -> Array:
    if bits <= 8:
        target = "gray"
    elif bits == 32:
        target = "grayf32le"
    elif bits in (9, 10, 12, 14, 16):
        target = f"gray{bits}le"
    else:
        raise _unknown(picture, where)
    if bits == 32 and picture.format.name != target:
        raise _unknown(picture, where)
    array: Array = picture.to_ndarray(format=target)
    return array


def _luma(picture: Any, bits: int) -> Array:
    plane = picture.planes[0]
    stored = np.frombuffer(plane, np.uint8 if bits <= 8 else "<u2")
    rows = stored.reshape(-1, plane.line_size // stored.itemsize)
    return np.ascontiguousarray(rows[: picture.height, : picture.width], stored.dtype.newbyteorder("="))


def _outside(picture: Any, bits: int) -> list[str]:
    """A word on luma that limited range has no place for: sharpening makes a little of it, a wrong tag much."""
    if picture.format.name.startswith("yuvj"):
        return []
    luma = _luma(picture, bits)
    share = np.mean((luma < 16 << bits - 8) | (luma > 235 << bits - 8))
    if share < 0.02:
        return []
    return [
        f"{share:.0%} of the first frame lies outside limited range ({luma.min()} to {luma.max()}) and is cut: "
        "if full range is meant, the file must say so"
    ]


def _colour(av: Any, picture: Any, bits: int, where: str) -> tuple[Array, list[str]]:
    form = picture.format
    if form.is_rgb or form.has_palette:
        if bits == 32 and form.name not in ("gbrpf32le", "gbrapf32le"):
            raise _unknown(picture, where)
        target = {8: "rgb24", 16: "rgb48le", 32: "gbrpf32le"}.get(max(bits, 8), f"gbrp{bits}le")
        return picture.to_ndarray(format=target), []
    matrix = picture.colorspace
    if matrix not in _MATRICES and matrix != _UNSPECIFIED:
        raise EdgeLstmError(
            f"{where}: colours",
            found=f"{_OTHER_MATRICES.get(matrix, f'matrix {int(matrix)} of H.273')} ({form.name})",
            expected="BT.601, BT.709, BT.2020, FCC or SMPTE 240M",
            hint="Convert it first, e.g. with ffmpeg",
        )
    full = picture.color_range == _FULL or form.name.startswith("yuvj")
    said = picture.color_range != 0 or form.name.startswith("yuvj")
    said_range = f"{'full' if full else 'limited'} range"
    if matrix != _UNSPECIFIED and said:
        note = f"colours by {_MATRICES[matrix]}, {said_range}, as the file says"
    elif matrix != _UNSPECIFIED:
        note = f"colours by {_MATRICES[matrix]}, as the file says; limited range, for it does not say"
    elif said:
        note = f"colours by BT.601, for the file does not say; {said_range}, as it says"
    else:
        note = "colours by BT.601, limited range, for the file does not say"
    if bits <= 8:
        return picture.to_ndarray(format="rgb24"), [note]
    # To planes: on its quick way to packed RGB the scaler loses the low bits and interpolates colour coarsely.
    array = picture.to_ndarray(format=f"gbrp{bits}le")
    top = 2**bits - 1
    white = top if full else _white(av, bits)
    if white != top:
        array = np.minimum(np.rint(array * np.float32(top / white)), top).astype(np.uint16)
    return array, [note]


@lru_cache
def _white(av: Any, bits: int) -> int:
    """What the scaler makes of white in limited range: 255 shifted up, 1020 of 10 bits, where 1023 is right."""
    frame = av.VideoFrame(16, 16, f"yuv444p{bits}le")
    for plane, level in zip(frame.planes, (235, 128, 128), strict=True):
        plane.update(np.full(plane.buffer_size // 2, level << bits - 8, np.uint16).tobytes())
    frame.color_range = _LIMITED
    frame.colorspace = 1
    return int(frame.to_ndarray(format=f"gbrp{bits}le").max())


def _turn(av: Any, picture: Any, where: str) -> Turn:
    matrix = picture.side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
    return Turn() if matrix is None else matrix_turn(where, bytes(matrix))


def _unknown(picture: Any, where: str) -> EdgeLstmError:
    return EdgeLstmError(f"{where}: pixel format", found=picture.format.name, expected="grey, RGB or YUV")
