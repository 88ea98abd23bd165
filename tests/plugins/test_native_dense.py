"""FusedDense, FusedNorm and FusedMove against NumPy in float64, through ONNX Runtime."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import native_library
from native_library import naive
from tolerances import assert_close

Array = np.ndarray[Any, Any]
SIZES = st.sampled_from([1, 2, 3, 7, 13, 16, 17, 37, 67, 131, 257])
ROWS = st.sampled_from([1, 2, 3, 4, 5, 7, 11])


@pytest.fixture(scope="module")
def library() -> Path:
    return native_library.built()


def one(
    op: str,
    inputs: dict[str, Array],
    names: list[str],
    constants: dict[str, Array],
    outputs: int = 1,
    **given: Any,
) -> Any:
    """A model of one node."""
    floats = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(a.shape)) for n, a in inputs.items()]
    results = [f"y{k}" for k in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, results, domain="edgelstm", **given)],
        "one",
        floats,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("edgelstm", 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return model


class Dense:
    """A dense layer of random numbers, as a model and by the equation."""

    def __init__(
        self, rows: int, inputs: int, units: int, activation: int, factor: bool, transposed: bool
    ) -> None:
        rng = np.random.default_rng(rows * inputs + units)
        w = rng.normal(0, 0.5, (units, inputs)).astype(np.float32)
        b = rng.normal(size=units).astype(np.float32)
        self.shape = (rows, 1, units)
        self.feeds = {"x": rng.normal(size=(rows, inputs, 1)).astype(np.float32)}
        if factor:
            self.feeds["f"] = rng.normal(size=self.shape).astype(np.float32)
        constants = {"w": w.T.copy() if transposed else w, "b": b, "shape": np.array(self.shape)}
        self.model = one(
            "FusedDense", self.feeds, ["x", "w", "b", "f" if factor else "", "shape"], constants,
            activation=activation, factor=int(factor), transposed=int(transposed),
        )  # fmt: skip
        self.weights = w.astype(float), b.astype(float), activation

    def expected(self) -> Array:
        x = self.feeds["x"].astype(float).reshape(self.shape[0], -1)
        return naive.dense(x, *self.weights, self.feeds.get("f")).reshape(self.shape)


@settings(max_examples=40, deadline=None)
@given(ROWS, SIZES, SIZES, st.integers(0, 3), st.booleans(), st.booleans())
def test_a_dense_layer_is_the_equation(
    rows: int, inputs: int, units: int, activation: int, factor: bool, transposed: bool
) -> None:
    dense = Dense(rows, inputs, units, activation, factor, transposed)
    for threads in (1, 2):
        (y,) = native_library.session(dense.model, native_library.built(), threads).run(None, dense.feeds)
        assert_close(y, dense.expected(), np.float32, k=64 + inputs)


def test_rows_of_a_dense_layer_have_the_same_bits_alone_and_nan_stays_in_its_row(library: Path) -> None:
    many, alone = Dense(5, 67, 37, 1, False, False), Dense(1, 67, 37, 1, False, False)
    for name in ("w", "b"):  # the same weights
        source = next(i for i in many.model.graph.initializer if i.name == name)
        next(i for i in alone.model.graph.initializer if i.name == name).CopyFrom(source)
    x = many.feeds["x"]
    x[2, 5] = np.nan
    (y,) = native_library.session(many.model, library).run(None, {"x": x})
    single = native_library.session(alone.model, library)
    for row in range(5):
        (y_row,) = single.run(None, {"x": x[row : row + 1]})
        assert y_row.tobytes() == y[row].tobytes()
    assert np.isnan(y[2]).all()
    assert np.isfinite(y[[0, 1, 3, 4]]).all()


@settings(max_examples=25, deadline=None)
@given(ROWS, SIZES, st.sampled_from([1e-7, 1e-3]), st.sampled_from([0.0, 100.0]))
def test_a_normalisation_is_the_equation(rows: int, size: int, epsilon: float, mean: float) -> None:
    rng = np.random.default_rng(size)
    x = (mean + rng.normal(size=(rows, size))).astype(np.float32)
    if size == 1:
        x[:] = 3  # nothing is left of it but rounding
    gain, bias = rng.normal(size=(2, size)).astype(np.float32)
    model = one(
        "FusedNorm", {"x": x}, ["x", "g", "b", "shape"],
        {"g": gain, "b": bias, "shape": np.array([rows, 1, size])}, epsilon=epsilon,
    )  # fmt: skip
    (y,) = native_library.session(model, native_library.built()).run(None, {"x": x})
    expected = naive.norm(
        x.astype(float), gain.astype(float), bias.astype(float), np.float32(epsilon).astype(float)
    )
    assert y.shape == (rows, 1, size)
    # A mean of 100 is rounded at some 1e-5 of what is left.
    assert_close(y[:, 0], expected, np.float32, k=64, atol=2e-4 if mean else 1e-5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_move_gives_every_number_its_place(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sources = {
        f"s{k}": rng.normal(size=(2, data.draw(SIZES))).astype(np.float32)
        for k in range(data.draw(st.integers(1, 8)))
    }
    plan, codes, expected = [], [], []
    for _ in range(data.draw(st.integers(1, 8))):
        shape = data.draw(st.sampled_from([(1,), (3, 2), (2, 1, 17), (5,), (0,)]))
        picked = rng.integers(0, len(sources), np.prod(shape))
        places = np.array([rng.integers(0, sources[f"s{k}"].size) for k in picked], np.int64)
        plan += [len(shape), *shape]
        codes.append((picked << 32) + places)
        expected.append(
            np.array(
                [sources[f"s{k}"].flat[p] for k, p in zip(picked, places, strict=True)], np.float32
            ).reshape(shape)
        )
    whole = np.concatenate([[len(expected)], plan, *codes]).astype(np.int64)
    model = one("FusedMove", sources, ["plan", *sources], {"plan": whole}, len(expected))
    found = native_library.session(model, native_library.built()).run(None, sources)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ([1, 1, 3, 0, 1], "not in the plan"),
        ([1, 1, 2, 0, 1, 2], "too long"),
        ([1, 1, 1, 5], "smaller than the plan says"),
        ([1, 1, 1, 8 << 32], "a source that is not there"),
        ([1, 1, 1, -1], "a source that is not there"),
        ([9], "1 to 8 outputs"),
        ([1, 1, 1 << 60, 0], "not in the plan"),
        ([], "a constant"),
    ],
)
def test_a_plan_that_does_not_fit_is_an_error(library: Path, plan: list[int], said: str) -> None:
    feeds = {"s": np.zeros(4, np.float32)}
    model = one("FusedMove", feeds, ["plan", "s"], {"plan": np.array(plan, np.int64)})
    with pytest.raises(Exception, match=said):
        native_library.session(model, library).run(None, feeds)


def check_some(library: Path) -> None:
    """A few of each, for the kernels of other processors."""
    for rows, units, activation in itertools.product((1, 4, 5), (1, 13, 130), range(4)):
        dense = Dense(rows, 17, units, activation, activation == 1, False)
        (y,) = native_library.session(dense.model, library).run(None, dense.feeds)
        assert_close(y, dense.expected(), np.float32, k=128)
    x = np.random.default_rng(0).normal(size=(3, 37)).astype(np.float32)
    ones = np.ones(37, np.float32)
    model = one(
        "FusedNorm", {"x": x}, ["x", "g", "g", "shape"], {"g": ones, "shape": np.array([3, 37])}, epsilon=1e-3
    )
    (y,) = native_library.session(model, library).run(None, {"x": x})
    assert_close(y, naive.norm(x.astype(float), ones, ones, 1e-3), np.float32, k=128)
