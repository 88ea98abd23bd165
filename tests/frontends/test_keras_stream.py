"""Keras predicts whole sequences; the step graph, made from the file without Keras, streams them: the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from keras_zoo import (
    Streamed,
    by_numpy,
    check_stream,
    fill,
    hdf5_in_process,
    keras,
    layers,
    predict,
    save,
    sequential,
)

from edgelstm.frontends.keras import load_keras
from tolerances import assert_close

FEATURES, MAPS = (4,), (6, 5, 2)


@pytest.fixture(scope="module", autouse=True)
def _quick_reading() -> Iterator[None]:
    with hdf5_in_process():
        yield


ACTIVATIONS = (
    "tanh",
    "relu",
    "linear",
    "hard_sigmoid",
    "softsign",
    "elu",
    "selu",
    "gelu",
    "silu",
    "softplus",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keras")


def recurrent(name: str, units: int, **options: Any) -> Any:
    """A recurrent layer by name."""
    return getattr(layers, name)(units, **options)


@st.composite
def dense_cells(draw: st.DrawFn) -> dict[str, Any]:
    """LSTM, GRU or SimpleRNN with options."""
    kind = draw(st.sampled_from(("LSTM", "GRU", "SimpleRNN")))
    options: dict[str, Any] = {
        "units": draw(st.integers(1, 4)),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "use_bias": draw(st.booleans()),
        "unroll": draw(st.booleans()),
    }
    if kind != "SimpleRNN":
        options["recurrent_activation"] = draw(st.sampled_from(("sigmoid", "hard_sigmoid", "tanh")))
    if kind == "LSTM":
        options["unit_forget_bias"] = draw(st.booleans())
    if kind == "GRU":
        options["reset_after"] = draw(st.booleans())
    return {"kind": kind, "options": options}


@settings(max_examples=25, deadline=None)
@given(st.lists(dense_cells(), min_size=1, max_size=3), st.booleans(), st.integers(0, 99))
def test_recurrent_stacks(folder: Path, cells: list[dict[str, Any]], last: bool, seed: int) -> None:
    unrolled = any(c["options"]["unroll"] for c in cells)
    stack = [
        recurrent(c["kind"], return_sequences=not last or k + 1 < len(cells), **c["options"])
        for k, c in enumerate(cells)
    ]
    model = sequential(*stack, frame=FEATURES, length=7 if unrolled else None, seed=seed)
    check_stream(model, folder, frame=FEATURES, seed=seed, carry_state=last)


@st.composite
def grids(draw: st.DrawFn, rank: int, *, causal: bool = False) -> dict[str, Any]:
    """Kernel, strides or dilation, and padding over ``rank`` axes."""
    sizes = st.tuples(*[st.integers(1, 3)] * rank)
    options: dict[str, Any] = {
        "kernel_size": draw(sizes),
        "padding": draw(st.sampled_from(("same", "valid"))),
    }
    if causal and draw(st.booleans()):
        options["padding"] = "causal"
    if draw(st.booleans()):
        options["strides"] = draw(st.tuples(*[st.integers(1, 2)] * rank))
    else:
        options["dilation_rate"] = draw(st.tuples(*[st.integers(1, 2)] * rank))
    return options


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_conv_lstms(folder: Path, data: st.DataObject) -> None:
    rank = data.draw(st.sampled_from((1, 2, 2, 3)))
    first = data.draw(st.booleans())
    # Keras on torch can't stride a convolution unevenly; neither its strides nor its dilation go with the others.
    options = data.draw(grids(rank))
    kind = getattr(layers, f"ConvLSTM{rank}D")
    form = "channels_first" if first else "channels_last"
    grid = (6, 5, 5)[:rank]
    stack = [
        kind(
            2,
            return_sequences=True,
            data_format=form,
            activation=data.draw(st.sampled_from(("tanh", "relu", "softsign"))),
            recurrent_activation=data.draw(st.sampled_from(("sigmoid", "hard_sigmoid"))),
            use_bias=data.draw(st.booleans()),
            **options,
        )
    ]
    if data.draw(st.booleans()):
        stack.append(layers.BatchNormalization(axis=2 if first else -1, scale=data.draw(st.booleans())))
    if data.draw(st.booleans()):
        stack.append(kind(3, 2, padding="same", return_sequences=data.draw(st.booleans()), data_format=form))
    frame = (2, *grid) if first else (*grid, 2)
    check_stream(sequential(*stack, frame=frame), folder, frame=frame, length=4)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_convolution_and_pooling_over_time(folder: Path, data: st.DataObject) -> None:
    """Frames lie in rings; what has a stride comes less often; what looks ahead comes late."""
    stack: list[Any] = []
    length = data.draw(st.sampled_from((None, 41)))
    for _ in range(data.draw(st.integers(1, 3))):
        kind = data.draw(st.sampled_from(("Conv1D", "SeparableConv1D", "DepthwiseConv1D", "pool")))
        if kind == "pool":
            size = data.draw(st.integers(1, 3))
            pool = data.draw(st.sampled_from((layers.MaxPooling1D, layers.AveragePooling1D)))
            stack.append(pool(size, strides=data.draw(st.sampled_from((None, 1, 2)))))
            continue
        options = data.draw(grids(1, causal=kind == "Conv1D"))
        if length is None and options.get("strides", (1,)) != (1,) and options["padding"] == "same":
            options["padding"] = "valid"
        if kind == "DepthwiseConv1D":
            stack.append(layers.DepthwiseConv1D(depth_multiplier=2, **options))
        else:
            stack.append(getattr(layers, kind)(3, activation="tanh", **options))
    # Strides may leave a sequence too short for the next layer, in Keras too; each layer looks two elements ahead at most.
    left = 41
    for layer in stack:
        assume(left >= 6)
        left = layer.compute_output_shape((1, left, 3))[1]
    assume(left >= 7)
    if data.draw(st.booleans()):
        stack.append(layers.LSTM(3, return_sequences=True))
    check_stream(sequential(*stack, layers.GRU(2, return_sequences=True), frame=FEATURES, length=length),
                 folder, frame=FEATURES, length=41)  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_conv3d_over_time(folder: Path, data: st.DataObject) -> None:
    options = data.draw(grids(3))
    stack = [layers.ConvLSTM2D(2, 2, padding="same", return_sequences=True), layers.Conv3D(2, **options)]
    if data.draw(st.booleans()):
        stack.append(layers.MaxPooling3D(data.draw(st.sampled_from(((1, 2, 2), (2, 1, 1))))))
    frame = (8, 7, 1)
    check_stream(sequential(*stack, frame=frame, length=11), folder, frame=frame, length=11)


FRAME_LAYERS: dict[str, Any] = {
    "Conv2D": lambda: layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
    "Conv2D groups": lambda: layers.Conv2D(4, (2, 3), groups=2, dilation_rate=2),
    "Conv2D first": lambda: layers.Conv2D(3, 2, data_format="channels_first"),
    "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, padding="same"),
    "SeparableConv2D": lambda: layers.SeparableConv2D(3, 2, depth_multiplier=2),
    "Conv2DTranspose same": lambda: layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
    "Conv2DTranspose valid": lambda: layers.Conv2DTranspose(3, (2, 4), strides=(3, 1), activation="tanh"),
    "Conv2DTranspose first": lambda: layers.Conv2DTranspose(
        3, 2, strides=2, padding="same", data_format="channels_first"
    ),
    "BatchNormalization": lambda: layers.BatchNormalization(axis=1, center=False),
    "LayerNormalization": lambda: layers.LayerNormalization(axis=[1, 3]),
    "LayerNormalization last": lambda: layers.LayerNormalization(scale=False),
    "MaxPooling2D": lambda: layers.MaxPooling2D(2, padding="same"),
    "AveragePooling2D": lambda: layers.AveragePooling2D((3, 1), strides=1, padding="same"),
    "GlobalMaxPooling2D": lambda: layers.GlobalMaxPooling2D(keepdims=True),
    "GlobalAveragePooling2D": lambda: layers.GlobalAveragePooling2D(),
    "UpSampling2D": lambda: layers.UpSampling2D((2, 3)),
    "UpSampling2D bilinear": lambda: layers.UpSampling2D(2, interpolation="bilinear"),
    "ZeroPadding2D": lambda: layers.ZeroPadding2D(((1, 0), (2, 3))),
    "Cropping2D": lambda: layers.Cropping2D(((1, 0), (2, 1))),
    "Flatten": lambda: layers.Flatten(),
    "Flatten first": lambda: layers.Flatten(data_format="channels_first"),
    "Reshape": lambda: layers.Reshape((-1, 6)),
    "Permute": lambda: layers.Permute((3, 1, 2)),
    "Dense": lambda: layers.Dense(3, activation="softmax"),
    "PReLU": lambda: layers.PReLU(shared_axes=[1]),
    "LeakyReLU": lambda: layers.LeakyReLU(negative_slope=0.1),
    "ReLU": lambda: layers.ReLU(max_value=0.8, negative_slope=0.1, threshold=0.2),
    "Softmax": lambda: layers.Softmax(axis=2),
    "Dropout": lambda: layers.Dropout(0.5),
    "Rescaling": lambda: layers.Rescaling(0.3, offset=-1.0),
    "nested model": lambda: keras.Sequential(
        [
            keras.Input(MAPS),
            layers.Conv2D(2, 3, activation=layers.LeakyReLU()),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3, activation="relu6"),
        ]
    ),
}


@pytest.mark.parametrize("name", FRAME_LAYERS)
def test_layers_of_a_frame(name: str, tmp_path: Path) -> None:
    """Each inside TimeDistributed, alone and behind a ConvLSTM, which leaves its channels first."""
    for before in ([], [layers.ConvLSTM2D(2, 3, padding="same", return_sequences=True)]):
        stack = [*before, layers.TimeDistributed(FRAME_LAYERS[name]())]
        check_stream(sequential(*stack, frame=MAPS, length=4), tmp_path, frame=MAPS, length=4)


@pytest.mark.parametrize("activation", sorted({*ACTIVATIONS, "mish", "exponential", "hard_silu", "leaky_relu",
                                               "log_softmax", "hard_tanh", "tanh_shrink", "log_sigmoid"}))  # fmt: skip
def test_activations(activation: str, tmp_path: Path) -> None:
    stack = [layers.LSTM(3, return_sequences=True), layers.Dense(4, activation=activation)]
    check_stream(sequential(*stack, frame=FEATURES), tmp_path, frame=FEATURES)


def test_functional_models(tmp_path: Path) -> None:
    """Two inputs, a layer called twice, branches that come at different times, two outputs."""
    a, b = keras.Input((None, 3), name="left"), keras.Input((None, 3), name="right")
    shared = layers.LSTM(4, return_sequences=True)
    x, y = shared(a), shared(b)
    late = layers.Conv1D(4, 3, padding="same")(x)  # one frame ahead
    total = layers.Add()([late, y, x])
    joined = layers.Concatenate()([total, layers.Average()([x, y]), layers.Maximum()([x, y])])
    top = layers.GRU(3, return_sequences=True, name="top")(joined)
    model = fill(keras.Model([a, b], {"trend": layers.Dense(2)(top), "raw": layers.Multiply()([x, y])}), 3)
    loaded = load_keras(save(model, tmp_path))
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(2, 9, 3)).astype(np.float32) for _ in range(2))
    expected = dict(zip(("raw", "trend"), predict(model, left, right), strict=True))
    streamed = Streamed(loaded, left, right)
    reference = by_numpy(loaded, left, right)
    assert [t.name for t in loaded.step.signature.inputs] == ["left", "right"]
    assert [t.name for t in loaded.step.signature.outputs] == ["trend_ready", "trend", "raw"]
    for name, value in expected.items():
        found = streamed.elements(name)
        assert found.shape[1] == (8 if f"{name}_ready" in streamed.outputs else 9)
        assert_close(found, value[:, : found.shape[1]], "float32", k=80, atol=1e-5)
        ready = reference.get(f"{name}_ready", np.ones(9, bool))
        assert_close(reference[name][ready], value[0, : found.shape[1]], "float32", k=80, atol=1e-5)
    assert "comes 1 frame late" in loaded.notes[0]


def test_masked_frames_are_passed_over(tmp_path: Path) -> None:
    model = sequential(
        layers.Masking(0.5),
        layers.LSTM(3, return_sequences=True, zero_output_for_mask=True),
        layers.Dropout(0.1),
        layers.GRU(3, return_sequences=True),
        layers.TimeDistributed(layers.Dense(2)),
        frame=(3,),
    )
    loaded = load_keras(save(model, tmp_path))
    x = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(np.float32)
    x[0, [0, 3, 4]] = x[1, [5, 11]] = 0.5
    (expected,) = predict(model, x)
    assert_close(Streamed(loaded, x).outputs["y"], expected, "float32", k=80, atol=1e-5)
    assert_close(by_numpy(loaded, x)["y"], expected[0], "float32", k=80, atol=1e-5)


def test_stateful_models_go_on_where_they_were(tmp_path: Path) -> None:
    """Keras in pieces of 3 frames, the stream frame by frame: nobody resets."""
    stack = [layers.LSTM(3, stateful=True, return_sequences=True), layers.GRU(2, stateful=True)]
    model = fill(keras.Sequential([keras.Input(batch_shape=(2, 3, 4)), *stack]), 0)
    loaded = load_keras(save(model, tmp_path))
    assert loaded.window is None
    x = np.random.default_rng(0).normal(size=(2, 12, 4)).astype(np.float32)
    streamed = Streamed(loaded, x).outputs["y"]
    for piece in range(4):
        (expected,) = predict(model, x[:, 3 * piece : 3 * piece + 3])
        assert_close(streamed[:, 3 * piece + 2], expected, "float32", k=80, atol=1e-5)


def test_a_decoder_runs_inside_every_step(tmp_path: Path) -> None:
    """What comes after the last state has a time of its own."""
    model = sequential(
        layers.LSTM(4, name="encoder"),
        layers.RepeatVector(5),
        layers.GRU(3, return_sequences=True),
        layers.TimeDistributed(layers.Dense(2)),
        frame=FEATURES,
    )
    loaded = check_stream(model, tmp_path, frame=FEATURES)
    assert loaded.step.signature.output("y").shape == ("N", 5, 2)
    assert [s.name for s in loaded.step.signature.states] == ["encoder.h", "encoder.c"]


def test_legacy_files(tmp_path: Path) -> None:
    """The same model from .h5, nested and partly frozen layers included."""
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3), layers.BatchNormalization(), layers.Dense(3)]
    )
    inner.layers[0].trainable = False
    frozen = layers.BatchNormalization(trainable=False)
    stack = [
        layers.TimeDistributed(inner),
        layers.LSTM(3, return_sequences=True),
        frozen,
        layers.Conv1D(2, 2),
    ]
    check_stream(sequential(*stack, frame=FEATURES), tmp_path, frame=FEATURES, suffix=".h5")


def test_weights_are_stored_once(tmp_path: Path) -> None:
    model = sequential(layers.LSTM(16, return_sequences=True), layers.Dense(4), frame=(8,))
    loaded = load_keras(save(model, tmp_path))
    weights = sum(int(np.prod(t.dims)) for t in loaded.step.model.graph.initializer)
    assert weights == sum(int(np.prod(w.shape)) for w in model.weights)
    assert loaded.step.op_types() == ["Concat", "Gemm", "FusedGates_lstm", "Gemm"]
