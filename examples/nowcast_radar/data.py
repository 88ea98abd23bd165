"""KNMI radar composites as rain rate, whole for training and cropped for the stream.

A file holds ``image1/image_data``, uint16 765 x 700 pixels of 1 km; value x 0.01 = mm in 5 minutes, 65535 = no data.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

NO_DATA = 65535
MM_PER_HOUR = 0.12  # one count: 0.01 mm in 5 minutes
LOG_SCALE = 0.25  # y = 0.25 log(1 + mm/h): 1 mm/h is 0.17, 50 mm/h is 0.98
SPLIT = "0530"  # UTC: training before, test from here on

TOP, LEFT, EXTENT = 250, 300, 256  # the live stream's square, in 1 km pixels
SIDE = EXTENT // 2  # and in 2 km pixels

#: From a raw frame (uint16 counts [765, 700]) to what the network takes (float32 [1, 128, 128]), in this order: no
#: data becomes zero rain before the mean over 2 x 2 pixels is taken.
PREPROCESSING = {
    "x": [
        {"op": "nodata", "value": NO_DATA, "replace": 0},
        {"op": "scale", "factor": MM_PER_HOUR, "offset": 0.0},
        {"op": "crop", "top": TOP, "left": LEFT, "height": EXTENT, "width": EXTENT},
        {"op": "average", "factor": 2},
        {"op": "log1p", "scale": LOG_SCALE},
    ]
}


def read(folder: Path) -> tuple[npt.NDArray[np.uint16], list[str]]:
    """All composites [T, 765, 700] of ``folder`` in time order, and their times as HHMM; needs h5py."""
    import h5py

    paths = sorted(Path(folder).glob("*.h5"))
    if not paths:
        raise SystemExit(f"no .h5 files in {folder}: expected KNMI composites, one every 5 minutes")
    frames = []
    for path in paths:
        with h5py.File(path) as file:
            frames.append(file["image1/image_data"][:])
    return np.stack(frames), [re.findall(r"\d{12}", path.name)[-1][-4:] for path in paths]


def rain(counts: npt.NDArray[np.uint16]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Rain rate in mm/h on 2 km pixels [T, H/2, W/2], and where all four pixels beneath have data."""
    height, width = (side // 2 * 2 for side in counts.shape[1:])
    blocks = counts[:, :height, :width].reshape(len(counts), height // 2, 2, width // 2, 2)
    known = blocks != NO_DATA
    rate = np.where(known, blocks, 0).mean(axis=(2, 4), dtype=np.float32) * np.float32(MM_PER_HOUR)
    return rate, known.all(axis=(2, 4))


def live_square(frames: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The stream's square [T, 256, 256] of whole 1 km composites."""
    return frames[:, TOP : TOP + EXTENT, LEFT : LEFT + EXTENT]


def to_network(rate: Array) -> Array:
    """mm/h to the network's scale."""
    return np.float32(LOG_SCALE) * np.log1p(rate)


def to_rate(y: Array) -> Array:
    """The network's scale to mm/h; what is below zero is no rain."""
    return np.expm1(np.maximum(y, 0) / np.float32(LOG_SCALE))
