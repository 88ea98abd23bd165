"""A folder of images: one frame a file, in natural order (frame9 before frame10)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgelstm.errors import EdgeLstmError
from edgelstm.pipeline.optional import require
from edgelstm.pipeline.sources.source import Array, Frame, Source, check_frame_size

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")

#: Pillow modes that become arrays as they are, with their dtypes; any other is converted to RGB, without transparency.
PLAIN = {"L": "uint8", "RGB": "uint8", "I;16": "uint16", "I": "int32", "F": "float32"}
CONVERTED = {"1": "L", "LA": "L", "I;16B": "I", "I;16L": "I"}


def open_images(folder: Path, files: Sequence[Path]) -> Source:
    """Frames uint8 [H, W, 3] RGB or [H, W] grey; 16-bit, 32-bit and floating point images keep their values."""
    image = require("PIL.Image", "images", f"reading the images in {folder}")
    ordered = sorted(files, key=_natural)

    def frames() -> Iterator[Frame]:
        for index, path in enumerate(ordered):
            yield Frame(index, None, path.name, _read(image, path, index))

    return Source(f"images in {folder}", frames, length=len(ordered))


def _natural(path: Path) -> tuple[list[int | str], str]:
    # Text and numbers alternate, so like is compared with like.
    parts = [int(p) if p.isdecimal() else p.lower() for p in re.split(r"([0-9]+)", path.name)]
    return parts, path.name


def _read(image: Any, path: Path, index: int) -> Array:
    where = f"{path} (frame {index})"
    try:
        with image.open(path) as picture:
            mode = picture.mode if picture.mode in PLAIN else CONVERTED.get(picture.mode, "RGB")
            shape = (picture.height, picture.width, *((3,) if mode == "RGB" else ()))
            check_frame_size(where, shape, np.dtype(PLAIN[mode]))
            return np.asarray(picture if picture.mode == mode else picture.convert(mode), PLAIN[mode])
    except EdgeLstmError:
        raise
    except (
        Exception
    ) as error:  # on a damaged file Pillow's decoders raise nearly anything: TypeError, struct.error
        raise EdgeLstmError(f"{where}: not an image, or a damaged one", found=str(error)) from error
