"""Operators and slices of tensors in functional models: the step graph and the reference give Keras's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
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
    save,
)

import edgelstm
from edgelstm.frontends.keras import load_keras
from tolerances import assert_close

ops = keras.ops
Op = Callable[[Any], Any]
FRAME = (4,)


@pytest.fixture(scope="module", autouse=True)
def _quick_reading() -> Iterator[None]:
    with hdf5_in_process():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operators")


def functional(
    op: Op,
    frame: tuple[int, ...] = FRAME,
    length: int | None = None,
    seed: int = 0,
    *,
    recurrent: bool = True,
) -> Any:
    """A model that is an LSTM, an operator, and a GRU behind it."""
    x = keras.Input((length, *frame))
    y = op(layers.LSTM(4, return_sequences=True)(x) if recurrent else x)
    return fill(keras.Model(x, layers.GRU(3, return_sequences=True)(y) if recurrent else y), seed)


ROW = np.array([0.5, -1.0, 2.0, 1.5], np.float32)
#: Operators that compute every frame alone, [N, T, 4] -> [N, T, anything].
OPERATORS: dict[str, Op] = {
    "x * 0.5": lambda x: x * 0.5,
    "0.5 * x": lambda x: 0.5 * x,
    "1 - x": lambda x: 1 - x,
    "x / 3": lambda x: x / 3,
    "2 / x": lambda x: 2 / (x + 3.0),
    "x ** 2": lambda x: x**2,
    "-x": lambda x: -x,
    "abs": abs,
    "x // 0.3": lambda x: ops.cast(x // 0.3, "float32"),
    "x % 0.7": lambda x: x % 0.7,
    "row": lambda x: x * ROW + ROW[None, None],
    "x + x": lambda x: x + ops.tanh(x),
    "x - x": lambda x: ops.square(x) - x,
    "x > 0": lambda x: ops.where(x > 0.1, x, -2.0),
    "bool": lambda x: ops.cast(ops.logical_and(x > -0.2, ops.logical_not(x >= 0.2)), "float32"),
    "bool times": lambda x: (x < 0.1) * x,
    "int": lambda x: ops.cast(ops.cast(x * 5.0, "int32") * 2 + 1, "float32"),
    "where": lambda x: ops.where(ops.equal(ops.round(x), 0.0), 1.0, x),
    "clip": lambda x: ops.clip(x, -0.2, 0.3),
    "maximum": lambda x: ops.maximum(x, 0.0) + ops.minimum(x, ops.sin(x)),
    "logs": lambda x: ops.log(ops.abs(x) + 1.0) + ops.log1p(x * x) + ops.log10(x * x + 1.0),
    "exp": lambda x: ops.exp(x) + ops.expm1(x * 0.01),
    "roots": lambda x: ops.sqrt(x * x + 0.1) + ops.rsqrt(x * x + 0.2) + ops.reciprocal(x + 4.0),
    "waves": lambda x: ops.cos(x) + ops.arctan(x) + ops.sinh(x) + ops.sign(x) + ops.floor(x) + ops.ceil(x),
    "activations": lambda x: ops.relu(x) + ops.sigmoid(x) + ops.silu(x) + ops.elu(x) + ops.softplus(x),
    "gelu": lambda x: ops.gelu(x, approximate=False) + ops.gelu(x),
    "leaky": lambda x: ops.leaky_relu(x, negative_slope=0.1) + ops.hard_sigmoid(x) + ops.relu6(x * 9.0),
    "softmax": lambda x: ops.softmax(x) + ops.log_softmax(x, axis=-1),
    "mean": lambda x: x - ops.mean(x, axis=-1, keepdims=True),
    "norm": lambda x: x / (ops.norm(x, axis=-1, keepdims=True) + 0.1),
    "std": lambda x: x / (ops.std(x, axis=-1, keepdims=True) + ops.var(x, axis=2, keepdims=True) + 0.1),
    "sums": lambda x: ops.concatenate([ops.sum(x, axis=-1, keepdims=True), ops.max(x, axis=2, keepdims=True)], -1),
    "logsumexp": lambda x: x - ops.logsumexp(x, axis=-1, keepdims=True),
    "any": lambda x: ops.cast(ops.any(x > 0.1, axis=-1, keepdims=True), "float32"),
    "x[..., :2]": lambda x: x[..., :2],
    "x[:, :, 1]": lambda x: x[:, :, 1:2] * x[:, :, 1][:, :, None],
    "x[..., -1]": lambda x: x[..., None, -1],
    "step": lambda x: x[:, :, 1::2],
    "concatenate": lambda x: ops.concatenate([x, x * 2.0], axis=-1),
    "stack": lambda x: ops.mean(ops.stack([x, -x, x * x], axis=-1), axis=3),
    "split": lambda x: ops.multiply(*ops.split(x, 2, axis=-1)),
    "expand": lambda x: ops.squeeze(ops.expand_dims(x, -1) * 2.0, axis=-1),
    "repeat": lambda x: ops.repeat(x, 2, axis=-1),
    "tile": lambda x: ops.tile(x, (1, 1, 2)),
    "flip": lambda x: ops.flip(x, axis=2) + ops.roll(x, 1, axis=-1),
    "take": lambda x: ops.take(x, [3, 0, 0], axis=-1),
    "matrix": lambda x: x @ np.arange(12, dtype=np.float32).reshape(4, 3),
}  # fmt: skip


#: Operators that do not keep [N, T, 4].
CHANGING = {"sums", "any", "x[..., :2]", "x[:, :, 1]", "x[..., -1]", "step", "concatenate", "split", "repeat", "tile",
            "take", "matrix"}  # fmt: skip
KEEPING = sorted({*OPERATORS} - CHANGING)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_operators_of_a_frame(suffix: str, folder: Path) -> None:
    """All of them behind one LSTM, each an output."""
    x = keras.Input((None, 4))
    y = layers.LSTM(4, return_sequences=True)(x)
    names = [f"op{k}" for k in range(len(OPERATORS))]
    made = {name: op(y) for name, op in zip(names, OPERATORS.values(), strict=True)}
    model = fill(keras.Model(x, made), 0)
    loaded = load_keras(save(model, folder, suffix))
    frames = np.random.default_rng(0).normal(size=(2, 7, 4)).astype(np.float32)
    expected = dict(zip(sorted(names), predict(model, frames), strict=True))
    streamed, reference = Streamed(loaded, frames), by_numpy(loaded, frames)
    for name, op in zip(names, OPERATORS, strict=True):
        assert streamed.outputs[name].shape == expected[name].shape, op
        assert_close(streamed.outputs[name], expected[name], "float32", k=80, atol=1e-5)
        assert_close(reference[name], expected[name][0], "float32", k=80, atol=1e-5)


def test_steps_backwards(folder: Path) -> None:
    """PyTorch has no such slices, TensorFlow has."""
    path = save(functional(lambda x: x[..., ::-1]), folder)
    model = functional(lambda x: ops.flip(x, axis=-1))
    frames = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    found = Streamed(load_keras(path), frames).outputs["y"]
    assert_close(found, predict(model, frames)[0], "float32", k=80, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.sampled_from(KEEPING), min_size=2, max_size=4),
    st.sampled_from(("same", "causal", "valid")),
    st.sampled_from((".keras", ".h5")),
    st.integers(0, 99),
)
def test_chains_beside_branches_that_come_late(
    folder: Path, names: list[str], padding: str, suffix: str, seed: int
) -> None:
    """Operators on sequences that come at different frames: the earlier waits."""

    def chain(x: Any) -> Any:
        y = layers.Conv1D(4, 3, padding=padding)(x) if padding != "valid" else x
        for name in names:
            y = OPERATORS[name](y)
        return y * x + 1.0

    check_stream(functional(chain, seed=seed), folder, frame=FRAME, seed=seed, suffix=suffix, length=9)


@st.composite
def indices(draw: st.DrawFn) -> tuple[Any, ...]:
    """An index of [N, T, 6, 5] that leaves time alone."""
    bound = st.one_of(st.none(), st.integers(-4, 4))
    items: list[Any] = []
    for size in (6, 5):
        cut = st.builds(slice, bound, bound, st.sampled_from((None, 1, 2)))
        item = draw(st.one_of(cut, st.integers(-size, size - 1)))
        items += [item] if not isinstance(item, slice) or len(range(size)[item]) else [slice(None)]
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, 2)), None)
    front: list[Any] = [...] if draw(st.booleans()) else [slice(None), slice(None)]
    return (*front, *items)


@settings(max_examples=8, deadline=None)
@given(st.lists(indices(), min_size=3, max_size=3), st.booleans())
def test_slices(folder: Path, some: list[tuple[Any, ...]], behind_maps: bool) -> None:
    """Behind a ConvLSTM the channels lie first; Keras never sees that."""
    x = keras.Input((None, 6, 5))
    y = layers.ConvLSTM1D(5, 3, padding="same", return_sequences=True)(x) if behind_maps else x * 2.0
    cut = {f"cut{k}": y[index] for k, index in enumerate(some)}
    model = fill(keras.Model(x, {**cut, "z": layers.TimeDistributed(layers.Flatten())(y)}), 1)
    loaded = load_keras(save(model, folder))
    frames = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype(np.float32)
    streamed, reference = Streamed(loaded, frames), by_numpy(loaded, frames)
    for name, expected in zip((*cut, "z"), predict(model, frames), strict=True):
        assert_close(streamed.outputs[name], expected, "float32", k=80, atol=1e-5)
        assert_close(reference[name], expected[0], "float32", k=80, atol=1e-5)


#: What needs the whole sequence of 5, and the reason.
WINDOWS: dict[str, tuple[Op, str]] = {
    "x[:, 1:]": (lambda x: x[:, 1:], "takes a part of the sequence"),
    "x[:, 0]": (lambda x: x[:, 0], "takes a part of the sequence"),
    "x[:, ::2]": (lambda x: x[:, ::2, :3], "takes a part of the sequence"),
    "mean over time": (lambda x: ops.mean(x, axis=1), "works along time"),
    "max over time": (lambda x: ops.max(x, axis=(1, 2)), "works along time"),
    "sum over time": (lambda x: x / ops.sum(ops.abs(x), axis=1, keepdims=True), "works along time"),
    "one for each frame": (lambda x: x * np.arange(5, dtype=np.float32)[:, None], "a constant for every frame"),
    "turned": (lambda x: ops.transpose(x, (0, 2, 1)), "moves time"),
    "swapped": (lambda x: ops.swapaxes(x, -1, 1), "moves time"),
    "flipped": (lambda x: ops.flip(x, axis=1), "works along time"),
    "shifted": (lambda x: ops.roll(x, 2, axis=1), "works along time"),
    "flat": (lambda x: ops.reshape(x, (-1, 20)), "mixes frames"),
    "behind itself": (lambda x: ops.concatenate([x, x], axis=1), "works along time"),
    "pairs": (lambda x: x @ ops.transpose(x, (0, 2, 1)), "moves time"),
    "einsum": (lambda x: ops.einsum("btf,bsf->bts", x, x), "takes whole sequences"),
    "softmax": (lambda x: ops.softmax(x, axis=1), "works along time"),
    "before time": (lambda x: ops.expand_dims(x, 1), "puts an axis before time"),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_operators_that_need_all_frames(name: str, folder: Path) -> None:
    op, reason = WINDOWS[name]
    model = functional(lambda x: op(layers.LSTM(4, return_sequences=True)(x)), length=5, recurrent=False)
    assert reason in check_window(model, folder, frame=FRAME).notes[0]


def test_the_last_element_of_a_sequence(folder: Path) -> None:
    """x[:, -1] is what return_sequences=False is: of a stream, each frame's."""
    model = functional(lambda x: layers.LSTM(4, return_sequences=True)(x)[:, -1] * 2.0, recurrent=False)
    check_stream(model, folder, frame=FRAME)
    fixed = functional(lambda x: layers.LSTM(4, return_sequences=True)(x)[:, -1], length=5, recurrent=False)
    assert "takes the last output only" in check_window(fixed, folder, frame=FRAME).notes[0]
    check_stream(fixed, folder, frame=FRAME, length=5, carry_state=True)


