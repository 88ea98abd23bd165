"""What only a whole sequence tells becomes a window, with the reason: the same numbers as Keras's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_zoo import (
    check_window,
    fill,
    hdf5_in_process,
    keras,
    layers,
    predict,
    refused,
    run_window,
    save,
    sequential,
)

import edgelstm
from edgelstm.frontends.keras import load_keras
from tolerances import assert_close

FRAME = (3,)


@pytest.fixture(scope="module", autouse=True)
def _quick_reading() -> Iterator[None]:
    with hdf5_in_process():
        yield


def rnn(kind: str, **options: Any) -> Any:
    return getattr(layers, kind)(2, **options)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(("LSTM", "GRU", "SimpleRNN")),
    st.sampled_from(("concat", "sum", "ave", "mul")),
    st.booleans(),
    st.booleans(),
)
def test_bidirectional(tmp_path_factory: Any, kind: str, mode: str, whole: bool, masked: bool) -> None:
    both = layers.Bidirectional(rnn(kind, return_sequences=whole), merge_mode=mode)
    stack = [*([layers.Masking(0.0)] if masked else []), layers.LSTM(3, return_sequences=True), both]
    loaded = check_window(
        sequential(*stack, layers.Dense(2), frame=FRAME), tmp_path_factory.mktemp("b"), frame=FRAME, window=5
    )
    assert "also runs backwards from the last frame" in loaded.notes[0]
    assert loaded.step.signature.window == (5 if whole else None)


def test_bidirectional_conv_lstm(tmp_path: Path) -> None:
    both = layers.Bidirectional(layers.ConvLSTM2D(2, 3, padding="same", return_sequences=True))
    stack = [both, layers.TimeDistributed(layers.MaxPooling2D(2)), layers.TimeDistributed(layers.Flatten())]
    model = sequential(*stack, layers.GRU(2), frame=(4, 6, 1))
    check_window(model, tmp_path, frame=(4, 6, 1), length=4, window=4)


WINDOWS: dict[str, tuple[Any, str]] = {
    "average": (lambda: [layers.GlobalAveragePooling1D()], "pools over all frames"),
    "largest": (lambda: [layers.GlobalMaxPooling1D(keepdims=True)], "pools over all frames"),
    "flat": (lambda: [layers.Flatten(), layers.Dense(2)], "lays all frames end to end"),
    "normalised": (lambda: [layers.BatchNormalization(axis=1)], "works along time"),
    "softmax": (lambda: [layers.Softmax(axis=1)], "works along time"),
    "moved": (lambda: [layers.Permute((2, 1)), layers.Dense(2)], "moves time"),
    "reshaped": (lambda: [layers.Reshape((3, 5))], "mixes frames"),
    "padded": (lambda: [layers.ZeroPadding1D((1, 2))], "works along time"),
    "repeated": (lambda: [layers.UpSampling1D(2)], "works along time"),
    "transposed": (lambda: [layers.Conv1DTranspose(2, 3, strides=2)], "works along time"),
    "pooled": (lambda: [layers.MaxPooling1D(3, strides=1, padding="same")], "begins before the first frame"),
    "channels": (lambda: [layers.Conv1D(2, 2, data_format="channels_first")], "takes time as its channels"),
    "last": (lambda: [layers.LSTM(2)], "gives its last output only"),
    "ahead": (lambda: [layers.Conv1D(2, 3, padding="same"), layers.LSTM(2)], "gives its last"),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_layers_that_need_all_frames(name: str, tmp_path: Path) -> None:
    stack, reason = WINDOWS[name]
    model = sequential(layers.LSTM(3, return_sequences=True), *stack(), frame=FRAME, length=5)
    loaded = check_window(model, tmp_path, frame=FRAME)
    assert reason in loaded.notes[0]
    assert not loaded.step.signature.states


def test_encoder_and_decoder_with_states(tmp_path: Path) -> None:
    """The decoder begins from the encoder's last states."""
    x = keras.Input((5, 3))
    _, h, c = layers.LSTM(4, return_state=True)(x)
    y = layers.LSTM(4, return_sequences=True)(layers.RepeatVector(6)(h), initial_state=[h, c])
    model = fill(keras.Model(x, layers.Dense(2)(y)), 1)
    check_window(model, tmp_path, frame=FRAME)


@pytest.mark.parametrize("anew", [False, True])
def test_stateful_windows_carry_their_state(tmp_path: Path, anew: bool) -> None:
    """A layer beside it that starts anew in each window makes one too: no reset of a stream is one of that layer alone."""
    behind = layers.GRU(2, return_sequences=True) if anew else layers.GlobalAveragePooling1D()
    stack = [layers.LSTM(3, stateful=True, return_sequences=True), behind]
    model = fill(keras.Sequential([keras.Input(batch_shape=(1, 4, 3)), *stack]), 0)
    exported = edgelstm.export(str(save(model, tmp_path)), tmp_path / "m.onnx", limit=8)
    assert [s.name.split(".")[-1] for s in exported.step.signature.states] == ["h", "c"]
    x = np.random.default_rng(0).normal(size=(3, 1, 4, 3)).astype(np.float32)
    with edgelstm.Runner.open(tmp_path / "m.onnx") as runner:
        stream = runner.stream("main")
        for window in x:
            (expected,) = predict(model, window)
            assert_close(stream.step(window[0])["y"], expected[0], "float32", k=80, atol=1e-5)


