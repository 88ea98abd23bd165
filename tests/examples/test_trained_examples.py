"""The committed weights, streams and recorded outputs of examples/ belong together, and the models are worth running."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgelstm.frontends.torch import nn  # noqa: E402
from edgelstm.graph.signature import TensorSpec  # noqa: E402
from edgelstm.pipeline.preprocess import Preprocess  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("moving_digits", "sensor_lstm", "nowcast_radar")


def module(example: str, name: str) -> ModuleType:
    """``examples/<example>/<name>.py``, importable though its siblings bear the names of other examples' files."""
    spec = importlib.util.spec_from_file_location(f"{example}_{name}", EXAMPLES / example / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@cache
def replay(example: str) -> tuple[nn.StepModule, np.ndarray, np.ndarray, tuple[torch.Tensor, ...]]:
    """The model, the frames it took, all its outputs and its last states over the committed stream."""
    import json

    from safetensors import safe_open

    path = EXAMPLES / example / "model.safetensors"
    model = nn.load(path)
    with safe_open(path, framework="np") as file:
        operations = json.loads(file.metadata().get("edgelstm.preprocessing", "{}")).get("x", [])
    prepare = Preprocess(operations, TensorSpec("x", "float32", ("N", *model.architecture.frame_shape)))
    with np.load(EXAMPLES / example / "test_stream.npz") as file:
        frames = np.stack([prepare(frame) for frame in file["frames"]])
    states, outputs = model.initial_states(), []
    with torch.inference_mode():
        for frame in frames:
            output, states = model(torch.from_numpy(frame)[None], *states)
            outputs.append(output[0].numpy())
    return model, frames, np.stack(outputs), states


@pytest.mark.parametrize("example", NAMES)
def test_recorded_outputs_are_the_committed_model_s(example):
    _, _, outputs, states = replay(example)
    with np.load(EXAMPLES / example / "expected.npz") as expected:
        found = outputs[expected["steps"]]
        if "leads" in expected:
            found = found[:, expected["leads"] - 1]
        np.testing.assert_allclose(found, expected["output"], rtol=1e-4, atol=2e-5)
        for name, state in zip(("h0", "c0", "h1", "c1"), states, strict=True):
            np.testing.assert_allclose(state[0].numpy(), expected[f"state_{name}"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("example", ["moving_digits", "sensor_lstm"])
def test_forecasts_beat_persistence_to_the_end_of_the_stream(example):
    _, frames, outputs, _ = replay(example)
    ahead = outputs.reshape(len(frames), -1, *frames.shape[1:])
    horizon = ahead.shape[1]
    late = range(150, len(frames) - horizon)
    for lead in range(1, horizon + 1):
        model = np.mean([np.abs(ahead[t, lead - 1] - frames[t + lead]).mean() for t in late])
        persistence = np.mean([np.abs(frames[t] - frames[t + lead]).mean() for t in late])
        assert model < persistence, f"{lead} ahead"


@pytest.mark.parametrize("example", NAMES)
def test_weights_are_small(example):
    assert (EXAMPLES / example / "model.safetensors").stat().st_size <= 2_000_000


def test_equal_seeds_give_equal_streams_and_digits_stay_in_the_frame():
    pytest.importorskip("sklearn")
    digits = module("moving_digits", "data")
    images = digits.digit_images("test")
    first, again, other = (digits.Streams(images, 2, seed).frames(0, 50) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1
    late = digits.Streams(images, 1, 1).frames(10_000, 5)
    assert (late.sum(axis=(2, 3, 4)) > 20).all()  # still there after ten thousand frames
    plants = module("sensor_lstm", "data").Plants
    assert np.array_equal(plants(2, 1).samples(20), plants(2, 1).samples(20))


def test_demo_data_needs_neither_torch_nor_scikit_learn():
    before = {name for name in sys.modules if name.split(".")[0] in ("torch", "sklearn")}
    assert module("moving_digits", "data").test_stream().shape == (200, 64, 64)
    assert module("sensor_lstm", "data").test_stream().shape == (200, 6)
    assert {name for name in sys.modules if name.split(".")[0] in ("torch", "sklearn")} == before


def test_radar_crop_and_its_preprocessing_agree():
    """The declared operations on a raw composite give what training and scoring compute on the whole image."""
    radar = module("nowcast_radar", "data")
    counts = np.random.default_rng(0).integers(0, 400, (1, 765, 700)).astype(np.uint16)
    counts[:, 300:340, 320:400] = radar.NO_DATA
    prepare = Preprocess(
        radar.PREPROCESSING["x"], TensorSpec("x", "float32", ("N", 1, radar.SIDE, radar.SIDE))
    )
    rate, known = radar.rain(radar.live_square(counts))
    np.testing.assert_allclose(prepare(counts[0])[0], radar.to_network(rate)[0], rtol=1e-5, atol=1e-6)
    assert not known[0, 25:45, 10:50].any()
    np.testing.assert_allclose(radar.to_rate(radar.to_network(rate)), rate, rtol=1e-4, atol=1e-4)
