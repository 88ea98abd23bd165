"""TIFF by tifffile, stored values and all: one page as a frame, or a stack whose pages are frames."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sources.source import Array, Frame, Source, check_frame_size
from edgelstm.pipeline.sources.upright import exif_turn

#: TIFF and BigTIFF, little and big-endian.
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_INVERTED, _GREY, _RGB, _PALETTE, _MASK, _YCBCR = 0, 1, 2, 3, 4, 6
_OTHERS = {5: "CMYK", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "a raw colour pattern (CFA)"}
_JPEG = (6, 7)

Read = tuple[Array, "tuple[float, float] | None", tuple[str, ...]]


def open_tiff(path: Path) -> Source:
    """Every page a frame. Stacks of time (T) or slices (Z), not of channels; ImageJ, OME and plain."""
    require("tifffile", "images", f"reading {path}")
    with _opened(path, str(path)) as stack:
        count = stack.count

    def frames() -> Iterator[Frame]:
        with _opened(path, str(path)) as stack:
            for index in range(stack.count):
                data, values, notes = stack.read(index, f"{path} (page {index})")
                yield Frame(index, None, f"{path.stem}[{index}]", data, values, notes)

    return Source(f"TIFF {path}", frames, length=count, look=True)


def read_page(path: Path, where: str) -> Read:
    """The only page of a file in a folder: (array, values of black and white, what is to be said)."""
    require("tifffile", "images", f"reading {path}")
    with _opened(path, where) as stack:
        if stack.count > 1:
            raise EdgeLstmError(
                f"{where} holds {count_of(stack.count, 'page')}",
                found="a stack in a folder of images",
                expected="one picture a file",
                hint=f"A stack is a source of its own: {path}",
            )
        return stack.read(0, where)


class _Complaints(logging.Handler):
    """What tifffile logs, and reads on from: pages that are not there, metadata that does not fit."""

    _SERIOUS = re.compile("invalid page|invalid or corrupt|failed|missing|out of bounds")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found = ""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if self._SERIOUS.search(message):
            self.found = self.found or message


@contextmanager
def _opened(path: Path, where: str) -> Iterator[_Stack]:
    import tifffile

    logger, complaints = logging.getLogger("tifffile"), _Complaints()
    before = logger.propagate
    logger.addHandler(complaints)
    logger.propagate = False
    try:
        with tifffile.TiffFile(path) as file:
            series = list(file.series)
            if complaints.found:
                raise EdgeLstmError(f"{where}: not an image, or a damaged one", found=complaints.found)
            stack = _Stack(file, series, where)
            logger.removeHandler(complaints)
            logger.propagate = before
            yield stack
    except EdgeLstmError:
        raise
    except Exception as error:  # nearly anything, on a damaged file
        raise EdgeLstmError(f"{where}: not an image, or a damaged one", found=str(error)) from error
    finally:
        logger.removeHandler(complaints)
        logger.propagate = before


class _Stack:
    """The pages of an open file that are frames. ``notes``: what is to be said of all of them."""

    def __init__(self, file: Any, series: list[Any], where: str) -> None:
        self._file = file
        whole = [s for s in series if not s.keyframe.is_reduced]
        kinds = {(str(s.dtype), s.shape, s.axes, s.keyframe.hash) for s in whole}
        if len(kinds) != 1:
            listed = ", ".join(f"{s.dtype}{list(s.shape)}" for s in whole[:5])
            raise EdgeLstmError(
                f"{where}: pages of different kinds",
                found=listed or "none",
                expected="pages of one size and type",
            )
        axes, shape = whole[0].axes, whole[0].shape
        inner = len(whole[0].keyframe.axes)
        outer = [(axis, size) for axis, size in zip(axes[:-inner], shape[:-inner], strict=True) if size > 1]
        if len(outer) > 1 or any(axis in "CS" for axis, _ in outer):
            raise EdgeLstmError(
                f"{where}: axes of the stack",
                found=f"{axes} {list(shape)}",
                expected="pages along one axis of time or slices",
                hint="Save the frames as a stack of one channel, or as .npy with time on axis 0",
            )
        self._series, self._each = whole, outer[0][1] if outer else 1
        self.count = self._each * len(whole)
        self.notes: tuple[str, ...] = ()
        if outer and outer[0][0] == "Z":
            self.notes += ("slices (axis Z) taken as frames in order",)
        if len(series) > len(whole):
            self.notes += (f"left out: {len(series) - len(whole)} smaller copies in the file",)

    def read(self, index: int, where: str) -> Read:
        """Frame ``index``."""
        number, place = divmod(index, self._each)
        series = self._series[number]
        key = series.keyframe
        if key.dtype is None:
            raise EdgeLstmError(f"{where}: samples", found=f"{key.bitspersample} bits", expected="numbers")
        check_frame_size(where, key.shape, key.dtype)
        pages = [page for page in series.pages if page is not None]
        try:
            if len(pages) == self._each:
                page = pages[place]
                ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
                size = page.parent.filehandle.size  # OME stacks may lie in several files
                if max(ends) > size:
                    raise EOFError(f"{count_of(size, 'byte')}, expected {max(ends)}")
                data = page.asarray()
            elif len(pages) == 1 and key.is_contiguous and series.dataoffset is not None:
                # ImageJ writes one page and all pictures behind one another.
                self._file.filehandle.seek(series.dataoffset + place * key.size * key.dtype.itemsize)
                dtype = self._file.byteorder + key.dtype.char
                data = self._file.filehandle.read_array(dtype, key.size).reshape(key.shape)
            else:
                raise EdgeLstmError(f"{where}: pages", found=len(pages), expected=self._each)
            data, values, notes = _as_said(key, np.asarray(data), where)
        except EdgeLstmError:
            raise
        except Exception as error:
            raise EdgeLstmError(f"{where}: not an image, or a damaged one", found=str(error)) from error
        return data, values, (*notes, *self.notes)


def _as_said(key: Any, data: Array, where: str) -> Read:
    """What the tags ask for, done: inversion, palette, alpha, turning."""
    kind, bits = int(key.photometric), _bits(key)
    if key.axes == "SYX":
        data = np.moveaxis(data, 0, -1)
    if data.dtype.kind not in "biuf" or data.ndim not in (2, 3):
        raise EdgeLstmError(
            f"{where}: samples", found=f"{data.dtype}{list(data.shape)}", expected="real numbers [H, W(, C)]"
        )
    if kind not in (_INVERTED, _GREY, _RGB, _PALETTE, _MASK) and not (
        kind == _YCBCR and int(key.compression) in _JPEG
    ):
        found = _OTHERS.get(kind) or getattr(key.photometric, "name", str(kind))
        raise EdgeLstmError(
            f"{where}: colours", found=found, expected="grey or RGB", hint="Convert it to RGB first"
        )
    notes: list[str] = []
    values: tuple[float, float] | None = None
    if data.dtype.kind == "b" or bits == 1:
        data, bits = data.astype(np.uint8) * np.uint8(255), 8
        notes.append("1 bit, black 0 and white 255")
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    if data.dtype.kind == "u":
        values = (0.0, float(2**bits - 1))
    elif data.dtype.kind == "i":
        values = (-float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1))
    if kind == _INVERTED:
        if data.dtype.kind != "u":
            raise EdgeLstmError(
                f"{where}: colours", found=f"{data.dtype} with white as 0", expected="black as 0"
            )
        data = data.dtype.type(2**bits - 1) - data
        notes.append("inverted: the file says that 0 is white")
    if kind == _PALETTE:
        data, values = _coloured(key, data, where)
        notes.append("palette applied")
    data, dropped = _without_alpha(key, kind, data)
    notes += dropped
    gdal = getattr(key, "nodata", 0)
    if 42113 in key.tags:
        notes.append(f"no data is {gdal:g}, the file says: left as it is")
    turn = exif_turn(int(key.tags[274].value) if 274 in key.tags else 1)
    data = turn(data) if data.ndim >= 2 else data
    look = "RGB" if kind in (_RGB, _PALETTE, _YCBCR) else "grey"
    return data, values, (f"TIFF: {look}, {_words(data, bits, kind)}", *notes, *turn.notes())


def _words(data: Array, bits: int, kind: int) -> str:
    if data.dtype.kind == "u" and kind != _PALETTE:
        return f"{bits} bits"
    return str(data.dtype)


def _bits(key: Any) -> int:
    bits = key.bitspersample
    return max(bits) if isinstance(bits, (tuple, list)) else int(bits)


def _coloured(key: Any, data: Array, where: str) -> tuple[Array, tuple[float, float]]:
    """The colours that a palette gives: 8 bits where the map says no more, else its 16."""
    colours = np.asarray(key.colormap, np.uint16)
    if data.ndim != 2 or data.max() >= colours.shape[1]:
        raise EdgeLstmError(
            f"{where}: palette", found=f"{colours.shape[1]} colours", expected=f"{int(data.max()) + 1}"
        )
    if not (colours % 257).any():
        colours = (colours // 257).astype(np.uint8)
    elif not (colours & 255).any():
        colours = (colours >> 8).astype(np.uint8)
    return colours.T[data], (0.0, 255.0 if colours.dtype == np.uint8 else 65535.0)


def _without_alpha(key: Any, kind: int, data: Array) -> tuple[Array, list[str]]:
    """Extra samples that are alpha go; others, such as near infrared, stay."""
    extra = [int(e) for e in key.extrasamples]
    alpha = [k for k, e in enumerate(extra) if e in (1, 2)]
    if data.ndim != 3:
        return data, []
    if not alpha:
        usual = 1 if kind in (_INVERTED, _GREY) else 3
        return data, [f"{count_of(data.shape[2], 'sample')} a pixel, all kept"] if data.shape[
            2
        ] != usual else []
    first = data.shape[2] - len(extra)
    keep = [k for k in range(data.shape[2]) if k - first not in alpha]
    data = data[:, :, keep] if len(keep) > 1 else data[:, :, keep[0]]
    premultiplied = ", colours are premultiplied by it" if 1 in extra else ""
    return data, [f"alpha channel left out{premultiplied}"]
