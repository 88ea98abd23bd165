"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports NumPy or torch: their thread pools would fight with ONNX Runtime's for two cores.
for pool in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(pool, "1")

#: Real data and models that the project does not ship, beside the checkout.
SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(part: str) -> Path:
    path = SHARED / part
    if not path.is_dir():
        pytest.skip(
            f"real inputs are not here: {Path('..') / 'shared' / part} beside the checkout is missing"
        )
    return path


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real data and models; the test is skipped without it."""
    return _shared("")


@pytest.fixture(scope="session")
def radar_dir() -> Path:
    """92 KNMI radar composites, 2010-08-26 00:00 to 07:35 UTC."""
    return _shared("data/knmi-2010-08-26")


@pytest.fixture(scope="session")
def dashcam_video() -> Path:
    """221 frames of 960 x 540 at 25 frames a second."""
    return _shared("data/dashcam") / "solidWhiteRight.mp4"