#: Rows of the batch would see each other, and what the message says of it.
MIXED: dict[str, tuple[Op, str]] = {
    "mean of all": (lambda x: x - ops.mean(x), "axis None: all axes"),
    "mean over rows": (lambda x: x - ops.mean(x, axis=0), "axis 0: the batch"),
    "max over rows": (lambda x: x - ops.max(x, axis=(0, 2), keepdims=True), "axis 0: the batch"),
    "first row": (lambda x: x - x[0], "an index of the batch: 0"),
    "rows backwards": (lambda x: x + x[::-1, :], "an index of the batch: ::-1"),
    "softmax over rows": (lambda x: ops.softmax(x, axis=0), "axis 0: the batch"),
    "rows end to end": (lambda x: ops.concatenate([x, x], axis=0), "axis 0: the batch"),
    "rows turned": (lambda x: ops.flip(x, axis=0) + x, "axis 0: the batch"),
    "rows shifted": (lambda x: ops.roll(x, 1, axis=0), "axis 0: the batch"),
    "rows as time": (lambda x: ops.transpose(x, (1, 0, 2)), "axes [1, 0, 2]"),
    "rows of another size": (lambda x: ops.reshape(x, (-1, 10, 2)), None),  # type: ignore[dict-item]
    "rows split": (lambda x: ops.reshape(x, (-1, 4)), "rows of [5, 4] as rows of [4]"),
    "einsum": (lambda x: ops.einsum("btf,ctf->bc", x, x), "btf,ctf->bc"),
    "unequal rank": (lambda x: x + x[:, 0], "rows of shapes [5, 4] and [4]"),
    "joined rows": (lambda x: layers.Concatenate(axis=0)([x, x]), "axis 0: the batch"),
}


