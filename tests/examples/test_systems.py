"""The systems of examples/: each trains a little on data it makes, is exported, and streams what it is for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.thorough

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
    """Two hundred updates are enough for the LSTM behind convolutions; the ConvLSTM, which needs more, streams as well."""
    main = main_of("cnn_lstm")
    plain, maps = main.run(tmp_path, quick=True).values()
    assert plain.right[-1] > 4 / main.DIRECTIONS
    assert plain.right[-1] > plain.right[0]
    assert maps.multiplications > 10 * plain.multiplications
    assert len(maps.right) == main.FRAMES


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


def test_attention(tmp_path: Path) -> None:
    """Encoders run once, decoders say most of it word by word, greedily and with several hypotheses."""
    sorted_digits, described = main_of("attention").run(tmp_path, quick=True).values()
    assert min(sorted_digits.greedy, sorted_digits.beam) > 0.5
    # One of 9 shapes, or 2 of them and how they lie: a guess is right once in 50.
    assert min(described.greedy, described.beam) > 0.2


def test_attention_search(tmp_path: Path) -> None:
    """Greedy takes the likeliest word and misses the likeliest sentence, which two hypotheses find; with one, both agree."""
    import numpy as np

    import edgelstm

    main = main_of("attention")

    class Bigrams(torch.nn.Module):
        """Words 1 to 4: a 1 is likeliest first but what follows is open; a 2 is always followed by the end."""

        def __init__(self) -> None:
            super().__init__()
            table = [[0, 0.6, 0.4, 0, 0], [0, 0, 0, 0.55, 0.45], *[[1.0, 0, 0, 0, 0]] * 3]
            self.register_buffer("table", (torch.tensor(table) + 1e-9).log())

        def forward(self, bias, token):  # type: ignore[no-untyped-def]
            log_probs = self.table[token[:, 0]] + bias
            token = log_probs.argmax(1, keepdim=True)
            return {"log_probs": log_probs, "word": token}, (token,)

    path, told = tmp_path / "bigrams.onnx", {"bias": np.zeros(5, np.float32)}
    states = {"token": np.zeros(1, np.int64)}
    edgelstm.export(Bigrams(), path, frame={"bias": (5,)}, states=states)
    with edgelstm.Runner.open(path, streams=2, threads=1) as runner:
        for _ in range(2):  # nothing is left over from the sentence before
            assert main.greedy(runner, told, 9) == [1, 3]
            assert main.beam(runner, told, 9, 1)[0] == [1, 3]
            words, score = main.beam(runner, told, 9, 2)
            assert words == [2]
            assert score == pytest.approx(np.log(0.4), abs=1e-5)
            assert main.beam(runner, told, 1, 2)[0] == [1]  # cut off: the likeliest beginning


def test_keras_next_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras trains and saves; the stream, made without it, gives what Keras predicts for whole clips, a frame later."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    pytest.importorskip("keras", reason="Keras is in the dev extra")
    outcome = main_of("keras_next_frame").run(tmp_path, quick=True)
    assert outcome.apart < 1e-5
    assert outcome.behind == 1
