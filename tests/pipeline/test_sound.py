"""Sound: WAV files of every kind, blocks by a hop, resampling, and the two models of DTLN against the published loop."""

from __future__ import annotations

import csv
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgelstm
from edgelstm.errors import EdgeLstmError
from edgelstm.graph.signature import Signature, TensorSpec
from edgelstm.pipeline import Inputs, Outputs, open_source, parse_ops, parse_postprocess
from edgelstm.pipeline.inputs import cut

RATE = 16000


def riff(
    path: Path, data: bytes, code: int, bits: int, rate: int, channels: int, size: int | None = None
) -> str:
    block = bits // 8 * channels
    head = struct.pack("<HHIIHH", code, channels, rate, rate * block, block, bits)
    size = len(data) if size is None else size
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"LIST\x03\0\0\0abc\0"
    body += b"data" + struct.pack("<I", size) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return str(path)


def pcm(path: Path, values: np.ndarray, rate: int = RATE) -> str:
    return riff(path, np.rint(values * 32767).astype("<i2").tobytes(), 1, 16, rate, 1)


def speech(seconds: float) -> np.ndarray:
    """Voiced bursts in noise."""
    t = np.arange(int(RATE * seconds)) / RATE
    voiced = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 8)) * (np.sin(9 * t) > 0)
    noise = np.random.default_rng(0).normal(size=len(t))
    return (0.1 * voiced + 0.02 * noise).astype(np.float32)


def samples(spec: str, length: int, hop: int, rate: int | None = None) -> np.ndarray:
    with open_source(spec) as source:
        return np.stack([f.data for f in source.reframed(length, hop, rate)])


@pytest.mark.parametrize(
    ("code", "bits", "dtype", "scale"),
    [(1, 8, "u1", None), (1, 16, "<i2", 2**15), (1, 32, "<i4", 2**31), (3, 32, "<f4", 1), (3, 64, "<f8", 1)],
)
def test_every_kind_of_sample_is_read(
    tmp_path: Path, code: int, bits: int, dtype: str, scale: float | None
) -> None:
    x = np.linspace(-0.9, 0.9, 40)
    stored = (
        np.rint(x * 127) + 128 if scale is None else np.rint(x * (scale - 1)) if scale > 1 else x
    ).astype(dtype)
    spec = riff(tmp_path / "a.wav", stored.tobytes(), code, bits, 8000, 1)
    wanted = (stored.astype(float) - 128) / 128 if scale is None else stored.astype(float) / scale
    np.testing.assert_allclose(samples(spec, 8, 8).ravel(), wanted, atol=1e-7)


def test_24_bits_and_channels(tmp_path: Path) -> None:
    left, right = np.arange(-6, 6) * 500_000, np.arange(12) * 600_000
    both = np.stack([left, right], 1).ravel()
    data = b"".join(int(v).to_bytes(3, "little", signed=True) for v in both)
    spec = riff(tmp_path / "a.wav", data, 1, 24, 8000, 2)
    np.testing.assert_allclose(samples(f"{spec}:channel=1", 4, 4).ravel(), right / 2**23, atol=1e-7)
    np.testing.assert_allclose(samples(spec, 4, 4).ravel(), (left + right) / 2**24, atol=1e-7)
    with pytest.raises(EdgeLstmError, match="channel: found 2; expected 0 to 1"):
        open_source(f"{spec}:channel=2")


@pytest.mark.parametrize(("length", "hop"), [(512, 128), (576, 512), (100, 100), (30, 70)])
def test_frames_are_the_newest_samples(tmp_path: Path, length: int, hop: int) -> None:
    x = np.random.default_rng(1).integers(
        -30000, 30000, 40_001
    )  # longer than a chunk, and no whole number of hops
    spec = riff(tmp_path / "a.wav", x.astype("<i2").tobytes(), 1, 16, RATE, 1)
    count = -(-len(x) // hop)
    padded = np.concatenate([np.zeros(length), x / 2**15, np.zeros(count * hop - len(x))])
    wanted = [padded[(k + 1) * hop : (k + 1) * hop + length] for k in range(count)]
    np.testing.assert_array_equal(samples(spec, length, hop), np.array(wanted, np.float32))


def test_another_rate_is_resampled(tmp_path: Path) -> None:
    pytest.importorskip("soxr")
    t = np.arange(44100) / 44100
    found = samples(pcm(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * t), 44100), 160, 160, RATE).ravel()
    assert len(found) == 16000
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / RATE)
    assert np.abs(found - wanted)[500:-500].max() < 2e-3


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    def refusal(data: bytes) -> str:
        (tmp_path / "a.wav").write_bytes(data)
        with pytest.raises(EdgeLstmError) as caught:
            open_source(str(tmp_path / "a.wav"))
        return str(caught.value)

    assert "not a WAV file" in refusal(b"ID3 no wave at all")
    whole = Path(pcm(tmp_path / "w.wav", np.zeros(99))).read_bytes()
    assert "ends early" in refusal(whole[:-50])
    assert "no samples in the file" in refusal(whole[:40])
    assert "format 2, 4 bits" in refusal(Path(riff(tmp_path / "w.wav", b"12", 2, 4, 8000, 1)).read_bytes())
    with (
        open_source(pcm(tmp_path / "w.wav", np.zeros(99))) as source,
        pytest.raises(EdgeLstmError, match="samples="),
    ):
        list(source)
    # What a recorder that was never closed states: to the end of the file.
    spec = riff(tmp_path / "r.wav", np.zeros(6, "<i2").tobytes(), 1, 16, 8000, 1, size=0xFFFFFFFF)
    assert samples(spec, 3, 3).shape == (2, 3)