@pytest.mark.parametrize("name", MIXED)
def test_rows_that_see_each_other_are_refused(name: str, folder: Path) -> None:
    op, found = MIXED[name]
    path = save(functional(op, length=5, recurrent=False), folder)
    if found is None:  # 20 numbers a row stay with their row
        assert load_keras(path).step.signature.output("y").shape == ("N", 10, 2)
        return
    text = refused(path)
    assert "works along the batch, whose rows are streams: each would see the others" in text
    assert f"found {found}" in text


def test_calls_as_in_training_are_refused(folder: Path) -> None:
    """training=True in the file: statistics of the batch, or random numbers, for good."""
    x = keras.Input((5, 4))
    for name, layer in {"norm": layers.BatchNormalization(), "drop": layers.Dropout(0.5)}.items():
        path = save(keras.Model(x, layers.LSTM(2)(layer(x, training=True))), folder)
        assert "is called as in training, for good: found training=True" in refused(path), name
    quiet = keras.Model(x, layers.LSTM(2)(x, training=True))
    assert load_keras(save(quiet, folder)).window == 5
    noisy = keras.Model(x, layers.LSTM(2, dropout=0.3)(x, training=True))
    assert "is called as in training" in refused(save(noisy, folder))


def test_masks_of_functional_models(folder: Path) -> None:
    """Keras 3 writes them as operators and gives them to each recurrent layer."""
    x = keras.Input((None, 3))
    y = layers.LSTM(4, return_sequences=True)(layers.Masking(0.5)(x))
    model = fill(keras.Model(x, layers.GRU(2, return_sequences=True)(layers.Dense(3)(y))), 3)
    loaded = load_keras(save(model, folder))
    frames = np.random.default_rng(0).normal(size=(1, 9, 3)).astype(np.float32)
    frames[0, [0, 4, 5]] = 0.5
    (expected,) = predict(model, frames)
    assert_close(by_numpy(loaded, frames)["y"], expected[0], "float32", k=80, atol=1e-5)
    exported = edgelstm.export(str(folder / "model.keras"), limit=20, source=[*frames[0]] * 2)
    assert exported.comparison.worst.held < 1e-5
    mask = keras.Input((None,), dtype="bool")
    path = save(keras.Model([x, mask], layers.GRU(2)(x, mask=mask)), folder)
    assert "expected float32 or whole numbers" in refused(path)


