"""Layers met in models of sensors: stored statistics, cells and stacks of them, ids, attention. As Keras computes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_zoo import (
    Streamed,
    by_numpy,
    check_stream,
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
from edgelstm.errors import EdgeLstmError
from edgelstm.frontends.keras import load_keras
from tolerances import assert_close

FRAME, MAPS = (4,), (4, 3, 6)
SUFFIXES = st.sampled_from((".keras", ".h5"))


@pytest.fixture(scope="module", autouse=True)
def _quick_reading() -> Iterator[None]:
    with hdf5_in_process():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sensor")


# -- normalisation -----------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from((-1, 3, (3, 4), (2, 4), None)),
    st.booleans(),
    st.sampled_from(("adapted", "given", "number")),
    SUFFIXES,
    st.booleans(),
)
def test_normalization(
    folder: Path, axis: Any, invert: bool, source: str, suffix: str, behind_maps: bool
) -> None:
    """Statistics from the data (weights), from the options, or one number for all."""
    rng = np.random.default_rng(1)
    axis = (4,) if axis == 3 else axis
    kept = () if axis is None else tuple(a if a > 0 else a + 5 for a in np.atleast_1d(axis).tolist())
    sizes = tuple((0, 0, *MAPS)[a] for a in kept)
    if source == "number" or (source == "given" and not sizes):
        layer = layers.Normalization(axis=axis, mean=0.7, variance=2.5, invert=invert)
    elif source == "given":
        layer = layers.Normalization(
            axis=axis, mean=rng.normal(size=sizes), variance=rng.uniform(0.1, 3, sizes), invert=invert
        )
    else:
        layer = layers.Normalization(axis=axis, invert=invert)
        layer.adapt(rng.normal(5.0, 3.0, size=(8, 3, *MAPS)).astype(np.float32))
    x = keras.Input((None, *MAPS))
    wide = layers.ConvLSTM2D(6, 1, return_sequences=True)
    y = layer(wide(x) if behind_maps else x)
    tail = layers.ConvLSTM2D(2, 3, padding="same", return_sequences=True)
    model = keras.Model(x, tail(y))
    for part in (wide, tail) if behind_maps else (tail,):
        fill(part, 2)
    check_stream(model, folder, frame=MAPS, length=4, suffix=suffix)


def test_normalization_of_large_numbers_does_not_cancel(folder: Path) -> None:
    """A pressure of 101,325 Pa, give or take 2: x / deviation - mean / deviation would lose it in float32."""
    layer = layers.Normalization(mean=101325.0, variance=4.0)
    model = sequential(layer, layers.LSTM(3, return_sequences=True), frame=(1,))
    loaded = load_keras(save(model, folder))
    x = (101325 + 2 * np.random.default_rng(0).normal(size=(1, 9, 1))).astype(np.float32)
    assert_close(Streamed(loaded, x).outputs["y"], predict(model, x)[0], "float32", k=80, atol=1e-5)


def test_normalization_that_can_t_be_streamed(folder: Path) -> None:
    layer = layers.Normalization(axis=(1, 2))
    layer.adapt(np.random.default_rng(0).normal(size=(9, 5, 4)).astype(np.float32))
    model = keras.Sequential([keras.Input((5, 4)), layer, fill(layers.LSTM(3, return_sequences=True), 0)])
    assert "works along time" in check_window(model, folder, frame=FRAME).notes[0]
    lying = layers.Normalization(mean=0.0, variance=-1.0)
    path = save(keras.Sequential([keras.Input((None, 4)), lying, layers.LSTM(2)]), folder)
    assert "layer 'normalization" in (text := refused(path))
    assert "variance: found negative; expected at least 0" in text


NORMS: dict[str, Any] = {
    "groups": lambda: layers.GroupNormalization(2),
    "groups of one": lambda: layers.GroupNormalization(-1, epsilon=0.1, center=False),
    "groups along height": lambda: layers.GroupNormalization(4, axis=1, scale=False),
    "unit": lambda: layers.UnitNormalization(),
    "unit of maps": lambda: layers.UnitNormalization(axis=[1, 2]),
    "root mean square": lambda: layers.RMSNormalization(axis=(2, 3)),
    "root mean square of channels": lambda: layers.RMSNormalization(epsilon=0.1),
    "spectral": lambda: layers.SpectralNormalization(layers.Conv2D(2, 3)),
}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *((name, ".keras") for name in NORMS),
        ("spectral", ".h5"),  # which names its weights most oddly
        *(pytest.param(name, ".h5", marks=pytest.mark.thorough) for name in NORMS if name != "spectral"),
    ],
)
def test_normalisation_of_a_frame(name: str, suffix: str, folder: Path) -> None:
    for before in ([], [layers.ConvLSTM2D(6, 3, padding="same", return_sequences=True)]):
        stack = [*before, layers.TimeDistributed(NORMS[name]())]
        check_stream(sequential(*stack, frame=MAPS, length=4), folder, frame=MAPS, length=4, suffix=suffix)


def test_group_normalization_of_a_sequence_takes_all_of_it(folder: Path) -> None:
    """Keras normalises over the frames too: a stream has only those so far."""
    stack = [layers.LSTM(4, return_sequences=True), layers.GroupNormalization(2)]
    loaded = check_window(sequential(*stack, frame=FRAME, length=5), folder, frame=FRAME)
    assert "normalises over all frames" in loaded.notes[0]
    text = refused(
        save(
            sequential(layers.LSTM(4, return_sequences=True), layers.GroupNormalization(2), frame=FRAME),
            folder,
        )
    )
    assert "normalises over all frames" in text
    assert "--window 30" in text


# -- cells -------------------------------------------------------------------------------------------------------------


def cell(kind: str, units: int, bias: bool, after: bool) -> Any:
    """A cell by name."""
    more = {"reset_after": after} if kind == "GRUCell" else {}
    return getattr(layers, kind)(units, use_bias=bias, **more)


CELLS = st.builds(
    cell,
    st.sampled_from(("LSTMCell", "GRUCell", "SimpleRNNCell")),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)


@settings(max_examples=14, deadline=None)
@given(st.data())
def test_rnn_of_cells(folder: Path, data: st.DataObject) -> None:
    """One cell, a list, a stack; streamed, or forwards and backwards over a window."""
    cells = data.draw(st.lists(CELLS, min_size=1, max_size=3))
    shape = data.draw(st.sampled_from(("one", "list", "stack")))
    inner = cells[0] if shape == "one" else cells if shape == "list" else layers.StackedRNNCells(cells)
    whole, both = data.draw(st.booleans()), data.draw(st.booleans())
    rnn = layers.RNN(inner, return_sequences=whole)
    suffix = data.draw(SUFFIXES)
    if both and shape == "one":
        model = sequential(layers.Bidirectional(rnn), frame=FRAME)
        check_window(model, folder, frame=FRAME, window=5, suffix=suffix)
        return
    check_stream(sequential(rnn, frame=FRAME), folder, frame=FRAME, suffix=suffix)


def test_last_states_of_a_stack(folder: Path) -> None:
    """Outputs 1, 2 and 3 are h and c of the LSTM and h of the GRU; another RNN begins from them."""
    x = keras.Input((5, 4))
    cells = [layers.LSTMCell(3), layers.GRUCell(2)]
    y, lstm, gru = layers.RNN(cells, return_state=True)(x)
    again = layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])(
        layers.RepeatVector(4)(y), initial_state=[lstm, gru]
    )
    model = fill(keras.Model(x, layers.Concatenate()([*lstm, gru, again])), 5)
    check_window(model, folder, frame=FRAME)


def test_states_of_a_stack_are_named(folder: Path) -> None:
    model = sequential(layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], name="r"), frame=FRAME)
    states = load_keras(save(model, folder)).step.signature.states
    assert [(s.name, s.shape) for s in states] == [
        ("r.0.h", ("N", 3)),
        ("r.0.c", ("N", 3)),
        ("r.1.h", ("N", 2)),
    ]
    assert edgelstm.export(str(folder / "model.keras"), limit=20).comparison.worst.held < 1e-5


def test_cells_of_one_s_own_are_refused(folder: Path) -> None:
    @keras.saving.register_keras_serializable("mine")
    class Minimal(layers.Layer):  # type: ignore[misc]
        state_size, output_size = 2, 2

        def call(self, x: Any, states: Any, training: bool = False) -> Any:
            return x[:, :2], [x[:, :2]]

    path = save(keras.Sequential([keras.Input((None, 4)), layers.RNN(Minimal())]), folder)
    text = refused(path)
    assert (
        "option 'cell': found mine>Minimal; expected one of LSTMCell, GRUCell, SimpleRNNCell, StackedRNNCells"
        in text
    )


def test_softmax_inside_a_cell_is_refused(folder: Path) -> None:
    path = save(sequential(layers.LSTM(3, activation="softmax"), frame=FRAME), folder)
    assert "option 'activation': found softmax; expected an activation of single numbers" in refused(path)


# -- ids ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.booleans(), st.sampled_from(("int32", "float32", "int64")), SUFFIXES, st.sampled_from(((), (3,))))
def test_embedding(folder: Path, masked: bool, dtype: str, suffix: str, frame: tuple[int, ...]) -> None:
    """Frames are one id, or several; as whole numbers, whatever the file calls them."""
    x = keras.Input((None, *frame), dtype=dtype)
    y = layers.Embedding(9, 5, mask_zero=masked and not frame)(x)
    if frame:
        y = layers.TimeDistributed(layers.Flatten())(y)
    model = fill(keras.Model(x, layers.GRU(3, return_sequences=True)(y)), 1)
    loaded = load_keras(save(model, folder, suffix))
    spec = loaded.step.signature.input("x")
    assert (spec.dtype, spec.shape) == ("int64" if dtype == "int64" else "int32", ("N", *frame))
    ids = np.random.default_rng(0).integers(0, 9, (2, 8, *frame)).astype(spec.dtype)
    (expected,) = predict(model, ids.astype(dtype))
    assert_close(Streamed(loaded, ids).outputs["y"], expected, "float32", k=80, atol=1e-5)
    assert_close(by_numpy(loaded, ids)["y"], expected[0], "float32", k=80, atol=1e-5)


def test_ids_beside_numbers(folder: Path) -> None:
    """One column of the frame is an id, the others are measurements; and ids beyond the table are an error."""
    x = keras.Input((None, 4))
    ids = layers.Embedding(50, 3)(x[..., 0])
    model = fill(
        keras.Model(x, layers.LSTM(3, return_sequences=True)(layers.Concatenate()([ids, x[..., 1:]]))), 1
    )
    loaded = load_keras(save(model, folder))
    frames = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    frames[..., 0] = np.random.default_rng(1).integers(0, 50, (2, 6))
    (expected,) = predict(model, frames)
    assert_close(Streamed(loaded, frames).outputs["y"], expected, "float32", k=80, atol=1e-5)
    assert_close(by_numpy(loaded, frames)["y"], expected[0], "float32", k=80, atol=1e-5)
    frames[0, 2, 0] = 50
    with pytest.raises(EdgeLstmError, match=r"found 50 to 50; expected whole numbers from 0 to 49"):
        by_numpy(loaded, frames)


def test_embedding_models_are_exported(folder: Path) -> None:
    stack = [layers.Embedding(20, 6, mask_zero=True), layers.GRU(8, return_sequences=True), layers.Dense(20)]
    model = fill(keras.Sequential([keras.Input((None,), dtype="int32"), *stack]), 0)
    exported = edgelstm.export(str(save(model, folder)), limit=20)
    assert exported.comparison.worst.held < 1e-5
    fixed = fill(
        keras.Sequential([keras.Input((6,), dtype="int32"), layers.Embedding(20, 4), layers.LSTM(3)]), 0
    )
    check_window(fixed, folder, frame=(), length=6, ids=20)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(("one_hot", "multi_hot", "count", "int")), st.booleans(), SUFFIXES)
def test_categories(folder: Path, mode: str, bins: bool, suffix: str) -> None:
    """Each frame's four numbers as bins or as classes."""
    x = keras.Input((None, 4), dtype="float32" if bins else "int32")
    if bins:
        y = layers.Discretization(bin_boundaries=[-0.5, 0.1, 0.8], output_mode=mode)(x)
    else:
        y = layers.CategoryEncoding(7, output_mode="one_hot" if mode == "int" else mode)(x)
    if mode in ("multi_hot", "count"):
        # Keras counts along axis 1, which is time here.
        x = keras.Input((4,), dtype=x.dtype)
        y = (
            layers.Discretization(bin_boundaries=[-0.5, 0.1, 0.8], output_mode=mode)(x)
            if bins
            else layers.CategoryEncoding(7, output_mode=mode)(x)
        )
        model = fill(keras.Model(x, layers.Dense(3)(y)), 0)
        frame = (
            np.random.default_rng(0).normal(size=(2, 4))
            if bins
            else np.random.default_rng(0).integers(0, 7, (2, 4))
        )
        frame = frame.astype(x.dtype)
        loaded = load_keras(save(model, folder, suffix))
        assert_close(run_window(loaded, frame)["y"], predict(model, frame)[0], "float32", k=80, atol=1e-5)
        made = loaded.reference.step([{"x": frame[0]}], loaded.reference.new_state(), [0])[0]["y"]
        assert_close(made, predict(model, frame)[0][0], "float32", k=80, atol=1e-5)
        return
    if len(y.shape) == 4:
        y = layers.TimeDistributed(layers.Flatten())(y)
    y = keras.ops.cast(y, "float32")
    model = fill(keras.Model(x, layers.LSTM(3, return_sequences=True)(y)), 0)
    check_stream(model, folder, frame=FRAME, ids=None if bins else 7, suffix=suffix)


