"""examples/c compiled as its page says, on the committed stream, its state handed on from run to run and to Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import c_library
import native_library
from command_line import Run
from edgelstm.runtime import Runner
from edgelstm.runtime.native.library import VARIABLE
from edgelstm.runtime.snapshot import Snapshot

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_sensors_in_c_forecast_as_pytorch_did(run: Run, tmp_path: Path) -> None:
    library = c_library.built()
    command = [
        "cc",
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        str(EXAMPLES / "c" / "sensor.c"),
        "-o",
        str(tmp_path / "sensor"),
    ]
    done = subprocess.run(
        [*command, *library.cflags, *library.libs], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    model, kept = tmp_path / "sensor.onnx", tmp_path / "state.npz"
    code, _, err = run("export", EXAMPLES / "sensor_lstm" / "model.safetensors", "-o", model)
    assert code == 0, err
    frames = np.load(EXAMPLES / "sensor_lstm" / "test_stream.npz")["frames"]
    expected = np.load(EXAMPLES / "sensor_lstm" / "expected.npz")["output"]

    def sensor(samples: np.ndarray, *state: Path) -> np.ndarray:
        done = subprocess.run(
            [tmp_path / "sensor", model, *state], input=samples.tobytes(), capture_output=True, check=False, timeout=60,
            env={"EDGELSTM_ONNXRUNTIME": str(c_library.find_onnxruntime())},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return np.frombuffer(done.stdout, np.float32).reshape(-1, 48)

    whole = sensor(frames)
    assert np.abs(whole - expected).max() < 1e-5
    parts = [sensor(part, kept) for part in (frames[:70], frames[70:150])]
    with Runner.open(model, native=False) as runner:
        stream = runner.stream("s")
        stream.restore(Snapshot.load(kept))
        parts.append(np.stack([stream.step(frame)["y"].copy() for frame in frames[150:]]))
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    kept.write_bytes(kept.read_bytes()[:-9])
    done = subprocess.run(
        [tmp_path / "sensor", model, kept], input="", capture_output=True, text=True, check=False, timeout=60,
        env={"EDGELSTM_ONNXRUNTIME": str(c_library.find_onnxruntime())},
    )  # fmt: skip
    assert (done.returncode, "cut short" in done.stderr) == (2, True)


def test_with_our_operators_c_gives_the_bits_of_the_runner_that_has_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: the library of operators serves one ONNX Runtime."""
    operators = native_library.built()
    monkeypatch.setenv(VARIABLE, str(operators))
    library = c_library.built()
    command = ["cc", "-std=c99", str(EXAMPLES / "c" / "sensor.c"), "-o", str(tmp_path / "sensor")]
    subprocess.run([*command, *library.cflags, *library.libs], check=True)
    model, fast, kept = tmp_path / "sensor.onnx", tmp_path / "fast.onnx", tmp_path / "state.npz"
    code, _, err = run("export", EXAMPLES / "sensor_lstm" / "model.safetensors", "-o", model)
    assert code == 0, err
    code, out, err = run("lower", model, "--runtime", "native", "-o", fast)
    assert code == 0, err
    assert "FusedLSTMCell" in out
    frames = np.load(EXAMPLES / "sensor_lstm" / "test_stream.npz")["frames"]
    environment = {"EDGELSTM_ONNXRUNTIME": str(c_library.find_onnxruntime())}

    def sensor(**more: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [tmp_path / "sensor", fast, kept], input=frames.tobytes(), capture_output=True, check=False, timeout=60,
            env={**environment, **more},
        )  # fmt: skip

    done = sensor(EDGELSTM_NATIVE_LIBRARY=str(operators))
    assert done.returncode == 0, done.stderr
    found = np.frombuffer(done.stdout, np.float32).reshape(-1, 48)
    with Runner.open(model, threads=1, native=True) as runner:
        stream = runner.stream("s")
        assert np.stack([stream.step(frame)["y"].copy() for frame in frames]).tobytes() == found.tobytes()
        stream.snapshot().save(tmp_path / "python.npz")
        assert (tmp_path / "python.npz").read_bytes() == kept.read_bytes()
    missing = sensor()
    assert missing.returncode == 2
    assert b"operators" in missing.stderr
