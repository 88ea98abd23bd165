"""Cells of our own whose weights are int8 or bfloat16, against the equations in float64 on what those are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_native_operators import SIZES, VARIANTS, attributes
from test_native_operators import Lstm as OneLstm

import native_library
from edgelstm.dtypes import from_float32, to_float32
from edgelstm.graph.gates import GateVariant
from native_library import naive
from tolerances import assert_close

Array = np.ndarray[Any, Any]
KINDS = ("I8", "BF16")


class Matrix:
    """A random matrix as it is stored: an initialiser, what its rows' codes are worth, and its values."""

    def __init__(self, kind: str, rng: Any, rows: int, columns: int, name: str) -> None:
        self.kind = kind
        if kind == "I8":
            codes = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
            self.scale = rng.uniform(1e-3, 8e-3, rows).astype(np.float32)
            self.stored = numpy_helper.from_array(codes, name)
            self.value = naive.worth(codes, self.scale.astype(float))
        else:
            halves = from_float32(rng.normal(0, 0.5, (rows, columns)).astype(np.float32), "bfloat16")
            self.stored = helper.make_tensor(
                name, TensorProto.BFLOAT16, (rows, columns), halves.tobytes(), raw=True
            )
            self.value = to_float32(halves, "bfloat16").astype(float)


def cell_model(
    op: str,
    inputs: list[str],
    feeds: dict[str, Array],
    constants: list[onnx.TensorProto],
    outputs: int,
    **given: Any,
) -> onnx.ModelProto:
    """One node; its inputs by name, "" for what is left out."""
    results = [f"y{k}" for k in range(outputs)]
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(op, inputs, results, domain="edgelstm", **given)],
            "one",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * a.ndim) for n, a in feeds.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in results],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("edgelstm", 1)],
        ir_version=9,
    )


class Lstm:
    """One LSTM cell: as a model, and as the equations."""

    def __init__(
        self,
        kind: str,
        variant: GateVariant,
        inputs: int,
        units: int,
        rows: int,
        *,
        added: int = 0,
        **given: Any,
    ) -> None:
        rng = np.random.default_rng(inputs * 1000 + units)
        self.variant, gates = variant, len(variant.gates)
        w = Matrix(kind, rng, gates * units, inputs + units, "w")
        b = rng.normal(0, 0.5, gates * units).astype(np.float32)
        p = {n: rng.normal(0, 0.5, units).astype(np.float32) for n in variant.inputs[2:]}
        sizes = {"x": inputs, "h": units, "c": units} | ({"z": gates * units} if added else {})
        self.feeds = {n: rng.normal(size=(rows, size)).astype(np.float32) for n, size in sizes.items()}
        constants = [w.stored, *(numpy_helper.from_array(a, n) for n, a in {"b": b, **p}.items())]
        names = [
            "x",
            "h",
            "c",
            "w",
            "b",
            *(n if n in p else "" for n in ("p_i", "p_f", "p_o")),
            "z" if added else "",
        ]
        if kind == "I8":
            names.append("scale")
            constants.append(numpy_helper.from_array(w.scale, "scale"))
        self.model = cell_model(
            f"FusedLSTMCell{kind}",
            names,
            self.feeds,
            constants,
            2,
            **attributes(variant),
            added=added,
            **given,
        )
        self.w, self.b, self.p = w.value, b.astype(float), [a.astype(float) for a in p.values()]

    def expected(self) -> tuple[Array, Array]:
        x, h, c, *z = (a.astype(float) for a in self.feeds.values())
        return naive.lstm_cell(self.variant, x, h, c, self.w, self.b + (z[0] if z else 0), *self.p)


