"""Record the sequences that the recipes read: ``python calibration/record.py`` writes moving_digits.npz and
sensor_lstm.npz here, each with arrays a, b, c, d, one a sequence.

They come from the examples' data.py, from what trained the models: no frame of a test is in them. Needs scikit-learn.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np

HERE = Path(__file__).resolve().parent
SEQUENCES = "abcd"
#: The plant's temperature and level take minutes to show where they go.
DIGIT_FRAMES, SENSOR_FRAMES = 40, 150
SEED = 300


def main() -> None:
    """Write both."""
    digits, sensor = _example_data("moving_digits"), _example_data("sensor_lstm")
    drawn = digits.Streams(digits.digit_images("train"), len(SEQUENCES), SEED).frames(0, DIGIT_FRAMES)[
        :, :, 0
    ]
    samples = sensor.Plants(len(SEQUENCES), SEED).samples(SENSOR_FRAMES)
    for name, frames in (("moving_digits", np.rint(drawn * 255).astype(np.uint8)), ("sensor_lstm", samples)):
        arrays = dict(zip(SEQUENCES, frames.swapaxes(0, 1), strict=True))
        np.savez_compressed(HERE / f"{name}.npz", **arrays)


def _example_data(name: str) -> ModuleType:
    """An example's data.py; all of them have that name."""
    spec = importlib.util.spec_from_file_location(f"{name}_data", HERE.parent / "examples" / name / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
