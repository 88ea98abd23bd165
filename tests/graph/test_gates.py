"""FusedGates: function body, NumPy reference and PyTorch agree for every variant; names are unique; bad ones refused."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from edgelstm.errors import EdgeLstmError
from edgelstm.graph.gates import DOMAIN, GateVariant, is_fused_gates
from tolerances import assert_close

HARD = st.sampled_from([(0.2, 0.5), (1 / 6, 0.5)])


@st.composite
def variants(draw: st.DrawFn) -> GateVariant:
    gate = draw(st.sampled_from(["sigmoid", "hard_sigmoid"]))
    alpha, beta = draw(HARD) if gate == "hard_sigmoid" else (0.2, 0.5)
    return GateVariant(
        peephole=draw(st.booleans()),
        gate=gate,
        alpha=alpha,
        beta=beta,
        candidate=draw(st.sampled_from(["tanh", "relu"])),
        output=draw(st.sampled_from(["tanh", "relu"])),
        cell_clip=draw(st.sampled_from([None, 0.5, 3.0])),
        coupled=draw(st.booleans()),
    )


def tensors(variant: GateVariant, streams: int, channels: int, grid: tuple[int, ...], seed: int) -> list[Any]:
    """z, c and the peepholes, in float64."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (streams, len(variant.gates) * channels, *grid))
    c = rng.normal(0, 2, (streams, channels, *grid))
    return [z, c, *(rng.normal(size=(channels, *grid)) for _ in variant.inputs[2:])]


def model(variant: GateVariant, arrays: list[Any], opset: int) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
    values = [
        helper.make_tensor_value_info(name, kind, a.shape)
        for name, a in zip(variant.inputs, arrays, strict=True)
    ]
    outputs = [helper.make_tensor_value_info(name, kind, arrays[1].shape) for name in ("h", "c_out")]
    node = helper.make_node(variant.op_type, variant.inputs, ["h", "c_out"], domain=DOMAIN)
    assert is_fused_gates(node)
    graph = helper.make_graph([node], "gates", values, outputs)
    return helper.make_model(
        graph,
        functions=[variant.function(opset)],
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)],
        ir_version=9,
    )


grids = st.sampled_from([(), (3,), (2, 5), (2, 3, 2)])


@settings(max_examples=60, deadline=None)
@given(
    variants(),
    st.integers(1, 3),
    st.integers(1, 4),
    grids,
    st.sampled_from(["float32", "float64"]),
    st.integers(0, 99),
)
def test_body_equals_reference(
    variant: GateVariant, streams: int, channels: int, grid: tuple[int, ...], dtype: str, seed: int
) -> None:
    arrays = [a.astype(dtype) for a in tensors(variant, streams, channels, grid, seed)]
    exact = variant.reference(*(a.astype(np.float64) for a in arrays))
    proto = model(variant, arrays, 18)
    onnx.checker.check_model(proto, full_check=True)
    results = [variant.reference(*arrays)]
    feeds = dict(zip(variant.inputs, arrays, strict=True))
    results.append(ReferenceEvaluator(proto).run(None, feeds))
    if dtype == "float32":  # ONNX Runtime has no float64 HardSigmoid
        results.append(onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds))
    for h, c_out in results:
        assert h.dtype == c_out.dtype == arrays[0].dtype
        assert_close(h, exact[0], dtype, k=64)
        assert_close(c_out, exact[1], dtype, k=64)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # in onnx's own Sigmoid
@settings(max_examples=20, deadline=None)
@given(variants(), grids, st.integers(0, 99))
def test_half_precision_stays_near(variant: GateVariant, grid: tuple[int, ...], seed: int) -> None:
    arrays = [a.astype(np.float16) for a in tensors(variant, 2, 3, grid, seed)]
    exact = variant.reference(*(a.astype(np.float64) for a in arrays))
    feeds = dict(zip(variant.inputs, arrays, strict=True))
    for result in (
        variant.reference(*arrays),
        ReferenceEvaluator(model(variant, arrays, 18)).run(None, feeds),
    ):
        for found, wanted in zip(result, exact, strict=True):
            assert found.dtype == np.float16
            assert_close(found, wanted, "float16", k=64)


@pytest.mark.parametrize("opset", [11, 13, 15, 17, 18, 20, 22])
def test_bodies_for_other_opsets(opset: int) -> None:
    for variant in (
        GateVariant(),
        GateVariant(peephole=True, gate="hard_sigmoid"),
        GateVariant(coupled=True),
    ):
        arrays = [a.astype(np.float32) for a in tensors(variant, 2, 3, (2,), 0)]
        feeds = dict(zip(variant.inputs, arrays, strict=True))
        session = onnxruntime.InferenceSession(model(variant, arrays, opset).SerializeToString())
        for found, wanted in zip(session.run(None, feeds), variant.reference(*arrays), strict=True):
            assert_close(found, wanted, "float32", k=64)