class Gru:
    """One GRU cell."""

    def __init__(self, kind: str, after: bool, inputs: int, units: int, rows: int) -> None:
        rng = np.random.default_rng(inputs * 1000 + units)
        w, r = (Matrix(kind, rng, 3 * units, n, name) for n, name in ((inputs, "w"), (units, "r")))
        b = rng.normal(0, 0.5, 6 * units).astype(np.float32)
        self.after = after
        self.feeds = {
            n: rng.normal(size=(rows, s)).astype(np.float32) for n, s in (("x", inputs), ("h", units))
        }
        constants = [w.stored, r.stored, numpy_helper.from_array(b, "b")]
        names = ["x", "h", "w", "r", "b"]
        if kind == "I8":
            names += ["w_scale", "r_scale"]
            constants += [numpy_helper.from_array(m.scale, n) for m, n in ((w, "w_scale"), (r, "r_scale"))]
        self.model = cell_model(
            f"FusedGRUCell{kind}", names, self.feeds, constants, 1, linear_before_reset=int(after)
        )
        self.weights = w.value, r.value, b.astype(float)

    def expected(self) -> Array:
        result: Array = naive.gru_cell(
            *(a.astype(float) for a in self.feeds.values()), *self.weights, after=self.after
        )
        return result


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    variant=VARIANTS,
    inputs=SIZES,
    units=SIZES,
    rows=st.sampled_from([1, 2, 3, 4, 5, 11]),
    added=st.integers(0, 1),
)
def test_an_lstm_cell_gives_what_the_equations_give(
    library: Path, kind: str, variant: GateVariant, inputs: int, units: int, rows: int, added: int
) -> None:
    cell = Lstm(kind, variant, inputs, units, rows, added=added)
    found = native_library.session(cell.model, library).run(None, cell.feeds)
    for a, b in zip(found, cell.expected(), strict=True):
        assert_close(a, b, np.float32, k=64 + inputs + units)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    after=st.booleans(),
    inputs=SIZES,
    units=SIZES,
    rows=st.sampled_from([1, 2, 3, 4, 5, 11]),
)
def test_a_gru_cell_gives_what_the_equations_give(
    library: Path, kind: str, after: bool, inputs: int, units: int, rows: int
) -> None:
    cell = Gru(kind, after, inputs, units, rows)
    (found,) = native_library.session(cell.model, library).run(None, cell.feeds)
    assert_close(found, cell.expected(), np.float32, k=64 + inputs + units)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_has_the_same_bits_alone_beside_others_and_on_two_threads_even_beside_nan(
    library: Path, kind: str
) -> None:
    one, two = (Lstm(kind, GateVariant(peephole=True), 67, 257, 5, threads=threads) for threads in (1, 2))
    session = native_library.session(one.model, library)
    together = session.run(None, one.feeds)
    shared = native_library.session(two.model, library, threads=2).run(None, one.feeds)
    broken = {name: a.copy() for name, a in one.feeds.items()}
    broken["h"][3] = np.nan
    beside_nan = session.run(None, broken)
    for row in range(5):
        alone = session.run(None, {name: a[row : row + 1] for name, a in one.feeds.items()})
        for a, b, c, d in zip(alone, together, beside_nan, shared, strict=True):
            assert a[0].tobytes() == b[row].tobytes() == d[row].tobytes()
            assert np.isnan(c[row]).all() if row == 3 else c[row].tobytes() == b[row].tobytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": numpy_helper.from_array(np.ones(19, np.float32), "scale")}, r"scale is \[19\], expected a constant \[20\]"),
        ({"scale": None}, r"scale is no constant, expected a constant \[20\]"),
        ({"w": numpy_helper.from_array(np.zeros((19, 12), np.int8), "w")}, r"W is \[19, 12\]"),
        ({"w": numpy_helper.from_array(np.zeros((20, 12), np.float32), "w")}, "FusedLSTMCellI8|tensor"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_when_the_graph_is_opened(
    library: Path, change: dict[str, onnx.TensorProto | None], said: str
) -> None:
    cell = Lstm("I8", GateVariant(), 7, 5, 2)
    graph = cell.model.graph
    kept = [change.get(t.name, t) for t in graph.initializer]
    del graph.initializer[:]
    graph.initializer.extend(t for t in kept if t is not None)
    if change.get("scale", cell) is None:
        graph.node[0].input[9] = ""
    with pytest.raises(Exception, match=said):
        native_library.session(cell.model, library)


@pytest.mark.parametrize("kind", ["", *KINDS])
def test_a_step_has_the_same_bits_however_it_is_divided(library: Path, kind: str) -> None:
    """On one thread and on several, in turn as it is tried out which is faster; another number of rows begins anew."""
    made = (
        [OneLstm(GateVariant(), 64, 257, 3, threads=threads) for threads in (1, 3)]
        if not kind
        else [Lstm(kind, GateVariant(), 64, 257, 3, threads=threads) for threads in (1, 3)]
    )
    one, several = (
        native_library.session(cell.model, library, threads=threads)
        for cell, threads in zip(made, (1, 3), strict=True)
    )
    expected = {rows: one.run(None, {n: a[:rows] for n, a in made[0].feeds.items()}) for rows in (1, 3)}
    for rows in (3,) * 40 + (1,) * 40 + (3,):
        found = several.run(None, {n: a[:rows] for n, a in made[1].feeds.items()})
        for a, b in zip(found, expected[rows], strict=True):
            assert a.tobytes() == b.tobytes()
