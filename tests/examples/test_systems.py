"""The systems of examples/: each trains a little on data it makes, is exported, and streams what it is for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def main_of(example: str) -> ModuleType:
    """``examples/<example>/main.py``, whose siblings bear the names of other examples' files."""
    for sibling in ("model", "data"):
        sys.modules.pop(sibling, None)
    spec = importlib.util.spec_from_file_location(f"{example}_main", EXAMPLES / example / "main.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # dataclasses look their module up
    path = list(sys.path)
    try:
        spec.loader.exec_module(loaded)
    finally:
        sys.path[:] = path
    return loaded


def test_deep_conv_lstm(tmp_path: Path) -> None:
    """Rings give the window's numbers, sample by sample, and the network tells activities apart."""
    main = main_of("deep_conv_lstm")
    (outcome,) = main.run(tmp_path, quick=True).values()
    assert outcome.apart < 1e-5
    assert outcome.accuracy > 1.5 / len(main.ACTIVITIES)


def test_ctc(tmp_path: Path) -> None:
    """The network that hears whole windows spells them; decoders follow a stream frame by frame."""
    main = main_of("ctc")
    outcome = main.run(tmp_path, quick=True)["bidirectional, whole windows"]
    assert outcome.greedy < 0.2
    assert outcome.beam < 0.2


def test_ctc_decoders() -> None:
    """Greedy takes the best path, the beam the best labelling: here they differ (Graves et al. 2006, section 3.2)."""
    import numpy as np

    decode = main_of("ctc")
    frames = [np.log([0.6, 0.4, 1e-9])] * 2
    assert decode.decode(decode.Greedy(), frames) == []
    # One label over two frames: 0.4 * 0.4 + 2 * 0.6 * 0.4 = 0.64, against 0.36 of two blanks.
    assert decode.decode(decode.Beam(), frames) == [1]
    best = [[0.1, 0.9, 0.0], [0.1, 0.9, 0.0], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.1, 0.9]]
    frames = [np.log(np.array(f) + 1e-9) for f in best]
    for kind in (decode.Greedy, decode.Beam):
        assert decode.decode(kind(), frames) == [1, 1, 2]
    assert [decode.edits(*pair) for pair in (([1, 2], [1, 2]), ([1], []), ([1, 2, 3], [2, 3, 4]))] == [
        0,
        1,
        2,
    ]


def test_merged_lstms(tmp_path: Path) -> None:
    """Both networks give a value, a probability and a distribution, and learn what they are for."""
    main = main_of("merged_lstms")
    for outcome in main.run(tmp_path, quick=True).values():
        assert outcome.value_error < 0.4
        assert outcome.probability_right > 0.6
        assert outcome.classes_right > 0.35


def test_anomaly_detection(tmp_path: Path) -> None:
    """Both detectors score faulty samples above sound ones."""
    main = main_of("anomaly_detection")
    for outcome in main.run(tmp_path, quick=True).values():
        assert outcome.faults > 2
        assert outcome.area > 0.6


def test_cnn_lstm(tmp_path: Path) -> None:
    """Both networks learn the way the blob moves, and know more of it the longer they watch."""
    main = main_of("cnn_lstm")
    for outcome in main.run(tmp_path, quick=True).values():
        assert outcome.right[-1] > 2 / main.DIRECTIONS
        assert outcome.right[-1] >= outcome.right[0]


def test_weather_modalities(tmp_path: Path) -> None:
    """Every combination of the switches is tried, and the best beats persistence where it streams."""
    main = main_of("weather_modalities")
    result = main.run(tmp_path, quick=True)
    assert len(result.outcomes) == 8
    assert result.best.frame  # maps in units as different as these need it
    rain, cloud, *_ = result.live.shares
    assert (rain + cloud) / 2 < 0.97


def test_track_descriptor(tmp_path: Path) -> None:
    """Streams join and leave with their tracks; a descriptor of the track finds its walker, one crop seldom does."""
    main = main_of("track_descriptor")
    found = main.run(tmp_path, quick=True)
    assert found["ConvLSTM over the track"] > found["one crop"] + 0.15
    assert found["mean over the crops"] > found["one crop"]
