"""examples/c compiled as its page says, on the committed stream, its state handed on from run to run and to Python."""

from __future__ import annotations

import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest

import c_library
import native_library
import zoo
from command_line import Run
from edgelstm.errors import EdgeLstmError
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
    with pytest.raises(EdgeLstmError, match="open the model that it was made of"):
        Runner.open(fast)
    missing = sensor()
    assert missing.returncode == 2
    assert b"operators" in missing.stderr


def test_a_video_in_cpp_is_held_against_its_forecasts(tmp_path: Path) -> None:
    """The forecast of the model is the frame itself: what is printed is how far a frame is from the one before."""
    if shutil.which("gst-launch-1.0") is None or shutil.which("pkg-config") is None:
        pytest.skip("no GStreamer to build with on this machine: apt install gstreamer1.0-tools pkg-config")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "gstreamer-app-1.0"], capture_output=True, text=True, check=False
    )
    if flags.returncode:
        pytest.skip(f"no GStreamer to build with on this machine: {flags.stderr.splitlines()[0]}")
    library = c_library.built()
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", str(EXAMPLES / "c" / "video.cpp")]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "video"), *library.cflags, *library.libs, *flags.stdout.split()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    np.load(EXAMPLES / "moving_digits" / "test_stream.npz")["frames"][:12].tofile(tmp_path / "frames.raw")

    def launch(pipeline: str) -> None:
        done = subprocess.run(
            ["gst-launch-1.0", "-q", *pipeline.split()],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr

    film, seen = tmp_path / "film.avi", tmp_path / "seen.raw"
    raw = "rawvideoparse format=gray8 width=64 height=64 framerate=10/1"
    launch(
        f"filesrc location={tmp_path}/frames.raw ! {raw} ! videoconvert ! jpegenc ! avimux ! filesink location={film}"
    )
    launch(
        f"filesrc location={film} ! decodebin ! videoconvert ! video/x-raw,format=RGB ! filesink location={seen}"
    )
    zoo.persistence(10, (1, 64, 64)).save(tmp_path / "model.onnx")

    def video(name: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [tmp_path / "video", tmp_path / "model.onnx", name], capture_output=True, text=True, check=False, timeout=60,
            env={"EDGELSTM_ONNXRUNTIME": str(c_library.find_onnxruntime())},
        )  # fmt: skip

    done = video(film)
    assert done.returncode == 0, done.stderr
    said = np.array([line.split() for line in done.stdout.splitlines()], float)
    frames = np.fromfile(seen, np.uint8).reshape(-1, 64, 64, 3) @ np.array([0.299, 0.587, 0.114]) / 255
    assert len(frames) == 12
    assert said[:, 0] == pytest.approx(np.arange(1, 12) / 10)
    assert said[:, 1] == pytest.approx(np.abs(np.diff(frames, axis=0)).mean((1, 2)), abs=2e-6)
    assert said[:, 1].min() > 0.001
    missing = video(tmp_path / "nowhere.avi")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "video: " in missing.stderr


@pytest.mark.thorough
def test_dtln_in_c_cleans_a_file_as_the_command_does(run: Run, shared_dir: Path, tmp_path: Path) -> None:
    """The examples of docs/sound.md and of examples/c."""
    dtln, library = shared_dir / "models" / "dtln", c_library.built()
    assert len((EXAMPLES / "c" / "denoise.c").read_text().splitlines()) <= 60
    command = [
        "cc",
        "-std=c99",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        str(EXAMPLES / "c" / "denoise.c"),
        "-o",
        str(tmp_path / "denoise"),
    ]
    done = subprocess.run(
        [*command, *library.cflags, *library.libs, "-lm"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = tmp_path / "dtln_1.onnx", tmp_path / "dtln_2.onnx"
    preprocess, mask = ("--preprocess", "samples=512,128,16000;magnitude"), ("--postprocess", "mask_spectrum")
    for source, model, more in (
        ("model_1.onnx", first, (*preprocess, *mask)),
        ("model_2.onnx", second, ("--postprocess", "overlap_add=128")),
    ):
        code, _, err = run("export", dtln / source, "--yes", "-o", model, "--limit", 3, *more)
        assert code == 0, err
    rng, t = np.random.default_rng(0), np.arange(16000) / 16000
    noisy = np.rint(
        3e4 * (np.sin(900 * t + 3 * np.sin(9 * t)) * (np.sin(11 * t) > 0) * 0.3 + rng.normal(0, 0.03, t.size))
    )
    with wave.open(str(tmp_path / "noisy.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(noisy.astype("<i2").tobytes())
    code, _, err = run(
        "run", first, "--then", second, "--source", tmp_path / "noisy.wav", "-o", tmp_path / "wanted.wav"
    )
    assert code == 0, err
    environment = {"EDGELSTM_ONNXRUNTIME": str(c_library.find_onnxruntime())}
    with (tmp_path / "noisy.wav").open("rb") as source, (tmp_path / "clean.wav").open("wb") as sink:
        subprocess.run(
            [tmp_path / "denoise", first, second],
            stdin=source,
            stdout=sink,
            check=True,
            env=environment,
            timeout=60,
        )

    def samples(name: str) -> np.ndarray:
        with wave.open(str(tmp_path / name)) as file:
            return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(int)

    found, wanted = samples("clean.wav"), samples("wanted.wav")[:16000]
    assert len(found) == 16000
    assert np.abs(wanted).max() > 1000
    assert np.abs(found - wanted).max() <= 2
    with (tmp_path / "noisy.wav").open("rb") as source, Path("/dev/full").open("wb") as sink:
        full = subprocess.run(
            [tmp_path / "denoise", first, second],
            stdin=source,
            stdout=sink,
            stderr=subprocess.PIPE,
            check=False,
            env=environment,
            timeout=60,
        )
    assert (full.returncode, full.stderr) == (2, b"denoise: the output can't be written\n")