def test_integer_lookup(folder: Path) -> None:
    """The examples of Keras's documentation (Keras itself needs TensorFlow for this layer)."""
    import json
    import zipfile

    stack = [layers.CategoryEncoding(9, output_mode="one_hot"), layers.LSTM(2, return_sequences=True)]
    path = save(fill(keras.Sequential([keras.Input((None,), dtype="int64"), *stack]), 0), folder)
    options = {"name": "lookup", "vocabulary": [12, 36, 1138, 42], "num_oov_indices": 1, "mask_token": None,
               "oov_token": -1, "output_mode": "int", "invert": False, "dtype": "int64", "trainable": True}  # fmt: skip
    other = folder / "lookup.keras"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                item = {"module": "keras.layers", "class_name": "IntegerLookup", "config": options}
                config["config"]["layers"].insert(1, {**item, "registered_name": None})
                data = json.dumps(config).encode()
            new.writestr(name, data)
    ids = np.array([[12, 1138, 42], [42, 1000, 36]])
    places = np.array([[1, 3, 4], [4, 0, 2]])
    plain, looked = load_keras(path), load_keras(other)
    expected = Streamed(plain, places).outputs["y"]
    assert_close(Streamed(looked, ids).outputs["y"], expected, "float32")
    assert_close(by_numpy(looked, ids)["y"], expected[0], "float32", k=80, atol=1e-6)