def test_models_without_time_are_calls_that_stand_alone(tmp_path: Path) -> None:
    stack = [layers.Conv2D(2, 3), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    model = fill(keras.Sequential([keras.Input((6, 5, 1)), *stack]), 0)
    loaded = load_keras(save(model, tmp_path))
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 1)).astype(np.float32)
    assert_close(run_window(loaded, x)["y"], predict(model, x)[0], "float32", k=80, atol=1e-5)
    assert "every call stands alone" in loaded.notes[0]


def test_sequences_of_unknown_length_ask_for_it(tmp_path: Path) -> None:
    path = save(sequential(layers.Bidirectional(layers.LSTM(2)), frame=FRAME), tmp_path)
    text = refused(path)
    assert "can't be streamed frame by frame, and does not say how long" in text
    assert "--window 30" in text
    fixed = save(sequential(layers.Bidirectional(layers.LSTM(2)), frame=FRAME, length=4), tmp_path)
    assert "found 7; expected 4, the model's own length" in refused(fixed, window=7)
    assert "can't carry its state from frame to frame" in refused(fixed, carry_state=True)


def test_open_sizes_ask_for_the_frame(tmp_path: Path) -> None:
    stack = [layers.TimeDistributed(layers.Conv2D(2, 3)), layers.TimeDistributed(layers.GlobalMaxPooling2D())]
    path = save(sequential(*stack, layers.LSTM(2), frame=(None, None, 1)), tmp_path)
    assert "input 'x' ['any', 'any', 1]; expected fixed sizes. Give it: --frame 64,64,1" in refused(path)
    assert load_keras(path, frame=(8, 6, 1)).step.signature.input("x").shape == ("N", 8, 6, 1)
    assert "expected ['any', 'any', 1]" in refused(path, frame=(8, 6, 2))


def test_the_turbofan_autoencoder(shared_dir: Path, tmp_path: Path) -> None:
    """Somebody else's Keras 3 model on NASA's engines: the scores its author published, then streamed cycle by cycle."""
    models = shared_dir / "models" / "turbofan"
    (table,) = (shared_dir / "data" / "cmapss").glob("*train*")
    rows = np.loadtxt(table, skiprows=1)
    sensors = [2, 3, 4, 7, 9, 11, 12, 14, 17, 20, 21]
    windows = []
    for unit in range(81, 101):
        values = rows[rows[:, 0] == unit][:, [4 + s for s in sensors]]
        low, high = values.min(0), values.max(0)
        scaled = ((values - low) / np.where(high > low, high - low, 1)).astype(np.float32)
        windows += [scaled[k : k + 30] for k in range(len(scaled) - 29)]
    truth = np.load(models / "precomp_ae_score.npy")
    assert len(truth) == len(windows)
    known = np.flatnonzero(np.isfinite(truth))  # the author scored the first engines only
    exported = edgelstm.export(str(models / "lstm_autoencoder.keras"), tmp_path / "m.onnx", limit=20)
    assert "starts every window of 30 frames from zero" in exported.notes[0]
    some = known[::5]
    with edgelstm.Runner.open(tmp_path / "m.onnx", threads=1) as runner:
        stream = runner.stream("main")
        scores = [float(np.abs(stream.step(windows[k])["y"] - windows[k]).mean()) for k in some]
    assert np.abs(np.array(scores) - truth[some]).max() < 2e-7
    carried = edgelstm.export(
        str(models / "lstm_autoencoder.keras"), tmp_path / "c.onnx", carry_state=True, limit=50
    )
    assert [s.name for s in carried.step.signature.states] == ["lstm.h", "lstm.c"]
    with edgelstm.Runner.open(tmp_path / "c.onnx", threads=1) as runner:
        stream = runner.stream("main")
        for cycle in windows[5]:
            y = stream.step(cycle)["y"]
        # From zero over the window's own 30 cycles, the stream ends where the window does.
        assert abs(float(np.abs(y - windows[5]).mean()) - truth[5]) < 2e-7


def test_sizes_of_unrolled_steps_are_known(tmp_path: Path) -> None:
    """ONNX Runtime looks long for memory to reuse where it does not know sizes: 26 s for 512 steps, 1 s with them."""
    import onnx
    from onnx import inliner, shape_inference

    both = layers.Bidirectional(layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], return_sequences=True))
    inner = layers.TimeDistributed(layers.Dense(3))
    model = sequential(inner, both, layers.Bidirectional(layers.LSTM(3)), frame=FRAME, length=6)
    step = load_keras(save(model, tmp_path)).step
    flat = inliner.inline_local_functions(onnx.load_from_string(step.to_bytes()))
    inferred = shape_inference.infer_shapes(flat, strict_mode=True)
    known = {
        v.name: v.type.tensor_type.shape.dim for v in (*inferred.graph.value_info, *inferred.graph.output)
    }
    made = [n for n in flat.graph.node if n.op_type in ("Gemm", "Mul", "Concat", "Tanh", "Sigmoid")]
    # Inside TimeDistributed axis 0 is streams and time, of no name.
    steps = [n.output[0] for n in made if "state_shape" not in n.output[0] and "/layer/" not in n.output[0]]
    assert len(steps) > 100
    unknown = [name for name in steps if name not in known or known[name][0].dim_param != "N"]
    assert not unknown, unknown[:5]
