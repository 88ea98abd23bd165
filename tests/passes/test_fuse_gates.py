"""fuse_gates: cells are found however they are written, compute the same, and what is no cell stays."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from edgelstm.frontends.onnx.file import declare
from edgelstm.graph.gates import GateVariant
from edgelstm.graph.step import StepModel
from edgelstm.passes.fuse_gates import fuse_gates
from edgelstm.passes.join_inputs import join_inputs
from edgelstm.passes.simplify import simplify
from passes.cells import Written
from stepping import Stepper, from_text
from tolerances import assert_close

HARD = {"keras": (0.2, 0.5), "relu6": (1 / 6, 0.5), "op": (0.3, 0.4)}


@st.composite
def written(draw: Any) -> Written:
    spelling = draw(st.sampled_from(sorted(HARD)))
    hard = draw(st.booleans())
    coupled = draw(st.booleans())
    alpha, beta = HARD[spelling] if hard else (0.2, 0.5)
    variant = GateVariant(
        peephole=draw(st.booleans()),
        gate="hard_sigmoid" if hard else "sigmoid",
        alpha=alpha,
        beta=beta,
        candidate=draw(st.sampled_from(["tanh", "relu"])),
        output=draw(st.sampled_from(["tanh", "relu"])),
        cell_clip=draw(st.sampled_from([None, 0.25])),
        coupled=coupled,
    )
    spatial = draw(st.sampled_from([(), (4,), (2, 3)]))
    return Written(
        variant,
        order=tuple(draw(st.permutations(["i", "g", "o"] if coupled else ["i", "f", "g", "o"]))),
        cut=draw(st.sampled_from(["split", "slice", "apart"])),
        product="Conv" if spatial else draw(st.sampled_from(["Gemm", "MatMul"])),
        spatial=spatial,
        spelling=spelling,
        joined=draw(st.booleans()),
        forget_bias=0.0 if coupled else draw(st.sampled_from([0.0, 1.0])),
        channels=draw(st.integers(1, 4)),
        inputs=draw(st.integers(1, 3)),
        flips=draw(st.integers(0, 2**16 - 1)),
        seed=draw(st.integers(0, 2**16)),
    )


def states_after(step: StepModel, steps: int = 3, streams: int = 2) -> dict[str, Any]:
    """The states after a few steps from random ones, by ONNX's own reference in the graph's dtype."""
    rng = np.random.default_rng(1)
    s = step.signature
    run = ReferenceEvaluator(step.model)
    state = {x.input: rng.normal(0, 0.5, (streams, *x.frame_shape)).astype(x.dtype) for x in s.states}
    for _ in range(steps):
        x = {t.name: rng.normal(0, 1, (streams, *t.frame_shape)).astype(t.dtype) for t in s.inputs}
        values = run.run([x.output for x in s.states], x | state)
        state = {x.input: value for x, value in zip(s.states, values, strict=True)}
    return state


def assert_same(step: StepModel, other: StepModel, dtype: str) -> None:
    want, got = states_after(step), states_after(other)
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert_close(got[name], value, dtype)


@settings(max_examples=150, deadline=None)
@given(written())
def test_every_way_of_writing_a_cell(how: Written) -> None:
    step = how.build()
    before = step.to_bytes()
    fused = fuse_gates(step)
    assert step.to_bytes() == before
    joined = join_inputs(fused)
    ops = joined.op_types()
    assert ops.count(how.variant.op_type) == 1
    assert not {"Sigmoid", "HardSigmoid", "Tanh", "Relu", "Clip", "Sub", "Mul"} & set(ops)
    assert [f.name for f in joined.model.functions] == [how.variant.op_type]
    assert sum(ops.count(op) for op in ("Conv", "Gemm", "MatMul")) == 1
    assert {"Split", "Slice", "Add"}.isdisjoint(ops)
    StepModel.from_bytes(joined.to_bytes())
    # HardSigmoid holds its numbers in float32, whatever the graph computes in.
    dtype = "float64" if how.variant.gate == "sigmoid" else "float32"
    for other in (fused, joined):
        assert_same(step, other, dtype)


@pytest.mark.parametrize("order", list(permutations("ifgo")), ids="".join)
def test_weights_are_reordered_rather_than_values(order: tuple[str, ...]) -> None:
    step = Written(order=order).build()
    assert fuse_gates(step).op_types() == ["Concat", "Gemm", "FusedGates_lstm"]


def test_a_z_that_something_else_reads_is_put_in_order_by_a_concat() -> None:
    step = from_text(
        """
        step (float[N, 8] z, float[N, 2] c) => (float[N, 2] h, float[N, 2] c_next, float[N, 8] logits)
        <float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}>
        {
            logits = Mul (z, w)
            zi, zo, zf, zg = Split <axis = 1, num_outputs = 4> (logits)
            i = Sigmoid (zi)  f = Sigmoid (zf)  o = Sigmoid (zo)  g = Tanh (zg)
            fc = Mul (c, f)  ig = Mul (g, i)
            c_next = Add (ig, fc)
            a = Tanh (c_next)
            h = Mul (a, o)
        }""",
        c="c_next",
    )
    fused = fuse_gates(step)
    assert fused.op_types() == ["Mul", "Split", "Concat", "FusedGates_lstm"]
    assert list(fused.model.graph.node[2].input) == ["zi", "zf", "zg", "zo"]
    assert_equal_runs(step, fused)


def assert_equal_runs(step: StepModel, other: StepModel, steps: int = 4) -> None:
    a, b = Stepper(step), Stepper(other)
    states, others = a.initial(2), b.initial(2)
    for k in range(steps):
        rng = np.random.default_rng(k)
        x = {t.name: rng.normal(0, 1, (2, *t.frame_shape)).astype(t.dtype) for t in step.signature.inputs}
        want, states = a(x, states)
        got, others = b(x, others)
        for name, value in (want | states).items():
            assert_close((got | others)[name], value, "float32")


CELL = """
    step (float[N, 3] zi, float[N, 3] zf, float[N, 3] zg, float[N, 3] zo, float[N, 3] c)
      => (float[N, 3] h, float[N, 3] c_next{more_outputs})
    <float[3, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9}}>
    {{
        i = Sigmoid (zi)  f = Sigmoid (zf)  g = {g} (zg)
        fc = Mul (f, c)  ig = Mul (i, g)
        c_next = Add (fc, ig)
        {late}
        a = Tanh (c_next)
        h = Mul (o, a)
    }}"""


def cell(g: str = "Tanh", late: str = "o = Sigmoid (zo)", more_outputs: str = "") -> StepModel:
    return from_text(CELL.format(g=g, late=late, more_outputs=more_outputs), c="c_next")


def test_a_gate_that_something_else_reads_is_still_computed() -> None:
    step = cell(late="o = Sigmoid (zo)  forget = Identity (f)", more_outputs=", float[N, 3] forget")
    fused = fuse_gates(step)
    assert fused.op_types() == ["Sigmoid", "Identity", "Concat", "FusedGates_lstm"]
    assert_equal_runs(step, fused)


@pytest.mark.parametrize(
    "step",
    [
        cell(g="Sigmoid"),
        cell(g="Softsign"),
        cell(late="o = HardSigmoid (zo)"),
        cell(late="seen = MatMul (c_next, w)  late = Add (zo, seen)  o = Sigmoid (late)"),
    ],
    ids=["i and g alike", "another candidate", "gates of two kinds", "o behind a product with c'"],
)
def test_what_fused_gates_does_not_compute_stays(step: StepModel) -> None:
    assert fuse_gates(step).op_types() == step.op_types()


def test_a_cell_that_broadcasts_stays() -> None:
    text = CELL.format(g="Tanh", late="o = Sigmoid (zo)", more_outputs="")
    step = from_text(text.replace("float[N, 3] zf", "float[N, 1] zf"), c="c_next")
    assert fuse_gates(step).op_types() == step.op_types()


def test_a_clip_older_opsets_cannot_fuse_stays() -> None:
    step = cell(late="o = Sigmoid (zo)")
    model = step.copy_model()
    clip = onnx.helper.make_node("Clip", ["total"], ["c_next"], min=-1.0, max=1.0)
    position = next(k for k, node in enumerate(model.graph.node) if node.output[0] == "c_next")
    model.graph.node[position].output[0] = "total"
    model.graph.node.insert(position + 1, clip)
    model.opset_import[0].version = 9
    old = StepModel(model, step.signature)
    old.check()
    assert fuse_gates(old).op_types() == old.op_types()


def test_pre_activations_of_different_kinds_are_concatenated() -> None:
    text = CELL.format(g="Tanh", late="o = Sigmoid (zo)", more_outputs="")
    text = text.replace("float[N, 3] zi, float[N, 3] zf, float[N, 3] zg, float[N, 3] zo", "float[N, 3] x")
    text = text.replace(
        "{\n", "{ zi = MatMul (x, w)  zf = Gemm (x, w)  zg = Exp (x)  zo = MatMul (x, w)\n", 1
    )
    step = from_text(text, c="c_next")
    fused = fuse_gates(step)
    assert sorted(fused.op_types()) == ["Concat", "Exp", "FusedGates_lstm", "Gemm", "MatMul", "MatMul"]
    assert_equal_runs(step, fused)


@pytest.mark.parametrize("axis", [2, -1])
def test_channels_on_the_last_axis_become_rows_and_one_gemm(axis: int) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(2, 12)), "u": rng.normal(size=(3, 12)), "b": rng.normal(size=12)}
    listed = ", ".join(
        f"float[{', '.join(map(str, v.shape))}] {name} = {{{', '.join(map(repr, v.ravel().tolist()))}}}"
        for name, v in weights.items()
    )
    step = from_text(
        f"""
        step (float[N, 1, 2] x, float[N, 1, 3] h, float[N, 1, 3] c) => (float[N, 1, 3] h_next, float[N, 1, 3] c_next)
        <{listed}>
        {{
            xw = MatMul (x, w)  hu = MatMul (h, u)  s = Add (xw, hu)  z = Add (s, b)
            zi, zo, zf, zg = Split <axis = {axis}, num_outputs = 4> (z)
            i = Sigmoid (zi)  f = Sigmoid (zf)  o = Sigmoid (zo)  g = Tanh (zg)
            fc = Mul (f, c)  ig = Mul (i, g)
            c_next = Add (fc, ig)
            a = Tanh (c_next)
            h_next = Mul (o, a)
        }}""",
        h="h_next",
        c="c_next",
    )
    joined = join_inputs(fuse_gates(step))
    assert sorted(joined.op_types()) == ["Concat", "FusedGates_lstm", "Gemm", *["Reshape"] * 4]
    assert_equal_runs(step, joined)


def test_cells_of_another_exporter_with_packed_states(shared_dir: Path) -> None:
    """DTLN's second half: two LSTMs decomposed by keras2onnx, h and c of both in one state tensor."""
    path = shared_dir / "models" / "dtln" / "model_2.onnx"
    step = declare(path.read_bytes(), path.name, {"input_5": "tf_op_layer_stack_5"})
    fused = join_inputs(fuse_gates(simplify(step)))
    ops = fused.op_types()
    assert [ops.count(op) for op in ("FusedGates_lstm", "Gemm", "Split")] == [2, 2, 0]
    assert fused.signature == step.signature
    a, b = Stepper(step), Stepper(fused)
    states, others = a.initial(1), b.initial(1)
    rng = np.random.default_rng(0)
    for _ in range(300):
        x = {"input_4": rng.normal(0, 0.1, (1, 1, 512)).astype(np.float32)}
        want, states = a(x, states)
        got, others = b(x, others)
        for name, value in (want | states).items():
            assert np.abs((got | others)[name] - value).max() <= 1e-5 * np.abs(value).max()