# -- attention ---------------------------------------------------------------------------------------------------------


@st.composite
def attention(draw: st.DrawFn) -> tuple[str, Any]:
    """What it is, and a function of query and value."""
    kind = draw(st.sampled_from(("Attention", "AdditiveAttention", "MultiHeadAttention")))
    causal, third = draw(st.booleans()), draw(st.booleans())
    if kind == "MultiHeadAttention":
        layer = layers.MultiHeadAttention(
            draw(st.integers(1, 3)),
            draw(st.integers(1, 4)),
            value_dim=draw(st.sampled_from((None, 2))),
            use_bias=draw(st.booleans()),
            output_shape=draw(st.sampled_from((None, 5))),
            dropout=draw(st.sampled_from((0.0, 0.2))),
        )
        return kind, lambda q, v: layer(q, v, key=v * 0.5 if third else None, use_causal_mask=causal)
    options = {"use_scale": draw(st.booleans())}
    if kind == "Attention":
        options["score_mode"] = draw(st.sampled_from(("dot", "concat")))
    layer = getattr(layers, kind)(**options)
    return kind, lambda q, v: layer([q, v, v * 0.5] if third else [q, v], use_causal_mask=causal)


@settings(max_examples=14, deadline=None)
@given(attention(), st.booleans(), SUFFIXES, st.integers(0, 99))
def test_attention_inside_a_window(
    folder: Path, drawn: tuple[str, Any], itself: bool, suffix: str, seed: int
) -> None:
    kind, attend = drawn
    x = keras.Input((5, 4))
    value = layers.LSTM(4, return_sequences=True)(x)
    query = value if itself else layers.Dense(4)(value[:, 1:4])
    y = layers.GlobalAveragePooling1D()(attend(query, value))
    model = fill(keras.Model(x, layers.Dense(2)(y)), seed)
    loaded = check_window(model, folder, frame=FRAME, suffix=suffix, seed=seed)
    assert "attends to whole sequences" in loaded.notes[0] or not itself, kind