@settings(max_examples=40, deadline=None)
@given(variants(), grids, st.integers(0, 99))
def test_reference_equals_torch_in_double(variant: GateVariant, grid: tuple[int, ...], seed: int) -> None:
    """The equations once more, as PyTorch spells them."""
    torch = pytest.importorskip("torch")
    arrays = tensors(variant, 2, 3, grid, seed)
    z, c, *p = (torch.from_numpy(a) for a in arrays)
    peephole = dict(zip(variant.inputs[2:], p, strict=True))
    parts = dict(zip(variant.gates, z.chunk(len(variant.gates), 1), strict=True))

    def gate(x: Any) -> Any:
        if variant.gate == "sigmoid":
            return torch.sigmoid(x)
        return torch.clamp(float(np.float32(variant.alpha)) * x + variant.beta, 0, 1)

    i = gate(parts["i"] + (peephole["p_i"] * c if variant.peephole else 0))
    f = 1 - i if variant.coupled else gate(parts["f"] + (peephole["p_f"] * c if variant.peephole else 0))
    c_out = f * c + i * getattr(torch, variant.candidate)(parts["g"])
    if variant.cell_clip is not None:
        c_out = c_out.clamp(-variant.cell_clip, variant.cell_clip)
    o = gate(parts["o"] + (peephole["p_o"] * c_out if variant.peephole else 0))
    found = variant.reference(*arrays)
    assert_close(found[0], (o * getattr(torch, variant.output)(c_out)).numpy(), "float64", k=64)
    assert_close(found[1], c_out.numpy(), "float64", k=64)


def test_reference_equals_torchs_own_lstm_cell() -> None:
    torch = pytest.importorskip("torch")
    cell = torch.nn.LSTMCell(3, 4).double()
    x, h, c = torch.randn(2, 3).double(), torch.randn(2, 4).double(), torch.randn(2, 4).double()
    z = x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
    found = GateVariant().reference(z.detach().numpy(), c.numpy())
    for mine, theirs in zip(found, cell(x, (h, c)), strict=True):
        assert_close(mine, theirs.detach().numpy(), "float64", k=64)


def all_variants() -> list[GateVariant]:
    hard = [("sigmoid", 0.2), ("hard_sigmoid", 0.2), ("hard_sigmoid", 1 / 6)]
    acts = ["tanh", "relu"]
    clips = [None, 3.0, 0.5]
    product = itertools.product([False, True], hard, acts, acts, clips, [False, True])
    return [
        GateVariant(peephole=p, gate=g, alpha=a, candidate=ca, output=o, cell_clip=k, coupled=u)  # type: ignore[arg-type]
        for p, (g, a), ca, o, k, u in product
    ]


def test_every_body_and_arity_has_its_own_name() -> None:
    everything = all_variants()
    assert len({v.op_type for v in everything}) == len(everything) == 144
    assert GateVariant().op_type == "FusedGates_lstm"
    assert len({tuple(v.plugin_fields().values()) for v in everything}) == 144


def test_formals_carry_the_name_so_that_no_parser_takes_an_outer_tensor() -> None:
    for variant in all_variants():
        function = variant.function(18)
        prefix = variant.op_type.removeprefix("FusedGates_")
        names = [*function.input, *function.output, *(n for node in function.node for n in node.output)]
        assert all(name.startswith(prefix + "_") for name in names)
        assert len(function.input) == len(variant.inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gate": "softmax"}, "gate activation: found softmax"),
        ({"candidate": "gelu"}, "candidate activation: found gelu"),
        ({"output": "gelu"}, "output activation: found gelu"),
        ({"cell_clip": 0.0}, "cell_clip: found 0.0; expected a finite number above 0"),
        ({"alpha": 0.3}, "alpha and beta"),
        (
            {"gate": "hard_sigmoid", "alpha": float("nan")},
            "alpha and beta: found nan and 0.5; expected finite",
        ),
    ],
)
def test_impossible_variants(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeLstmError, match=message):
        GateVariant(**arguments)


