"""Streaming models that others published, on speech-like audio made here: equal to the file as it is, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelstm
from edgelstm import EdgeLstmError
from edgelstm.runtime.runner import Runner

RATE = 16000
STEPS = 2000


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Voiced syllables with pauses, in noise: harmonics of a gliding pitch under a moving envelope; [samples], -1 to 1."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formant = 700 + 500 * np.sin(2 * np.pi * 1.3 * t)
    voice = sum(np.sin(k * phase) * np.exp(-(((k * pitch - formant) / 400) ** 2)) for k in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 3 * t), 0, 1) * (np.sin(2 * np.pi * 0.25 * t) > -0.3)
    sound = 0.3 * voice * syllables + 0.01 * rng.standard_normal(len(t))
    return np.clip(sound, -1, 1).astype(np.float32)


def blocks(sound: np.ndarray, size: int, shift: int) -> np.ndarray:
    """Overlapping blocks, [frames, size]."""
    return np.lib.stride_tricks.sliding_window_view(sound, size)[::shift].copy()


def model(shared_dir: Path, name: str) -> str:
    path = shared_dir / "models" / name
    if not path.exists():
        pytest.skip(f"the model is not here: {name}")
    return str(path)


@pytest.mark.thorough
def test_a_denoiser_in_two_halves(shared_dir: Path, tmp_path: Path) -> None:
    """DTLN: the first half masks spectra, the second blocks of samples; 2,000 steps each on what really reaches them."""
    sound = blocks(speech(STEPS * 128 / RATE + 1), 512, 128)[:STEPS]
    spectra = np.fft.rfft(sound)
    frames: list[Any] = [np.abs(spectra).astype(np.float32).reshape(STEPS, 1, 257)]
    first = edgelstm.export(
        model(shared_dir, "dtln/model_1.onnx"),
        tmp_path / "first.onnx",
        states={"input_3": "tf_op_layer_stack_2"},
        source=iter(frames[0]),
        limit=STEPS,
        threads=1,
    )
    assert first.comparison.frames == STEPS
    assert max(t.held for t in first.comparison.tensors) <= 1e-5
    assert first.step.op_types().count("FusedGates_lstm") == 2
    assert first.step.signature.states[0].shape == (1, 2, 128, 2)
    with Runner.open(tmp_path / "first.onnx", threads=1) as runner:
        stream = runner.stream("a")
        masks = np.stack([stream.step(f)["activation_2"].copy() for f in frames[0]])
    masked = np.fft.irfft(spectra * masks[:, 0]).astype(np.float32).reshape(STEPS, 1, 512)
    second = edgelstm.export(
        model(shared_dir, "dtln/model_2.onnx"),
        states={"input_5": "tf_op_layer_stack_5"},
        source=iter(masked),
        limit=STEPS,
        threads=1,
    )
    assert second.comparison.frames == STEPS
    assert max(t.held for t in second.comparison.tensors) <= 1e-5
    assert second.step.op_types().count("FusedGates_lstm") == 2


@pytest.mark.thorough
def test_voice_activity_behind_nested_branches(shared_dir: Path, tmp_path: Path) -> None:
    """Silero: 25 nested If go once the sampling rate is fixed; state [2, N, 128] comes with its streams in front."""
    path = model(shared_dir, "silero/silero_vad.onnx")
    frames = blocks(np.concatenate([np.zeros(64, np.float32), speech(10)]), 576, 512)
    with pytest.raises(EdgeLstmError, match=r"--fix sr=16000 --fix input\.1=512 --state state=stateN"):
        edgelstm.export(path, states={"state": "stateN"})
    result = edgelstm.export(
        path,
        tmp_path / "vad.onnx",
        states={"state": "stateN"},
        fix={"sr": RATE, "input.1": 576},
        source=iter(frames),
        limit=len(frames),
        threads=1,
    )
    assert result.step.signature.states[0].shape == ("N", 2, 128)
    assert "FusedGates_lstm" in result.step.op_types()
    assert not {"If", "LSTM"} & set(result.step.op_types())
    assert max(t.held for t in result.comparison.tensors) <= 1e-5
    with Runner.open(tmp_path / "vad.onnx", streams=2, threads=1) as runner:
        talking, silent = runner.stream("talking"), runner.stream("silent")
        heard = [
            runner.step({"talking": f, "silent": np.zeros_like(f)})["talking"]["output"].item()
            for f in frames
        ]
        assert max(heard) > 0.5 > 0.1 > silent.step(np.zeros(576, np.float32))["output"].item()
        assert talking.name == "talking"