@pytest.mark.parametrize(("heads", "size"), [(3, 1), (1, 1), (1, 4)])
def test_heads_of_one_value(heads: int, size: int, folder: Path) -> None:
    x = keras.Input((5, 4))
    y = layers.GlobalAveragePooling1D()(
        layers.MultiHeadAttention(heads, size)(x, layers.LSTM(4, return_sequences=True)(x))
    )
    check_window(fill(keras.Model(x, y), 1), folder, frame=FRAME, suffix=".keras", seed=1)


@pytest.mark.parametrize("kind", ["Attention", "MultiHeadAttention"])
def test_scores_of_attention_are_outputs(kind: str, folder: Path) -> None:
    x = keras.Input((5, 4))
    if kind == "Attention":
        y, scores = layers.Attention()([x, x], return_attention_scores=True)
    else:
        y, scores = layers.MultiHeadAttention(2, 3)(x, x, return_attention_scores=True)
    model = fill(keras.Model(x, [layers.LSTM(3)(y), scores]), 0)
    loaded = load_keras(save(model, folder))
    frames = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    names = [t.name for t in loaded.step.signature.outputs]
    found, reference = run_window(loaded, frames), loaded.reference
    made = reference.step([{"x": frames[0]}], reference.new_state(), [0])[0]
    for name, expected in zip(names, predict(model, frames), strict=True):
        assert_close(found[name], expected, "float32", k=80, atol=1e-5)
        assert_close(made[name], expected[0], "float32", k=80, atol=1e-5)