def test_an_operator_that_is_unknown_is_named(folder: Path) -> None:
    path = save(functional(lambda x: ops.sort(x, axis=-1)), folder)
    text = refused(path)
    assert "operator 'sort' is unknown: found keras.ops Sort; expected one of Abs, Absolute, Add," in text


# -- Keras 2 -----------------------------------------------------------------------------------------------------------


def keras2_file(path: Path, calls: list[tuple[str, str, list[Any]]], output: str) -> Path:
    """An .h5 file as Keras 2.15 writes a functional model: an input ``x`` [None, None, 4], operators, ``output``."""
    tail = {"units": 3, "return_sequences": True, "name": "gru", "reset_after": True}
    config: dict[str, Any] = {
        "name": "model",
        "layers": [
            {
                "class_name": "InputLayer",
                "config": {"batch_input_shape": [None, None, 4], "dtype": "float32", "name": "x"},
                "name": "x",
                "inbound_nodes": [],
            },
            *(
                {
                    "class_name": "SlicingOpLambda" if function.endswith("getitem") else "TFOpLambda",
                    "config": {"name": name, "trainable": True, "dtype": "float32", "function": function},
                    "name": name,
                    "inbound_nodes": [node],
                }
                for name, function, node in calls
            ),
            {"class_name": "GRU", "config": tail, "name": "gru", "inbound_nodes": [[[output, 0, 0, {}]]]},
        ],
        "input_layers": [["x", 0, 0]],
        "output_layers": [["gru", 0, 0]],
    }
    rng = np.random.default_rng(4)
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": config}).encode()
        file.attrs["keras_version"] = b"2.15.0"
        group = file.create_group("model_weights/gru")
        names = [f"gru/gru_cell/{k}:0" for k in ("kernel", "recurrent_kernel", "bias")]
        group.attrs["weight_names"] = [n.encode() for n in names]
        for name, shape in zip(names, ((4, 9), (3, 9), (2, 9)), strict=True):
            group.create_dataset(name, data=rng.normal(size=shape).astype(np.float32) * 0.3)
    return path


