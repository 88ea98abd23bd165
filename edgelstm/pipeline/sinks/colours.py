"""How one channel becomes colours: a gradient between two values, or classes with fixed edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgelstm.pipeline.sources.source import Array

#: Colours of the lowest value, of what lies evenly between, and of the highest.
COLOURS = {
    "blue": ((11, 14, 19), (18, 58, 99), (47, 134, 198), (159, 212, 238), (255, 255, 255)),
    "heat": ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)),
    "viridis": ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)),
    # Two directions from a middle: for differences, with a --range that has 0 in its middle.
    "balance": ((5, 48, 97), (103, 169, 207), (247, 247, 247), (239, 138, 98), (103, 0, 31)),
}
#: Rain in mm/h: the lower edge of each class and its colour. What is below the first edge is dry.
RAIN = (
    (0.1, (158, 202, 225)),
    (0.5, (66, 146, 198)),
    (1.0, (8, 81, 156)),
    (2.0, (35, 139, 69)),
    (5.0, (254, 217, 56)),
    (10.0, (253, 141, 60)),
    (20.0, (227, 26, 28)),
    (50.0, (189, 0, 160)),
    (100.0, (255, 255, 255)),
)
RAIN_UNIT = "mm/h"
DRY = (38, 42, 50)
#: What has no value (NaN) in a picture in colours.
UNKNOWN = (96, 96, 96)
NAMES = (*COLOURS, "rain")


@dataclass(frozen=True)
class Scale:
    """Values to pixels: ``scale(values [H, W]) -> uint8 [H, W]``, or ``[H, W, 3]`` in colours.

    low, high: the values of the first and the last colour; of no meaning for rain, whose classes are fixed.
    """

    colours: str | None
    low: float = 0.0
    high: float = 1.0

    def __call__(self, values: Array) -> Array:
        if self.colours == "rain":
            palette = np.array([DRY, *(colour for _, colour in RAIN)], np.uint8)
            picture: Array = palette[np.searchsorted([edge for edge, _ in RAIN], values, side="right")]
        else:
            picture = coloured(self.grey(values), self.colours)
        if picture.ndim == 3:
            picture[np.isnan(values)] = UNKNOWN
        return picture

    def grey(self, values: Array) -> Array:
        """``low`` to ``high`` as 0 to 255, uint8 of the same shape; what is NaN is black."""
        share = np.clip((np.nan_to_num(values, nan=self.low) - self.low) / (self.high - self.low), 0, 1)
        grey: Array = np.rint(share * 255).astype(np.uint8)
        return grey

    def ticks(self) -> list[tuple[float, str]]:
        """Places on a colour bar, from 0 to 1, and what stands there."""
        if self.colours == "rain":
            return [((k + 1) / (len(RAIN) + 1), f"{edge:g}") for k, (edge, _) in enumerate(RAIN)]
        middle = self.low + (self.high - self.low) / 2
        # What lies beyond has the colour of the end.
        return [(0.0, f"{self.low:.3g} or less"), (0.5, f"{middle:.3g}"), (1.0, f"{self.high:.3g} or more")]

    def bar(self, height: int, width: int) -> Array:
        """The colours from the lowest to the highest, uint8 [height, width, 3]."""
        if self.colours == "rain":
            palette = np.array([DRY, *(colour for _, colour in RAIN)], np.uint8)
            row = palette[np.arange(width) * len(palette) // width]
        else:
            grey = np.rint(np.linspace(0, 255, width)).astype(np.uint8)[None]
            row = rgb(coloured(grey, self.colours))[0]
        bar: Array = np.broadcast_to(row, (height, width, 3)).copy()
        return bar


def coloured(grey: Array, colours: str | None) -> Array:
    """RGB [H, W, 3] of grey uint8 [H, W], or itself without colours."""
    if colours is None:
        return grey
    stops = np.array(COLOURS[colours], np.float64)
    places = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), places, stops[:, c]) for c in range(3)], 1)
    picture: Array = np.rint(table).astype(np.uint8)[grey]
    return picture


def rgb(picture: Array) -> Array:
    """uint8 [H, W, 3] of grey [H, W] or of RGB."""
    three: Array = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
    return three