def test_attention_that_is_refused(folder: Path) -> None:
    x = keras.Input((5, 4))
    masked = layers.Masking()(x)
    path = save(keras.Model(x, layers.LSTM(2)(layers.Attention()([masked, masked]))), folder)
    assert "takes masked sequences" in refused(path)
    mask = keras.Input((5, 5))
    path = save(keras.Model([x, mask], layers.MultiHeadAttention(1, 2)(x, x, attention_mask=mask)), folder)
    assert "is called with 'attention_mask'" in refused(path)


# -- what training leaves behind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_losses_and_compile_settings_do_not_matter(suffix: str, folder: Path) -> None:
    @keras.saving.register_keras_serializable("mine")
    class Weighted(keras.losses.Loss):  # type: ignore[misc]
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return keras.ops.mean(keras.ops.square(y_true - y_pred))

    model = sequential(layers.LSTM(3, return_sequences=True), layers.Dense(2), frame=FRAME)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=Weighted(), metrics=["mae"])
    model.fit(np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 2), np.float32), verbose=0)
    check_stream(model, folder, frame=FRAME, suffix=suffix)


def test_an_unknown_layer_is_named_with_what_is_known(folder: Path) -> None:
    path = save(keras.Sequential([keras.Input((4, 4, 3)), layers.RandomContrast(0.1, name="odd")]), folder)
    text = refused(path)
    assert "layer 'odd' is unknown: found RandomContrast; expected one of Activation," in text
    assert "MultiHeadAttention" in text


def test_whole_numbers_go_to_layers_of_real_ones(folder: Path) -> None:
    """Images of uint8 straight into a convolution."""
    x = keras.Input((6, 5, 2), dtype="uint8")
    y = layers.Conv2D(3, 3)(layers.Rescaling(1 / 255)(x))
    model = fill(keras.Model(x, layers.Flatten()(y)), 0)
    loaded = load_keras(save(model, folder))
    image = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 2)).astype(np.uint8)
    (expected,) = predict(model, image)
    assert loaded.step.signature.inputs[0].dtype == "uint8"
    assert_close(run_window(loaded, image)["y"], expected, "float32", k=80, atol=1e-5)
    made = loaded.reference.step([{"x": image[0]}], loaded.reference.new_state(), [0])[0]["y"]
    assert_close(made, expected[0], "float32", k=80, atol=1e-5)