def test_operators_of_keras_2(folder: Path) -> None:
    """TFOpLambda and SlicingOpLambda: y = concat([1 - 0.5 x, relu(x)[..., :2], mean(x)], -1)[..., 1:5]."""
    whole = {"start": None, "stop": None, "step": None}
    calls: list[tuple[str, str, list[Any]]] = [
        ("tf.math.multiply", "math.multiply", ["x", 0, 0, {"y": 0.5, "name": None}]),
        ("tf.math.subtract", "math.subtract", ["_CONSTANT_VALUE", -1, 1, {"y": ["tf.math.multiply", 0, 0], "name": None}]),
        ("tf.nn.relu", "nn.relu", ["x", 0, 0, {"name": None}]),
        ("tf.__operators__.getitem", "__operators__.getitem",
         ["tf.nn.relu", 0, 0, {"slice_spec": [{"class_name": "__ellipsis__"}, {**whole, "stop": 2}]}]),
        ("tf.math.reduce_mean", "math.reduce_mean", ["x", 0, 0, {"axis": -1, "keepdims": True, "name": None}]),
        ("tf.concat", "concat", [[n, 0, 0, {"axis": -1, "name": "concat"}]
                                 for n in ("tf.math.subtract", "tf.__operators__.getitem", "tf.math.reduce_mean")]),
        ("tf.__operators__.getitem_1", "__operators__.getitem",
         ["tf.concat", 0, 0, {"slice_spec": {"class_name": "__tuple__", "items": [whole, whole, {**whole, "start": 1, "stop": 5}]}}]),
        ("tf.__operators__.add", "__operators__.add", ["tf.__operators__.getitem_1", 0, 0, {"y": ["x", 0, 0], "name": None}]),
    ]  # fmt: skip
    path = keras2_file(folder / "two.h5", calls, "tf.__operators__.add")
    loaded = load_keras(path)
    x = keras.Input((None, 4))
    parts = [1 - 0.5 * x, ops.relu(x)[..., :2], ops.mean(x, axis=-1, keepdims=True)]
    model = keras.Model(
        x, layers.GRU(3, return_sequences=True)(ops.concatenate(parts, axis=-1)[..., 1:5] + x)
    )
    with h5py.File(path) as file:
        held = file["model_weights/gru/gru/gru_cell"]
        model.set_weights([held[f"{k}:0"][()] for k in ("kernel", "recurrent_kernel", "bias")])
    frames = np.random.default_rng(0).normal(size=(1, 8, 4)).astype(np.float32)
    assert_close(by_numpy(loaded, frames)["y"], predict(model, frames)[0][0], "float32", k=80, atol=1e-5)
    assert edgelstm.export(str(path), limit=20).comparison.worst.held < 1e-5


def test_operators_of_keras_2_that_are_refused(folder: Path) -> None:
    def text(function: str, more: dict[str, Any]) -> str:
        return refused(keras2_file(folder / "two.h5", [("op", function, ["x", 0, 0, more])], "op"))

    assert "operator 'op' is unknown: found TFOpLambda of tf.signal.fft" in text("signal.fft", {})
    assert "works along the batch" in text("math.reduce_max", {"axis": None})
    assert "works along the batch" in text("math.reduce_max", {"axis": 0})
    assert "works along the batch" in text("__operators__.getitem", {"slice_spec": 0})