def test_models_that_are_not_told_what_a_frame_is(tmp_path: Path) -> None:
    spec = pcm(tmp_path / "a.wav", np.zeros(1000))
    signature = Signature(
        (TensorSpec("x", "float32", ("N", 100)),), (TensorSpec("y", "float32", ("N", 1)),), ()
    )
    with open_source(spec) as source:
        with pytest.raises(EdgeLstmError, match="what a frame of it is"):
            cut(source, signature)
        made, hop, sound = cut(source, signature, None, 50)
        assert (hop, sound) == (None, (RATE, 50))
        assert [w["x"].shape for _, w in Inputs(signature).steps(made)] == [(100,)] * 20


def test_postprocessing_against_whole_signals() -> None:
    """A mask of ones and overlapping blocks give the signal back, times length / hop; each stream remembers its own."""
    spec = TensorSpec("x", "float32", ("N", 1, 257))
    signature = Signature(
        (spec,),
        (TensorSpec("mask", "float32", ("N", 1, 257)),),
        (),
        None,
        {"x": tuple(parse_ops("samples=512,128,16000;magnitude"))},
    )
    post = parse_postprocess(["mask_spectrum;overlap_add=128"], signature)
    outputs = Outputs(signature, postprocess=post)
    assert outputs.signature.outputs[0].frame_shape == (128,)
    x = np.random.default_rng(2).normal(size=128 * 12).astype(np.float32)
    padded = np.concatenate([np.zeros(384, np.float32), x])
    made = []
    for k in range(12):
        block = padded[128 * k : 128 * k + 512]
        for stream, gain in (("a", 1.0), ("b", 0.5)):
            found = outputs({"mask": np.full((1, 257), gain, np.float32)}, block, stream)["mask"]
            if stream == "a":
                made.append(found)
    np.testing.assert_allclose(np.concatenate(made)[384:], 4 * x[:-384], atol=1e-4)
    with pytest.raises(EdgeLstmError, match="masks the spectrum"):
        Outputs(signature, {"x": []}, postprocess=post)
    with pytest.raises(EdgeLstmError, match=r"hop: found 600; expected 1 to 257"):
        Outputs(signature, postprocess={"mask": [{"op": "overlap_add", "hop": 600}]})


