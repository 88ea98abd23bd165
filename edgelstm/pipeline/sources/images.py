"""Images: a folder of them, one frame a file, in natural order (frame9 before frame10), or one file of several.

Pillow reads what has 8 bits, imagecodecs (libpng) PNG of 16 bits, tifffile TIFF, ``netpbm`` PBM, PGM and PPM. What a
file is, its first bytes tell, not its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sources import netpbm, tiff
from edgelstm.pipeline.sources.folder import Follow, files_as_frames, natural
from edgelstm.pipeline.sources.source import Array, Frame, Source, check_frame_size
from edgelstm.pipeline.sources.upright import exif_turn

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".apng", ".pbm", ".pgm", ".ppm", ".pnm",
)  # fmt: skip

#: What Pillow may take a file for: formats that hold at most 8 bits, and PNG, whose deep ones go elsewhere.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "GIF")
#: Pillow modes: the mode that frames are read in, and what is left out by it.
MODES = {
    "1": ("L", "1 bit, black 0 and white 255"),
    "L": ("L", ""),
    "LA": ("L", "alpha channel left out"),
    "P": ("RGB", "palette applied"),
    "PA": ("RGB", "palette applied, alpha channel left out"),
    "RGB": ("RGB", ""),
    "RGBA": ("RGB", "alpha channel left out"),
    "RGBX": ("RGB", ""),
}
_DEEP_CHANNELS = {0: "grey", 2: "RGB", 4: "grey", 6: "RGB"}


@dataclass(frozen=True)
class Header:
    """What an image says before its pixels are read. ``deep``: the colour type of a PNG of 16 bits, else None."""

    shape: tuple[int, ...]
    mode: str
    notes: tuple[str, ...]
    orientation: object
    images: int
    deep: int | None


def open_images(
    folder: Path, files: Sequence[Path], others: Sequence[Path], follow: Follow | None = None
) -> Source:
    """Frames [H, W] grey or [H, W, C] with their stored values; ``others``, files of the folder that are no images, are told.

    uint8 to 8 bits, uint16 above, TIFF also signed and floating point: see ``docs/sources.md``.
    """
    image = _pillow(f"reading the images in {folder}")
    ordered = sorted(files, key=natural)
    said: tuple[str, ...] = ()
    if others:
        kinds = Counter(path.suffix.lower() or path.name for path in others).most_common(5)
        said = (
            f"left out: {count_of(len(others), 'file that is no image', 'files that are no images')} ({', '.join(kind for kind, _ in kinds)})",
        )

    follow = follow or Follow()

    def frames() -> Iterator[Frame]:
        return files_as_frames(
            folder,
            ordered,
            lambda path, index: _one(image, path, index),
            suffixes=SUFFIXES,
            order=natural,
            follow=follow,
            skip_last=False,
        )

    length = None if follow.on else len(ordered)
    return Source(
        f"images in {folder}",
        frames,
        length=length,
        said=said,
        look=True,
        stopped=follow.stopped,
        leaves_out=follow.on,
        holds={path.name for path in ordered}.__contains__,
    )


def open_image(path: Path) -> Source:
    """One file: the pages of a TIFF, the pictures of an animation (GIF, WebP, APNG), else one frame."""
    image = _pillow(f"reading {path}")
    if _magic(path) in tiff.MAGIC:
        return tiff.open_tiff(path)
    header = None if netpbm.is_netpbm(_magic(path)) else _header(image, path, str(path))
    if header is None or header.images == 1:
        return Source(f"image {path}", lambda: iter([_one(image, path, 0)]), length=1, look=True)
    if _magic(path) == b"GIF8" and path.read_bytes().rstrip(b"\0")[-1:] != b";":
        raise EdgeLstmError(
            f"{path} ends early", found="no end mark", expected="a whole GIF", hint="The file is truncated"
        )
    if header.deep is not None:
        raise EdgeLstmError(f"{path}: an animation of 16 bits", expected="8 bits", hint="Write a TIFF stack")
    return Source(
        f"animation {path}",
        lambda: _animation(image, path),
        length=header.images,
        fps=_fps(image, path),
        look=True,
    )


def _pillow(purpose: str) -> Any:
    image = require("PIL.Image", "images", purpose)
    image.init()  # else only the commonest formats are known
    return image


class _Memory(BytesIO):
    """Bytes in the place of a file."""

    def open(self, mode: str) -> BytesIO:
        return BytesIO(self.getvalue())

    def read_bytes(self) -> bytes:
        return self.getvalue()


def picture_of(data: bytes, where: str) -> tuple[Array, tuple[float, float] | None, tuple[str, ...]]:
    """(values, black and white, what was done) of a JPEG, PNG or other image of one picture in memory, as of a file."""
    image = _pillow(f"reading {where}")
    try:
        return _read(image, _Memory(data), where)
    except EdgeLstmError:
        raise
    except Exception as error:  # on damaged data the decoders raise nearly anything
        raise EdgeLstmError(f"{where}: not an image, or a damaged one", found=str(error)) from error


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _one(image: Any, path: Path, index: int) -> Frame:
    where = f"{path} (frame {index})"
    try:
        magic = _magic(path)
        if magic in tiff.MAGIC:
            data, values, notes = tiff.read_page(path, where)
        elif netpbm.is_netpbm(magic):
            data, values, notes = netpbm.read_netpbm(path, where)
        else:
            data, values, notes = _read(image, path, where)
    except EdgeLstmError:
        raise
    except (
        Exception
    ) as error:  # on a damaged file the decoders raise nearly anything: TypeError, struct.error
        raise EdgeLstmError(f"{where}: not an image, or a damaged one", found=str(error)) from error
    return Frame(index, None, path.name, data, values, notes)


def _header(image: Any, path: Path | _Memory, where: str) -> Header:
    try:
        with image.open(path, formats=FORMATS) as picture:
            depth, colour = _png_depth(path) if picture.format == "PNG" else (8, 0)
            deep = colour if depth == 16 else None
            if picture.mode not in MODES and deep is None:
                raise EdgeLstmError(
                    f"{where}: colours",
                    found=picture.mode,
                    expected="grey or RGB",
                    hint="Convert it to RGB first: that needs the colour profile of its printer",
                )
            mode, note = MODES.get(picture.mode, ("L", ""))
            if deep is not None:
                mode = "L" if _DEEP_CHANNELS[deep] == "grey" else "RGB"
                note = "alpha channel left out" if deep & 4 else ""
            shape = (picture.height, picture.width, *((3,) if mode == "RGB" else ()))
            check_frame_size(where, shape, np.dtype(np.uint8 if deep is None else np.uint16))
            images = getattr(picture, "n_frames", 1)
            notes = [
                f"{picture.format}: {'RGB' if mode == 'RGB' else 'grey'}, {16 if deep is not None else 8} bits"
            ]
            notes += [note] if note else []
            if mode == "L" and 1 < depth < 8:
                notes.append(f"{depth} bits stretched to 8, as PNG asks")
            if "transparency" in picture.info and "alpha" not in note:
                notes.append("transparency left out")
            if picture.format == "MPO" and images > 1:
                notes.append(
                    f"the first of the {count_of(images, 'picture')} in the file, as viewers show it"
                )
                images = 1
            return Header(shape, mode, tuple(notes), picture.getexif().get(274), images, deep)
    except EdgeLstmError:
        raise
    except Exception as error:
        raise EdgeLstmError(f"{where}: not an image, or a damaged one", found=str(error)) from error


def _read(image: Any, path: Path | _Memory, where: str) -> tuple[Array, tuple[float, float], tuple[str, ...]]:
    header = _header(image, path, where)
    if header.images > 1:
        raise EdgeLstmError(
            f"{where} holds {count_of(header.images, 'picture')}",
            found="an animation in a folder of images",
            expected="one picture a file",
            hint=f"An animation is a source of its own: {path}",
        )
    if header.deep is not None:
        imagecodecs = require("imagecodecs", "images", f"reading {path}, a PNG of 16 bits,")
        data = imagecodecs.png_decode(path.read_bytes())
        channels = 3 if header.mode == "RGB" else 1
        data = data[..., :3] if channels == 3 else data if data.ndim == 2 else data[..., 0]
    else:
        with image.open(path, formats=FORMATS) as picture:
            data = np.asarray(
                picture if picture.mode == header.mode else picture.convert(header.mode), np.uint8
            )
    turn = exif_turn(header.orientation)
    top = 255.0 if header.deep is None else 65535.0
    return turn(data), (0.0, top), (*header.notes, *turn.notes())


def _png_depth(path: Path | _Memory) -> tuple[int, int]:
    """(bits a sample, colour type). Source: PNG specification, IHDR."""
    with path.open("rb") as file:
        head = file.read(26)
    return head[24], head[25]


def _animation(image: Any, path: Path) -> Iterator[Frame]:
    index, time = 0, 0.0
    try:
        header = _header(image, path, str(path))
        notes = (*header.notes[:1], "an animation: each picture is a frame, as shown, transparency left out")
        with image.open(path, formats=FORMATS) as picture:
            # An APNG may begin with a picture for programs that know no animations; it is no part of this one.
            first = 1 if picture.info.get("default_image") else 0
            for index in range(header.images - first):
                picture.seek(index + first)
                data = np.asarray(picture.convert("RGB"), np.uint8)
                yield Frame(index, time, f"{time:.3f} s", data, (0.0, 255.0), notes)
                time += _seconds(picture)
    except EdgeLstmError:
        raise
    except Exception as error:
        raise EdgeLstmError(f"{path}: can't read picture {index}", found=str(error)) from error


def _seconds(picture: Any) -> float:
    # Viewers show a picture without a duration for a tenth of a second.
    return (picture.info.get("duration") or 100) / 1000


def _fps(image: Any, path: Path) -> float:
    with image.open(path, formats=FORMATS) as picture:
        picture.load()
        return 1 / _seconds(picture)
