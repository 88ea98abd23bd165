"""Turning and mirroring: what a camera wrote into the file about how it was held, done to the pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgelstm.errors import EdgeLstmError, count_of
from edgelstm.pipeline.sources.source import Array


@dataclass(frozen=True)
class Turn:
    """One of the eight ways to lay an image: rows and columns swapped, then mirrored left to right, then top to bottom."""

    swap: bool = False
    left_right: bool = False
    top_bottom: bool = False

    def __call__(self, image: Array) -> Array:
        """``image`` [H, W] or [H, W, C], turned."""
        if self.swap:
            image = image.swapaxes(0, 1)
        if self.left_right:
            image = image[:, ::-1]
        if self.top_bottom:
            image = image[::-1]
        return np.ascontiguousarray(image)

    def notes(self) -> tuple[str, ...]:
        """In words; nothing where nothing is done."""
        words = _WORDS[self.swap, self.left_right, self.top_bottom]
        return (f"{words}, as the file says",) if words else ()


_WORDS = {
    (False, False, False): "",
    (False, True, False): "mirrored left to right",
    (False, True, True): "rotated by 180 degrees",
    (False, False, True): "mirrored top to bottom",
    (True, False, False): "rotated by 90 degrees clockwise and mirrored left to right",
    (True, True, False): "rotated by 90 degrees clockwise",
    (True, True, True): "rotated by 90 degrees counter-clockwise and mirrored left to right",
    (True, False, True): "rotated by 90 degrees counter-clockwise",
}

#: Orientation of Exif 2.32 and TIFF 6.0, tag 274.
_EXIF = {
    1: Turn(),
    2: Turn(left_right=True),
    3: Turn(left_right=True, top_bottom=True),
    4: Turn(top_bottom=True),
    5: Turn(swap=True),
    6: Turn(swap=True, left_right=True),
    7: Turn(swap=True, left_right=True, top_bottom=True),
    8: Turn(swap=True, top_bottom=True),
}


def exif_turn(orientation: object) -> Turn:
    """Of the Exif tag; viewers take values outside 1 to 8 for 1, and so does this."""
    return _EXIF.get(orientation if isinstance(orientation, int) else 1, Turn())


def matrix_turn(where: str, data: bytes) -> Turn:
    """Of a display matrix: nine int32 ``a b u c d v x y w``, a point (x, y) going to (a x + c y, b x + d y).

    Source: ISO/IEC 14496-12, track header; FFmpeg's display.h. EdgeLstmError for angles other than quarter turns.
    """
    if len(data) != 36:
        raise EdgeLstmError(f"{where}: display matrix", found=f"{count_of(len(data), 'byte')}", expected="36")
    a, b, _, c, d, *_ = (int(v) for v in np.frombuffer(data, np.int32))
    # Writers round: a quarter turn may have a few units where a zero belongs.
    small = max(abs(a), abs(b), abs(c), abs(d)) // 1000
    if max(abs(b), abs(c)) <= small and min(abs(a), abs(d)) > small:
        return Turn(left_right=a < 0, top_bottom=d < 0)
    if max(abs(a), abs(d)) <= small and min(abs(b), abs(c)) > small:
        return Turn(swap=True, left_right=c < 0, top_bottom=b < 0)
    raise EdgeLstmError(
        f"{where}: the file asks to be shown turned",
        found=f"display matrix {a / 65536:g} {b / 65536:g} {c / 65536:g} {d / 65536:g}",
        expected="quarter turns and mirroring",
        hint="Turn it with a video editor first",
    )
