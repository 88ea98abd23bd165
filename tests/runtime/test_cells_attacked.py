"""Generated step graphs that are nearly cells, or are: with our operators in them they give what they give as they stand, over steps whose
states are carried, or they are left alone. Kernels, padding, strides, dilations, groups; maps that are repeated; operands either way round;
biases and peepholes of all shapes; values in between that are outputs too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import native_library
from edgelstm.graph.gates import GateVariant
from edgelstm.runtime.native.cells import rewrite

Array = np.ndarray[Any, Any]
STEPS = 4
#: Of two streams.
Shape = tuple[int, ...]
seen: dict[str, int] = {}


@pytest.fixture(scope="session")
def library() -> Path:
    return native_library.built()


@dataclass
class Graph:
    """One that is being put together; ``carried``: the output that each state is fed from."""

    draw: Random
    inputs: dict[str, Shape]
    carried: dict[str, str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    #: Whether all convolutions are of the kind that our operators compute.
    plain: bool = False

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.draw.randrange(10**6))

    def weight(self, shape: Shape) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors[name] = self.rng.normal(0, 0.2, shape).astype(np.float32)
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def turned(self, kind: str, one: str, other: str) -> str:
        return self.op(kind, *self.draw.choice([(one, other), (other, one)]))

    def bytes(self, variant: GateVariant) -> bytes:
        def info(name: str, shape: Any) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, 1, shape)

        graph = helper.make_graph(
            self.nodes, "g",
            [info(n, ["N", *s[1:]]) for n, s in self.inputs.items()],
            [info(n, None) for n in dict.fromkeys([*self.outputs, *self.carried.values()])],
            [numpy_helper.from_array(v, n) for n, v in self.tensors.items()],
        )  # fmt: skip
        domains = [helper.make_opsetid("", 18), helper.make_opsetid("edgelstm", 1)]
        functions = [variant.function(18)]
        model = helper.make_model(graph, opset_imports=domains, functions=functions, ir_version=9)
        return bytes(model.SerializeToString())

    def gates(self, variant: GateVariant, z: str, peepholes: list[Shape]) -> bytes:
        names = [self.weight(self.draw.choice(peepholes)) for _ in variant.inputs[2:]]
        made = helper.make_node(variant.op_type, [z, "c", *names], ["h_next", "c_next"], domain="edgelstm")
        self.nodes.append(made)
        if self.draw.random() < 0.3:
            self.outputs.append(self.draw.choice([z, self.op("Abs", "h_next")]))
        return self.bytes(variant)


def conv(g: Graph, source: str, channels: int, rows: int, halved: bool = False) -> str:
    """A convolution that keeps a map's size, or makes half of it; mostly of the kind that our operators compute."""
    pick: Any = g.draw.choice
    attributes: dict[str, Any] = {}
    if g.plain:
        bias = [g.weight((rows,))] if g.draw.random() < 0.5 else []
        return g.op("Conv", source, g.weight((rows, channels, 3, 3)), *bias, pads=[1] * 4)
    h, w = pick([(3, 3)] * 12 + [(1, 1), (3, 1), (1, 3), (5, 5), (2, 2)])
    group = 2 if channels % 2 == 0 and g.draw.random() < 0.05 else 1
    if halved:
        attributes["strides"] = [2, 2]
    elif g.draw.random() < 0.07:
        attributes["dilations"] = pick([[2, 2], [1, 2], [2, 1]])
    down, across = attributes.get("dilations", [1, 1])
    high, wide = down * (h - 1), across * (w - 1)
    first = pick([(high // 2, wide // 2)] * 6 + [(g.draw.randint(0, high), g.draw.randint(0, wide))])
    attributes["pads"] = [*first, high - first[0], wide - first[1]]
    if (down, across) == (1, 1) and g.draw.random() < 0.2:
        del attributes["pads"]
        attributes["auto_pad"] = pick(["SAME_UPPER", "SAME_LOWER"])
    if g.draw.random() < 0.7:
        attributes["kernel_shape"] = [h, w]
    if group > 1:
        attributes["group"] = group
    bias = [g.weight((rows,))] if g.draw.random() < 0.5 else []
    return g.op("Conv", source, g.weight((rows, channels // group, h, w)), *bias, **attributes)


def product(g: Graph, source: str, columns: int, rows: int) -> str:
    """Weights times a vector."""
    if g.draw.random() < 0.3:
        return g.op("MatMul", source, g.weight((columns, rows)))
    across = g.draw.random() < 0.5
    bias = [g.weight(g.draw.choice([(rows,), (1, rows), (1,), ()]))] if g.draw.random() < 0.6 else []
    attributes: dict[str, Any] = {"transB": int(across)}
    if g.draw.random() < 0.1:
        attributes[g.draw.choice(["alpha", "beta"])] = 0.5
    return g.op("Gemm", source, g.weight((rows, columns) if across else (columns, rows)), *bias, **attributes)


VARIANTS = [GateVariant(), GateVariant(peephole=True), GateVariant(cell_clip=0.4)]


def conv_lstm(draw: Random) -> tuple[bytes, Graph]:
    pick, variant = draw.choice, draw.choice(VARIANTS)
    places, channels, units = pick([(12, 12), (9, 13), (16, 8)]), pick([1, 8, 16]), pick([10, 17])
    high, wide = places
    size = pick([places] * 9 + [(1, 1), (1, wide), (high, 1), (2 * high, 2 * wide)])
    g = Graph(
        draw,
        {"x": (2, channels, *size), "h": (2, units, *places), "c": (2, units, *places)},
        {"h": "h_next", "c": "c_next"},
    )
    form = pick(["joined", "sum", "sum", "three", "twice", "constant"])
    if form == "joined":
        z = conv(
            g,
            g.op("Concat", *pick([("x", "h"), ("h", "x")]), axis=pick([1, -3])),
            channels + units,
            4 * units,
        )
    elif form == "constant":
        shape = pick(
            [(4 * units, 1, 1), (1, 4 * units, 1, 1), (4 * units, *places), (1, 1, 1), (wide,), (high, 1)]
        )
        z = g.turned("Add", conv(g, "h", units, 4 * units), g.weight(shape))
    else:
        of = (
            conv(g, "h", units, 4 * units)
            if form == "twice"
            else conv(g, "x", channels, 4 * units, size[0] > high)
        )
        z = g.turned("Add", of, conv(g, "h", units, 4 * units))
        if form == "three":
            z = g.turned("Add", z, conv(g, "c", units, 4 * units))
    if draw.random() < 0.25:
        z = g.turned("Add", z, g.weight(pick([(4 * units, 1, 1), (1, 1, wide), ()])))
    peepholes = [(units, 1, 1), (units, *places), (1, units, *places), (), (1, 1, wide)]
    return g.gates(variant, z, peepholes), g


def lstm(draw: Random) -> tuple[bytes, Graph]:
    pick, variant = draw.choice, draw.choice(VARIANTS)
    inputs, units = pick([1, 3, 8]), pick([1, 4, 16])
    form = pick(["joined", "sum", "added", "three", "twice", "x"])
    width = pick([4 * units, 1]) if form == "added" else inputs
    g = Graph(draw, {"x": (2, width), "h": (2, units), "c": (2, units)}, {"h": "h_next", "c": "c_next"})
    if form in ("sum", "added"):
        of = "x" if form == "added" else product(g, "x", inputs, 4 * units)
        z = g.turned("Add", of, product(g, "h", units, 4 * units))
    elif form == "x":
        z = product(g, "x", inputs, 4 * units)
    else:
        parts = {"joined": pick([("x", "h"), ("h", "x")]), "three": ("x", "h", "c"), "twice": ("h", "h")}[
            form
        ]
        width = sum(g.inputs[name][1] for name in parts)
        z = product(g, g.op("Concat", *parts, axis=pick([1, -1])), width, 4 * units)
    if draw.random() < 0.2:
        z = g.turned("Add", z, g.weight(pick([(4 * units,), (1, 4 * units), ()])))
    return g.gates(variant, z, [(units,), (1, units), (), (1,)]), g


def gru(draw: Random, maps: bool) -> tuple[bytes, Graph]:
    pick = draw.choice
    places: Shape = pick([(12, 12), (9, 13), (16, 8)]) if maps else ()
    size = pick([places] * 12 + [(1, 1), (1, places[1]), (places[0], 1)]) if maps else ()
    inputs, units = pick([3, 8]), pick([10, 16] if maps else [1, 4, 16])
    g = Graph(
        draw, {"x": (2, inputs, *size), "h": (2, units, *places)}, {"h": "y"}, plain=draw.random() < 0.6
    )

    def of(source: str, columns: int, rows: int) -> str:
        made = (conv if maps else product)(g, source, columns, rows)
        if draw.random() < 0.3:
            ones = (1,) * len(places)
            made = g.turned(
                "Add", made, g.weight(pick([(rows, *ones), (1, rows, *ones), (1, *ones), (1, *places)]))
            )
        return made

    def both(other: str, rows: int) -> str:
        if size == places and draw.random() < 0.6:
            joined = g.op("Concat", *pick([("x", other), (other, "x")]), axis=1)
            return of(joined, inputs + units, rows)
        return g.turned("Add", of("x", inputs, rows), of(other, units, rows))

    gate = pick(["Sigmoid"] * 4 + ["HardSigmoid"])
    r, z = (g.op(pick([gate] * 9 + ["Tanh"]), both("h", units)) for _ in "rz")
    if draw.random() < 0.5:
        s = g.turned("Add", of("x", inputs, units), g.turned("Mul", r, of("h", units, units)))
    else:
        s = both(g.turned("Mul", r, "h"), units)
    n = g.op(pick(["Tanh"] * 4 + ["Relu", "Softsign"]), s)
    a, b = pick([(n, "h"), ("h", n)])
    if draw.random() < 0.5:
        last = a, g.turned("Mul", z, g.op("Sub", *pick([(b, a)] * 9 + [(a, b)])))
    else:
        g.tensors["one"] = np.full(pick([(), (1,)]), pick([1.0] * 9 + [1.5]), np.float32)
        last = g.turned("Mul", g.op("Sub", "one", z), a), g.turned("Mul", z, b)
    g.nodes.append(helper.make_node("Add", list(pick([last, last[::-1]])), ["y"]))
    if draw.random() < 0.3:
        g.outputs.append(pick([n, z, r]))
    return g.bytes(GateVariant()), g


def check(library: Path, data: bytes, g: Graph) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    feeds = {n: g.rng.normal(size=s).astype(np.float32) for n, s in g.inputs.items()}
    try:
        plain = ort.InferenceSession(data, options)
        first = plain.run(list(g.carried.values()), feeds)
    except Exception:  # sizes that do not go together
        reject()
    if [v.shape for v in first] != [g.inputs[s] for s in g.carried]:
        reject()
    found = rewrite(data, 1, lend=False)
    if found is None:
        return
    for op in found.counts:
        seen[op] = seen.get(op, 0) + 1
    ours = native_library.session(found.data, library)
    names = [v.name for v in plain.get_outputs()]
    for _ in range(STEPS):
        expected = dict(zip(names, plain.run(names, feeds), strict=True))
        for name, got in zip(names, ours.run(names, feeds), strict=True):
            largest = max(1.0, float(np.abs(expected[name]).max()))
            np.testing.assert_allclose(got, expected[name], rtol=0, atol=1e-4 * largest, err_msg=name)
        feeds = {"x": g.rng.normal(size=g.inputs["x"]).astype(np.float32)} | {
            s: expected[n] for s, n in g.carried.items()
        }


ATTACKS = {
    "ConvLSTM": (conv_lstm, "FusedConvLSTMCell"),
    "LSTM": (lstm, "FusedLSTMCell"),
    "GRU": (lambda draw: gru(draw, False), "FusedGRUCell"),
    "ConvGRU": (lambda draw: gru(draw, True), "FusedConvGRUCell"),
}


def attack(library: Path, kind: str, examples: int) -> None:
    make, operator = ATTACKS[kind]
    seen.clear()

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(st.integers(0, 2**32 - 1))
    def every(seed: int) -> None:
        check(library, *make(Random(seed)))

    every()
    assert seen.get(operator, 0) >= examples // 50, seen


@pytest.mark.parametrize("kind", ATTACKS)
def test_what_becomes_a_cell_gives_what_the_graph_gives(library: Path, kind: str) -> None:
    attack(library, kind, 60)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ATTACKS)
def test_what_becomes_a_cell_gives_what_the_graph_gives_of_many(library: Path, kind: str) -> None:
    attack(library, kind, 1500)


def test_a_cell_without_bias_keeps_its_matrix_in_the_file(library: Path) -> None:
    """As `lower --runtime native` writes it; of x alone, without a bias, its node ended before the matrix."""
    g = Graph(Random(0), {"x": (2, 3), "c": (2, 4)}, {"c": "c_next"})
    z = g.op("Gemm", "x", g.weight((16, 3)), transB=1)
    data = g.gates(GateVariant(), z, [])
    found = rewrite(data, 1, lend=False)
    assert found is not None
    assert "FusedLSTMCell" in found.counts
    check(library, data, g)