def test_wrong_tensors_and_opsets() -> None:
    with pytest.raises(
        EdgeLstmError, match=r"found \[1, 7\] and \[1, 2\]; expected z with 4 times c's channels"
    ):
        GateVariant().reference(np.zeros((1, 7)), np.zeros((1, 2)))
    with pytest.raises(EdgeLstmError, match=r"peepholes: found 0; expected \['p_i', 'p_f', 'p_o'\]"):
        GateVariant(peephole=True).reference(np.zeros((1, 8)), np.zeros((1, 2)))
    with pytest.raises(EdgeLstmError, match="in ONNX opset 11: expected opset 15 or later"):
        GateVariant(cell_clip=1.0).function(11)


def test_large_pre_activations_saturate_without_warnings() -> None:
    z = np.array([[1e4, -1e4, 1e4, 1e4]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        h, c = GateVariant().reference(z, np.ones((1, 1), np.float32))
    np.testing.assert_allclose(c, [[1.0]])
    np.testing.assert_allclose(h, [[np.tanh(1.0)]], rtol=1e-6)


@pytest.mark.parametrize("coded", [False, True])
def test_a_variant_is_told_by_its_name(coded: bool) -> None:
    for variant in all_variants():
        named = replace(variant, coded=coded)
        assert GateVariant.of(named.op_type) == named


numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(variants(), numbers, numbers, st.none() | numbers.filter(lambda v: v > 0), st.booleans())
def test_any_numbers_are_told_by_the_name(
    variant: GateVariant, alpha: float, beta: float, clip: float | None, coded: bool
) -> None:
    variant = replace(variant, cell_clip=clip, coded=coded)
    if variant.gate == "hard_sigmoid":
        variant = replace(variant, alpha=alpha, beta=beta)
    assert variant.op_type.replace("_", "").isalnum(), "names are made of letters and digits"
    assert GateVariant.of(variant.op_type) == variant


NAMES = [
    "",
    "lstm",
    "FusedGates_",
    "FusedGates_gru",
    "FusedGates_lstm_hard",
    "FusedGates_lstm_hard_nan_nan",
    "FusedGates_lstm_hard_0p2_inf",
    "FusedGates_lstm_clip_x",
    "FusedGates_lstm_clip_m1p0",
    "FusedGates_lstm_clip_3",
    "FusedGates_lstm_coded_coupled",
    "FusedGates_lstm_lstm",
    "FusedGates_peephole_",
    "fusedgates_lstm",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_no_variant(name: str) -> None:
    with pytest.raises(EdgeLstmError):
        GateVariant.of(name)


WORDS = ["lstm", "peephole", "hard", "clip", "grelu", "hrelu", "coupled", "coded"]
words = st.sampled_from([*WORDS, "0p2", "0p5", "3p0", "1em05", "m1", "nan", "inf", "x", ""])


@given(st.lists(words, max_size=6).map(lambda parts: "FusedGates_" + "_".join(parts)) | st.text(max_size=30))
def test_a_name_is_a_variants_own_or_refused(name: str) -> None:
    with contextlib.suppress(EdgeLstmError):
        assert GateVariant.of(name).op_type == name


@settings(max_examples=30, deadline=None)
@given(variants(), grids, st.integers(0, 99))
def test_codes_are_what_they_are_worth(variant: GateVariant, grid: tuple[int, ...], seed: int) -> None:
    coded = replace(variant, coded=True)
    rng = np.random.default_rng(seed)
    z, *others = (a.astype(np.float32) for a in tensors(variant, 2, 3, grid, seed))
    codes = rng.integers(0, 256, z.shape, dtype=np.uint8)
    gates = len(variant.gates)
    scale = rng.uniform(0.01, 0.05, gates).astype(np.float32)
    zero = rng.integers(0, 256, gates, dtype=np.uint8)
    shape = (-1, *[1] * len(grid))
    by_channel = [np.repeat(v, z.shape[1] // gates).reshape(shape) for v in (scale, zero)]
    worth = (codes.astype(np.float32) - by_channel[1]) * by_channel[0]
    wanted = variant.reference(worth, *others)
    arrays = [codes, *others, scale, zero]
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in zip(coded.inputs, arrays, strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, others[0].shape)
        for name in ("h", "c_out")
    ]
    node = helper.make_node(coded.op_type, coded.inputs, ["h", "c_out"], domain=DOMAIN)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    graph = helper.make_model(
        helper.make_graph([node], "gates", values, outputs),
        functions=[coded.function(18)],
        opset_imports=opsets,
        ir_version=9,
    )
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for form in (coded.reference(*arrays), session.run(None, dict(zip(coded.inputs, arrays, strict=True)))):
        for found, expected in zip(form, wanted, strict=True):
            assert_close(found, expected, "float32", k=64)