def test_dtln_cleans_a_file_as_the_published_loop_does(shared_dir: Path, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    dtln = shared_dir / "models" / "dtln"
    x = speech(1.5)
    noisy = pcm(tmp_path / "noisy.wav", x)
    edgelstm.export(
        str(dtln / "model_1.onnx"),
        tmp_path / "1.onnx",
        states={"input_3": "tf_op_layer_stack_2"},
        preprocess=["samples=512,128,16000;magnitude"],
        postprocess=["mask_spectrum"],
        limit=5,
        threads=1,
    )
    edgelstm.export(
        str(dtln / "model_2.onnx"),
        tmp_path / "2.onnx",
        states={"input_5": "tf_op_layer_stack_5"},
        postprocess=["overlap_add=128"],
        limit=5,
        threads=1,
    )
    run = edgelstm.run(tmp_path / "1.onnx", noisy, tmp_path / "c.wav", then=[tmp_path / "2.onnx"], threads=1)
    edgelstm.run(tmp_path / "1.onnx", noisy, tmp_path / "c.npz", then=[tmp_path / "2.onnx"], threads=1)
    # real_time_processing_onnx.py of breizhn/DTLN, as it stands there.
    audio = np.rint(x * 32767).astype(np.float32) / 32768
    first, second = (ort.InferenceSession(str(dtln / f"model_{k}.onnx")) for k in (1, 2))
    states = [np.zeros((1, 2, 128, 2), np.float32)] * 2
    in_buffer, out_buffer, out = np.zeros(512, np.float32), np.zeros(512, np.float32), []
    for k in range(len(audio) // 128):
        in_buffer[:-128] = in_buffer[128:].copy()
        in_buffer[-128:] = audio[k * 128 : (k + 1) * 128]
        spectrum = np.fft.rfft(in_buffer)
        magnitude = np.abs(spectrum).reshape(1, 1, -1).astype(np.float32)
        mask, states[0] = first.run(None, {"input_2": magnitude, "input_3": states[0]})
        estimated = np.abs(spectrum) * mask * np.exp(1j * np.angle(spectrum))
        block = np.fft.irfft(estimated).reshape(1, 1, -1).astype(np.float32)
        block, states[1] = second.run(None, {"input_4": block, "input_5": states[1]})
        out_buffer[:-128] = out_buffer[128:].copy()
        out_buffer[-128:] = 0
        out_buffer += block.squeeze()
        out.append(out_buffer[:128].copy())
    wanted = np.concatenate(out)
    found = np.load(tmp_path / "c.npz")["conv1d_3"].ravel()
    assert np.abs(wanted).max() > 0.02
    np.testing.assert_allclose(found[: len(wanted)], wanted, atol=2e-5)
    assert run.frames == -(-len(x) // 128)
    with wave.open(str(tmp_path / "c.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (RATE, 1)
        written = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    np.testing.assert_allclose(written, found, atol=1 / 32768)


def test_silero_marks_speech_in_a_file(shared_dir: Path, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    path = shared_dir / "models" / "silero" / "silero_vad.onnx"
    x = speech(2)
    sound = pcm(tmp_path / "a.wav", x)
    edgelstm.export(
        str(path),
        tmp_path / "vad.onnx",
        states={"state": "stateN"},
        fix={"sr": RATE, "input.1": 576},
        preprocess=["samples=576,512,16000"],
        tolerance=1e-4,
        limit=5,
        threads=1,
    )
    edgelstm.run(tmp_path / "vad.onnx", sound, tmp_path / "p.csv", threads=1)
    edgelstm.run(tmp_path / "vad.onnx", sound, tmp_path / "m.csv", postprocess=["threshold=0.5"], threads=1)

    def column(name: str) -> np.ndarray:
        with (tmp_path / name).open() as file:
            return np.array([float(row["output"]) for row in csv.DictReader(file)])

    session = ort.InferenceSession(str(path))
    audio = np.pad(np.rint(x * 32767).astype(np.float32) / 32768, (64, -len(x) % 512))
    state, wanted = np.zeros((2, 1, 128), np.float32), []
    for k in range(len(audio) // 512):
        chunk = audio[None, k * 512 : k * 512 + 576]
        p, state = session.run(None, {"input": chunk, "state": state, "sr": np.array(RATE, np.int64)})
        wanted.append(p.item())
    found = column("p.csv")
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_array_equal(column("m.csv"), found >= np.float32(0.5))


def test_sound_out_needs_samples_at_the_hop(tmp_path: Path) -> None:
    import zoo

    zoo.lstm(inputs=100, head=100).save(tmp_path / "m.onnx")
    sound = pcm(tmp_path / "a.wav", np.zeros(1000))
    with pytest.raises(
        EdgeLstmError, match="Blocks that overlap are added by the postprocessing overlap_add=50"
    ):
        edgelstm.run(tmp_path / "m.onnx", sound, tmp_path / "o.wav", hop=50, threads=1)
    edgelstm.run(
        tmp_path / "m.onnx", sound, tmp_path / "o.wav", hop=50, postprocess=["overlap_add=50"], threads=1
    )
    with pytest.raises(EdgeLstmError, match=r"every 50 samples .*found a source cut every 25; expected 50"):
        edgelstm.run(
            tmp_path / "m.onnx", sound, tmp_path / "o.npz", hop=25, postprocess=["overlap_add=50"], threads=1
        )
    np.save(tmp_path / "x.npy", np.zeros((3, 100), np.float32))
    with pytest.raises(EdgeLstmError, match="of a source that is no sound"):
        edgelstm.run(tmp_path / "m.onnx", str(tmp_path / "x.npy"), tmp_path / "n.wav", threads=1)
    assert sorted(p.name for p in tmp_path.glob("*.wav")) == ["a.wav", "o.wav"]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    whole = bytearray(Path(riff(folder / "a.wav", bytes(range(200)) * 2, 1, 16, 8000, 2)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    (folder / "a.wav").write_bytes(bytes(whole[: data.draw(st.integers(20, len(whole)))]))
    try:
        with open_source(str(folder / "a.wav")) as source:
            for frame in source.reframed(40, 30):
                assert frame.data.shape == (40,)
    except EdgeLstmError:
        pass
